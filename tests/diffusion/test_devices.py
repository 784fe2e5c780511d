"""Which device a network is placed on, and what is said before it is too large for it."""

from __future__ import annotations

import pytest
import torch

from llm_diffusiongemma.diffusion import devices
from llm_diffusiongemma.diffusion.devices import check_fits, is_out_of_memory, resolve_device
from llm_diffusiongemma.errors import DeviceError, DeviceMemoryError, NoGpuError

CPU = torch.device("cpu")


def test_no_name_means_the_best_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device(None) == torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_device(None) == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device(None) == CPU


def test_a_cuda_device_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("cuda") == resolve_device("cuda:0") == torch.device("cuda", 0)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match=r"'cuda:7' can't be used here. Here are: cuda:0, cuda:1.*, cpu\.$"):
        resolve_device("cuda:7")


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("CUDA", "cuda:0"),
        (" CUDA:1 ", "cuda:1"),
        ("Cuda:0", "cuda:0"),
        ("Mps", "mps"),
        ("MPS:0", "mps"),
        ("Cpu", "cpu"),
        ("cpu:0", "cpu"),
    ],
)
def test_capitals_blanks_and_the_number_of_the_only_one(
    name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device(name) == torch.device(device)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_cuda_where_there_is_none_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=f"'{name}' can't be used here. Here are: .*sees no CUDA GPU"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["nonsense", "", "cuda:x", "gpu"])
def test_a_name_that_means_nothing_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match=f"no device called '{name}'. Here are: .*cpu"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["meta", "xpu", "cpu:3"])
def test_a_device_that_models_are_not_placed_on_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match=f"'{name}' can't be used here"):
        resolve_device(name)


def test_the_cpu_is_always_there() -> None:
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize(
    "words",
    ["CUDA error: out of memory", "MPS backend out of memory (MPS allocated: 1 GB)", "CUBLAS_STATUS_ALLOC_FAILED"],
)
def test_out_of_memory_by_its_words(words: str) -> None:
    """What has no error class of its own."""
    assert is_out_of_memory(RuntimeError(words))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_out_of_memory_on_the_cpu() -> None:
    """Its allocator has no error class; the words are taken from a real failure."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**55, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)


GIB = 2**30
CUDA, MPS = torch.device("cuda", 0), torch.device("mps")


@pytest.mark.parametrize(
    ("weight_gib", "device", "chosen", "memory_gib"),
    [
        (4, CPU, False, 2),  # small enough to try anywhere
        (4, CUDA, False, 2),
        (48, CUDA, False, 80),
        (48, CUDA, True, 51),
        (48, MPS, False, 96),
        (48, CPU, True, 64),
        (48, CPU, True, None),  # can't be told
    ],
)
def test_what_fits(
    weight_gib: int, device: torch.device, chosen: bool, memory_gib: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_total_memory", lambda _: memory_gib and memory_gib * GIB)
    check_fits(weight_gib * GIB, device, chosen=chosen)


@pytest.mark.parametrize(
    ("device", "chosen", "memory_gib", "error", "words"),
    [
        (CPU, False, 1024, NoGpuError, r"take 48\.0 GiB.* no GPU.*LLM_DIFFUSIONGEMMA_DEVICE=cpu.*tiny$"),
        (CUDA, False, 50, DeviceMemoryError, r"48\.0 GiB and 3 GiB more.* cuda:0 has 50\.0 GiB.*tiny$"),
        (CUDA, True, 24, DeviceMemoryError, "cuda:0 has 24"),
        (MPS, False, 36, DeviceMemoryError, "mps has 36"),
        # Not advised what would be refused next.
        (
            CPU,
            False,
            32,
            NoGpuError,
            r"for the CPU this machine has 32\.0 GiB.*Run it on a machine that has more, or",
        ),
        (
            CPU,
            True,
            32,
            DeviceMemoryError,
            r"this machine has 32\.0 GiB .*\. Run it on a machine that has more, or",
        ),
    ],
)
def test_what_does_not_fit(
    device: torch.device,
    chosen: bool,
    memory_gib: int,
    error: type[Exception],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "_total_memory", lambda _: memory_gib * GIB)
    with pytest.raises(error, match=words):
        check_fits(48 * GIB, device, chosen=chosen)


def test_the_memory_of_this_machine() -> None:
    total = devices._total_memory(CPU)
    assert total is None or GIB // 4 < total < 2**50
