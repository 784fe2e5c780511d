"""Which weights a machine takes, and what is said about it. Nothing of the real network is here."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from llm_diffusiongemma import hub, wording
from llm_diffusiongemma.backends import choice as module
from llm_diffusiongemma.backends.choice import Choice, bytes_to_read, choose, place_described, told
from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT, HUB_SOURCES, MEMORY_VARIABLE, ModelEntry, Source
from llm_diffusiongemma.diffusion.loading import describe, load_model
from llm_diffusiongemma.diffusion.placement import DeviceMemory, LayerHome, Machine, whole
from llm_diffusiongemma.errors import DeviceError, DeviceMemoryError, NoGpuError

from ..layouts.writer import COMMIT, write_to_cache

GIB = 2**30
FULL = ModelEntry("diffusiongemma", HUB_SOURCES)
ONE = {
    source.representation: ModelEntry(f"diffusiongemma-{source.representation}", (source,))
    for source in HUB_SOURCES
}
BF16, FP8, NVFP4 = HUB_SOURCES


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> type[Machines]:
    Machines.patch = monkeypatch
    return Machines


class Machines:
    patch: pytest.MonkeyPatch

    @classmethod
    def cards(cls, *gib: float) -> None:
        memories = tuple(DeviceMemory(f"cuda:{i}", int(x * GIB)) for i, x in enumerate(gib))
        cls._is(Machine(memories, 24 * GIB))

    @classmethod
    def shared(cls, device: str, gib: float) -> None:
        cls._is(Machine((DeviceMemory(device, int(gib * GIB), shares_host=True),), int(gib * GIB)))

    @classmethod
    def _is(cls, machine: Machine) -> None:
        cls.patch.setattr(module, "find_machine", lambda device: machine)


@pytest.mark.parametrize(
    ("gib", "source", "is_resident"),
    [
        ([79.1], BF16, True),
        ([79.1, 79.1], BF16, True),
        ([47.4], FP8, True),
        ([31.3], FP8, True),
        ([23.5, 23.5], FP8, True),
        ([23.5], NVFP4, True),
        ([15.6], NVFP4, False),
        ([11.6], NVFP4, False),
        ([7.9], NVFP4, False),
    ],
)
def test_the_best_that_is_resident(
    gib: list[float], source: Source, is_resident: bool, on: type[Machines]
) -> None:
    on.cards(*gib)
    choice = choose(FULL)
    assert choice.source == source
    assert choice.refusal is None
    assert choice.placement is not None
    assert choice.placement.is_resident == is_resident
    assert choice.on_disk is None
    assert choice.download_bytes == source.weight_bytes


@pytest.mark.parametrize(
    ("device", "gib", "source", "is_resident"),
    [
        ("mps", 96, BF16, True),
        ("mps", 48, FP8, True),
        ("mps", 24, NVFP4, True),
        ("mps", 10.7, NVFP4, False),
        ("cpu", 56, BF16, True),
        ("cpu", 14, NVFP4, False),
    ],
)
def test_where_memory_is_shared(
    device: str, gib: float, source: Source, is_resident: bool, on: type[Machines]
) -> None:
    on.shared(device, gib)
    choice = choose(ModelEntry("diffusiongemma", HUB_SOURCES, device))
    assert (choice.source, choice.refusal) == (source, None)
    assert choice.placement is not None
    assert choice.placement.is_resident == is_resident


def test_what_is_here_is_not_downloaded(on: type[Machines], cache: Path) -> None:
    """Though there would be room for better ones. Of several the best."""
    on.cards(79.1)
    write_to_cache(EMBEDDED_CHECKPOINT, cache, "nvidia nvfp4")
    choice = choose(FULL)
    assert choice.source == NVFP4
    assert choice.download_bytes == 0
    write_to_cache(EMBEDDED_CHECKPOINT, cache, "redhat fp8")
    assert choose(FULL).source == FP8


def test_what_is_here_and_would_be_streamed_is_no_reason(
    on: type[Machines], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(5 * GIB)
    whole = hub.OnDisk(tmp_path, COMMIT, 5 * GIB, 0, True)
    monkeypatch.setattr(hub, "on_disk", lambda source: whole if source == BF16 else None)
    on.cards(23.5)
    assert choose(FULL).source == NVFP4
    on.cards(79.1)
    assert choose(FULL).source == BF16


def test_a_named_one_is_never_another(on: type[Machines], cache: Path) -> None:
    on.cards(23.5)
    write_to_cache(EMBEDDED_CHECKPOINT, cache, "nvidia nvfp4")
    choice = choose(ONE["bf16"])
    assert choice.source == BF16
    assert choice.placement is not None
    assert not choice.placement.is_resident


def test_what_fits_nowhere_is_refused_with_the_numbers(on: type[Machines]) -> None:
    on.cards(7.3)
    assert choose(FULL).source == FP8
    on.cards(5.8)
    choice = choose(FULL)
    assert choice.placement is None
    assert isinstance(choice.refusal, DeviceMemoryError)
    assert choice.sentence() == str(choice.refusal)
    with pytest.raises(
        DeviceMemoryError, match=r"nvfp4 .* 7\.\d GiB .* 5\.8 GiB of cuda:0\. .*diffusiongemma-tiny$"
    ):
        choice.check_size(18_818_000_000)
    choice.check_size(2 * GIB)


def test_other_weights_are_named_where_they_fit(on: type[Machines]) -> None:
    """nvfp4 was advised where it did not fit either, and fp8, of which less has to stay on the card, did."""
    on.cards(7.9)
    assert "-m diffusiongemma-nvfp4" in str(choose(ONE["bf16"]).refusal)
    on.cards(7.3)
    for representation in ("bf16", "nvfp4"):
        assert "-m diffusiongemma-fp8" in str(choose(ONE[representation]).refusal)
    on.cards(5.8)
    for entry in ONE.values():
        assert "-m diffusiongemma-" not in str(choose(entry).refusal).replace("-m diffusiongemma-tiny", "")


def test_what_will_become_of_weights_is_said_before_they_come(
    on: type[Machines], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wording, "_told", set())
    on.cards(11.6)
    choice = choose(FULL)
    choice.announce(2 * GIB)
    assert capsys.readouterr().err == ""
    choice.announce(18_818_000_000)
    choice.announce(18_818_000_000)
    assert capsys.readouterr().err == choice.sentence() + "\n"
    on.cards(79.1)
    choose(FULL).announce(51_648_000_000)
    assert capsys.readouterr().err == ""


def test_no_gpu_and_nobody_insists(on: type[Machines], monkeypatch: pytest.MonkeyPatch) -> None:
    """What it would be is told before a byte moves."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    on.shared("cpu", 14)
    choice = choose(FULL)
    assert choice.source == NVFP4
    assert isinstance(choice.refusal, NoGpuError)
    with pytest.raises(
        NoGpuError,
        match=r"weights take 17\.5 GiB, and PyTorch finds no GPU here: on the CPU a denoising step takes about "
        r"\d\d seconds \(8 cores\), .* Set LLM_DIFFUSIONGEMMA_DEVICE=cpu .*-tiny$",
    ):
        choice.check_size(18_818_000_000)
    choice.check_size(2 * GIB)


