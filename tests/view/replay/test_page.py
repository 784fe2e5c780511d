"""The page of a replay: its file, and what a browser makes of it. No test waits for a time: Playwright waits until
something is so, and where time counts the clock is the test's."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llm_diffusiongemma.view.records import Likely, Snapshot
from llm_diffusiongemma.view.replay.page import packed, page
from llm_diffusiongemma.view.replay.recording import RecordedReply

from ...browsers import MissingBrowserError, chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

WORDS = ("One", " two", " three", ",", "\n", " four", " <b>", " خطوة")
NOISE_WORDS = (" fog", "\n\n", " mist", "ab", " 7", " haze", "?", " rain")
STEPS = 4
SIZE = len(WORDS)


def canvas(
    words: Sequence[str] = WORDS,
    *,
    block: int = 0,
    attempt: int = 0,
    redrawn: int = 0,
    steps: int = STEPS,
    kinds: str | None = None,
    end: int | None = None,
) -> list[Snapshot]:
    """Its positions are accepted one after the other, evenly over the steps: in the last one all but the very last
    are settled. Until then each is most likely something else, with an entropy that falls by half a step."""
    snapshots = []
    for step in range(1, steps + 1):
        since = [1 + position * steps // len(words) for position in range(len(words))]
        states = "".join("n" if step < each else "a" if step == each else "s" for each in since)
        entropies = [8 / 2**step if state == "n" else 0.004 / step for state in states]
        candidates = tuple(
            ((word, 0.9), (noise, 0.1)) if state != "n" else ((noise, 0.5), (word, 0.25), ("zz", 0.0001))
            for state, word, noise in zip(states, words, NOISE_WORDS * len(words), strict=False)
        )
        snapshots.append(
            Snapshot(
                attempt=attempt,
                block=block,
                step=step,
                max_steps=48,
                pieces=tuple(each[0][0] for each in candidates),
                kinds=kinds or "t" * len(words),
                states=states,
                end=end,
                mean_entropy=sum(entropies) / len(entropies),
                tokens_before=block * len(words),
                seconds=0.25 * (block * steps + step),
                likely=Likely(tuple(entropies), candidates),
                redrawn=redrawn,
            )
        )
    return snapshots


def recorded(
    snapshots: Sequence[Snapshot] = (),
    *,
    asked: str = "Name three animals",
    num_finished: int | None = None,
    settings: dict[str, Any] | None = None,
    text: str = "One two three",
) -> RecordedReply:
    if num_finished is None:
        num_finished = len({snapshot.block for snapshot in snapshots})
    return RecordedReply(
        model="diffusiongemma-tiny",
        prompt=(("system", "Be brief."), ("user", "Before?"), ("assistant", "Yes."), ("user", asked)),
        settings={"seed": 2**63 - 1} if settings is None else settings,
        figures={
            "finish_reason": "stop",
            "device": "cpu",
            "placement": {"network": "cpu"},
            "blocks": [{"tokens": SIZE, "denoising_steps": STEPS, "converged": True}] * num_finished,
        },
        snapshots=tuple(snapshots),
        text=text,
    )


def two_canvases() -> RecordedReply:
    return recorded([*canvas(), *canvas(block=1)])


# --- the file ---


def test_a_page_asks_for_nothing_and_runs_its_own_script_only() -> None:
    html = page([packed(two_canvases())])
    assert html == page([packed(two_canvases())])
    assert len(html) < 60_000
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    allowed = dict(rule.split(" ", 1) for rule in policy[1].split("; "))
    assert allowed["default-src"] == "'none'"
    for name, element in (("script-src", "script"), ("style-src", "style")):
        (content,) = re.findall(rf"<{element}>(.*?)</{element}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert allowed[name] == f"'sha256-{digest}'"
    # Words of others are in there as letters and digits only.
    (data,) = re.findall(r'id="data">(.*?)</script>', html, re.DOTALL)
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", data)
    assert "animals" not in html


# --- in a browser ---


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    try:
        with chromium() as browser:
            yield browser
    except MissingBrowserError as error:
        pytest.skip(str(error))


Open = Callable[..., "Page"]


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Opens replies from a file. Nothing else may be asked for, and nothing be complained of."""
    file = tmp_path / "out.html"
    requests: list[str] = []
    complaints: list[str] = []
    contexts = []

    def show(
        *replies: RecordedReply,
        is_still: bool = True,
        is_clock_ours: bool = False,
        width: int = 1280,
        **options: Any,
    ) -> Page:
        file.write_text(page([*map(packed, replies)]), encoding="utf-8")
        context = browser.new_context(
            reduced_motion="reduce" if is_still else "no-preference",
            viewport={"width": width, "height": 800},
            **options,
        )
        contexts.append(context)
        if is_clock_ours:
            context.clock.install(time=0)
            context.clock.pause_at(1)
        opened = context.new_page()
        opened.on("request", lambda request: requests.append(request.url))
        opened.on("console", lambda message: complaints.append(message.text))
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.goto(file.as_uri())
        return opened

    yield show
    for context in contexts:
        context.close()
    assert set(requests) <= {file.as_uri()}
    assert not complaints


