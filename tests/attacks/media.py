"""Hostile attachments: mutated images and videos, sizes that lie, and texts under the types of videos.

Each ends in pictures or in a refusal with one printable sentence, within the bounds of memory and time, and what
lies beside it is never opened.
"""

from __future__ import annotations

import ctypes
import io
import os
import random
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from fractions import Fraction
from pathlib import Path
from typing import Any

import llm
from PIL import Image, ImageDraw

from llm_diffusiongemma.wording import printable

from .cost import Cost, cost
from .outcome import Outcome

SECRET = "notes.txt"
TYPES = (
    "video/mp4",
    "video/webm",
    "video/quicktime",
    "image/png",
    "image/jpeg",
    "image/webp",
    "image/gif",
    "image/bmp",
)
# What a demuxer that is asked to find out by itself what a file is takes for a list of files, hosts or devices.
TEXTS = {
    "concat": f"ffconcat version 1.0\nfile {SECRET}\n",
    "concat, quoted": f"ffconcat version 1.0\nfile 'file:{SECRET}'\nduration 5\n",
    "HLS": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{SECRET}\n#EXT-X-ENDLIST\n",
    "HLS, a map": f'#EXTM3U\n#EXT-X-MAP:URI="{SECRET}"\n#EXTINF:1,\nfile:{SECRET}\n#EXT-X-ENDLIST\n',
    "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "DASH": "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static'><Period><AdaptationSet>"
    f"<Representation><BaseURL>{SECRET}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "RTSP": "rtsp://127.0.0.1:9/\nRTSPtextRTSP",
    "a playlist": f"[playlist]\nFile1={SECRET}\n",
    "subtitles": f"1\n00:00:00,000 --> 00:00:01,000\n{SECRET}\n",
    "filters": f"movie={SECRET}",
    "metadata": ";FFMETADATA1\ntitle=x\n",
    "images": "image2:%d.png\n",
    "Y4M": "YUV4MPEG2 W16 H16 F1:1 C420\nFRAME\n" + "x" * 384,
    "plain": "Just a text of some words.\n" * 9,
}


def run(count: int, seed: int) -> Iterator[Outcome]:
    rng = random.Random(seed)
    files = {**_images(), **_videos()}
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        with open(SECRET, "w") as file:
            file.write("nobody may see this\n" * 20)
        opened = OpenedFiles(Path(folder))
        for number in range(count):
            kind, media_type, content = _case(rng, files, number)
            came = cost(llm.Attachment(type=media_type, content=content))
            was_opened = opened.since_last()
            wrong = _wrong(came) or ("opened a file beside it" if was_opened else "")
            result = wrong or came.result
            detail = f"{media_type}, seed {seed}, case {number}: {came}"
            yield Outcome(kind, result, not wrong, detail)


def _wrong(came: Cost) -> str:
    if came.result not in ("pictures", "refused"):
        return came.result
    if not came.is_within_bounds:
        return f"{came.bytes // 10**6} MB, {came.seconds:.0f} s"
    if came.result == "refused" and (printable(came.message) != came.message or "\n" in came.message):
        return "a sentence that isn't printable"
    return ""


def _case(rng: random.Random, files: dict[str, tuple[str, bytes]], number: int) -> tuple[str, str, bytes]:
    """What was done, the type it is served under, and the bytes."""
    if number % 8 == 0:
        text = list(TEXTS)[number // 8 % len(TEXTS)]
        content = TEXTS[text].encode()
        if rng.random() < 0.3:  # behind the beginning of a real one
            content = rng.choice([b"\0\0\0\x10ftypisom\0\0\0\0", b"\x1aE\xdf\xa3\x84webm"]) + content
        return "a text", rng.choice(TYPES), content
    name = rng.choice(list(files))
    media_type, content = files[name]
    what, mutate = rng.choice(list(MUTATIONS.items()))
    for _ in range(rng.choice([1, 1, 2, 5])):
        content = mutate(rng, content, rng.choice(list(files.values()))[1])
    if rng.random() < 0.1:
        what, media_type = "another type", rng.choice(TYPES)
    return f"{what}, {media_type.partition('/')[0]}", media_type, content


def _bytes_changed(rng: random.Random, content: bytes, _: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 3, 10, 100])):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _header_changed(rng: random.Random, content: bytes, _: bytes) -> bytes:
    return _bytes_changed(rng, content[:100], b"") + content[100:]


def _number_changed(rng: random.Random, content: bytes, _: bytes) -> bytes:
    """A number that is a size or a count as often as not, near the beginning or the end, where those stand."""
    number = rng.choice([0, 1, 2, 255, 8192, 16_383, 16_384, 40_000, 65_535, 10**6, 10**8, 2**31 - 1, 2**32 - 1])
    width = rng.choice([2, 4, 8])
    at = rng.randrange(min(len(content), 300) + 1)
    if rng.random() < 0.5:
        at = len(content) - at
    order = rng.choice(["<", ">"])
    packed = struct.pack(order + {2: "H", 4: "I", 8: "Q"}[width], number % 2 ** (8 * width))
    return content[:at] + packed + content[at + width :]


