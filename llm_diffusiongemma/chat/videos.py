"""What a video shows, instant by instant, within bounds of memory and time that hold for every file.

Only MP4, MOV and WebM are read, from the bytes at hand: FFmpeg, asked to find out by itself what a file is, opens
whatever other files, devices and hosts a text of some bytes names.
"""

from __future__ import annotations

import bisect
import itertools
import math
import re
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from ..errors import ImageError
from ..installation import install_command
from ..wording import quoted, tell
from .reading import VideoReader, check_size

if TYPE_CHECKING:
    from PIL import Image

    Decode = Callable[[Any], list[Any]]

MAX_FRAMES = 60
# No model looks at more of a picture: 1,120 soft tokens of 48 × 48 pixels. Of sixty frames it looks at 70 each if
# nobody says otherwise, a sixteenth of that.
MAX_FRAME_PIXELS = 1120 * 48 * 48
# Of all pictures of a video, which are held at once with four bytes a pixel.
MAX_HELD_PIXELS = 20_000_000

# Any 4K.
MAX_CODED_SIZE = (4096, 2304)
MAX_CODED_PIXELS = math.prod(MAX_CODED_SIZE)
# Up to here every frame may be decoded. A decoder keeps up to 32 of them; of larger ones it is given those that
# stand alone, one by one.
MAX_REFERENCE_BYTES = 1920 * 1088 * 3 // 2

# What is usual in these containers, and how fast one core decodes it at the least, in pixels a second.
# Other decoders, of which FFmpeg has hundreds, are not let near a file from outside.
CODECS = {
    "h264": 300e6,
    "hevc": 200e6,
    "vp8": 250e6,
    "vp9": 110e6,
    "av1": 150e6,
    "libdav1d": 150e6,
    "libaom-av1": 60e6,
    "mpeg4": 250e6,
    "h263": 250e6,
    "mpeg1video": 250e6,
    "mpeg2video": 250e6,
    "mjpeg": 100e6,
    "prores": 60e6,
}
# Beside its pixels every frame costs something, and so does every byte.
PIXELS_PER_FRAME = 10_000
PIXELS_PER_BYTE = 15
# Of this thread, for decoding a video whole. Then there is still time to look at frames that stand alone.
DECODING_SECONDS = 5
# Most films are so much easier than the worst: it is tried.
HOPE = 4
# Of the seconds, for frames that stand alone after that was in vain.
SHARE_LEFT = 0.5
# Decoders round sizes up, and some put an edge around.
CODED_MARGIN = 256
# Of a pixel whose format is not known before it is decoded: 4:2:0 with up to 16 bits.
UNKNOWN_BITS = 24
# How much earlier than its instant a picture may be taken, where only frames that stand alone are decoded.
MAX_SHIFT_SECONDS = 10

MAX_PACKETS = 400_000
# In Matroska, which WebM is, two bytes may be an attachment, a chapter or a tag, of which FFmpeg makes a hundred.
# With what it reads of the frames to find out what is in them: a frame at least.
MAX_MATROSKA_HEADER_BYTES = 4_000_000
PROBE_BYTES = 1_000_000
MAX_BOXES = 1_000_000
MAX_SAMPLES = 1_000_000
# Samples times edits: each edit lists its samples anew.
MAX_EDITED_SAMPLES = 4_000_000

MATROSKA_SIGNATURE = b"\x1aE\xdf\xa3"
# What an MP4 or MOV may begin with.
FIRST_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
# Boxes that lead a demuxer about in the file, past what has been looked at here.
INDEX_BOXES = frozenset({b"sidx", b"ssix", b"mfra"})
VIDEO_HANDLER = re.compile(rb"hdlr.{8}vide", re.DOTALL)
COUNTING_BOX = re.compile(rb"stsz|stz2|trun|elst|cmov")


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


@dataclass(frozen=True)
class _Plan:
    """How a video is gone through."""

    instants: list[_Instant]
    alone: bool
    """Nothing is decoded but the packets that `decode_from` names, each by itself."""
    coded_pixels: int
    """No frame may turn out larger."""
    bits: int
    """Nor take more for a pixel."""
    picture_pixels: int
    """The most that is held of each."""
    wanted: int
    """At how many instants it would be shown if it were easy."""


