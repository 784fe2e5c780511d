"""Attachments to pictures: an image is one, a video one for each instant that is shown of it.

Pillow and, for videos, PyAV are imported with the first attachment: llm loads this room with every command.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import llm

from ..errors import ImageError
from ..installation import install_command

if TYPE_CHECKING:
    from PIL import Image


class MediaTypes(frozenset[str]):
    """Names of media types. As in HTTP's headers capital letters don't matter, nor what follows a semicolon."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(name.partition(";")[0].strip().lower())


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
MIN_SIDE_PIXELS = 2
# The most that a model looks at is 1,120 soft tokens of 48 × 48 pixels. A larger picture is made smaller as soon
# as it is decoded, but to twice that width and height: being made smaller twice must not blur it.
MAX_SHOWN_PIXELS = 4 * 1120 * 48 * 48
STRIP_ROWS = 64

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Behind the signature the header's length and name, and the width and height.
PNG_BIT_DEPTH_AT = len(PNG_SIGNATURE) + 16
PNG_METADATA = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")

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

MAX_FRAMES = 60
# No model looks at more of a frame than this, and sixty of them are held at once.
MAX_FRAME_SIDE_PIXELS = 1600


@dataclass(frozen=True)
class Picture:
    """What the model is shown."""

    image: Image.Image
    """RGB"""
    timestamp: str | None = None
    """`mm:ss` of a video's frame."""


def pictures(attachment: llm.Attachment) -> list[Picture]:
    """What there is to see in an attachment.

    Raises `ImageError` if it can't be fetched or decoded, has an impossible size, is of another type, or is
    a video and PyAV is not installed.
    """
    try:
        kind = attachment.type or attachment.resolve_type()  # type: ignore[no-untyped-call]
        if kind not in ATTACHMENT_TYPES:
            raise ImageError(
                f"{_name(attachment)} is of type {kind or 'unknown'}, but this model reads {READABLE}. "
                "Convert it first."
            )
        content = attachment.content_bytes()  # type: ignore[no-untyped-call]
    except ImageError:
        raise
    except Exception as error:  # of the file system, of the HTTP library, of a URL that is none
        raise ImageError(f"{_name(attachment)} can't be read: {error}") from error
    if kind in VIDEO_TYPES:
        return _frames(content, _name(attachment))
    return [Picture(_decode(content, _name(attachment)))]


def _name(attachment: llm.Attachment) -> str:
    where = attachment.path or attachment.url
    return f"The attachment {where}" if where else "An attachment"


def _decode(content: bytes, name: str) -> Image.Image:
    """The first frame of an image file, upright, in RGB, on white where it is transparent.

    One of more than `MAX_SHOWN_PIXELS` is made smaller.
    """
    from PIL import Image

    try:
        return _read(content, name)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} has too many pixels. Scale it down first.") from error
    except Exception as error:  # Pillow's decoders raise all kinds of errors for broken files
        # It refuses a PNG with more than a megabyte of a profile or text, too, which nobody looks at here.
        bare = _without_metadata(content)
        if bare is not None:
            return _decode(bare, name)
        raise ImageError(
            f"{name} is no image that can be decoded: the file is broken or of another type."
        ) from error


