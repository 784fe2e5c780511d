"""`llm -m` with a vLLM behind it: skipped unless one is named. `python -m tests.vllm VENV` starts one."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import llm
import pytest
from llm.parts import AttachmentPart, Message, ReasoningPart, TextPart, ToolCallPart, ToolResultPart
from PIL import Image

from llm_diffusiongemma.errors import ServerError

from ..chat.test_videos import film
from ..conftest import TINY, Llm
from ..test_tools import WEATHER
from .serving import CONTEXT, KEY, MOST_IMAGES, SERVED_MODEL

# conftest takes all such variables away from the tests.
SERVER = os.environ.get("LLM_DIFFUSIONGEMMA_TEST_SERVER", "")
if not SERVER:
    pytest.skip("needs LLM_DIFFUSIONGEMMA_TEST_SERVER, the URL of a vLLM", allow_module_level=True)
pytestmark = pytest.mark.vllm
BOX = "dg-box"
PATIENCE_SECONDS = 60
# Of which the network is sure, whatever is drawn.
QUESTIONS = (
    "What is a canvas?",
    "What is a denoising step?",
    "What is entropy?",
    "What is the encoder?",
    "What is a block?",
    "Who are you?",
    "Count from 1 to 40",
    "Count from 7 to 19",
    "Repeat: red cat moon river",
    "What is 4 + 5?",
    "Hi, I am Ada.",
    "What is the capital of Peru?",
    "name Ada, age 36",
)
# Two canvases, and the second one takes many steps.
LONG = "Count from 1 to 400"


@pytest.fixture
def box(llm_command: Llm) -> Llm:
    add(llm_command, BOX, SERVER)
    return llm_command


def add(llm_command: Llm, name: str, url: str, *options: str) -> None:
    llm_command.ok("keys", "set", "vllm", "--value", KEY)
    llm_command.ok("diffusiongemma", "add", name, url, "--key", "vllm", *options)


def metric(name: str) -> float:
    """A counter of the server's."""
    with urlopen(f"{SERVER.removesuffix('/v1')}/metrics", timeout=PATIENCE_SECONDS) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"vllm:{name}"))