class _TooSlowError(Exception):
    """Decoding a video whole takes too long. Never shown to anybody."""


def frames(content: bytes, name: str) -> list[tuple[Image.Image, str]]:
    """What a video shows at each second, with the time from its start as `mm:ss`, in RGB.

    Of a long one it is `MAX_FRAMES` instants, spread evenly over it. Of one that takes too much to decode whole,
    it is the frames nearest before these that can be decoded by themselves, and a line says so.

    It is read from end to end twice, first without decoding it, rather than by jumping about in it: of what one
    needs for that, its length and an index, a browser's recording has neither.

    Raises `ImageError`.
    """
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise ImageError(
            f"{name} is a video, and reading those takes an extra: {install_command('video')}"
        ) from error
    demuxer = _demuxer(content)
    if demuxer is None:
        raise ImageError(f"{name} is no MP4, WebM or MOV video, whatever its type says. Convert it first.")
    hidden = _hidden(content, name) if demuxer == "mov" else []
    source = VideoReader(content, name, hidden)
    try:
        try:
            plan, shown = _look(source, demuxer, name)
        except _TooSlowError:
            plan, shown = _look(source, demuxer, name, is_slow=True)
    except ImageError:
        raise
    except Exception as error:  # PyAV raises FFmpeg's errors, and some of its own for files that are odd
        source.check()
        reason = quoted(getattr(error, "strerror", None) or error)
        raise ImageError(f"{name} is no video that can be decoded: {reason}.") from error
    source.check()
    if not shown or plan is None:
        raise ImageError(f"{name} has no pictures in it.")
    if plan.alone and len(shown) < plan.wanted:
        tell(
            f"{name} would take long to decode whole: it is shown at {len(shown)} of {plan.wanted} instants, "
            "where it has frames that stand alone."
        )
    return shown


def _look(
    source: VideoReader, demuxer: str, name: str, *, is_slow: bool = False
) -> tuple[_Plan | None, list[tuple[Image.Image, str]]]:
    """Raises `_TooSlowError` unless nobody hopes for more than frames that stand alone (`is_slow`)."""
    source.seek(0)
    with _open(source, demuxer) as container:
        stream = container.streams.best("video")
        plan = _plan(container, stream, source, name, is_slow=is_slow) if stream else None
    source.seek(0)
    with _open(source, demuxer) as container:
        return plan, list(_show(container, plan, source, name)) if plan else []


def _demuxer(content: bytes) -> str | None:
    """FFmpeg's name for the container that a file is by its first bytes."""
    if content.startswith(MATROSKA_SIGNATURE):
        return "matroska"
    return "mov" if content[4:8] in FIRST_BOXES else None


def _open(source: VideoReader, demuxer: str) -> Any:
    import av

    options = {
        # For what a container opens by itself: nothing.
        "protocol_whitelist": "",
        "codec_whitelist": ",".join(CODECS),
        # It decodes some frames to find out what is in them.
        "max_pixels": str(_with_margin(*MAX_CODED_SIZE)),
        "threads": "1",
        "probesize": str(PROBE_BYTES),
    }
    if demuxer == "matroska":
        source.bytes_left = MAX_MATROSKA_HEADER_BYTES
    # Titles in an encoding of their own don't matter.
    container = av.open(source, format=demuxer, options=options, metadata_errors="replace")
    source.bytes_left = math.inf
    return container


# --- before FFmpeg sees it ---------------------------------------------------------------------------------


def _boxes(content: bytes, start: int, stop: int) -> Iterator[tuple[bytes, int, int, int]]:
    """The name of each box of an MP4, where it begins, and where its content begins and ends."""
    while start + 8 <= stop:
        size, kind = struct.unpack_from(">I4s", content, start)
        body = start + 8
        if size == 1 and start + 16 <= stop:
            size = struct.unpack_from(">Q", content, body)[0]
            body += 8
        end = min(start + size, stop) if size else stop
        if end < body:
            return
        yield kind, start, body, end
        start = end


