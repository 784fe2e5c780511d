"""Videos to pictures: which frame stands when, and what is refused with which sentence."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import llm
import pytest
from PIL import Image

from llm_diffusiongemma.chat import reading, videos
from llm_diffusiongemma.chat.images import pictures
from llm_diffusiongemma.chat.videos import MAX_FRAMES
from llm_diffusiongemma.errors import ImageError

from ..attacks import media as attacks
from ..attacks.media import SECRET, TEXTS, OpenedFiles

Times = Sequence[float]


def film(
    times: Times,
    container_format: str = "mp4",
    codec: str = "mpeg4",
    *,
    codec_options: dict[str, str] | None = None,
    format_options: dict[str, str] | None = None,
    sound_seconds: float = 0,
    key_frames: int = 12,
) -> llm.Attachment:
    """A video whose frames begin at these seconds; the n-th is of the shade n."""
    av = pytest.importorskip("av", reason="needs the video extra")
    out = io.BytesIO()
    tick = Fraction(1, 1000)
    with av.open(out, "w", format=container_format, options=format_options or {}) as container:
        quickly = {"deadline": "realtime", "cpu-used": "8"} if codec.startswith("libvpx") else {}
        stream = container.add_stream(codec, rate=10, options=codec_options or quickly)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = tick
        stream.codec_context.gop_size = key_frames
        sound = (
            container.add_stream("libopus" if container_format == "webm" else "aac", rate=48000)
            if sound_seconds
            else None
        )
        for number, seconds in enumerate(times):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), (shade(number),) * 3))
            frame.pts, frame.time_base = round(seconds / tick), tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            for number in range(int(sound_seconds * 50)):
                silence = av.AudioFrame(
                    format="fltp" if container_format != "webm" else "flt", layout="mono", samples=960
                )
                for plane in silence.planes:
                    plane.update(bytes(plane.buffer_size))
                silence.sample_rate, silence.pts, silence.time_base = 48000, number * 960, Fraction(1, 48000)
                container.mux(sound.encode(silence))
            container.mux(sound.encode())
    kind = {"mov": "quicktime"}.get(container_format, container_format)
    return llm.Attachment(type=f"video/{kind}", content=out.getvalue())


def shade(number: int) -> int:
    return 10 + number * 37 % 230


def assert_true(attachment: llm.Attachment, times: Times, expected: Sequence[float] | None = None) -> None:
    """Each picture is the one that stands at its time stamp, and the stamps are those of the expected seconds."""
    shown = pictures(attachment)
    if expected is None:
        expected = range(len(shown))
    assert [picture.timestamp for picture in shown] == [f"{int(s) // 60:02}:{int(s) % 60:02}" for s in expected]
    for picture, seconds in zip(shown, expected, strict=True):
        standing = max(number for number, time in enumerate(times) if time - times[0] <= seconds + 1e-3)
        got = picture.image.getpixel((30, 30))
        assert abs(got[0] - shade(standing)) < 8, (picture.timestamp, got, shade(standing))  # type: ignore[index]


FORMATS = [("mp4", "mpeg4"), ("mp4", "libx264"), ("mov", "mpeg4"), ("webm", "libvpx"), ("webm", "libvpx-vp9")]
# Without a duration and an index: as a browser's MediaRecorder writes it.
LIVE = {
    "webm": {"live": "1"},
    "mp4": {"movflags": "frag_keyframe+empty_moov"},
    "mov": {"movflags": "frag_keyframe+empty_moov"},
}


@pytest.mark.parametrize("is_live", [False, True], ids=["", "live"])
@pytest.mark.parametrize("start", [0, 20, 3700])
@pytest.mark.parametrize(("container_format", "codec"), FORMATS)
def test_time_stamps(container_format: str, codec: str, start: int, is_live: bool) -> None:
    options = LIVE[container_format] if is_live else {}
    evenly = [start + number / 2 for number in range(8)]
    assert_true(film(evenly, container_format, codec, format_options=options), evenly, range(4))
    slides = [start + 10 * number for number in range(4)]
    assert_true(film(slides, container_format, codec, format_options=options), slides, range(31))


@pytest.mark.parametrize(("key_frames", "is_live"), [(1, False), (60, True)], ids=["1", "60-live"])
@pytest.mark.parametrize(("container_format", "codec"), FORMATS)
def test_a_long_video_is_shown_from_end_to_end(
    container_format: str, codec: str, key_frames: int, is_live: bool
) -> None:
    """Five minutes, whether there is much that need not be decoded or nothing."""
    times = [7 + number * 4 for number in range(75)]
    options = LIVE[container_format] if is_live else {}
    attachment = film(times, container_format, codec, key_frames=key_frames, format_options=options)
    assert_true(attachment, times, [number * 296.1 / MAX_FRAMES for number in range(MAX_FRAMES)])


@pytest.mark.parametrize("start", [0, 20])
def test_a_recording_of_a_browser(start: int) -> None:
    """Neither how long it is nor how long any of its frames is shown stands in it."""
    for times in ([0, 10, 20, 30], [number / 10 for number in range(45)], [0, 0.03, 0.06, 5, 5.1]):
        times = [start + time for time in times]
        content = film(times, "webm", "libvpx", format_options=LIVE["webm"]).content
        assert content is not None
        at = content.index(b"\x23\xe3\x83\x84")  # the default duration: four bytes
        content = content[:at] + b"\xec\x86" + bytes(6) + content[at + 8 :]  # and the same space without a meaning
        attachment = llm.Attachment(type="video/webm", content=content)
        assert_true(attachment, times)
        assert len(pictures(attachment)) == int(times[-1] - start) + 1


def test_a_video_of_hours() -> None:
    """Minutes run on beyond an hour, as transformers writes them."""
    times = [number * 300 for number in range(24)]
    shown = pictures(film(times, "mp4"))
    assert shown[-1].timestamp == "113:05"
    assert_true(film(times, "mp4"), times, [number * (23 * 300 + 0.1) / 60 for number in range(60)])


@pytest.mark.parametrize("container_format", ["mp4", "mov"])
def test_frames_that_are_decoded_in_another_order(container_format: str) -> None:
    """B-frames, whose durations MP4 mixes up."""
    for times in ([number / 2 for number in range(20)], [number * 10 for number in range(5)], [0, 1, 5, 6, 7, 20]):
        attachment = film(times, container_format, "libx264", codec_options={"bf": "3", "b-adapt": "0"})
        assert_true(attachment, times)
        assert len(pictures(attachment)) == int(times[-1]) + 1


@pytest.mark.parametrize(("container_format", "codec"), FORMATS)
def test_a_single_frame(container_format: str, codec: str) -> None:
    assert_true(film([5], container_format, codec), [5], [0])


@pytest.mark.parametrize("container_format", ["mp4", "webm"])
def test_sound_that_goes_on_behind_the_pictures(container_format: str) -> None:
    times = [0, 0.5, 1, 1.5]
    codec = "libvpx" if container_format == "webm" else "mpeg4"
    assert_true(film(times, container_format, codec, sound_seconds=6), times, range(2))


@pytest.mark.parametrize("container_format", ["mp4", "mov"])
def test_what_an_edit_list_cuts_away(container_format: str) -> None:
    """Its frames are in the file, and the first that is shown can't be decoded without them."""
    times = [number / 2 - 2.5 for number in range(13)]
    attachment = film(
        times, container_format, "libx264", codec_options={"sc_threshold": "0", "bf": "0"}, key_frames=99
    )
    av = pytest.importorskip("av")
    with av.open(io.BytesIO(attachment.content)) as container:
        assert sum(packet.is_discard for packet in container.demux(video=0)) > 2
    shown = pictures(attachment)
    assert [picture.timestamp for picture in shown] == ["00:00", "00:01", "00:02", "00:03"]
    greys = [picture.image.getpixel((30, 30))[0] for picture in shown]  # type: ignore[index]
    assert all(abs(grey - shade(5 + 2 * second)) < 8 for second, grey in enumerate(greys)), greys