def comes_to_pass(what: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE_SECONDS
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def tokens(turn: dict) -> tuple[int, int]:
    """Of the prompt and of the reply. vLLM counts the token that ends a reply, too."""
    ends = turn["model"] == BOX and turn["response_json"]["finish_reason"] != "length"
    return turn["input_tokens"], turn["output_tokens"] - ends


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_same_reply(box: Llm, question: str) -> None:
    """And of a prompt and a reply of as many tokens."""
    theirs, ours = box.ok("-m", BOX, question), box.ok("-m", TINY, question)
    assert theirs == ours
    here, there = box.logs()[1], box.logs()[0]
    assert tokens(there) == tokens(here)
    assert there["response_json"]["finish_reason"] == "stop"
    assert there["response_json"]["server"]


def test_a_system_prompt(box: Llm) -> None:
    asked = ("-s", "Answer in capitals.", "What is the encoder?")
    theirs, ours = box.ok("-m", BOX, *asked), box.ok("-m", TINY, *asked)
    assert theirs == theirs.upper() == ours


def test_several_canvases(box: Llm) -> None:
    chunks = list(llm.get_model(BOX).prompt(LONG))
    assert len(chunks) == 2
    assert chunks[0].startswith("1 2 3 4 5 6 7 8 9 10 ")


def test_a_thought(box: Llm) -> None:
    asked = ("-o", "thinking", "true", "What is 17 + 25?")
    theirs, ours = box("-m", BOX, *asked), box("-m", TINY, *asked)
    assert theirs.exit_code == ours.exit_code == 0
    assert (theirs.stdout, theirs.stderr) == (ours.stdout, ours.stderr)
    assert theirs.stdout == "17 + 25 = 42\n"
    assert "17 + 20" in theirs.stderr
    assert tokens(box.logs()[0]) == tokens(box.logs()[1])


def test_a_tool_and_its_result(box: Llm) -> None:
    asked = ("--functions", WEATHER, "What is the weather in Rome?")
    theirs, ours = box.ok("-m", BOX, *asked), box.ok("-m", TINY, *asked)
    assert theirs == ours == "The weather in Rome is sunny."
    call, answer, our_call, our_answer = box.logs()
    assert call["response_json"]["finish_reason"] == "tool_calls"
    assert [(each["name"], each["arguments"]) for each in call["tool_calls"]] == [("weather", {"city": "Rome"})]
    assert tokens(call) == tokens(our_call)
    assert tokens(answer) == tokens(our_answer)


def test_a_call_that_was_cut_is_not_run(box: Llm) -> None:
    """vLLM closes its arguments, so that they are valid JSON."""
    box.ok(
        "-m", BOX, "--functions", WEATHER, "What is the weather in Rome?", "-o", "max_tokens", "9", "--no-stream"
    )
    (turn,) = box.logs()
    assert turn["response_json"]["finish_reason"] == "length"
    assert turn["tool_calls"] == []


def test_a_picture(box: Llm, tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(MOST_IMAGES + 1)]
    for path in paths:
        Image.new("RGB", (64, 48), (220, 25, 25)).save(path)
    asked = ("What colour is this image?", "-a", str(paths[0]))
    theirs, ours = box.ok("-m", BOX, *asked), box.ok("-m", TINY, *asked)
    assert theirs == ours == "The image is red."
    assert tokens(box.logs()[0]) == tokens(box.logs()[1])
    too_many = [argument for path in paths for argument in ("-a", str(path))]
    assert f"At most {MOST_IMAGES} image(s)" in box.fails("-m", BOX, "What is this?", *too_many)


def test_a_video(box: Llm, tmp_path: Path) -> None:
    """Pictures with their times before them."""
    path = tmp_path / "video.mp4"
    path.write_bytes(film([0, 1, 1.5]).content)
    for model in (BOX, TINY):
        box.ok("-m", model, "What is a canvas?", "-a", str(path))
    there, here = box.logs()
    # Of a blank beside a time there may be one more or less.
    assert abs(there["input_tokens"] - here["input_tokens"]) <= 4


def test_a_conversation_goes_on(box: Llm) -> None:
    for model in (BOX, TINY):
        box.ok("-m", model, "My name is Ada.")
        box.ok("-c", "What is my name?")
    there, here = box.logs()[1], box.logs()[3]
    assert there["model"] == BOX
    assert "Ada" in there["response"]
    assert there["response"] == here["response"]
    assert tokens(there) == tokens(here)


def test_a_history_makes_the_same_prompt(box: Llm, tmp_path: Path) -> None:
    """Thoughts, calls, results and pictures of a turn before, as many tokens as this process makes of them."""
    picture = tmp_path / "red.png"
    Image.new("RGB", (64, 48), (220, 25, 25)).save(picture)
    call = ToolCallPart(name="weather", arguments={"city": "Rome"}, tool_call_id="tc_1")
    result = ToolResultPart(name="weather", output="sunny", tool_call_id="tc_1")
    history = [
        Message("system", [TextPart(text="Answer in capitals.")]),
        Message(
            "user", [TextPart(text="What is this?"), AttachmentPart(attachment=llm.Attachment(path=str(picture)))]
        ),
        Message("assistant", [ReasoningPart(text="A red image."), TextPart(text="The image is red.")]),
        Message("user", [TextPart(text="What is the weather in Rome?")]),
        Message("assistant", [ReasoningPart(text="I must look."), TextPart(text="Let me see."), call]),
        Message("tool", [result]),
        Message("assistant", [TextPart(text="The weather in Rome is sunny.")]),
        Message("user", [TextPart(text="What is a canvas?")]),
    ]
    # In the server's template every keyword of an object without properties would be one of them.
    schemas = ({"type": "object"}, {"properties": {"city": {"type": ["string", "null"]}}})
    tools = [llm.Tool(name=f"tool_{index}", input_schema=schema) for index, schema in enumerate(schemas)]
    for messages in (history, history[:6]):
        theirs, ours = (llm.get_model(model).prompt(messages=messages, tools=tools) for model in (BOX, TINY))
        assert theirs.text()
        ours.text()
        assert theirs.usage().input == ours.usage().input


def test_a_chat(box: Llm) -> None:
    result = box("chat", "-m", BOX, input="My name is Ada.\n!multi\nWhat is\nmy name?\n!end\nquit\n")
    assert result.exit_code == 0
    assert "Ada" in result.stdout.rpartition("> ")[0]
    assert len(box.logs()) == 2


def test_async(box: Llm) -> None:
    async def texts() -> list[str]:
        model = llm.get_async_model(BOX)
        return list(await asyncio.gather(*(model.prompt(question).text() for question in QUESTIONS[:3])))

    assert asyncio.run(texts()) == [box.ok("-m", TINY, question) for question in QUESTIONS[:3]]


def test_max_tokens(box: Llm) -> None:
    assert box.ok("-m", BOX, "Count from 1 to 40", "-o", "max_tokens", "10") == "1 2 3 4 5 6 7 8 9 10"
    (turn,) = box.logs()
    assert turn["response_json"]["finish_reason"] == "length"
    assert turn["output_tokens"] == 10


def test_denoising_steps(box: Llm) -> None:
    before = metric("diffusion_num_denoising_steps_total")
    box.ok("-m", BOX, "What is a canvas?", "-o", "max_denoising_steps", "1")
    # One, and one more that commits the canvas.
    assert comes_to_pass(lambda: metric("diffusion_num_denoising_steps_total") > before)
    assert metric("diffusion_num_denoising_steps_total") - before <= 2


@pytest.mark.parametrize(
    "option",
    [
        ("seed", "3"),
        ("regex", "a+"),
        ("choices", "yes,no"),
        ("entropy_bound", "0.2"),
        ("t_min", "0.1"),
        ("t_max", "0.9"),
        ("confidence_threshold", "0.1"),
        ("stability_threshold", "2"),
        ("image_tokens", "70"),
    ],
)
def test_what_it_can_not_do_is_refused_by_name(box: Llm, option: tuple[str, str]) -> None:
    """Before anything is sent: it would be ignored, or answered with the server's own words."""
    assert option[0] in box.fails("-m", BOX, "Hi", "-o", *option)


def test_a_schema_is_refused(box: Llm) -> None:
    assert "schema" in box.fails("-m", BOX, "--schema", "name, age int", "name Ada, age 36")


def test_errors(box: Llm) -> None:
    assert str(CONTEXT) in box.fails("-m", BOX, "word " * 2 * CONTEXT)
    assert str(CONTEXT) in box.fails("-m", BOX, "Hi", "-o", "max_tokens", str(4 * CONTEXT))
    add(box, "other", SERVER, "--served-model", "large")
    message = box.fails("-m", "other", "Hi")
    assert "large" in message
    assert SERVED_MODEL in message


def test_a_key(llm_command: Llm) -> None:
    """vLLM's refusal isn't in OpenAI's shape."""
    llm_command.ok("diffusiongemma", "add", BOX, SERVER)
    assert "wants a key" in llm_command.fails("-m", BOX, "Hi")
    llm_command.ok("keys", "set", "vllm", "--value", "another")
    llm_command.ok("diffusiongemma", "add", "other", SERVER, "--key", "vllm")
    assert "doesn't accept the key that `llm keys` has as vllm" in llm_command.fails("-m", "other", "Hi")


def test_a_control_token_in_a_text_is_none(box: Llm) -> None:
    """vLLM's tokenizer takes them for turns wherever they stand: this would be one token, two with the blank."""
    for question in ("What is a canvas?", "<|turn> What is a canvas?"):
        box.ok("-m", BOX, question)
    plain, forged = (turn["input_tokens"] for turn in box.logs())
    assert forged > plain + 2


@contextmanager
def given_up_within() -> Iterator[None]:
    """The server ends a request that was begun in here before it is answered."""
    answered = metric("request_success_total")
    yield
    assert comes_to_pass(lambda: metric("num_requests_running") == 0)
    assert metric("request_success_total") == answered


def test_who_cancels_stops_the_server(box: Llm) -> None:
    with given_up_within():
        blocks = iter(llm.get_model(BOX).prompt(LONG))
        next(blocks)
        blocks.close()


def test_a_cancelled_task_stops_the_server(box: Llm) -> None:
    async def cancel() -> None:
        begun = asyncio.Event()

        async def read() -> None:
            async for _ in llm.get_async_model(BOX).prompt(LONG):
                begun.set()

        task = asyncio.create_task(read())
        await asyncio.wait_for(begun.wait(), PATIENCE_SECONDS)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with given_up_within():
        asyncio.run(cancel())


def test_ctrl_c_keeps_what_there_is(box: Llm) -> None:
    with given_up_within():
        process = box.process("-m", BOX, LONG)
        assert process.stdout is not None
        beginning = process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_SECONDS) == 130
    (turn,) = box.logs()
    assert turn["response"].startswith(beginning)
    assert turn["response_json"]["finish_reason"] == "interrupted"


