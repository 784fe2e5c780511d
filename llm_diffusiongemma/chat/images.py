"""Attachments to pictures: an image is one, a video one for each instant that is shown of it.

Pillow and, for videos, PyAV are imported with the first attachment: llm loads this room with every command.
"""

from __future__ import annotations

import math
import struct
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import llm

from ..errors import ImageError
from ..wording import quoted
from .reading import Reader, check_size
from .videos import frames

if TYPE_CHECKING:
    from PIL import Image, ImageFile


class MediaTypes(frozenset[str]):
    """Names of media types. As in HTTP's headers capital letters don't matter, nor what follows a semicolon."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(media_type(name))


def media_type(name: str) -> str:
    """As tables have it."""
    return name.partition(";")[0].strip().lower()


# With the names that browsers and servers used before a format had a registered one, and some still do.
IMAGE_TYPES = MediaTypes(
    {
        *("image/png", "image/x-png", "image/apng", "image/vnd.mozilla.apng"),
        *("image/jpeg", "image/jpg", "image/pjpeg"),
        *("image/webp", "image/gif"),
        *("image/bmp", "image/x-bmp", "image/x-ms-bmp"),
    }
)
VIDEO_TYPES = MediaTypes({"video/mp4", "video/webm", "video/quicktime"})
ATTACHMENT_TYPES = MediaTypes(IMAGE_TYPES | VIDEO_TYPES)
READABLE = "PNG, JPEG, WebP, GIF and BMP images, and MP4, WebM and MOV videos"

# Pillow has decoders for dozens of formats; a file with a false type must not reach the odd ones.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# Where Pillow begins to warn of a decompression bomb. Decoded, that is a quarter of a gigabyte.
MAX_IMAGE_PIXELS = 89_478_485
# Where it raises. A JPEG can be decoded at a half, a quarter or an eighth of its size.
MAX_JPEG_PIXELS = 2 * MAX_IMAGE_PIXELS
# Of a BMP packed by run lengths, which Pillow unpacks in Python.
MAX_RUNS_PIXELS = 16_000_000
# What decoding may take of memory, at its peak and with the file itself: some less than the 300 MB that an
# attachment may cost, for there is more than pixels.
MAX_DECODING_BYTES = 250_000_000
MAX_FILE_BYTES = 100_000_000
# A progressive JPEG is gone through once for each of its scans, usually ten.
MAX_SCANNED_PIXELS = 1_500_000_000
# The most that a model looks at is 1,120 soft tokens of 48 × 48 pixels. A larger picture is made smaller as soon
# as it is decoded, but to twice that width and height: being made smaller twice must not blur it.
MAX_SHOWN_PIXELS = 4 * 1120 * 48 * 48
STRIP_PIXELS = 1 << 20

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Behind the signature the header's length and name, and the width and height.
PNG_BIT_DEPTH_AT = len(PNG_SIGNATURE) + 16
PNG_METADATA = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")

# How many bytes Pillow holds of a pixel, by mode; 4 of others.
BYTES_PER_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}
# libwebp's two canvases, what Pillow is given of one, and what it makes of that, each of 4; without loss one more.
WEBP_BYTES_PER_PIXEL = 16
WEBP_LOSSLESS_BYTES_PER_PIXEL = 20
JPEG_START_OF_SCAN, JPEG_END = b"\xff\xda", b"\xff\xd9"

# What must be done to a picture of that EXIF orientation, by Pillow's names.
UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


@dataclass(frozen=True)
class Picture:
    """What the model is shown."""

    image: Image.Image
    """RGB"""
    timestamp: str | None = None
    """`mm:ss` of a video's frame."""


@dataclass
class SentPicture(llm.Attachment):
    """A picture that a client has sent to a server: where it has it from, and when in a video."""

    name: str | None = None
    timestamp: str | None = None


@dataclass(frozen=True)
class MediaFile:
    """An attachment, read."""

    kind: str
    """One of `ATTACHMENT_TYPES`."""
    content: bytes
    name: str
    """What sentences call it."""