def where(opened: Page) -> Locator:
    return opened.locator(".where")


def token(opened: Page, position: int) -> Locator:
    return opened.locator("#canvas > span").nth(position)


def at(opened: Page, canvas: int, step: int) -> None:
    from playwright.sync_api import expect

    # Without a text of its own, so that a failure shows what is there instead.
    expect(where(opened)).to_have_text(re.compile(rf"Canvas {canvas} of \d+ step {step} of \d+"))


@pytest.mark.browser
def test_it_plays_by_itself_to_the_end_pauses_and_plays_again(show: Open) -> None:
    from playwright.sync_api import expect

    opened = show(two_canvases(), is_still=False, is_clock_ours=True)
    play, clock = opened.locator("#play"), opened.clock
    expect(play).to_have_text("Pause")
    at(opened, 1, 1)
    clock.run_for(170)
    at(opened, 1, 2)
    play.click()
    expect(play).to_have_text("Play")
    clock.run_for(10_000)
    at(opened, 1, 2)
    opened.locator("#speed").select_option("24")
    play.click()
    clock.run_for(100)
    at(opened, 1, STEPS)
    clock.run_for(100)
    at(opened, 1, STEPS)  # what has come of it can be read for a moment
    clock.run_for(10_000)
    at(opened, 2, STEPS)
    expect(play).to_have_text("Again")
    opened.locator("body").press("Space")
    expect(play).to_have_text("Pause")
    at(opened, 1, 1)


@pytest.mark.browser
def test_every_step_is_reached_by_keys_buttons_and_pointer(show: Open) -> None:
    from playwright.sync_api import expect

    opened = show(two_canvases())
    expect(opened.locator("#play")).to_have_text("Play")  # who wants no motion starts it
    body, scrubber = opened.locator("body"), opened.locator("#scrubber")
    expected = [
        ("ArrowRight", 1, 2),
        ("End", 2, STEPS),
        ("ArrowLeft", 2, STEPS - 1),
        ("Shift+ArrowLeft", 2, 1),
        ("Shift+ArrowLeft", 1, 1),
        ("ArrowLeft", 1, 1),
        ("Shift+ArrowRight", 2, 1),
        ("Home", 1, 1),
    ]
    for key, canvas_number, step in expected:
        body.press(key)
        at(opened, canvas_number, step)
    opened.locator("#asked [tabindex]").press("End")  # scrolls there
    at(opened, 1, 1)
    for name, canvas_number, step in (("canvas-on", 2, 1), ("step-on", 2, 2), ("step-back", 2, 1)):
        opened.locator(f"#{name}").click()
        at(opened, canvas_number, step)
    opened.locator("#canvas-back").click()
    at(opened, 1, 1)

    box = scrubber.bounding_box()
    assert box is not None
    opened.mouse.click(box["x"] + box["width"] - 8, box["y"] + box["height"] / 2)
    at(opened, 2, STEPS)
    scrubber.press("ArrowLeft")
    at(opened, 2, STEPS - 1)
    expect(scrubber).to_have_attribute("aria-valuetext", f"Canvas 2 of 2, step {STEPS - 1} of {STEPS}")
    # Who listens is told where it stands now.
    expect(opened.locator("#said")).to_have_text(re.compile(rf"Canvas 2 of 2, step {STEPS - 1} of {STEPS}\. "))
    expect(opened.locator("#plot-entropy")).to_have_attribute(
        "aria-label", re.compile("Mean entropy of canvas 2: ")
    )