def _hidden(content: bytes, name: str) -> list[int]:
    """Where the names of boxes stand that FFmpeg had better not see: sound, subtitles, and indexes.

    Raises `ImageError` if there is nothing that is a video, or too much for any.
    """
    hidden: list[int] = []
    passed_over: list[tuple[int, int]] = []
    has_movie = False
    for number, (kind, start, body, end) in enumerate(_boxes(content, 0, len(content))):
        if number > MAX_BOXES:
            raise ImageError(f"{name} is made of more than {MAX_BOXES:,} parts. Convert it first.")
        if kind in INDEX_BOXES:
            hidden.append(start + 4)
        elif kind == b"mdat":
            passed_over.append((body, end))
        elif kind == b"moov":
            has_movie = True
            for inner, inner_start, inner_body, inner_end in _boxes(content, body, end):
                if inner == b"trak" and not VIDEO_HANDLER.search(content, inner_body, inner_end):
                    hidden.append(inner_start + 4)
                    passed_over.append((inner_start, inner_end))
    if not has_movie:
        raise ImageError(f"{name} is no video that can be decoded: it has no header, or was cut off before it.")
    _check_samples(content, passed_over, name)
    return hidden


def _check_samples(content: bytes, passed_over: list[tuple[int, int]], name: str) -> None:
    """Raises `ImageError` if there are too many samples for any video.

    Some bytes may announce a hundred million of them, for each of which FFmpeg makes an entry when it opens the
    file. They are looked for wherever they might stand, for it finds them in boxes within boxes.
    """
    samples, edits = 0, 0
    start = 0
    for stop, goes_on in [*passed_over, (len(content), len(content))]:
        for match in COUNTING_BOX.finditer(content, start, stop):
            kind, at = match.group(), match.end()
            if kind == b"cmov":
                raise ImageError(f"{name} has a compressed header, which is not read. Convert it first.")
            # Behind the version, and for sizes of samples the size that all of them have.
            at += 8 if kind in (b"stsz", b"stz2") else 4
            number = int.from_bytes(content[at : at + 4], "big")
            if kind == b"elst":
                edits += number
            else:
                samples += number
        start = goes_on
    if samples > MAX_SAMPLES or samples * (1 + edits) > MAX_EDITED_SAMPLES:
        raise ImageError(
            f"{name} has {samples:,} frames and {edits:,} cuts by its header, too many to be read. Cut a "
            "piece out of it first, or convert it."
        )


# --- what to look at ---------------------------------------------------------------------------------------


