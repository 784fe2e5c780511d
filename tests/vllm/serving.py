"""The embedded checkpoint as vLLM wants it, and a vLLM that serves it on a CPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT

SERVED_MODEL = "tiny"
CONTEXT = 2048
MOST_IMAGES = 2
OPTIONS = [
    *("--served-model-name", SERVED_MODEL),
    *("--max-model-len", str(CONTEXT)),
    *("--max-num-seqs", "2"),
    *("--dtype", "float32", "--enforce-eager"),
    # The checkpoint's 256 new tokens would cut every longer answer.
    *("--generation-config", "vllm"),
    *("--reasoning-parser", "gemma4", "--tool-call-parser", "gemma4", "--enable-auto-tool-choice"),
    *("--limit-mm-per-prompt", json.dumps({"image": MOST_IMAGES, "video": 0})),
]
# Without a GPU Triton's kernels run in its interpreter, and one thread leaves a core to the tests.
WITHOUT_GPU = {
    "TRITON_INTERPRET": "1",
    "TRITON_DEFAULT_BACKEND": "cpu",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
PATIENCE_SECONDS = 600


def write_checkpoint(folder: Path) -> None:
    """The embedded checkpoint, with what transformers' processor of Gemma 4 must know: vLLM makes one for images.

    It asks for sound and video, too, though the network knows neither.
    """
    shutil.copytree(EMBEDDED_CHECKPOINT, folder)
    config = json.loads((folder / "config.json").read_text())
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    words = {token["id"]: token["content"] for token in added}
    special = {name: words[config[f"{name}_id"]] for name in ("boi_token", "image_token", "eoi_token")}
    special |= dict.fromkeys(("boa_token", "audio_token", "eoa_token"), "<unk>")
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "extra_special_tokens": special}))
    image = json.loads((folder / "preprocessor_config.json").read_text())
    processor = {
        "processor_class": "Gemma4Processor",
        "image_processor": image,
        "video_processor": {**image, "image_processor_type": None, "video_processor_type": "Gemma4VideoProcessor"},
        "feature_extractor": {"feature_extractor_type": "Gemma4AudioFeatureExtractor"},
    }
    (folder / "processor_config.json").write_text(json.dumps(processor))


@contextmanager
def serving(venv: Path, folder: Path, port: int) -> Iterator[str]:
    """Serves a checkpoint with the vLLM of a virtual environment; the URL to ask, once it answers."""
    command = [
        venv / "bin" / "vllm",
        "serve",
        folder,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--enforce-eager",
    ]
    log = folder.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *OPTIONS], env={**os.environ, **WITHOUT_GPU}, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], health: str, log: Path) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urlopen(health, timeout=5):
                return
        except (URLError, OSError):
            time.sleep(1)
    raise SystemExit(f"vLLM doesn't answer. The end of what it says:\n{log.read_text()[-3000:]}")