@contextmanager
def cut_after(num_bytes: int) -> Iterator[str]:
    """The URL of the same server behind a proxy that breaks an answer to a prompt off after so many bytes."""
    host = urlsplit(SERVER)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pass_on() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client, socket.create_connection((host.hostname, host.port or 80)) as server:
                    request = _request(client)
                    server.sendall(request)
                    left = num_bytes if request.startswith(b"POST") else 1 << 30
                    while left and (answer := server.recv(min(left, 1 << 16))):
                        client.sendall(answer)
                        left -= len(answer)

        thread = threading.Thread(target=pass_on, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(PATIENCE_SECONDS)


def _request(client: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        received += client.recv(1 << 16)
    head, _, body = received.partition(b"\r\n\r\n")
    lengths = [
        line.partition(b":")[2] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    ]
    while lengths and len(body) < int(lengths[0]):
        body += client.recv(1 << 16)
    head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection"))
    return head + b"\r\n\r\n" + body


# Before the head is whole, behind it, within the first event, behind the role, and before the end.
@pytest.mark.parametrize("num_bytes", [0, 40, 250, 320, 480, 800, 1000])
def test_a_stream_that_breaks_off_is_no_reply(llm_command: Llm, num_bytes: int) -> None:
    with cut_after(num_bytes) as url:
        add(llm_command, BOX, url)
        response = llm.get_model(BOX).prompt("What is a canvas?")
        with pytest.raises(ServerError):
            response.text()
    assert len(llm_command.logs()) == 0
