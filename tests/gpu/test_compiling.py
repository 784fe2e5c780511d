"""Kernels are compiled for cards that aren't there, and what is wrong with one is found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

# In a process of its own: in this one kernels are interpreted.
SCRIPT = """
import sys
import torch
import triton
from llm_diffusiongemma.diffusion import sampler, trial
from llm_diffusiongemma.diffusion.trial import CHUNKS
from llm_diffusiongemma.diffusion.kernels.cards import Card
from llm_diffusiongemma.diffusion.kernels.tiles import tiling_of
from tests.gpu.compiling import SHARED_KIB, report, untried
from tests.gpu.launches import Launch
from tests.gpu.networks import network_config
from tests.gpu.tuning import FORMATS, launches_of

@triton.jit
def broken(x, SIZE: triton.language.constexpr):
    triton.language.store(x + triton.language.arange(0, SIZE), unknown)

tiling = tiling_of(Card((8, 6)), "nvfp4", "down", torch.bfloat16, 16)
(right,) = launches_of("nvfp4", "down", tiling, "sm_86")
wrong = Launch(broken, (1,), (torch.empty(8, device="meta"),), {"SIZE": 8})
verdicts = [report([("a case", right)], "sm_86"), report([("a case", wrong)], "sm_86")]
SHARED_KIB["sm_86"] = 20
config = network_config(is_tiny=True).network()
lengths = (1, 17, 256, 1304)
canvas_lengths = (16, 48, config.canvas_length)
sampler.CHUNK_BYTES_CPU = 2 * config.canvas_length * sampler.PART * 4  # the vocabulary in several blocks
for trial.CHUNKS, lengths in ((CHUNKS, lengths), (CHUNKS[1:], (300,))):
    print(len(untried(config, FORMATS["nvfp4"], lengths, canvas_lengths, "sm_86")))
print([*verdicts, report([("a case", right), ("another", right)], "sm_86")])
"""


def test_what_each_would_take_of_a_card(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    right, wrong, untried, untried_by_one_position, large, verdicts = done.stdout.splitlines()
    assert verdicts == "[True, False, False]"
    assert right.startswith("sm_86   _products")
    assert "0 spilled" in right
    assert "'mma'" in right
    assert "FORMAT=nvfp4" in right
    assert right.endswith("| a case")
    assert "FAILED CompilationError" in wrong
    assert "unknown" in wrong
    assert "OF 20: TOO MUCH" in large
    assert large.endswith("| a case, another")
    # Nothing is compiled in the middle of a reply, since what loading tries has the lengths of every kind.
    assert untried == "0"
    assert untried_by_one_position != "0"