def pictures(attachment: llm.Attachment) -> list[Picture]:
    """What there is to see in an attachment.

    Raises `ImageError` if it can't be fetched or decoded, has an impossible size, is of another type, or is
    a video and PyAV is not installed.
    """
    file = fetch(attachment)
    if file.kind in VIDEO_TYPES:
        return [Picture(image, timestamp) for image, timestamp in frames(file.content, file.name)]
    timestamp = attachment.timestamp if isinstance(attachment, SentPicture) else None
    return [Picture(_decode(file.content, file.name), timestamp)]


def fetch(attachment: llm.Attachment) -> MediaFile:
    """What is in an attachment, undecoded.

    Raises `ImageError` if it can't be had, is empty or too large, or of a type that is not read.
    """
    name = _name(attachment)
    try:
        kind = attachment.type or attachment.resolve_type()  # type: ignore[no-untyped-call]
        if kind not in ATTACHMENT_TYPES:
            raise ImageError(
                f"{name} is of type {quoted(kind or 'unknown')}, but this model reads {READABLE}. "
                "Convert it first."
            )
        content = _content(attachment)
    except ImageError:
        raise
    except Exception as error:  # of the file system, of the HTTP library, of a URL that is none
        raise ImageError(f"{name} can't be read: {quoted(error)}") from error
    if not content:
        raise ImageError(f"{name} is empty.")
    if len(content) > MAX_FILE_BYTES:
        raise ImageError(
            f"{name} is larger than {MAX_FILE_BYTES // 10**6} MB, the most that is read of one. Make it smaller "
            "or shorter first."
        )
    return MediaFile(media_type(kind), content, name)


def place_of(attachment: llm.Attachment) -> str | None:
    """Where an attachment is from, if that is known."""
    where = attachment.name if isinstance(attachment, SentPicture) else attachment.path or attachment.url
    return quoted(where) if where else None


def _name(attachment: llm.Attachment) -> str:
    where = place_of(attachment)
    return f"The attachment {where}" if where else "An attachment"


