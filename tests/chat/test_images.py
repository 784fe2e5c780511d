"""Attachments to pictures: what is decoded how, and what is refused with which sentence."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import llm
import pytest
from PIL import Image, ImageDraw, ImageOps, PngImagePlugin

from llm_diffusiongemma.chat import images
from llm_diffusiongemma.chat.images import ATTACHMENT_TYPES, MAX_FRAMES, pictures
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


# --- videos ----------------------------------------------------------------------------------------------

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
    monkeypatch.setattr(images, "MAX_FRAME_SIDE_PIXELS", 16)
    assert pictures(film([0]))[0].image.size == (16, 12)