@pytest.mark.browser
def test_a_canvas_as_its_text_with_the_canvases_before(show: Open) -> None:
    from playwright.sync_api import expect

    kinds = "xrrtcctt"
    snapshots = [*canvas(), *canvas([*WORDS[:5], "<turn|>", "<pad>", "<pad>"], block=1, kinds=kinds, end=5)]
    reply = recorded(snapshots)
    reply.figures["blocks"] = [{"tokens": SIZE}, {"tokens": 5}]
    opened = show(reply)
    opened.locator("body").press("End")
    assert opened.locator("#past").text_content() == "".join(WORDS)
    assert opened.locator("#canvas").text_content() == "One two three,↵\n<turn|><pad><pad>"
    classes = [set((token(opened, position).get_attribute("class") or "").split()) for position in range(SIZE)]
    assert [position for position, names in enumerate(classes) if "z" in names] == [6, 7]
    assert ["".join(names & set("trcx")) for names in classes] == list(kinds)
    for words in ("thought", "tool call", "control token", "behind the end"):
        expect(opened.locator(".key").get_by_text(words)).to_be_visible()
    # What differs in kind or state differs in more than its colour.
    style = "each => ['fontStyle', 'fontWeight'].map((name) => getComputedStyle(each)[name])"
    keys = [opened.locator(f".key .{state}").evaluate(style) for state in "nas"]
    assert keys == [["italic", "400"], ["normal", "700"], ["normal", "400"]]


@pytest.mark.browser
def test_what_else_a_token_could_have_been(show: Open) -> None:
    from playwright.sync_api import expect

    opened = show(two_canvases())
    rows, title = opened.locator("#candidates tr"), opened.locator("#token-title")
    expect(opened.locator("#history")).to_be_hidden()
    token(opened, 6).hover()
    expect(title).to_have_text("Position 7")
    expect(rows).to_have_text(["?50.0 %", "␣<b>25.0 %", "zz< 0.1 %"])
    about = opened.locator("#token-about")
    expect(about).to_have_text("noise · text · entropy 4.00 nats · accepted for good in step 4")
    opened.mouse.move(0, 0)
    expect(opened.locator("#history")).to_be_hidden()

    # One stop of the Tab key for all tokens, and arrows between them.
    opened.locator("#scale input:checked").focus()
    opened.keyboard.press("Tab")
    expect(token(opened, 0)).to_be_focused()
    for key, position in (("ArrowRight", 1), ("End", 7), ("ArrowLeft", 6), ("Home", 0)):
        opened.keyboard.press(key)
        expect(token(opened, position)).to_be_focused()
        expect(title).to_have_text(f"Position {position + 1}")
    expect(opened.locator("#canvas > [tabindex='0']")).to_have_count(1)
    at(opened, 1, 1)

    token(opened, 6).click()
    history = opened.locator("#steps tr")
    expect(history).to_have_count(STEPS)
    history.nth(STEPS - 1).click()
    at(opened, 1, STEPS)
    expect(rows).to_have_text(["␣<b>90.0 %", "?10.0 %"])
    # There are two lines now, of which the second begins with position 6.
    token(opened, 5).click()
    for key, position in (("ArrowUp", 0), ("ArrowUp", 0), ("ArrowDown", 5), ("ArrowDown", 5)):
        opened.keyboard.press(key)
        expect(token(opened, position)).to_be_focused()
    expect(opened.locator("#canvas > [aria-selected='true']")).to_have_text(" four")
    opened.keyboard.press("Escape")
    expect(opened.locator("#history")).to_be_hidden()
    expect(token(opened, 5)).to_be_focused()
    token(opened, 5).click()
    expect(opened.locator("#history")).to_be_visible()
    opened.locator("#close").click()
    expect(token(opened, 5)).to_be_focused()
    # It plays until somebody looks at a token.
    opened.locator("#speed").select_option("1")
    opened.locator("body").press("Home")
    opened.locator("body").press(" ")
    expect(opened.locator("#play")).to_contain_text("Pause")
    token(opened, 4).click()
    assert "Play" in opened.locator("#play").inner_text()


