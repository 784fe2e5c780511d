"""Images as a user has them: from a path, standard input, history, and what goes wrong with them."""

from __future__ import annotations

import asyncio
import itertools
import re
from pathlib import Path

import llm
import pytest
from PIL import Image

from .conftest import TINY, Llm

COLOURS = {"red": (220, 25, 25), "green": (25, 160, 45), "blue": (30, 60, 215)}
QUESTION = "What colour is this image?"
QUICK = ("-o", "max_denoising_steps", "2")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    paths = {}
    for name, colour in COLOURS.items():
        paths[name] = str(tmp_path / f"{name}.png")
        Image.new("RGB", (64, 48), colour).save(paths[name])
    return paths


@pytest.mark.parametrize("name", COLOURS)
def test_from_a_path(llm_command: Llm, files: dict[str, str], name: str) -> None:
    assert llm_command.ok("-m", TINY, QUESTION, "-a", files[name]) == f"The image is {name}."


@pytest.mark.parametrize("media_type", ["image/jpg", "image/PNG", "image/png; charset=binary"])
def test_a_type_by_another_name(llm_command: Llm, files: dict[str, str], media_type: str) -> None:
    """llm itself holds it against what the model reads."""
    assert llm_command.ok("-m", TINY, QUESTION, "--at", files["red"], media_type) == "The image is red."


def test_text_and_images_by_turns(files: dict[str, str]) -> None:
    """From Python, in the order that was given; the pictures in that of their soft tokens."""
    red, blue = (llm.Attachment(path=files[name], type="image/png") for name in ("red", "blue"))
    model = llm.get_model(TINY)
    model.prompt(messages=[llm.user("This", red, "or that", blue, QUESTION)]).text()
    first = kept_text()
    assert re.search(r"user\nThis<\|image>(#\d)<image\|>or that<\|image>(?!\1)#\d<image\|>What", first)
    model.prompt(messages=[llm.user("This", blue, "or that", red, QUESTION)]).text()
    assert kept_text() != first


def kept_text() -> str:
    """What the network has read last, with a number for the soft tokens of each picture."""
    from llm_diffusiongemma.backends.engine import get_engine

    engine = get_engine(llm.get_model(TINY).entry).engine
    kept = engine.pipeline.prefix_cache._kept
    assert kept is not None
    digests = sorted({each for each in kept.identities if isinstance(each, str)})
    text = ""
    for identity, run in itertools.groupby(kept.identities):
        text += f"#{digests.index(identity)}" if isinstance(identity, str) else engine.decode(list(run))
    return text


def test_more_pictures_than_the_context_holds(llm_command: Llm, files: dict[str, str]) -> None:
    """It is not the words that must be shortened."""
    attached = ("-a", files["red"]) * 5
    message = llm_command.fails("-m", TINY, "What is this?", *attached, "-o", "image_tokens", "1120")
    assert "Pictures take 5," in message
    assert "set image_tokens lower" in message


def test_from_standard_input(llm_command: Llm, files: dict[str, str]) -> None:
    image = Path(files["blue"]).read_bytes()
    assert llm_command.ok("-m", TINY, QUESTION, "-a", "-", input=image) == "The image is blue."


def test_on_a_second_turn(llm_command: Llm, files: dict[str, str]) -> None:
    llm_command.ok("-m", TINY, "What is entropy?")
    assert llm_command.ok("-c", QUESTION, "-a", files["green"]) == "The image is green."


def test_an_image_of_an_earlier_turn_stays_in_the_prompt(llm_command: Llm, files: dict[str, str]) -> None:
    llm_command.ok("-m", TINY, QUESTION, "-a", files["red"], *QUICK)
    llm_command.ok("-c", "What is entropy?", *QUICK)
    first, second = llm_command.logs()
    assert second["input_tokens"] > first["input_tokens"] > 70


def test_an_earlier_image_that_has_moved(llm_command: Llm, files: dict[str, str]) -> None:
    llm_command.ok("-m", TINY, QUESTION, "-a", files["red"])
    Path(files["red"]).unlink()
    assert files["red"] in llm_command.fails("-c", "What is entropy?")


def test_soft_tokens(llm_command: Llm, files: dict[str, str]) -> None:
    lengths = []
    for budget in ("70", "140", "280"):
        llm_command.ok("-m", TINY, QUESTION, "-a", files["red"], "-o", "image_tokens", budget)
        lengths.append(llm_command.logs()[-1]["input_tokens"])
    assert lengths[0] < lengths[1] < lengths[2] < lengths[0] + 280


def test_several_images(llm_command: Llm, files: dict[str, str]) -> None:
    llm_command.ok("-m", TINY, QUESTION, "-a", files["red"])
    llm_command.ok("-m", TINY, QUESTION, "-a", files["red"], "-a", files["blue"])
    one, two = llm_command.logs()
    assert two["input_tokens"] > one["input_tokens"] + 60


def test_an_image_without_a_question(llm_command: Llm, files: dict[str, str]) -> None:
    llm_command.ok("-m", TINY, "-a", files["red"], "")


def test_async(files: dict[str, str]) -> None:
    async def ask() -> str:
        attachment = llm.Attachment(path=files["red"], type="image/png")
        return await llm.get_async_model(TINY).prompt(QUESTION, attachments=[attachment]).text()

    assert asyncio.run(ask()) == "The image is red."


@pytest.mark.parametrize(
    ("size", "budget", "message"),
    [((1, 1), "70", "too small"), ((1, 4000), "70", "too small"), ((2, 20_000), "1120", "too long and narrow")],
)
def test_impossible_sizes(
    llm_command: Llm, tmp_path: Path, size: tuple[int, int], budget: str, message: str
) -> None:
    path = tmp_path / "odd.png"
    Image.new("RGB", size).save(path)
    assert message in llm_command.fails("-m", TINY, QUESTION, "-a", str(path), "-o", "image_tokens", budget)


def test_a_broken_image(llm_command: Llm, files: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(Path(files["red"]).read_bytes()[:60])
    llm_command.fails("-m", TINY, QUESTION, "-a", str(path))


def test_a_budget_that_there_is_not(llm_command: Llm, files: dict[str, str]) -> None:
    message = llm_command.fails("-m", TINY, QUESTION, "-a", files["red"], "-o", "image_tokens", "100")
    assert "70, 140, 280, 560, 1120" in message


def test_text_that_spells_the_image_token_is_no_image(llm_command: Llm, files: dict[str, str]) -> None:
    """It would break the count of images."""
    llm_command.ok("-m", TINY, "What is <|image|>?", *QUICK)
    llm_command.ok("-m", TINY, "What is <|image|>?", "-a", files["red"], *QUICK)


def test_a_video(llm_command: Llm, tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="needs the video extra")
    path = tmp_path / "red.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(6):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), COLOURS["red"]))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    llm_command.ok("-m", TINY, QUESTION, "-a", str(path))
    stamped = r"00:00 <\|image>#0<image\|> 00:01 <\|image>#0<image\|> 00:02 <\|image>#0<image\|>"
    assert re.search(rf"user\n{stamped}What", kept_text())