def test_a_repository_of_ones_own_is_judged_by_its_size(on: type[Machines]) -> None:
    on.cards(5.8)
    choice = choose(ModelEntry("tuned", (Source("somebody/tuned"),)))
    assert (choice.placement, choice.refusal, choice.download_bytes) == (None, None, None)
    assert choice.sentence() == "tuned: the weights of somebody/tuned."
    with pytest.raises(DeviceMemoryError, match="In bf16"):
        choice.check_size(52_000_000_000)
    with pytest.raises(DeviceMemoryError, match="In nvfp4"):
        choice.check_size(17_000_000_000)


def test_a_damaged_one_that_is_here_is_left_to_loading(on: type[Machines], tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(EMBEDDED_CHECKPOINT, folder)
    (folder / "config.json").write_text("{}")
    on.cards(24)
    choice = choose(ModelEntry("own", (Source(folder),)))
    assert (choice.source.where, choice.placement, choice.refusal) == (folder, None, None)


GOOGLE = "bf16 weights (google/diffusiongemma-26B-A4B-it) on cuda:0"
RED_HAT = "fp8 weights (RedHatAI/diffusiongemma-26B-A4B-it-FP8-dynamic) on cuda:0 and cuda:1"
NVIDIA = "nvfp4 weights (nvidia/diffusiongemma-26B-A4B-it-NVFP4) on cuda:0"
STREAMED = "the experts of # of 30 layers streamed"
FROM_BOTH = "at every step, # from memory and # from the weight files"
AT_BEST = "about # tokens a second at best"
BUS, DISK = "over PCIe # x16", "from a disk of # GB/s"


@pytest.mark.parametrize(
    ("gib", "entry", "line"),
    [
        ([79.1], FULL, f"diffusiongemma: {GOOGLE}."),
        ([23.5, 23.5], FULL, f"diffusiongemma: {RED_HAT}."),
        ([11.6], FULL, f"diffusiongemma: {NVIDIA}, {STREAMED} from memory at every step: {AT_BEST} {BUS}."),
        (
            [11.6],
            ONE["bf16"],
            f"diffusiongemma-bf16: {GOOGLE}, {STREAMED} {FROM_BOTH}: {AT_BEST} {BUS} and {DISK}.",
        ),
    ],
)
def test_sentences(gib: list[float], entry: ModelEntry, line: str, on: type[Machines]) -> None:
    on.cards(*gib)
    assert re.sub(r" \d+ (?!layers)", " # ", choose(entry).sentence()) == line


@pytest.mark.parametrize(("cores", "called"), [(1, "1 core"), (2, "2 cores")])
def test_how_slow_a_cpu_is(cores: int, called: str, on: type[Machines], monkeypatch: pytest.MonkeyPatch) -> None:
    """This one."""
    on.shared("cpu", 14)
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    sentence = choose(ModelEntry("diffusiongemma", HUB_SOURCES, "cpu")).sentence()
    assert "streamed from the weight files at every step: a denoising step takes about " in sentence
    assert sentence.endswith(f" seconds ({called}), and 256 tokens about 15 steps.")


def small(entry: ModelEntry, folder: Path, gib: float = 24) -> tuple[Choice, str | None]:
    machine = Machine((DeviceMemory("cpu", int(gib * GIB), shares_host=True),), int(gib * GIB))
    described = describe(folder)
    return choose(entry), told(entry, entry.sources[0], described, place_described(entry, described, machine))


def test_small_models_are_put_anywhere(cache: Path) -> None:
    """Plain ones without a word."""
    tiny = ModelEntry("diffusiongemma-tiny", (Source(EMBEDDED_CHECKPOINT),))
    choice, line = small(tiny, EMBEDDED_CHECKPOINT, gib=1e-6)
    assert choice.placement is not None
    assert choice.placement.is_resident
    assert line is None
    folder = write_to_cache(EMBEDDED_CHECKPOINT, cache, "redhat fp8")
    _, line = small(ONE["fp8"], folder, gib=1e-6)
    assert line == "diffusiongemma-fp8: fp8 weights (RedHatAI/diffusiongemma-26B-A4B-it-FP8-dynamic) on cpu."


def test_a_limit_counts_for_small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = ModelEntry("diffusiongemma-tiny", (Source(EMBEDDED_CHECKPOINT),))
    monkeypatch.setenv(MEMORY_VARIABLE, "1MiB")
    with pytest.raises(DeviceMemoryError, match=r"1\.0 MiB of cpu\..* set LLM_DIFFUSIONGEMMA_MEMORY to more"):
        small(tiny, EMBEDDED_CHECKPOINT, gib=1 / 1024)
    monkeypatch.setenv(MEMORY_VARIABLE, "lots")
    with pytest.raises(DeviceError, match="no amount of memory"):
        choose(tiny)


@pytest.mark.parametrize("home", ["device", "files"])
def test_how_much_will_be_read(home: Literal["device", "files"], cache: Path) -> None:
    """Neither a vision tower nor what stays in the files."""
    described = describe(write_to_cache(EMBEDDED_CHECKPOINT, cache, "google bf16"))
    placement = replace(whole("bf16", 4, "cpu"), layers=(LayerHome("cpu", home),) * 4)
    read: list[int] = []
    load_model(described, placement, progress=read.append)
    assert bytes_to_read(described, placement) == pytest.approx(sum(read), rel=0.02)