def _box_changed(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """A number behind the name of a box or chunk."""
    names = [name for name in NAMES if name in content]
    if not names:
        return _number_changed(rng, content, other)
    name = rng.choice(names)
    at = content.index(name) + len(name) + rng.choice([0, 4, 8])
    number = rng.choice([0, 1, 50_000, 10**7, 10**8, 2**31 - 1, 2**32 - 1])
    return content[:at] + struct.pack(">I", number) + content[at + 4 :]


def _cut_off(rng: random.Random, content: bytes, _: bytes) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _spliced(rng: random.Random, content: bytes, other: bytes) -> bytes:
    return content[: rng.randrange(len(content) + 1)] + other[rng.randrange(len(other) + 1) :]


def _repeated(rng: random.Random, content: bytes, _: bytes) -> bytes:
    start = rng.randrange(len(content) + 1)
    piece = content[start : start + rng.choice([4, 12, 50, 500])]
    return content[:start] + piece * rng.choice([2, 10, 1000]) + content[start:]


def _left_out(rng: random.Random, content: bytes, _: bytes) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + content[start + rng.choice([1, 4, 50]) :]


MUTATIONS = {
    "bytes changed": _bytes_changed,
    "bytes of the header changed": _header_changed,
    "a number changed": _number_changed,
    "a number of a box changed": _box_changed,
    "cut off": _cut_off,
    "spliced": _spliced,
    "a piece repeated": _repeated,
    "a piece left out": _left_out,
}
NAMES = (
    *(b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"VP8X", b"VP8 ", b"VP8L", b"ANIM", b"ANMF"),
    *(b"stsz", b"stsc", b"stts", b"stco", b"elst", b"trun", b"tfhd", b"mvhd", b"mdhd", b"tkhd", b"trex", b"avcC"),
    *(b"mp4v", b"avc1", b"esds", b"\xb0", b"\xba", b"\x2a\xd7\xb1", b"\xff\xc0", b"\xff\xc2", b"\xff\xda"),
)


def _images() -> dict[str, tuple[str, bytes]]:
    drawn = Image.new("RGB", (64, 48), (220, 25, 25))
    ImageDraw.Draw(drawn).ellipse((5, 5, 50, 40), fill="blue")
    exif = Image.Exif()
    exif[0x0112] = 6
    others = {"save_all": True, "append_images": [drawn.rotate(90)]}
    kinds: dict[str, tuple[str, Image.Image, dict[str, Any]]] = {
        "png": ("png", drawn, {"exif": exif}),
        "png, transparent": ("png", drawn.convert("RGBA"), {}),
        "png, palette": ("png", drawn.convert("P"), {"transparency": 3}),
        "png, 16 bit": ("png", drawn.convert("I").convert("I;16"), {}),
        "png, moving": ("png", drawn, others),
        "jpeg": ("jpeg", drawn, {"exif": exif}),
        "jpeg, progressive": ("jpeg", drawn, {"progressive": True, "icc_profile": b"x" * 200}),
        "jpeg, CMYK": ("jpeg", drawn.convert("CMYK"), {}),
        "webp": ("webp", drawn, {}),
        "webp, lossless": ("webp", drawn.convert("RGBA"), {"lossless": True, "exif": exif}),
        "webp, moving": ("webp", drawn, others),
        "gif": ("gif", drawn, {"comment": b"a note"}),
        "gif, moving": ("gif", drawn, {**others, "disposal": 2, "transparency": 1}),
        "bmp": ("bmp", drawn, {}),
        "bmp, palette": ("bmp", drawn.convert("P"), {}),
    }
    files = {}
    for name, (file_format, image, how) in kinds.items():
        out = io.BytesIO()
        image.save(out, file_format, **how)
        files[name] = (f"image/{file_format}", out.getvalue())
    packed = bytearray(files["bmp, palette"][1])
    packed[30] = 1  # run lengths
    files["bmp, run lengths"] = ("image/bmp", bytes(packed))
    return files


def _videos() -> dict[str, tuple[str, bytes]]:
    return {
        "mp4": ("video/mp4", film("mp4", "libx264")),
        "mp4, fragments": ("video/mp4", film("mp4", "libx264", {"movflags": "frag_keyframe+empty_moov+dash"})),
        "mov": ("video/quicktime", film("mov", "mpeg4")),
        "webm": ("video/webm", film("webm", "libvpx")),
        "webm, VP9": ("video/webm", film("webm", "libvpx-vp9", {"live": "1"})),
    }


def film(
    container_format: str,
    codec: str,
    format_options: dict[str, str] | None = None,
    size: tuple[int, int] = (64, 48),
    frames: int = 8,
    codec_options: dict[str, str] | None = None,
) -> bytes:
    """A video of two frames a second, with titles."""
    import av

    out = io.BytesIO()
    quickly = {"deadline": "realtime", "cpu-used": "8"} if codec.startswith("libvpx") else {}
    with av.open(out, "w", format=container_format, options=format_options or {}) as container:
        container.metadata["title"] = "a title"
        stream = container.add_stream(codec, rate=2, options=codec_options or quickly)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 2)
        stream.codec_context.gop_size = 4
        for number in range(frames):
            frame = av.VideoFrame.from_image(Image.new("RGB", size, (20 * number % 256, 25, 25)))
            frame.pts, frame.time_base = number, Fraction(1, 2)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


class OpenedFiles:
    """Whether any file of a folder was opened, by whatever code: what Python's hooks don't see of a C library.

    The folder has the secret in it. Where the system tells nobody of files, none was opened.
    """

    IN_OPEN = 0x20

    def __init__(self, folder: Path) -> None:
        self._descriptor = -1
        if sys.platform == "linux":
            libc = ctypes.CDLL(None)
            self._descriptor = libc.inotify_init1(os.O_NONBLOCK)
            libc.inotify_add_watch(self._descriptor, os.fsencode(folder), self.IN_OPEN)
            with open(folder / SECRET):
                pass
            if not self.since_last():  # the watch isn't kept, as in some containers
                os.close(self._descriptor)
                self._descriptor = -1

    def since_last(self) -> bool:
        try:
            return self._descriptor >= 0 and bool(os.read(self._descriptor, 100_000))
        except BlockingIOError:
            return False