def _content(attachment: llm.Attachment) -> bytes | None:
    """What is in it; of a file, which may have no end, no more than a byte beyond what is read."""
    if attachment.path and not attachment.content:
        with open(attachment.path, "rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    content: bytes | None = attachment.content_bytes()  # type: ignore[no-untyped-call]
    return content


def _decode(content: bytes, name: str, stripped_bytes: int = 0) -> Image.Image:
    """The first frame of an image file, upright, in RGB, on white where it is transparent.

    One of more than `MAX_SHOWN_PIXELS` is made smaller. `stripped_bytes` are held besides.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            # Of a large image, which is looked at below, and of notes that are broken, which don't matter.
            warnings.simplefilter("ignore")
            return _read(content, name, stripped_bytes)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name} has too many pixels: at most {MAX_JPEG_PIXELS:,} in a JPEG, and {MAX_IMAGE_PIXELS:,} in "
            "others. Scale it down first."
        ) from error
    except Exception as error:  # Pillow's decoders raise all kinds of errors for broken files
        # It refuses a PNG with more than a megabyte of a profile or text, too, which nobody looks at here.
        bare = _without_metadata(content)
        if bare is not None:
            return _decode(bare, name, len(content))
        raise ImageError(
            f"{name} is no image that can be decoded: the file is broken or of another type."
        ) from error


def _read(content: bytes, name: str, stripped_bytes: int) -> Image.Image:
    from PIL import ExifTags, Image

    if size := _webp_size(content):
        # Its canvases are made when it is opened.
        check_size(*size, MAX_IMAGE_PIXELS, name)
        _check_cost(*size, _webp_cost(*size, content), name)
    image = Image.open(Reader(content, name), formats=IMAGE_FORMATS)
    is_jpeg = image.format in ("JPEG", "MPO")
    most_pixels = MAX_JPEG_PIXELS if is_jpeg else MAX_RUNS_PIXELS if _has_runs(image) else MAX_IMAGE_PIXELS
    check_size(image.width, image.height, most_pixels, name)
    if is_jpeg:
        _choose_scale(image, content, name)
    elif image.format != "WEBP":
        cost = len(content) + stripped_bytes + _decoded_bytes(image) + _shown_bytes(image.width * image.height)
        _check_cost(image.width, image.height, cost, name)
    if image.format == "PNG":
        _mend_transparency(image, bit_depth=content[PNG_BIT_DEPTH_AT])
    image.load()
    try:
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # what the camera has noted is broken, not the picture
        turn = None
    shown = _reduced(image)
    return shown.transpose(Image.Transpose[turn]) if turn else shown


def _check_cost(width: int, height: int, cost: int, name: str) -> None:
    if cost > MAX_DECODING_BYTES:
        raise ImageError(
            f"{name} is {width:,} × {height:,} pixels, too large: decoding it takes {cost // 10**6} MB of memory, "
            f"and at most {MAX_DECODING_BYTES // 10**6} are spent on one. Scale it down first."
        )


def _decoded_bytes(image: ImageFile.ImageFile) -> int:
    """What a PNG, GIF or BMP takes decoded."""
    per_pixel = BYTES_PER_PIXEL.get(image.mode, 4)
    if image.format == "GIF":
        per_pixel += 1  # for what lies below the next frame
    elif _has_runs(image):
        per_pixel += 3
    return per_pixel * image.width * image.height


def _has_runs(image: ImageFile.ImageFile) -> bool:
    """Whether it is a BMP packed by run lengths."""
    return bool(image.tile) and image.tile[0][0] == "bmp_rle"


def _shown_bytes(pixels: int) -> int:
    """What is made of so many decoded pixels while they are there: see `_reduced`."""
    reduced = pixels // _factor(pixels) ** 2
    return 4 * min(reduced, math.isqrt(reduced * MAX_SHOWN_PIXELS))


def _webp_size(content: bytes) -> tuple[int, int] | None:
    """Width and height by a WebP's header; None for what is none."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP" or len(content) < 30:
        return None
    kind = content[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(content[24:27], "little"), 1 + int.from_bytes(content[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", content, 26)
    return width & 0x3FFF, height & 0x3FFF


def _webp_cost(width: int, height: int, content: bytes) -> int:
    per_pixel = WEBP_LOSSLESS_BYTES_PER_PIXEL if b"VP8L" in content else WEBP_BYTES_PER_PIXEL
    return per_pixel * width * height + 3 * len(content)


def _choose_scale(image: ImageFile.ImageFile, content: bytes, name: str) -> None:
    """Lets a JPEG be decoded at a half, a quarter or an eighth of its size, if it is large.

    Not smaller than `MAX_SHOWN_PIXELS`, or than any model looks at if it takes that to keep to the memory that
    there is for it.
    """
    width, height = image.size
    coefficients, scans = _scans(image, content)
    if scans * width * height > MAX_SCANNED_PIXELS:
        raise ImageError(
            f"{name} is {width:,} × {height:,} pixels in {scans:,} scans, which takes too long to decode. Save it "
            "anew with another program first."
        )
    cost = 0
    for scale in (1, 2, 4, 8):
        if 2 * scale <= _factor(width * height):
            continue
        pixels = math.ceil(width / scale) * math.ceil(height / scale)
        if scale > 1 and pixels < MAX_SHOWN_PIXELS // 4:
            break
        decoded = BYTES_PER_PIXEL.get(image.mode, 4) * pixels
        cost = len(content) + decoded + max(coefficients, _shown_bytes(pixels))
        if cost <= MAX_DECODING_BYTES:
            image.draft(None, (width // scale, height // scale))
            return
    _check_cost(width, height, cost, name)


def _scans(image: ImageFile.ImageFile, content: bytes) -> tuple[int, int]:
    """How many bytes of coefficients a JPEG's decoder keeps, and how often it goes through them.

    None where all colours come together, as they mostly do; else all, until the last scan has come.
    """
    layers = getattr(image, "layer", [])
    at = 2
    while at + 5 <= len(content) and content[at : at + 2] != JPEG_START_OF_SCAN:
        # Bytes between segments are passed over, as the decoder does.
        is_segment = content[at] == 0xFF and content[at + 1] not in (0, 0xFF)
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big") if is_segment else 1
    scans = content.count(JPEG_START_OF_SCAN, at, max(at, content.find(JPEG_END, at)))
    if at + 5 <= len(content) and content[at + 4] == len(layers) and not image.info.get("progressive"):
        return 0, scans
    widest = max((h for _, h, _, _ in layers), default=1) * max((v for _, _, v, _ in layers), default=1)
    samples = sum(image.width * image.height * h * v / (widest or 1) for _, h, v, _ in layers)
    return int(2 * samples), scans


def _factor(pixels: int) -> int:
    """By how much an image can be reduced, as a whole number, and still be larger than anybody looks at."""
    return max(1, math.isqrt(pixels // MAX_SHOWN_PIXELS))


def _reduced(image: Image.Image) -> Image.Image:
    """In RGB, and of no more than `MAX_SHOWN_PIXELS`. Closes the image.

    Strip by strip: what is made of the pixels on the way, up to four times their size, is never there for all of
    them. And first in width alone, so that the image is gone before the other half of the work.
    """
    from PIL import Image

    factor = _factor(image.width * image.height)
    width, height = math.ceil(image.width / factor), math.ceil(image.height / factor)
    scale = min(1, math.sqrt(MAX_SHOWN_PIXELS / (width * height)))
    shown_width, shown_height = max(1, int(width * scale)), max(1, int(height * scale))
    narrow = Image.new("RGB", (shown_width, height))
    rows = max(1, STRIP_PIXELS // image.width // factor) * factor
    for top in range(0, image.height, rows):
        strip = _to_rgb(image.crop((0, top, image.width, min(top + rows, image.height)))).reduce(factor)
        narrow.paste(strip.resize((shown_width, strip.height), Image.Resampling.BICUBIC), (0, top // factor))
    image.close()
    return narrow.resize((shown_width, shown_height), Image.Resampling.BICUBIC) if scale < 1 else narrow


def _to_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I"):
        # 16 bits, which a plain conversion would clip to white. The transparent shade is one of all 65,536.
        transparent = image.info.get("transparency")
        wide = image.convert("I")
        image = wide.point([value >> 8 for value in range(1 << 16)], "L")
        if transparent is not None:
            is_transparent = wide.point([255 * (value == transparent) for value in range(1 << 16)], "L")
            image.paste(255, mask=is_transparent)
            del image.info["transparency"]
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _mend_transparency(image: Image.Image, bit_depth: int) -> None:
    """Pillow scales the samples of a PNG to eight bits, but not the one that stands for transparent."""
    transparent = image.info.get("transparency")
    if image.mode == "L" and bit_depth < 8 and transparent is not None:
        image.info["transparency"] = transparent * 255 // ((1 << bit_depth) - 1)
    elif image.mode == "RGB" and bit_depth == 16 and transparent is not None:
        # It has forgotten the lower halves of the samples.
        image.info["transparency"] = tuple(sample >> 8 for sample in transparent)


def _without_metadata(content: bytes) -> bytes | None:
    """A PNG without the chunks that hold a colour profile or text; None for what has none, or is no PNG."""
    if not content.startswith(PNG_SIGNATURE):
        return None
    kept = [memoryview(PNG_SIGNATURE)]
    at = len(PNG_SIGNATURE)
    while at + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        end = at + 12 + length  # with the length, the name and the checksum
        if kind not in PNG_METADATA:
            kept.append(memoryview(content)[at:end])
        at = end
    bare = b"".join(kept)
    return bare if len(bare) < len(content) else None


def what_is(content: bytes) -> str | None:
    """What kind of picture or video begins like this, by the formats that are read: "a PNG image"."""
    if content[4:8] == b"ftyp":
        return "an MP4 or MOV video"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "a WebP image"
    if content[:2] == b"BM" and content[6:10] == bytes(4):
        return "a BMP image"
    beginnings = {
        b"\x89PNG\r": "a PNG image",
        b"\xff\xd8\xff": "a JPEG image",
        b"GIF87a": "a GIF image",
        b"GIF89a": "a GIF image",
        b"\x1aE\xdf\xa3": "a WebM video",
    }
    return next((kind for beginning, kind in beginnings.items() if content.startswith(beginning)), None)
