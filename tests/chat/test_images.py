"""Attachments to pictures: what is decoded how, and what is refused with which sentence."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import llm
import pytest
from PIL import Image, ImageDraw, ImageOps, PngImagePlugin

from llm_diffusiongemma.chat import images
from llm_diffusiongemma.chat.images import ATTACHMENT_TYPES, pictures
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


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp"])
def test_what_is_up(file_format: str, orientation: int) -> None:
    """As Pillow's own function has it, also for values that mean nothing."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    attachment = attached(Image.effect_noise((32, 16), 80).convert("RGB"), file_format, exif=exif)
    assert attachment.content is not None
    (picture,) = pictures(attachment)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(attachment.content)))
    assert (picture.image.size, picture.image.tobytes()) == (expected.size, expected.tobytes())
    assert picture.image.getexif().get(0x0112) is None  # nobody turns it once more


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp"])
def test_broken_exif_does_no_harm(file_format: str) -> None:
    """It is the camera's note, not the picture."""
    broken = attached(Image.new("RGB", (16, 16), (254, 0, 0)), file_format, exif=b"Exif\0\0no TIFF at all")
    pixel = corner(broken)
    assert all(abs(got - meant) < 8 for got, meant in zip(pixel, (254, 0, 0), strict=True))


GREY, RGB, PALETTE = 0, 2, 3  # PNG's colour types


