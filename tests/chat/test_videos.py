"""Videos to pictures: which frame stands when, and what is refused with which sentence."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from fractions import Fraction

import llm
import pytest
from PIL import Image

from llm_diffusiongemma.chat import videos
from llm_diffusiongemma.chat.images import pictures
from llm_diffusiongemma.chat.videos import MAX_FRAMES
from llm_diffusiongemma.errors import ImageError

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


@pytest.mark.parametrize("is_live", [False, True], ids=["", "live"])
@pytest.mark.parametrize("key_frames", [1, 60])
@pytest.mark.parametrize(("container_format", "codec"), FORMATS)
def test_a_long_video_is_shown_from_end_to_end(
    container_format: str, codec: str, key_frames: int, is_live: bool
) -> None:
    """Five minutes, whether there is much that need not be decoded or nothing."""
    times = [7 + number * 2 for number in range(150)]
    options = LIVE[container_format] if is_live else {}
    attachment = film(times, container_format, codec, key_frames=key_frames, format_options=options)
    assert_true(attachment, times, [number * 298.1 / MAX_FRAMES for number in range(MAX_FRAMES)])


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
