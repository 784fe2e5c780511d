"""Attachments to pictures: an image is one, a video one for each second that is shown of it.

Pillow and, for videos, PyAV are imported with the first attachment: llm loads this room with every command.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import llm

from ..errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

# What libmagic and its relatives call a BMP differs.
IMAGE_TYPES = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/x-ms-bmp"})
VIDEO_TYPES = frozenset({"video/mp4", "video/webm", "video/quicktime"})
READABLE = "PNG, JPEG, WebP, GIF and BMP images, and MP4, WebM and MOV videos"

# Pillow has decoders for dozens of formats; a file with a false type must not reach the odd ones.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# Where Pillow begins to warn of a decompression bomb. Decoded, that is a quarter of a gigabyte.
MAX_IMAGE_PIXELS = 89_478_485
MIN_SIDE_PIXELS = 2

MAX_FRAMES = 60
SECONDS_BETWEEN_FRAMES = 1.0
# From this distance on it is cheaper to jump to the key frame before the next frame than to decode all between.
SEEK_FROM_SECONDS = 10.0
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
        if kind not in IMAGE_TYPES | VIDEO_TYPES:
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
    """The first frame of an image file, upright, in RGB, on white where it is transparent."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            # Too many pixels are refused below, before any is decoded.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)
        _check_size(image.width, image.height, name)
        return _to_rgb(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} has too many pixels. Scale it down first.") from error
    except Exception as error:  # Pillow's decoders raise all kinds of errors for broken files
        raise ImageError(
            f"{name} is no image that can be decoded: the file is broken or of another type."
        ) from error


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
        # 16 bits, which a plain conversion would clip to white.
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _frames(content: bytes, name: str) -> list[Picture]:
    """A frame for each second of a video; of a long one `MAX_FRAMES`, spread evenly over it."""
    try:
        import av
    except ImportError as error:
        raise ImageError(
            f"{name} is a video, and reading those takes an extra: llm install 'llm-diffusiongemma[video]'"
        ) from error
    try:
        with av.open(io.BytesIO(content)) as container:
            shown = list(_sample(container))
    except av.error.FFmpegError as error:
        raise ImageError(f"{name} is no video that can be decoded: {error.strerror}.") from error
    if not shown:
        raise ImageError(f"{name} has no pictures in it.")
    _check_size(shown[0].image.width, shown[0].image.height, name)
    return shown


def _sample(container: Any) -> Iterator[Picture]:
    import av

    if not container.streams.video:
        return
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    seconds = container.duration / av.time_base if container.duration else 0.0
    interval = max(SECONDS_BETWEEN_FRAMES, seconds / MAX_FRAMES)
    shown = 0
    frames = container.decode(stream)
    while shown < MAX_FRAMES:
        due = shown * interval
        if shown and interval >= SEEK_FROM_SECONDS:
            container.seek(int(due * av.time_base))
            frames = container.decode(stream)
        # Half a millisecond of tolerance: time stamps are rounded.
        frame = next((frame for frame in frames if (frame.time or 0.0) >= due - 0.0005), None)
        if frame is None:
            return
        image = frame.to_image()
        if frame.rotation:  # filmed with a telephone held upright
            image = image.rotate(frame.rotation, expand=True)
        image.thumbnail((MAX_FRAME_SIDE_PIXELS, MAX_FRAME_SIDE_PIXELS))
        yield Picture(image, f"{int(due) // 60:02}:{int(due) % 60:02}")
        shown += 1


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
