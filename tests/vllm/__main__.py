"""Starts a real vLLM, runs the tests that ask it, and stops it."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from .installing import install
from .serving import serving, write_checkpoint


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.vllm", description=__doc__)
    parser.add_argument("venv", type=Path, nargs="?", help="where vLLM is, or is put")
    parser.add_argument("--checkpoint", type=Path, help="only write the folder that is served")
    arguments, for_pytest = parser.parse_known_args()
    if arguments.checkpoint:
        write_checkpoint(arguments.checkpoint)
        return 0
    if arguments.venv is None:
        parser.error("say where vLLM is, or is to be put")
    if not (arguments.venv / "bin" / "vllm").exists():
        install(arguments.venv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "checkpoint"
        write_checkpoint(folder)
        with serving(arguments.venv, folder, _free_port()) as url:
            tests = [sys.executable, "-m", "pytest", "-n", "0", "-m", "vllm", Path(__file__).parent, *for_pytest]
            return subprocess.run(tests, env={**os.environ, "LLM_DIFFUSIONGEMMA_TEST_SERVER": url}).returncode


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