def test_a_picture_that_stands_for_long_is_held_once() -> None:
    shown = pictures(film([0, 10, 20, 30]))
    assert len(shown) == 31
    assert len({id(picture.image) for picture in shown}) == 4


def test_a_broken_video() -> None:
    attachment = film([0, 1, 2])
    assert attachment.content is not None
    with pytest.raises(ImageError, match="is no video"):
        pictures(llm.Attachment(type="video/mp4", content=attachment.content[:200]))


def test_a_recording_that_breaks_off() -> None:
    """What has arrived of it is shown."""
    times = [number / 2 for number in range(40)]
    attachment = film(times, "webm", "libvpx", format_options=LIVE["webm"])
    assert attachment.content is not None
    shown = pictures(llm.Attachment(type="video/webm", content=attachment.content[: len(attachment.content) // 2]))
    assert 5 < len(shown) < 15


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImageError, match=r"install .*\[video\]"):
        pictures(llm.Attachment(type="video/mp4", content=b"any"))


def test_frames_are_no_larger_than_the_model_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "MAX_FRAME_PIXELS", 16 * 12)
    assert pictures(film([0]))[0].image.size == (16, 12)


def test_all_pictures_of_a_video_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """So each of many is smaller; those that stand for several seconds count once."""
    monkeypatch.setattr(videos, "MAX_HELD_PIXELS", 4 * 16 * 12)
    assert {picture.image.size for picture in pictures(film([0, 10, 20, 30]))} == {(16, 12)}
    assert {picture.image.size for picture in pictures(film(range(16)))} == {(8, 6)}


# --- what is let in ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mp4", "webm", "quicktime"])
@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_no_video(text: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg would open the files and hosts that it names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / SECRET).write_text("nobody may see this\n" * 20)
    opened = OpenedFiles(tmp_path)
    with pytest.raises(ImageError, match="is no MP4, WebM or MOV video"):
        pictures(llm.Attachment(type=f"video/{kind}", content=TEXTS[text].encode()))
    for beginning in (b"\0\0\0\x10ftypisom\0\0\0\0", b"\x1aE\xdf\xa3"):
        with pytest.raises(ImageError, match="is no video that can be decoded"):
            pictures(llm.Attachment(type=f"video/{kind}", content=beginning + TEXTS[text].encode()))
    assert not opened.since_last()


def test_a_container_opens_nothing_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one that is made for it, were it let in."""
    pytest.importorskip("av", reason="needs the video extra")
    monkeypatch.chdir(tmp_path)
    (tmp_path / SECRET).write_text("nobody may see this\n" * 20)
    opened = OpenedFiles(tmp_path)
    for demuxer, text in (("concat", TEXTS["concat"]), ("hls", TEXTS["HLS"])):
        with pytest.raises(Exception, match=r"Invalid|Protocol|Input/output"):
            videos._open(reading.VideoReader(text.encode(), "it"), demuxer)
    assert not opened.since_last()


@pytest.mark.parametrize("codec", ["ffv1", "rawvideo"])
def test_only_usual_decoders(codec: str) -> None:
    av = pytest.importorskip("av", reason="needs the video extra")
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as container:
        stream = container.add_stream(codec, rate=1)
        stream.width, stream.height = 16, 16
        stream.pix_fmt = "yuv422p"
        container.mux(stream.encode(av.VideoFrame(16, 16, stream.pix_fmt)))
        container.mux(stream.encode())
    with pytest.raises(ImageError, match=f"in a format that is not read here .{codec}"):
        pictures(llm.Attachment(type="video/webm", content=out.getvalue()))


@pytest.mark.parametrize(
    ("container_format", "codec"),
    [("mp4", "mpeg4"), ("mov", "libx264"), ("webm", "libvpx"), ("matroska", "libx264")],
)
def test_titles_in_any_encoding(container_format: str, codec: str) -> None:
    content = attacks.film(container_format, codec)
    assert b"a title" in content
    titled = content.replace(b"a title", "Grüße\xff!".encode("latin-1"))
    assert len(pictures(llm.Attachment(type="video/mp4", content=titled))) == 4


# --- what would cost too much ------------------------------------------------------------------------------


def changed(content: bytes, box: bytes, *numbers: int, behind: int = 4) -> bytes:
    """With other numbers in the first box of that name, so many bytes behind the name."""
    at = content.index(box) + len(box) + behind
    return content[:at] + struct.pack(f">{len(numbers)}I", *numbers) + content[at + 4 * len(numbers) :]


FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(attacks.film("mp4", "mpeg4"), b"stsz", 1, 100_000_000), "100,000,000 frames"),
        (changed(attacks.film("mp4", "mpeg4"), b"elst", 50_000_000), "50,000,000 cuts"),
        (changed(attacks.film("mp4", "mpeg4", FRAGMENTS), b"trun", 50_000_000), "50,000,0.. frames"),
        # In a box where nobody would look for it but FFmpeg.
        (
            struct.pack(">I4sI4sIII", 28, b"udta", 20, b"stsz", 0, 1, 10**8) + attacks.film("mp4", "mpeg4"),
            "no MP4|100,000,0.. frames",
        ),
        (
            attacks.film("mp4", "mpeg4") + struct.pack(">I4sI4sIII", 28, b"udta", 20, b"stsz", 0, 1, 10**8),
            "100,000,0.. frames",
        ),
        (attacks.film("mp4", "mpeg4") + struct.pack(">I4s4x", 12, b"cmov"), "compressed header"),
    ],
    ids=["samples", "edits", "fragments", "another place", "at the end", "packed"],
)
def test_more_samples_than_a_file_can_hold(content: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        pictures(llm.Attachment(type="video/mp4", content=content))


def test_sound_and_subtitles_are_not_looked_at() -> None:
    """Sound may well have as many samples as that."""
    content = film([0, 0.5, 1, 1.5], sound_seconds=2).content
    assert content is not None
    sound = content.rindex(b"stsz")
    content = content[: sound + 8] + struct.pack(">II", 2, 100_000_000) + content[sound + 16 :]
    assert len(pictures(llm.Attachment(type="video/mp4", content=content))) == 2


@pytest.mark.parametrize(("container_format", "codec"), FORMATS)
def test_frames_that_are_too_large(container_format: str, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the header, whatever another part of it says, and before one is decoded."""
    monkeypatch.setattr(videos, "MAX_CODED_SIZE", (32, 32))
    monkeypatch.setattr(videos, "MAX_CODED_PIXELS", 32 * 32)
    monkeypatch.setattr(videos, "CODED_MARGIN", 8)
    monkeypatch.setattr(videos, "_show", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=r"64 × 48 pixels, too large: at most 1,024|more than 1,024 pixels"):
        pictures(film([0, 1], container_format, codec))


def test_a_size_that_lies() -> None:
    """What is announced is 64 × 48; what comes is no larger than that, or nothing."""
    content = attacks.film("mp4", "mpeg4", size=(640, 480))
    at = content.index(b"mp4v") + 28
    lying = content[:at] + struct.pack(">HH", 64, 48) + content[at + 4 :]
    sizes = {picture.image.size for picture in pictures(llm.Attachment(type="video/mp4", content=lying))}
    assert sizes == {(640, 480)}  # FFmpeg has looked, and so have we


def test_frames_that_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two videos of other sizes, one behind the other. None is decoded that is larger than the header says."""
    small, large = (attacks.film("webm", "libvpx", {"live": "1"}, size=size) for size in ((64, 48), (640, 480)))
    cluster = b"\x1f\x43\xb6\x75"
    grown = small[: small.index(cluster)] + large[large.index(cluster) :]
    try:
        sizes = {picture.image.size for picture in pictures(llm.Attachment(type="video/webm", content=grown))}
    except ImageError:
        sizes = set()
    assert all(width * height <= 320 * 304 for width, height in sizes)


@pytest.mark.parametrize("hope", [0, 1000])
def test_of_what_takes_too_long_only_frames_that_stand_alone(
    hope: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With their own times, and said. By an estimate, or after it was tried whole."""
    monkeypatch.setattr(videos, "HOPE", hope)
    monkeypatch.setattr(videos, "DECODING_SECONDS", 30 * (64 * 48 + videos.PIXELS_PER_FRAME) / 300e6)
    times = [number / 2 for number in range(40)]
    attachment = film(times, "mp4", "libx264", key_frames=4, codec_options={"sc_threshold": "0"})
    assert_true(attachment, times, range(0, 20, 2))
    assert "it is shown at 10 of 20 instants" in capsys.readouterr().err


def test_a_long_film_with_a_single_key_frame(capsys: pytest.CaptureFixture[str]) -> None:
    """As some screen recorders write: it was refused by an estimate, though it decodes in no time."""
    seconds_a_frame = (64 * 48 + videos.PIXELS_PER_FRAME) / videos.CODECS["vp8"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(videos.CODECS, "vp8", videos.CODECS["vp8"] * seconds_a_frame * 60 / (1.5 * 5))
        attachment = film(range(60), "webm", "libvpx", key_frames=1000)
        assert len(pictures(attachment)) == 60
    assert capsys.readouterr().err == ""


def test_large_frames_are_decoded_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder would keep 32 of them."""
    monkeypatch.setattr(videos, "MAX_REFERENCE_BYTES", 64 * 48)
    for container_format, codec in FORMATS:
        times = [number / 4 for number in range(32)]
        assert_true(film(times, container_format, codec, key_frames=4), times, range(8))


def test_what_takes_too_long_and_has_nothing_that_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """To show its first picture sixty times would be no answer."""
    monkeypatch.setattr(videos, "DECODING_SECONDS", 0.001)
    with pytest.raises(ImageError, match="takes too long to decode: it has 40 frames of 64 × 48 pixels"):
        pictures(film(range(40), "webm", "libvpx", key_frames=100))


def test_a_webm_of_nothing_but_a_header(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """FFmpeg makes a hundred bytes of two."""
    monkeypatch.setattr(videos, "MAX_MATROSKA_HEADER_BYTES", 50_000)
    content = attacks.film("webm", "libvpx")
    at = content.index(b"\x1f\x43\xb6\x75")
    tags = b"\x73\x73\x80" * 40_000
    content = content[:at] + b"\x12\x54\xc3\x67\x08" + len(tags).to_bytes(7) + tags + content[at:]
    content = content.replace(b"\x12\x54\xc3\x67\x08", b"\x12\x54\xc3\x67\x01", 1)
    with pytest.raises(ImageError, match="too large a header"):
        pictures(llm.Attachment(type="video/webm", content=content))
    # PyAV tells standard error of what can't be raised.
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("container_format", "codec"), [("mp4", "mpeg4"), ("webm", "libvpx")])
def test_bounds_of_work(
    container_format: str, codec: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    attachment = film(range(30), container_format, codec)
    with monkeypatch.context() as patched:
        patched.setattr(videos, "MAX_PACKETS", 20)
        with pytest.raises(ImageError, match="more than 20 frames"):
            pictures(attachment)
    monkeypatch.setattr(reading, "MAX_SECONDS", -1)
    monkeypatch.setattr(reading, "READS_BETWEEN_CHECKS", 1)
    with pytest.raises(ImageError, match="seconds to read"):
        pictures(attachment)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("ticks", [0, 1, 2**31 - 1, 2**32 - 1])
def test_times_that_mean_nothing(ticks: int) -> None:
    """They are shown as they are."""
    content = changed(film([0, 1, 2]).content or b"", b"stts", 1, 3, ticks)
    assert 1 <= len(pictures(llm.Attachment(type="video/mp4", content=content))) <= MAX_FRAMES


@pytest.mark.parametrize(("turn", "size"), [(0x10000, (48, 64)), (-0x10000, (48, 64)), (0x1234, (64, 48))])
def test_only_quarter_turns(turn: int, size: tuple[int, int]) -> None:
    """A telephone held upright. Any other turn would make the pictures larger."""
    content = film([0]).content
    assert content is not None
    at = content.index(b"tkhd") + 44
    cosine = 0 if abs(turn) == 0x10000 else 0x10000
    matrix = struct.pack(">iiiiiiiii", cosine, turn, 0, -turn, cosine, 0, 0, 0, 0x40000000)
    turned = content[:at] + matrix + content[at + 36 :]
    assert pictures(llm.Attachment(type="video/mp4", content=turned))[0].image.size == size


def test_attack() -> None:
    """A short run of it, in a process of its own, which is small: for each case it is forked."""
    pytest.importorskip("av", reason="needs the video extra")
    pytest.importorskip("resource", reason="measures as Unix does")
    process = subprocess.run(
        [sys.executable, "-m", "tests.attacks", "media", "--count", "20", "--seed", "1"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    rows = [line.strip("| ").split(" | ") for line in process.stdout.splitlines()[2:]]
    assert sum(int(times) for _, _, times in rows) == 20
    assert {result for _, result, _ in rows} == {"pictures", "refused"}
