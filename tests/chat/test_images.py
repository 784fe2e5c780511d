"""Attachments to pictures: what is decoded how, and what is refused with which sentence."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import llm
import pytest
from PIL import Image

from llm_diffusiongemma.chat import images
from llm_diffusiongemma.chat.images import MAX_FRAMES, pictures
from llm_diffusiongemma.errors import ImageError

RED = (220, 25, 25)
WHITE = (255, 255, 255)


def attached(image: Image.Image, file_format: str = "png", **how: Any) -> llm.Attachment:
    out = io.BytesIO()
    image.save(out, file_format, **how)
    return llm.Attachment(type=f"image/{file_format}", content=out.getvalue())


def corner(attachment: llm.Attachment) -> tuple[int, ...]:
    (picture,) = pictures(attachment)
    assert picture.image.mode == "RGB"
    pixel = picture.image.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp", "gif", "bmp"])
def test_formats(file_format: str) -> None:
    pixel = corner(attached(Image.new("RGB", (20, 10), RED), file_format))
    assert all(abs(got - meant) < 8 for got, meant in zip(pixel, RED, strict=True))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (4, 4), (*RED, 255)), RED),
        # What is under full transparency is often black; a page is white.
        (Image.new("RGBA", (4, 4), (0, 0, 0, 0)), WHITE),
        (Image.new("LA", (4, 4), (0, 0)), WHITE),
        (Image.new("L", (4, 4), 100), (100, 100, 100)),
        (Image.new("1", (4, 4), 1), WHITE),
        (Image.new("RGB", (4, 4), RED).convert("P"), None),
        # Sixteen bits: clipping would make it white.
        (Image.new("I;16", (4, 4), 0x6400), (100, 100, 100)),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_modes(image: Image.Image, expected: tuple[int, ...] | None) -> None:
    assert corner(attached(image)) == (expected or image.convert("RGB").getpixel((0, 0)))


def test_cmyk() -> None:
    assert corner(attached(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "jpeg")) == WHITE


def test_the_first_frame_of_an_animation() -> None:
    others = [Image.new("RGB", (16, 16), "blue")]
    moving = attached(Image.new("RGB", (16, 16), "red"), "gif", save_all=True, append_images=others)
    assert corner(moving) == (255, 0, 0)


def test_a_photograph_taken_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    (picture,) = pictures(attached(Image.new("RGB", (40, 20)), "jpeg", exif=exif))
    assert picture.image.size == (20, 40)


def test_a_type_nobody_named_is_found_out() -> None:
    attachment = attached(Image.new("RGB", (4, 4), RED))
    attachment.type = None
    assert corner(attachment) == RED


@pytest.mark.parametrize(
    ("attachment", "message"),
    [
        (llm.Attachment(type="application/pdf", content=b"%PDF"), "application/pdf"),
        (llm.Attachment(type="image/png", content=b"no image"), "can be decoded"),
        (llm.Attachment(type="image/png", path="gone.png"), r"gone\.png can't be read"),
        (llm.Attachment(type="image/png", url="http://127.0.0.1:9/x.png"), r"127\.0\.0\.1:9/x\.png can't be read"),
        (attached(Image.new("RGB", (1, 1))), "too small"),
    ],
)
def test_refused(attachment: llm.Attachment, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        pictures(attachment)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_cut_off(share: float) -> None:
    whole = attached(Image.effect_noise((64, 64), 50)).content
    assert whole is not None
    with pytest.raises(ImageError, match="can be decoded"):
        pictures(llm.Attachment(type="image/png", content=whole[: int(len(whole) * share)]))


@pytest.mark.parametrize("size", [(10_000, 9_000), (20_000, 20_000)])
def test_a_decompression_bomb(size: tuple[int, int]) -> None:
    """Refused before it is decoded, whether Pillow only warns of it or raises."""
    with pytest.raises(ImageError, match=r"too (many|large)"):
        pictures(attached(Image.new("1", size)))


def test_a_false_type_opens_no_odd_decoder() -> None:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "tiff")
    with pytest.raises(ImageError, match="can be decoded"):
        pictures(llm.Attachment(type="image/png", content=out.getvalue()))


# --- videos ----------------------------------------------------------------------------------------------


def film(path: Path, seconds: int, codec: str = "mpeg4", per_second: int = 2) -> llm.Attachment:
    """A video that gets lighter from second to second."""
    av = pytest.importorskip("av", reason="needs the video extra")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=per_second)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(seconds * per_second):
            grey = 255 * number // (seconds * per_second)
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), (grey, grey, grey)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return llm.Attachment(path=str(path))


@pytest.mark.parametrize(("ending", "codec"), [("mp4", "mpeg4"), ("mov", "mpeg4"), ("webm", "libvpx-vp9")])
def test_a_frame_a_second(tmp_path: Path, ending: str, codec: str) -> None:
    shown = pictures(film(tmp_path / f"film.{ending}", 4, codec))
    assert [picture.timestamp for picture in shown] == ["00:00", "00:01", "00:02", "00:03"]
    greys = [picture.image.getpixel((30, 30))[0] for picture in shown]  # type: ignore[index]
    assert all(abs(grey - 255 * second / 4) < 20 for second, grey in enumerate(greys)), greys


@pytest.mark.parametrize("seconds", [90, 900])
def test_a_long_video_is_shown_from_end_to_end(tmp_path: Path, seconds: int) -> None:
    """Also where it jumps from frame to frame rather than decode all between."""
    shown = pictures(film(tmp_path / "film.mp4", seconds))
    assert len(shown) == MAX_FRAMES
    for number, picture in enumerate(shown):
        due = number * seconds / MAX_FRAMES
        assert picture.timestamp == f"{int(due) // 60:02}:{int(due) % 60:02}"
        grey = picture.image.getpixel((30, 30))[0]  # type: ignore[index]
        assert abs(grey - 255 * due / seconds) < 20


def test_a_broken_video(tmp_path: Path) -> None:
    attachment = film(tmp_path / "film.mp4", 3)
    path = tmp_path / "film.mp4"
    path.write_bytes(path.read_bytes()[:200])
    attachment.type = "video/mp4"
    with pytest.raises(ImageError, match="is no video"):
        pictures(attachment)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImageError, match=r"llm-diffusiongemma\[video\]"):
        pictures(llm.Attachment(type="video/mp4", content=b"any"))


def test_frames_are_no_larger_than_the_model_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_FRAME_SIDE_PIXELS", 16)
    assert pictures(film(tmp_path / "film.mp4", 1))[0].image.size == (16, 12)
