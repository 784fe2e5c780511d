"""What an attachment costs: each is read in a process of its own, which is asked for its memory and time.

    python -m tests.attacks.cost [--cut] TYPE=FILE ...

prints a line of JSON for each: what came of it, the bytes beyond those of the process before, and the seconds of
CPU. It counts from after a picture of 64 × 48 pixels on, so nothing that any picture needs. With `--cut` the
pictures are also made what the embedded checkpoint reads.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import select
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import llm

from llm_diffusiongemma.chat.images import pictures
from llm_diffusiongemma.errors import ImageError

MAX_BYTES = 300_000_000
MAX_SECONDS = 10
# Of wall time: whoever hangs without computing is ended, too.
PATIENCE_SECONDS = 60
MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Cost:
    """What came of reading an attachment."""

    result: str
    """"pictures", "refused", or what went wrong"""
    message: str
    """the sizes and times of the pictures, or the sentence"""
    bytes: int = 0
    seconds: float = 0

    @property
    def is_within_bounds(self) -> bool:
        return self.bytes <= MAX_BYTES and self.seconds <= MAX_SECONDS


def cost(attachment: llm.Attachment, reader: Any = None) -> Cost:
    """What reading it costs, and cutting its pictures with an `ImageReader` if there is one."""
    receiving, sending = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(sending, json.dumps(asdict(_cost(attachment, reader))).encode()[:60_000])
        finally:
            os._exit(0)
    os.close(sending)
    with open(receiving, "rb") as pipe:
        if not select.select([pipe], [], [], PATIENCE_SECONDS)[0]:
            os.kill(pid, 9)
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    return Cost(**json.loads(said)) if said else Cost(f"ended by signal {status & 127}", "")


def _cost(attachment: llm.Attachment, reader: Any) -> Cost:
    before, started = _peak_bytes(), time.process_time()
    try:
        shown = pictures(attachment)
        if reader is not None:
            kept = [reader.cut(picture.image, 70 if picture.timestamp else None) for picture in shown]
            assert kept
        result = "pictures"
        message = " ".join(
            f"{picture.image.width}x{picture.image.height}@{picture.timestamp}" for picture in shown
        )
    except ImageError as error:
        result, message = "refused", str(error)
    except BaseException as error:
        result, message = f"raised {type(error).__name__}", str(error)
    return Cost(result, message, _peak_bytes() - before, time.process_time() - started)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_BYTES


def main() -> None:
    from PIL import Image

    parser = argparse.ArgumentParser(
        prog="python -m tests.attacks.cost",
        description="What an attachment costs: bytes at the peak, CPU seconds.",
    )
    parser.add_argument("--cut", action="store_true", help="cut it into patches, too, as for a prompt")
    parser.add_argument("files", nargs="+", metavar="TYPE=FILE", help="such as image/png=red.png")
    arguments = parser.parse_args()
    reader = _image_reader() if arguments.cut else None
    for file_format in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        out = io.BytesIO()
        Image.new("RGB", (64, 48)).save(out, file_format)
        (small,) = pictures(llm.Attachment(type=f"image/{file_format.lower()}", content=out.getvalue()))
        if reader is not None:
            reader.cut(small.image, None)
    for argument in arguments.files:
        media_type, _, path = argument.partition("=")
        print(json.dumps(asdict(cost(llm.Attachment(type=media_type, path=path), reader))), flush=True)


def _image_reader() -> Any:
    import torch

    from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
    from llm_diffusiongemma.diffusion import vision
    from llm_diffusiongemma.diffusion.config_file import read_config

    torch.set_num_threads(1)
    vision.import_libraries()
    config = read_config(EMBEDDED_CHECKPOINT)
    return vision.ImageReader(EMBEDDED_CHECKPOINT, config, torch.float32, torch.device("cpu"))


if __name__ == "__main__":
    main()
