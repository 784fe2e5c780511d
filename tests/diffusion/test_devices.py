"""Which devices there are, and how much of them may be taken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from llm_diffusiongemma.catalog import MEMORY_VARIABLE
from llm_diffusiongemma.diffusion import devices
from llm_diffusiongemma.diffusion.devices import (
    find_machine,
    is_out_of_memory,
    memory_limit,
    peak_memory,
    resolve_device,
)
from llm_diffusiongemma.diffusion.placement import DeviceMemory, Machine
from llm_diffusiongemma.errors import DeviceError

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


def test_a_card_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was PyTorch's bare error."""

    def fail(device: object) -> None:
        raise RuntimeError("CUDA error: unknown error")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", fail)
    with pytest.raises(DeviceError, match=r"^cuda:0 can't be used: CUDA error.* set LLM_DIFFUSIONGEMMA_DEVICE"):
        find_machine(None)


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


@pytest.fixture
def total_gib(monkeypatch: pytest.MonkeyPatch) -> dict[str, float | None]:
    """The memory of each device, to be changed."""
    totals: dict[str, float | None] = {"cpu": 64, "mps": 48, "cuda:0": 12, "cuda:1": 24}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)

    def total(device: torch.device) -> int | None:
        gib = totals[str(device)]
        return None if gib is None else int(gib * GIB)

    monkeypatch.setattr(devices, "total_memory", total)
    return totals


@pytest.mark.usefixtures("total_gib")
def test_all_cards_the_largest_first() -> None:
    cards = (DeviceMemory("cuda:1", 24 * GIB), DeviceMemory("cuda:0", 12 * GIB))
    assert find_machine(None) == Machine(cards, 56 * GIB)


@pytest.mark.usefixtures("total_gib")
def test_one_card_by_name() -> None:
    assert find_machine("cuda:0").devices == (DeviceMemory("cuda:0", 12 * GIB),)


@pytest.mark.parametrize(("total", "usable"), [(64, 56), (16, 14), (8, 6), (1, 0)])
def test_the_cpu_leaves_some_memory_to_others(
    total: float, usable: float, total_gib: dict[str, float | None]
) -> None:
    total_gib["cpu"] = total
    assert find_machine("cpu").devices == (DeviceMemory("cpu", int(usable * GIB), shares_host=True),)


@pytest.mark.usefixtures("total_gib")
def test_apples_memory_is_the_hosts() -> None:
    assert find_machine("mps").devices == (DeviceMemory("mps", 48 * GIB, shares_host=True),)


def test_memory_that_cannot_be_told_is_enough(total_gib: dict[str, float | None]) -> None:
    total_gib["cpu"] = None
    assert find_machine("cpu").devices[0].total_bytes > 2**50


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("", None),
        ("  ", None),
        ("24GiB", 24 * GIB),
        ("24 gib", 24 * GIB),
        (" 24GB ", 24 * 10**9),
        ("800MiB", 800 << 20),
        ("24g", 24 * GIB),
        ("1.5 TB", 1500 * 10**9),
        ("7kib", 7 << 10),
    ],
)
def test_a_limit(text: str, limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MEMORY_VARIABLE, text)
    assert memory_limit() == limit


@pytest.mark.parametrize("text", ["24", "much", "-1GiB", "0GiB", "24GiB of it", "1e9GiB", "\x1b[31m", "9" * 400])
def test_a_limit_that_is_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MEMORY_VARIABLE, text)
    with pytest.raises(DeviceError, match=r"^LLM_DIFFUSIONGEMMA_MEMORY is .*, which is no amount .*24GiB"):
        memory_limit()


@pytest.mark.usefixtures("total_gib")
def test_a_limit_is_of_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not of the host that a card fetches from."""
    monkeypatch.setenv(MEMORY_VARIABLE, "16GiB")
    machine = find_machine(None)
    assert [each.total_bytes for each in machine.devices] == [16 * GIB, 12 * GIB]
    assert machine.host_bytes == 56 * GIB
    assert find_machine("cpu").devices[0].total_bytes == 16 * GIB


def test_the_memory_of_this_machine() -> None:
    total = devices.total_memory(CPU)
    assert total is None or GIB // 4 < total < 2**50


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="needs sysconf")
@pytest.mark.parametrize(
    ("own", "name", "unlimited"),
    [
        ("0::{}", "memory.max", "max"),
        ("12:pids:/a\n4:cpu,memory:{}\n0::/", "memory/memory.limit_in_bytes", str(2**63 - 4096)),
    ],
)
def test_a_group_of_processes_may_have_less(
    own: str, name: str, unlimited: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container, whose own group is the root; a batch job or a service, which is in others."""
    monkeypatch.setattr(devices, "GROUPS", tmp_path)
    monkeypatch.setattr(devices, "OWN_GROUPS", tmp_path / "own")
    whole = devices.total_memory(CPU)
    (tmp_path / "own").write_text(own.format("/slurm:1/job/step") + "\n")
    root = (tmp_path / name).parent
    (root / "slurm:1/job/step").mkdir(parents=True)
    file = Path(name).name
    for group, text, total in (
        ("", unlimited, whole),
        ("slurm:1/job/step", unlimited, whole),
        ("", "65536", 65536),
        ("slurm:1/job", "4096", 4096),
        ("slurm:1", "8192", 4096),
    ):
        (root / group / file).write_text(f"{text}\n")
        assert devices.total_memory(CPU) == total


def test_the_peak_of_this_process() -> None:
    peak = peak_memory(["cpu"])
    assert peak is None or 2**25 < peak < 2**40


def test_an_intel_gpu_is_refused_by_name() -> None:
    with pytest.raises(DeviceError, match="Intel's GPUs are not supported"):
        resolve_device("xpu")