def _read(content: bytes, name: str) -> Image.Image:
    from PIL import ExifTags, Image

    with warnings.catch_warnings():
        # Too many pixels are refused below, before any is decoded.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)
    _check_size(image.width, image.height, name)
    if image.format == "PNG":
        _mend_transparency(image, bit_depth=content[PNG_BIT_DEPTH_AT])
    factor = _factor(image)
    # A JPEG can be decoded at a half, a quarter or an eighth of its size; other formats know no such thing.
    image.draft(None, (image.width // factor, image.height // factor))
    shown = _reduced(image)
    try:
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # what the camera has noted is broken, not the picture
        turn = None
    shown.info.clear()  # or somebody behind us would turn it once more
    return shown.transpose(Image.Transpose[turn]) if turn else shown


def _factor(image: Image.Image) -> int:
    """By how much an image can be reduced, as a whole number, and still be larger than anybody looks at."""
    return max(1, math.isqrt(image.width * image.height // MAX_SHOWN_PIXELS))


def _reduced(image: Image.Image) -> Image.Image:
    """In RGB, and of no more than `MAX_SHOWN_PIXELS`.

    Strip by strip: what is made of the pixels on the way, up to four times their size, is never there for all of
    them.
    """
    from PIL import Image

    pixels = image.width * image.height
    if pixels <= MAX_SHOWN_PIXELS:
        return _to_rgb(image)
    factor = _factor(image)
    reduced = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    rows = STRIP_ROWS * factor
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        reduced.paste(_to_rgb(strip).reduce(factor), (0, top // factor))
    scale = math.sqrt(MAX_SHOWN_PIXELS / (reduced.width * reduced.height))
    size = (max(1, int(reduced.width * scale)), max(1, int(reduced.height * scale)))
    return reduced if scale >= 1 else reduced.resize(size, Image.Resampling.BICUBIC)


def _check_size(width: int, height: int, name: str) -> None:
    if min(width, height) < MIN_SIDE_PIXELS:
        raise ImageError(f"{name} is {width} × {height} pixels, too small to show anything.")
    if width * height > MAX_IMAGE_PIXELS:
        raise ImageError(
            f"{name} is {width:,} × {height:,} pixels, too large: at most {MAX_IMAGE_PIXELS:,} in all. "
            "Scale it down first."
        )


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


@dataclass(frozen=True)
class _Instant:
    """A time at which a video is looked at."""

    pts: Fraction
    """in units of the stream's time base"""
    seconds: Fraction
    """from the video's own start"""
    decode_from: int
    """the packet, by its number, that decoding must begin with to get there"""

    @property
    def timestamp(self) -> str:
        return f"{int(self.seconds // 60):02}:{int(self.seconds % 60):02}"


def _frames(content: bytes, name: str) -> list[Picture]:
    """What a video shows at each second; of a long one at `MAX_FRAMES` instants, spread evenly over it.

    It is read from end to end twice, first without decoding it, rather than by jumping about in it: of what one
    needs for that, its length and an index, a browser's recording has neither.
    """
    try:
        import av
    except ImportError as error:
        raise ImageError(
            f"{name} is a video, and reading those takes an extra: {install_command('video')}"
        ) from error
    try:
        with av.open(io.BytesIO(content)) as container:
            stream = container.streams.best("video")
            instants = _instants(container.demux(stream), stream.time_base) if stream else []
        with av.open(io.BytesIO(content)) as container:
            shown = list(_show(container, instants)) if instants else []
    except av.error.FFmpegError as error:
        raise ImageError(f"{name} is no video that can be decoded: {error.strerror}.") from error
    if not shown:
        raise ImageError(f"{name} has no pictures in it.")
    _check_size(shown[0].image.width, shown[0].image.height, name)
    return shown


def _instants(packets: Iterator[Any], time_base: Fraction) -> list[_Instant]:
    """When to look at a video, by its packets in their order, which is that of decoding."""
    keys: list[tuple[int, int]] = []
    # When each frame is shown and for how long, in units of the time base. What an edit list cuts away isn't
    # shown, but may be needed to decode what is.
    times: list[tuple[int, int]] = []
    for number, packet in enumerate(packets):
        if packet.pts is None:
            continue
        if packet.is_keyframe:
            keys.append((number, packet.pts))
        if not packet.is_discard:
            times.append((packet.pts, packet.duration or 0))
    if not times:
        return []
    first = min(times)[0]
    last, last_duration = max(times)
    # A frame whose duration nobody knows is shown for a moment.
    end = last + max(last_duration, 1)
    # MP4 has the durations in the order of decoding, so that the last frame may have another one's. Their sum is
    # right, but WebM's are no more than hints.
    if first + sum(duration for _, duration in times) > last:
        end = min(end, first + sum(duration for _, duration in times))
    seconds = (end - first) * time_base
    interval = max(Fraction(1), seconds / MAX_FRAMES)
    instants = []
    for number in range(math.ceil(seconds / interval)):
        pts = first + number * interval / time_base
        before = (packet for packet, key in keys if key <= math.floor(pts))
        instants.append(_Instant(pts, number * interval, max(before, default=0)))
    return instants


def _show(container: Any, instants: list[_Instant]) -> Iterator[Picture]:
    """The picture that stands at each instant: the last that began by then. Decodes no more than it takes."""
    stream = container.streams.best("video")
    stream.thread_type = "AUTO"
    pending = deque(instants)
    standing: Any = None  # a frame
    image: Image.Image | None = None  # of it
    is_decoding = False
    for number, packet in enumerate(container.demux(stream)):
        if number < pending[0].decode_from and not is_decoding:
            continue
        is_decoding = True
        for frame in packet.decode():
            if frame.pts is None:
                continue
            while standing is not None and pending and frame.pts > pending[0].pts:
                image = image or _to_image(standing)
                yield Picture(image, pending.popleft().timestamp)
            standing, image = frame, None
        if not pending:
            return
        if number < pending[0].decode_from:
            stream.codec_context.flush_buffers()
            standing, is_decoding = None, False
    for instant in pending if standing is not None else ():
        image = image or _to_image(standing)
        yield Picture(image, instant.timestamp)


def _to_image(frame: Any) -> Image.Image:
    image: Image.Image = frame.to_image()
    if frame.rotation:  # filmed with a telephone held upright
        image = image.rotate(frame.rotation, expand=True)
    image.thumbnail((MAX_FRAME_SIDE_PIXELS, MAX_FRAME_SIDE_PIXELS))
    return image


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