# Of a token's colours, as fractions: the contrast by WCAG 2.2.
CONTRASTS = """() => {
  const luminance = (color) => {
    const linear = (part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = color.match(/[\\d.]+/g).map((part) => linear(part / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const canvas = document.querySelector("#canvas");
  const card = getComputedStyle(canvas).backgroundColor;
  const sample = document.querySelector("#canvas > span");
  const found = [];
  for (const scale of ["entropy", "kept"]) {
    canvas.className = `canvas text by-${scale}`;
    for (let level = 0; level < 10; level++) for (const state of ["n", "a", "s", "s z"]) {
      sample.className = `tk ${state} ${scale[0]}${level}`;
      const { color, backgroundColor } = getComputedStyle(sample);
      const behind = backgroundColor === "rgba(0, 0, 0, 0)" ? card : backgroundColor;
      const [low, high] = [luminance(color), luminance(behind)].sort((a, b) => a - b);
      found.push([`${scale} ${level} ${state}`, behind, (high + 0.05) / (low + 0.05)]);
    }
  }
  return found;
}"""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_tokens_are_readable_on_every_colour(scheme: str, show: Open) -> None:
    opened = show(two_canvases(), color_scheme=scheme)
    assert opened.locator("#canvas").get_attribute("class") == "canvas text by-entropy"
    opened.locator("body").press("End")
    opened.locator("#step-back").click()
    opened.get_by_label("When accepted").check()
    assert opened.locator("#canvas").get_attribute("class") == "canvas text by-kept"
    # In the step before the last it is not yet known of what the last one accepts.
    levels = [
        re.findall(r"\bk(\d)\b", token(opened, position).get_attribute("class") or "") for position in range(8)
    ]
    assert levels == [["0"], ["0"], ["3"], ["3"], ["6"], ["6"], [], []]

    contrasts = opened.evaluate(CONTRASTS)
    assert len({behind for _, behind, _ in contrasts}) == 20
    assert not [(what, contrast) for what, _, contrast in contrasts if contrast < 4.5]


HOSTILE = (
    "</script><script>owned = 1</script>",
    "<img src=x onerror='owned = 1'>",
    "<!--<script>",
    "]]>&lt;\u2028\u2029",
    "\ud83d",
    "\0\x1b[31m\x07",
    "__proto__",
    "\u202ereversed\u200b\u2066",
    "x" * 100_000,
    "javascript:owned=1",
    "{{constructor}}",
    "👩\u200d🚀",
)


@pytest.mark.browser
def test_words_of_others_are_words(show: Open) -> None:
    from playwright.sync_api import expect

    everything = "".join(HOSTILE)
    settings = {"__proto__": {"constructor": "<i>"}, HOSTILE[0]: HOSTILE[1], "not a number": float("nan")}
    reply = recorded(canvas(HOSTILE), asked=everything, settings=settings, text=everything)
    reply.figures["blocks"] = [{"tokens": len(HOSTILE), "__proto__": HOSTILE[1]}]
    reply.figures[HOSTILE[1]] = {"toString": [HOSTILE[0]]}
    later = recorded(canvas(HOSTILE, block=0), asked=HOSTILE[0])
    opened = show(reply, later)
    opened.locator("body").press("End")
    for position in range(len(HOSTILE)):
        token(opened, position).click()
    opened.locator("details > summary").evaluate_all("all => all.forEach(each => each.click())")

    # Nothing of it is an element, or has run.
    assert opened.evaluate("typeof owned") == "undefined"
    assert (
        opened.locator("body img, body i:not(.ribbon i, .bar i, .colours i), body b:not(.message b)").count() == 0
    )
    assert opened.locator("script").count() == 2
    # All of it can be seen.
    assert token(opened, 0).text_content() == HOSTILE[0]
    shown = [token(opened, position).text_content() for position in (3, 4, 5, 7, 11)]
    assert shown == [
        r"]]>&lt;\u2028\u2029",
        r"\ud83d",
        r"\x00\x1b[31m\x07",
        r"\u202ereversed\u200b\u2066",
        "👩\u200d🚀",
    ]
    assert len(token(opened, 8).text_content() or "") < 200
    answer = opened.locator("#answer").text_content() or ""
    assert answer.startswith("</script><script>owned = 1</script><img src=x")
    assert not set(answer) & set("\0\x1b\u2028\u202e\u200b\u2066\ud83d")
    expect(opened.locator("#settings")).to_contain_text("proto")
    expect(opened.locator("#settings tr").last).to_have_text("not a numbernan")
    expect(opened.locator("#reply option").nth(1)).to_have_text(f"2. {HOSTILE[0]}")


@pytest.mark.browser
def test_a_canvas_that_was_drawn_again(show: Open) -> None:
    from playwright.sync_api import expect

    drafted = recorded([*canvas(end=3), *canvas(redrawn=1), *canvas(block=1)], settings={"draft": "One"})
    opened = show(drafted)
    expect(opened.locator(".lead")).to_contain_text("They start as a draft with noise in it;")
    note, forth = opened.locator("#note"), opened.locator("#canvas-on")
    at(opened, 1, 1)
    expect(note).to_contain_text("came out empty, so it was drawn again")
    forth.click()
    expect(where(opened)).to_have_text("Canvas 1 of 2, draw 2 step 1 of 4")
    expect(note).to_be_hidden()
    expect(opened.locator("#past")).to_be_hidden()
    forth.click()
    at(opened, 2, 1)
    assert opened.locator("#past").text_content() == "".join(WORDS)


