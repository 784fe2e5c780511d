"""How fast weights come against `hf download`, and what is lost by kills.

    python -m tests.benchmarks.download race
    python -m tests.benchmarks.download cuts

A hub on loopback serves random bytes in the names of a checkpoint, with a limit a connection and a delay a
request. Each download is a process of its own. That hub speaks plain HTTP: hf-xet, which `hf download` uses on the
real one, has no part in it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_diffusiongemma.hub.partial import PARTIAL_SUFFIX, bytes_here

from ..loopback_hub import REPO, LoopbackHub

MB = 10**6
SMALL = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("preprocessor_config.json", "chat_template.jinja"),
)
PEAK = "print([line for line in open('/proc/self/status') if line.startswith('VmHWM')][0].split()[1])"
OURS = f"""
from llm_diffusiongemma import hub
from llm_diffusiongemma.catalog import Source
hub.download(Source({REPO!r}))
{PEAK}
"""
THEIRS = f"""
from huggingface_hub import snapshot_download
snapshot_download({REPO!r})
{PEAK}
"""


def checkpoint(num_files: int, num_bytes: int) -> dict[str, bytes]:
    """So many weight files, and small ones."""
    draw = random.Random(1)
    names = [f"model-{number:05}-of-{num_files:05}.safetensors" for number in range(1, num_files + 1)]
    files = dict.fromkeys(SMALL, b'{"a": 1}')
    files["model.safetensors.index.json"] = json.dumps({"weight_map": {name: name for name in names}}).encode()
    header = json.dumps({"a": {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}}).encode()
    for name in names:
        body = b"".join(draw.randbytes(MB) for _ in range(num_bytes // MB))
        files[name] = len(header).to_bytes(8, "little") + header + body
    return files


@contextmanager
def served(files: dict[str, bytes], rate: float | None, delay: float) -> Iterator[tuple[LoopbackHub, Path]]:
    """A hub, and a cache for its files, which the environment of processes names."""
    hub = LoopbackHub(files, bytes_a_second=rate, seconds_a_request=delay)
    hub.start()
    hub.listing()  # whose hashes take a while
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": folder, "HF_HOME": f"{folder}/home"}
        os.environ |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        try:
            yield hub, Path(folder)
        finally:
            hub.stop()


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def race(repeats: int, rate: float | None, delay: float) -> None:
    print("| Weights | Whose | Seconds | MB/s | Peak memory | Sent twice |\n| --- | --- | --- | --- | --- | --- |")
    for num_files, num_bytes in ((1, 400 * MB), (2, 200 * MB), (11, 40 * MB)):
        files = checkpoint(num_files, num_bytes)
        total = sum(map(len, files.values()))
        with served(files, rate, delay) as (hub, cache):
            for _ in range(repeats):
                for whose, code in (("ours", OURS), ("hf download", THEIRS)):
                    shutil.rmtree(cache, ignore_errors=True)
                    hub.bytes_sent, started = 0, time.perf_counter()
                    process = start(code)
                    output, _ = process.communicate()
                    seconds = time.perf_counter() - started
                    assert process.returncode == 0, whose
                    print(
                        f"| {num_files} × {num_bytes // MB} MB | {whose} | {seconds:.1f} | "
                        f"{total / seconds / MB:.0f} | {int(output) // 1024} MiB | "
                        f"{max(hub.bytes_sent - total, 0) / total:.2%} |"
                    )


def cuts(count: int, rate: float, seed: int) -> None:
    """Kill downloads at random instants, each going on with the one before; then see what came twice."""
    draw = random.Random(seed)
    files = checkpoint(2, 400 * MB)
    total = sum(map(len, files.values()))
    losses = []
    with served(files, rate, 0.02) as (hub, cache):
        while len(losses) < count:
            shutil.rmtree(cache, ignore_errors=True)
            hub.bytes_sent = kept = 0
            # Each life brings a tenth at most, so that most files are cut several times.
            while len(losses) < count and kept < total * 0.9:
                before, process = hub.bytes_sent, start(OURS)
                until = before + draw.randrange(total // 10)
                while hub.bytes_sent < until and process.poll() is None:
                    time.sleep(0.001)
                process.kill()
                process.communicate()
                time.sleep(0.3)  # until the hub has noticed
                sent, here = hub.bytes_sent - before, _bytes_in(cache)
                losses.append(max(sent - (here - kept), 0))
                kept = here
            process = start(OURS)
            process.communicate()
            assert process.returncode == 0
            for name, content in files.items():
                assert next(cache.glob(f"models--*/snapshots/*/{name}")).read_bytes() == content
    largest = max(len(content) for content in files.values())
    print(
        f"{len(losses)} kills, 2 files of {largest / MB:.0f} MB: lost at a kill {max(losses) / largest:.2%} of a "
        f"file at most, {sum(losses) / len(losses) / largest:.2%} on average; all files whole in the end."
    )


def _bytes_in(cache: Path) -> int:
    blobs = [blob for blob in cache.glob("models--*/blobs/*") if not blob.name.endswith(".incomplete")]
    begun = cache.glob(f"models--*/blobs/*{PARTIAL_SUFFIX}")
    return sum(blob.stat().st_size for blob in blobs) + sum(map(bytes_here, begun))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.download", description=__doc__)
    parser.add_argument("what", choices=("race", "cuts"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--count", type=int, default=50, help="of kills (50)")
    parser.add_argument("--rate", type=float, default=10, help="MB/s a connection; 0 for no limit (10)")
    parser.add_argument("--delay", type=float, default=0.1, help="seconds before each answer (0.1)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.what == "race":
        race(arguments.repeats, arguments.rate * MB or None, arguments.delay)
    else:
        cuts(arguments.count, arguments.rate * MB, arguments.seed)


if __name__ == "__main__":
    main()