def png(samples: Sequence[Sequence[int]], depth: int, colour: int, **chunks: bytes) -> llm.Attachment:
    """A PNG as its specification has it, of rows of samples; Pillow can't write all of them."""
    channels = 3 if colour == RGB else 1
    rows = b""
    for row in samples:
        bits = "".join(f"{sample:0{depth}b}" for sample in row)
        rows += b"\0" + int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8))

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", len(samples[0]) // channels, len(samples), depth, colour, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    for name, data in chunks.items():
        content += chunk(name.encode(), data)
    return llm.Attachment(
        type="image/png", content=content + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def two_bytes(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


@pytest.mark.parametrize(
    ("attachment", "left", "right"),
    [
        # Left in the shade that counts as transparent, right in another one.
        pytest.param(
            png([[0x6400, 0x6401]] * 2, 16, GREY, tRNS=two_bytes(0x6400)), WHITE, (100,) * 3, id="grey 16"
        ),
        pytest.param(png([[0, 0xFFFF]] * 2, 16, GREY, tRNS=two_bytes(0)), WHITE, WHITE, id="16, black"),
        pytest.param(
            png([[0x00C8, 0xC800]] * 2, 16, GREY, tRNS=two_bytes(0x00C8)), WHITE, (200,) * 3, id="low half"
        ),
        pytest.param(png([[0x6400, 0x0064]] * 2, 16, GREY), (100,) * 3, (0,) * 3, id="16, opaque"),
        pytest.param(png([[100, 101]] * 2, 8, GREY, tRNS=two_bytes(100)), WHITE, (101,) * 3, id="grey 8"),
        pytest.param(png([[5, 6]] * 2, 4, GREY, tRNS=two_bytes(5)), WHITE, (102,) * 3, id="grey 4"),
        pytest.param(png([[1, 2]] * 2, 2, GREY, tRNS=two_bytes(1)), WHITE, (170,) * 3, id="grey 2"),
        pytest.param(png([[0, 1]] * 2, 1, GREY, tRNS=two_bytes(0)), WHITE, WHITE, id="grey 1, black"),
        pytest.param(png([[0, 1]] * 2, 1, GREY, tRNS=two_bytes(1)), (0,) * 3, WHITE, id="grey 1, white"),
        pytest.param(
            png([[0x0A01, 0, 0x1402, 0x1E00, 0, 0]] * 2, 16, RGB, tRNS=two_bytes(0x0A01, 0, 0x1402)),
            WHITE,
            (30, 0, 0),
            id="colour 16",
        ),
        pytest.param(
            png([[10, 0, 20, 30, 0, 0]] * 2, 8, RGB, tRNS=two_bytes(10, 0, 20)), WHITE, (30, 0, 0), id="colour 8"
        ),
        pytest.param(
            png([[0, 1]] * 2, 2, PALETTE, PLTE=bytes([1, 2, 3, *RED]), tRNS=b"\0\xff"), WHITE, RED, id="palette"
        ),
        pytest.param(
            png([[0, 1]] * 2, 8, PALETTE, PLTE=bytes([0, 0, 0, *RED]), tRNS=b"\x80"), (127,) * 3, RED, id="half"
        ),
    ],
)
def test_transparent_values(attachment: llm.Attachment, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    (picture,) = pictures(attachment)
    assert (picture.image.getpixel((0, 0)), picture.image.getpixel((1, 1))) == (left, right)


@pytest.mark.parametrize(
    "place", ["profile", "odd profile", "text", "compressed text", "behind the pixels", "much text"]
)
def test_a_png_with_more_metadata_than_pillow_reads(place: str) -> None:
    """More than a megabyte when it is unpacked, or 64 in all; it is neither unpacked here nor let in elsewhere."""
    info = PngImagePlugin.PngInfo()
    long = "a" * (2 << 20)
    more: dict[str, Any] = {}
    if place == "profile":
        more["icc_profile"] = bytes(2 << 20)
    elif place == "odd profile":
        info.add(b"iCCP", b"packed in a way that nobody knows\0\1")
    elif place == "text":
        info.add_itxt("XML:com.adobe.xmp", long, zip=True)
    elif place == "compressed text":
        info.add_text("workflow", long, zip=True)
    elif place == "behind the pixels":
        info.add(b"zTXt", b"workflow\0\0" + zlib.compress(long.encode()), after_idat=True)
    else:
        for number in range(33):
            info.add_text(f"part {number}", long)
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (40, 20), RED)
    (picture,) = pictures(attached(image, pnginfo=info, exif=exif, **more))
    assert (picture.image.size, picture.image.getpixel((0, 0))) == ((20, 40), RED)
    assert PngImagePlugin.MAX_TEXT_CHUNK == 1 << 20


def test_a_small_note_in_a_png_still_says_what_is_up() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>')
    (picture,) = pictures(attached(Image.new("RGB", (40, 20), RED), pnginfo=info))
    assert picture.image.size == (20, 40)


@pytest.mark.parametrize(
    "name",
    [
        "image/jpg",
        "image/pjpeg",
        "image/x-png",
        "IMAGE/PNG",
        "Image/Jpg",
        "image/png; charset=binary",
        "image/x-bmp",
    ],
)
def test_other_names_of_the_types(name: str) -> None:
    attachment = attached(Image.new("RGB", (16, 16), RED), "png")
    attachment.type = name
    assert corner(attachment) == RED
    assert name in ATTACHMENT_TYPES


@pytest.mark.parametrize(
    "name", ["image/svg+xml", "image/heic", "text/html; image/png", "video/x-matroska", "", None]
)
def test_names_of_other_types(name: str | None) -> None:
    assert name not in ATTACHMENT_TYPES


# --- large images ----------------------------------------------------------------------------------------


def halves(mode: str, size: tuple[int, int]) -> Image.Image:
    """Left black, right grey."""
    image = Image.new("L", size)
    ImageDraw.Draw(image).rectangle((size[0] // 2, 0, *size), fill=200)
    if mode == "I;16":
        return image.convert("I").point(lambda value: value * 256).convert("I;16")
    return image.convert(mode, dither=Image.Dither.NONE)


@pytest.fixture
def little_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_SHOWN_PIXELS", 10_000)
    monkeypatch.setattr(images, "STRIP_ROWS", 16)


@pytest.mark.usefixtures("little_is_large")
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK"])
@pytest.mark.parametrize("size", [(150, 100), (200, 200), (640, 401), (4001, 30), (30, 4000)])
def test_a_large_image_is_made_smaller(mode: str, size: tuple[int, int]) -> None:
    image = halves(mode, size)
    file_format = "jpeg" if mode == "CMYK" else "png"
    (picture,) = pictures(attached(image, file_format))
    width, height = picture.image.size
    assert picture.image.mode == "RGB"
    # No larger than that, but not needlessly smaller, and of the same shape.
    assert 9_000 < width * height <= 10_000
    scale = (10_000 / (size[0] * size[1])) ** 0.5
    assert (width, height) == (pytest.approx(size[0] * scale, abs=2), pytest.approx(size[1] * scale, abs=2))
    light = 255 if mode == "1" else 200
    for x, y, expected in [(0, 0, 0), (0, -1, 0), (-1, 0, light), (-1, -1, light), (-1, height // 2, light)]:
        pixel = picture.image.getpixel((x % width, y % height))
        assert all(abs(got - expected) < 3 for got in pixel), (x, y)  # type: ignore[union-attr]


@pytest.mark.usefixtures("little_is_large")
def test_a_large_image_that_is_transparent_and_lies_on_its_side() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGBA", (400, 200), (0, 0, 0, 0))
    image.paste((*RED, 255), (0, 0, 200, 200))
    (picture,) = pictures(attached(image, exif=exif))
    assert picture.image.size == (70, 141)
    assert (picture.image.getpixel((35, 5)), picture.image.getpixel((35, 135))) == (RED, WHITE)


@pytest.mark.usefixtures("little_is_large")
def test_a_large_jpeg_is_never_decoded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    reduce = images._reduced

    def note(image: Image.Image) -> Image.Image:
        sizes.append(image.size)
        return reduce(image)

    monkeypatch.setattr(images, "_reduced", note)
    pictures(attached(Image.new("RGB", (1000, 800)), "jpeg"))
    assert sizes == [(125, 100)]


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp", "bmp"])
def test_other_images_are_shown_pixel_for_pixel(file_format: str) -> None:
    attachment = attached(Image.effect_noise((300, 200), 80).convert("RGB"), file_format)
    assert attachment.content is not None
    (picture,) = pictures(attachment)
    assert picture.image.tobytes() == Image.open(io.BytesIO(attachment.content)).convert("RGB").tobytes()


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