def _plan(container: Any, stream: Any, source: VideoReader, name: str, *, is_slow: bool) -> _Plan | None:
    """How to go through a video, by its header and its packets; None if it has none.

    Raises `ImageError` if it takes too much.
    """
    context = stream.codec_context
    if context is None:
        raise ImageError(f"{name} doesn't say what its pictures are made of: it is broken or was cut off.")
    codec = context.name
    if codec not in CODECS:
        raise ImageError(
            f"{name} holds pictures in a format that is not read here ({quoted(codec)}). Convert it first, for "
            "example to H.264."
        )
    width, height = context.width, context.height
    if not width or not height:
        raise ImageError(
            f"{name} has pictures of more than {MAX_CODED_PIXELS:,} pixels, or doesn't say of how many. Scale it "
            "down first."
        )
    check_size(width, height, MAX_CODED_PIXELS, name)
    timeline = _Timeline.of(container.demux(stream), source, name)
    if timeline is None or not stream.time_base:
        return None
    bits = context.format.bits_per_pixel if context.format is not None else UNKNOWN_BITS
    pixels = width * height
    frame_seconds = (pixels + PIXELS_PER_FRAME + PIXELS_PER_BYTE * timeline.mean_bytes) / CODECS[codec]
    most = DECODING_SECONDS / frame_seconds
    instants = timeline.instants(stream.time_base, MAX_FRAMES)
    wanted = len(instants)
    is_large = pixels * bits > 8 * MAX_REFERENCE_BYTES
    alone = is_slow or is_large or timeline.to_decode(instants) > HOPE * most
    if alone:
        most = int(most * (SHARE_LEFT if is_slow else 1))
        evenly = timeline.instants(stream.time_base, max(1, min(MAX_FRAMES, most)))
        instants = timeline.moved_to_keys(evenly, stream.time_base)
        shift = max(before.seconds - after.seconds for before, after in zip(evenly, instants, strict=True))
        interval = evenly[1].seconds if len(evenly) > 1 else 0
        if shift > max(MAX_SHIFT_SECONDS, interval):
            raise ImageError(
                f"{name} takes too long to decode: it has {len(timeline.frames):,} frames of {width:,} × "
                f"{height:,} pixels, too few of which can be decoded without those before. Scale it down or "
                "shorten it first."
            )
        instants = list(dict.fromkeys(instants))
    return _Plan(
        instants,
        alone,
        coded_pixels=_with_margin(width, height),
        bits=max(bits, UNKNOWN_BITS),
        picture_pixels=min(MAX_FRAME_PIXELS, MAX_HELD_PIXELS // timeline.distinct(instants)),
        wanted=wanted,
    )


def _with_margin(width: int, height: int) -> int:
    """What frames of that size may have of pixels, as decoders count them."""
    return (width + CODED_MARGIN) * (height + CODED_MARGIN)


@dataclass(frozen=True)
class _Timeline:
    """The packets of a video, each by its number in their order, which is that of decoding."""

    keys: list[tuple[int, int]]
    """When those are shown that can be decoded by themselves, in units of the time base, and their numbers."""
    frames: list[tuple[int, int]]
    """The same of all that are shown, in the order of their times: at least one."""
    end: int
    mean_bytes: float

    @classmethod
    def of(cls, packets: Iterator[Any], source: VideoReader, name: str) -> _Timeline | None:
        keys: list[tuple[int, int]] = []
        # What an edit list cuts away isn't shown, but may be needed to decode what is.
        frames: list[tuple[int, int]] = []
        last, last_duration, durations, size = -math.inf, 0, 0, 0
        for number, packet in enumerate(packets):
            source.check()
            if number > MAX_PACKETS:
                raise ImageError(f"{name} has more than {MAX_PACKETS:,} frames. Cut a piece out of it first.")
            if packet.pts is None:
                continue
            size += packet.size
            if packet.is_keyframe:
                keys.append((packet.pts, number))
            if not packet.is_discard:
                frames.append((packet.pts, number))
                duration = packet.duration or 0
                durations += duration
                last, last_duration = max((last, last_duration), (packet.pts, duration))
        if not frames:
            return None
        keys.sort()
        frames.sort()
        first, last = frames[0][0], frames[-1][0]
        # A frame whose duration nobody knows is shown for a moment.
        end = last + max(last_duration, 1)
        # MP4 has the durations in the order of decoding, so that the last frame may have another one's. Their sum
        # is right, but WebM's are no more than hints.
        if first + durations > last:
            end = min(end, first + durations)
        return cls(keys or frames[:1], frames, end, size / len(frames))

    def instants(self, time_base: Fraction, most: int) -> list[_Instant]:
        """When to look: at each second, or so often, evenly."""
        first = self.frames[0][0]
        seconds = (self.end - first) * time_base
        interval = max(Fraction(1), seconds / most)
        instants = []
        for number in range(math.ceil(seconds / interval)):
            pts = first + number * interval / time_base
            _, decode_from = self._key(pts) or (pts, 0)
            instants.append(_Instant(pts, number * interval, decode_from))
        return instants

    def moved_to_keys(self, instants: list[_Instant], time_base: Fraction) -> list[_Instant]:
        """For each instant that of the last frame before it that can be decoded by itself."""
        first = self.frames[0][0]
        moved = []
        for instant in instants:
            pts, number = self._key(instant.pts) or self.keys[0]
            moved.append(_Instant(Fraction(pts), max(Fraction(0), (pts - first) * time_base), number))
        return moved

    def to_decode(self, instants: list[_Instant]) -> int:
        """How many frames must be decoded to get to all of these."""
        until = list(itertools.accumulate((number for _, number in self.frames), max))
        count = done = 0
        for instant in instants:
            stop = until[max(0, bisect.bisect_right(self.frames, (instant.pts, math.inf)) - 1)] + 1
            count += max(0, stop - max(done, instant.decode_from))
            done = max(done, stop)
        return count

    def distinct(self, instants: list[_Instant]) -> int:
        """How many different frames stand at these, at most."""
        return len({bisect.bisect_right(self.frames, (instant.pts, math.inf)) for instant in instants})

    def _key(self, pts: Fraction) -> tuple[int, int] | None:
        """The last frame until then that can be decoded by itself."""
        before = bisect.bisect_right(self.keys, (pts, math.inf))
        return self.keys[before - 1] if before else None


# --- looking ------------------------------------------------------------------------------------------------


def _show(container: Any, plan: _Plan, source: VideoReader, name: str) -> Iterator[tuple[Image.Image, str]]:
    """The picture that stands at each instant: the last that began by then."""
    stream = container.streams.best("video")
    context = stream.codec_context
    # More threads hold more frames.
    context.thread_count = 1
    context.options = {"max_pixels": str(plan.coded_pixels)}

    too_late = math.inf if plan.alone else time.thread_time() + DECODING_SECONDS

    def decode(packet: Any) -> list[Any]:
        source.check()
        if time.thread_time() > too_late:
            raise _TooSlowError
        decoded = packet.decode()
        if context.format is not None and context.format.bits_per_pixel > plan.bits:
            raise ImageError(f"{name} changes its format on the way. Convert it first.")
        return [frame for frame in decoded if frame.pts is not None]

    packets = enumerate(container.demux(stream))
    # A frame is made a picture only when it is known to be shown.
    for frame, instants in (_alone if plan.alone else _in_a_row)(packets, decode, context, plan.instants):
        image = _to_image(frame, plan.picture_pixels)
        for instant in instants:
            yield image, instant.timestamp


def _alone(
    packets: Iterator[tuple[int, Any]], decode: Decode, context: Any, instants: list[_Instant]
) -> Iterator[tuple[Any, list[_Instant]]]:
    """Frames at instants, each decoded without any other."""
    pending = deque(instants)
    for number, packet in packets:
        if not pending:
            return
        if number == pending[0].decode_from:
            # Without waiting for those that come before it, and with nothing kept for those that follow.
            frames = decode(packet) + context.decode(None)
            context.flush_buffers()
            instant = pending.popleft()
            if frames:
                yield frames[0], [instant]


def _in_a_row(
    packets: Iterator[tuple[int, Any]], decode: Decode, context: Any, instants: list[_Instant]
) -> Iterator[tuple[Any, list[_Instant]]]:
    """Frames, and the instants at which each stands. Decodes no more than it takes."""
    pending = deque(instants)
    standing: Any = None  # a frame
    is_decoding = False
    for number, packet in packets:
        if number < pending[0].decode_from and not is_decoding:
            continue
        is_decoding = True
        for frame in decode(packet):
            if standing is not None:
                reached = []
                while pending and frame.pts > pending[0].pts:
                    reached.append(pending.popleft())
                if reached:
                    yield standing, reached
            standing = frame
        if not pending:
            return
        if number < pending[0].decode_from:
            context.flush_buffers()
            standing, is_decoding = None, False
    if standing is not None:
        yield standing, list(pending)


def _to_image(frame: Any, most_pixels: int) -> Image.Image:
    scale = min(1, math.sqrt(most_pixels / (frame.width * frame.height)))
    image: Image.Image = frame.to_image(
        width=max(1, int(frame.width * scale)), height=max(1, int(frame.height * scale)), interpolation="BICUBIC"
    )
    # Filmed with a telephone held upright.
    turn = 90 * round(frame.rotation / 90)
    return image.rotate(turn, expand=True) if turn else image
