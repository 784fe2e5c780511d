"""Attachments to pictures: what is decoded how, and what is refused with which sentence."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llm
import pytest
from PIL import Image, ImageDraw, ImageFile, ImageOps, PngImagePlugin

from llm_diffusiongemma.chat import images, reading
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
    monkeypatch.setattr(images, "STRIP_PIXELS", 5000)


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
        pictures(llm.Attachment(type="image/png", content=png_header(*size, 1, GREY)))


def test_a_false_type_opens_no_odd_decoder() -> None:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "tiff")
    with pytest.raises(ImageError, match="can be decoded"):
        pictures(llm.Attachment(type="image/png", content=out.getvalue()))


# --- what would cost too much ------------------------------------------------------------------------------


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_header(width: int, height: int, depth: int = 8, colour: int = RGB) -> bytes:
    """The beginning of a PNG, as if its pixels followed."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"x")


def webp(kind: bytes, data: bytes) -> bytes:
    data = kind + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(data)) + b"WEBP" + data


def gif(screen: tuple[int, int], frame: tuple[int, int, int, int], extensions: bytes = b"") -> bytes:
    begin = b"GIF89a" + struct.pack("<HH", *screen) + b"\x80\0\0" + bytes(6)
    return begin + extensions + b"," + struct.pack("<HHHHB", *frame, 0) + b"\x02\x02\x44\x01\0;"


def bmp(width: int, height: int, bits: int, packing: int = 0, data: bytes = b"") -> bytes:
    """Packing 1 is by run lengths."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, packing, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(data), 0, 0, 54 + 1024) + header + bytes(1024) + data


def jpeg(size: tuple[int, int], mode: str = "L", **how: Any) -> bytes:
    content = attached(Image.new(mode, (16, 16)), "jpeg", **how).content
    assert content is not None
    return content.replace(struct.pack(">HH", 16, 16), struct.pack(">HH", size[1], size[0]), 1)


LARGE = "16,38[34] × 16,38[34] pixels, too large: at most 89,478,485"
TOO_LARGE = [
    pytest.param("webp", webp(b"VP8L", b"\x2f" + struct.pack("<I", 0x0FFFFFFF) + bytes(5)), LARGE, id="WebP"),
    pytest.param("webp", webp(b"VP8X", b"\x10\0\0\0" + b"\xff\x3f\0" * 2), LARGE, id="WebP's canvas"),
    pytest.param("webp", webp(b"VP8 ", b"\x10\0\0\x9d\x01\x2a" + b"\xff\x3f" * 2), LARGE, id="WebP, lossy"),
    pytest.param(
        "webp",
        webp(b"VP8L", b"\x2f" + struct.pack("<I", 4999 | 4999 << 14) + bytes(9)),
        "takes 500 MB",
        id="WebP, less large",
    ),
    pytest.param("gif", gif((65_535, 65_535), (0, 0, 1, 1)), "too many pixels: at most", id="GIF"),
    pytest.param("gif", gif((9, 9), (60_000, 60_000, 9, 9)), "too many pixels: at most", id="GIF's frame"),
    pytest.param("png", png_header(2, 44_739_242), "2 × 44,739,242 pixels, too long and narrow", id="narrow"),
    pytest.param("png", png_header(44_739_242, 2, 1, GREY), "44,739,242 × 2 pixels, too long and", id="flat"),
    pytest.param("png", png_header(65_536, 1000), "65,536 × 1,000 pixels, too long and narrow", id="wide"),
    pytest.param(
        "png", png_header(9000, 9000, 16, 6), "9,000 × 9,000 pixels, too large: .* at most 250", id="PNG"
    ),
    pytest.param(
        "png", png_header(2**31 - 1, 2**31 - 1), "too many pixels|2,147,483,647", id="as large as can be"
    ),
    pytest.param("bmp", bmp(9000, 9000, 24), "9,000 × 9,000 pixels, too large", id="BMP"),
    pytest.param(
        "bmp", bmp(30_000, 1000, 8, 1, b"\0\2\xff\xff"), "30,000 × 1,000 pixels, too large", id="BMP, packed"
    ),
    pytest.param("jpeg", jpeg((65_500, 65_500)), "too many pixels: at most 178,956,970 in a JPEG", id="JPEG"),
    pytest.param(
        "jpeg",
        jpeg((8000, 6000), "RGB", progressive=True, subsampling=0),
        "8,000 × 6,000 pixels, too large: .*takes 3.. MB",
        id="JPEG, progressive",
    ),
]


@pytest.mark.parametrize(("file_format", "content", "message"), TOO_LARGE)
def test_what_is_too_large_is_refused_by_its_header(
    file_format: str, content: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the size that it has and the one that it may have, and before a pixel is decoded."""
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=message):
        pictures(llm.Attachment(type=f"image/{file_format}", content=content))