@pytest.mark.browser
def test_several_replies_and_what_was_not_the_reply(show: Open) -> None:
    from playwright.sync_api import expect

    twice = recorded([*canvas(), *canvas(attempt=1), *canvas(attempt=1, block=1)], num_finished=1)
    interrupted = recorded(asked="And then?", num_finished=0)
    interrupted.figures["finish_reason"] = "interrupted"
    twice.figures.update(finish_reason="error", error="<b>Full</b>\x1b")
    cut = two_canvases()
    cut.figures.update(seed=2**63 - 1, lowered=[], server=None, tokens_per_forward=8.5)
    cut.figures["blocks"] = [{"tokens": SIZE}, {"tokens": 6}]
    opened = show(cut, twice, interrupted)
    note = opened.locator("#note")
    expect(opened.locator("#asked")).to_contain_text("animals")
    expect(opened.locator("#earlier summary")).to_have_text("3 messages before")
    expect(opened.locator("#settings")).to_have_text(
        re.compile(str(2**63 - 1))
    )  # which JavaScript has no number for
    figures = opened.locator("#figures tr")
    expect(figures).to_have_text(["endedstop", "devicecpu", "networkcpu", "tokens a step8.5"])
    expect(note).to_be_hidden()
    opened.locator("body").press("End")
    # What the budget has no room for is no part of the reply.
    expect(opened.locator("#canvas > .z")).to_have_text([WORDS[6], WORDS[7]])
    broken = opened.locator("#broken")
    expect(broken).to_be_hidden()
    opened.locator("#reply").select_option("1")
    expect(broken).to_have_text(r"This reply was broken off by an error: <b>Full</b>\x1b")
    expect(note).to_contain_text("not the reply")
    opened.locator("#canvas-on").click()
    expect(note).to_be_hidden()
    at(opened, 1, 1)
    expect(opened.locator("#past")).to_be_hidden()  # it was another attempt's
    opened.locator("#canvas-on").click()
    expect(note).to_contain_text("not finished")
    opened.locator("#reply").select_option("2")
    expect(note).to_contain_text("before its first denoising step")
    expect(broken).to_have_text("This reply was interrupted.")
    expect(opened.locator("#play")).to_be_hidden()
    opened.locator("body").press("ArrowRight")
    opened.locator("#reply").select_option("0")
    at(opened, 1, 1)
    expect(opened.locator("#play")).to_be_visible()


@pytest.mark.browser
def test_a_long_reply_on_a_narrow_screen(show: Open) -> None:
    from playwright.sync_api import expect

    words = [f" word{position}" for position in range(32)]
    snapshots = [step for block in range(30) for step in canvas(words, block=block, steps=48)]
    reply = recorded(snapshots, asked="long" * 200)
    reply.figures["blocks"] = [{"tokens": 32, "denoising_steps": 48}] * 30
    opened = show(reply, width=360, has_touch=True)
    expect(opened.locator("#scrubber")).to_have_attribute("max", str(30 * 48 - 1))
    opened.locator("body").press("End")
    at(opened, 30, 48)
    token(opened, 3).tap()
    expect(opened.locator("#steps tr")).to_have_count(48)
    # The canvas at hand alone is there as tokens.
    assert opened.locator("#canvas > span").count() == 32
    assert opened.locator("*").count() < 1500
    for box in ("html", "#asked .text"):  # neither goes off to the side
        assert opened.locator(box).evaluate("box => box.scrollWidth - box.clientWidth") == 0
    for name in ("play", "canvas-back", "step-back", "step-on", "canvas-on", "speed", "scrubber", "close"):
        box = opened.locator(f"#{name}").bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360


@pytest.mark.browser
def test_a_page_that_cannot_be_read_says_so(browser: Browser, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    html = page([packed(two_canvases())])
    cut, old, empty = (tmp_path / name for name in ("cut.html", "old.html", "empty.html"))
    cut.write_text(re.sub(r'(id="data">.{400})[^<]*', r"\1", html), encoding="utf-8")
    old.write_text(html, encoding="utf-8")
    empty.write_text(page([]), encoding="utf-8")
    with browser.new_context() as context:
        opened = context.new_page()
        trouble = opened.locator("#trouble")
        opened.goto(cut.as_uri())
        expect(trouble).to_contain_text("can't be read")
        opened.goto(empty.as_uri())
        expect(trouble).to_contain_text("No reply")
        opened.add_init_script("delete window.DecompressionStream")
        opened.goto(old.as_uri())
        expect(trouble).to_contain_text("This browser")