@pytest.mark.parametrize(
    ("file_format", "content"),
    [
        pytest.param(
            "png",
            png_header(8, 8)[:33] + chunk(b"teSt", b"") * 500 + chunk(b"IDAT", zlib.compress(bytes(25 * 8))),
            id="chunks of a PNG",
        ),
        pytest.param("gif", gif((8, 8), (0, 0, 8, 8), b"!\xfe" + b"\x01a" * 500 + b"\0"), id="words of a note"),
        pytest.param("gif", gif((8, 8), (0, 0, 8, 8), b"!\xfe\x01a\0" * 500), id="notes of a GIF"),
        pytest.param(
            "jpeg", jpeg((16, 16)).replace(b"\xff\xdb", b"\xff\xe5\0\2" * 500 + b"\xff\xdb", 1), id="a JPEG"
        ),
        pytest.param("bmp", bmp(64, 64, 8, 1, b"\1\1" * 500), id="runs of a BMP"),
    ],
)
def test_no_end_of_small_parts(file_format: str, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them takes Pillow a while, and of some it keeps a note."""
    monkeypatch.setattr(reading, "MAX_READS", 400)
    with pytest.raises(ImageError, match="is made of more than 400 parts"):
        pictures(llm.Attachment(type=f"image/{file_format}", content=content))


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp", "gif", "bmp"])
def test_what_takes_too_long(file_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_SECONDS", -1)
    monkeypatch.setattr(reading, "READS_BETWEEN_CHECKS", 1)
    with pytest.raises(ImageError, match="seconds to read"):
        pictures(attached(Image.new("RGB", (16, 16)), file_format))


def test_a_jpeg_with_no_end_of_scans() -> None:
    """Each of them is a few bytes, and goes through the whole picture once more."""
    content = jpeg((1600, 1600), "RGB", progressive=True)
    second = content.index(b"\xff\xda", content.index(b"\xff\xda") + 2)
    third = content.index(b"\xff\xda", second + 2)
    content = content[:second] + content[second:third] * 1000 + content[second:]
    with pytest.raises(ImageError, match=r"1,600 × 1,600 pixels in 1,0\d\d scans, which takes too long"):
        pictures(llm.Attachment(type="image/jpeg", content=content))


@pytest.mark.parametrize(("share", "expected"), [(1, (1200, 900)), (0.6, (600, 450)), (0.01, None)])
def test_a_jpeg_is_decoded_as_large_as_memory_allows(
    share: float, expected: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not smaller than a model looks at it: `MAX_SHOWN_PIXELS` is four times that."""
    monkeypatch.setattr(images, "MAX_SHOWN_PIXELS", 1_000_000)
    monkeypatch.setattr(images, "MAX_DECODING_BYTES", share * 2 * 4 * 1200 * 900)
    attachment = attached(Image.new("RGB", (1200, 900)), "jpeg")
    if expected is None:
        with pytest.raises(ImageError, match="too large"):
            pictures(attachment)
        return
    decoded = []
    reduce = images._reduced
    monkeypatch.setattr(images, "_reduced", lambda image: decoded.append(image.size) or reduce(image))
    pictures(attachment)
    assert decoded == [expected]


# --- where attachments come from ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["\x1b]52;c;aGk=\x07.png", "\u202egnp.exe", "two\nlines.png", "long" * 500])
@pytest.mark.parametrize("where", ["path", "url", "type"])
def test_names_are_quoted(name: str, where: str) -> None:
    attachment = llm.Attachment(**{"type": "image/png", where: name})
    with pytest.raises(ImageError) as caught:
        pictures(attachment)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 1200


@pytest.mark.parametrize("kind", ["image/png", "video/mp4"])
def test_nothing_in_it(kind: str, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for attachment in (llm.Attachment(type=kind, path=str(tmp_path / "empty")), llm.Attachment(type=kind)):
        with pytest.raises(ImageError, match="is empty"):
            pictures(attachment)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="has no file without an end")
@pytest.mark.parametrize("kind", ["image/png", "video/mp4"])
def test_a_file_without_an_end(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 1_000_000)
    with pytest.raises(ImageError, match="/dev/zero is larger than 1 MB"):
        pictures(llm.Attachment(type=kind, path="/dev/zero"))
