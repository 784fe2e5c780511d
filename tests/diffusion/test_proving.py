"""Which kernels are used: what is right on the card at hand. Cards and kernels are pretended, see test_trial."""

from __future__ import annotations

import errno
import gc
import importlib.util
import subprocess
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT, KERNELS_VARIABLE
from llm_diffusiongemma.diffusion import loading, proving, trial
from llm_diffusiongemma.diffusion.loading import describe, load_model
from llm_diffusiongemma.diffusion.operations import PLAIN_TORCH
from llm_diffusiongemma.diffusion.packed import PLAIN
from llm_diffusiongemma.diffusion.placement import whole
from llm_diffusiongemma.diffusion.proving import (
    ALL,
    LEAST_WEIGHT_BYTES,
    Verdict,
    in_common,
    none_because,
    prove,
    prove_all,
)
from llm_diffusiongemma.errors import DeviceError, DeviceMemoryError

from .small_network import CONFIG, CPU

CARD, OTHER_CARD = torch.device("cuda", 0), torch.device("cuda", 1)
LARGE = LEAST_WEIGHT_BYTES


def right(gate_up: torch.Tensor) -> torch.Tensor:
    return PLAIN_TORCH.gelu_gate(gate_up)


def wrong(*arguments: Any) -> Any:
    state, *rest = PLAIN_TORCH.finish(*arguments)
    return state * 1.01, *rest


class Card:
    """A card that is the CPU, with what is offered for it."""

    def __init__(self) -> None:
        self.kernels: dict[str, Any] = {"gelu_gate": right}
        self.unusable: dict[str, str] = {}
        self.is_broken = False
        self.tried: list[torch.device] = []
        self.capability = (9, 0)

    def usable(self, *of: Any) -> tuple[dict[str, Any], dict[str, str]]:
        return self.kernels, self.unusable

    def make_trial(self, config: Any, formats: Any, dtype: Any, device: torch.device, *rest: Any) -> trial.Trial:
        self.tried.append(device)
        return trial.Trial(config, formats, dtype, CPU, *rest)

    def synchronize(self, device: torch.device) -> None:
        if self.is_broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card = Card()
    monkeypatch.setattr(trial, "CHUNKS", (5, 1))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", card.synchronize)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: card.capability)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr(proving, "import_kernels", lambda: [card])
    monkeypatch.setattr(proving, "_start_triton", lambda: None)
    monkeypatch.setattr(proving, "Trial", card.make_trial)
    return card


def verdict_on(device: torch.device = CARD, check_wanted: Any = lambda: None) -> Verdict:
    return prove(CONFIG, PLAIN, torch.float32, device, check_wanted)


def test_what_is_right_is_used_and_what_is_wrong_is_not(card: Card) -> None:
    card.kernels["finish"] = wrong
    card.unusable["route"] = "this network has too many experts"
    verdict = verdict_on()
    assert verdict.operations.gelu_gate is right
    assert verdict.operations.finish is PLAIN_TORCH.finish
    assert (verdict.in_use, verdict.failed) == (("gelu_gate",), ("finish",))
    why = "its results on this GPU are up to 1.0% away from PyTorch's"
    assert verdict.switched_off == {"route": "this network has too many experts", "finish": why}
    assert verdict.as_json() == {"in_use": ["gelu_gate"], "switched_off": verdict.switched_off}
    assert verdict.warning == (f"kernels are switched off, and PyTorch computes in their place (finish: {why}).")


def test_what_no_kernel_could_do_is_no_warning(card: Card) -> None:
    card.unusable["route"] = "this network has too many experts"
    assert verdict_on().warning is None


def test_a_card_older_than_ampere_has_no_kernels(card: Card) -> None:
    """Of whatever room: there Triton can't compile bf16."""
    for card.capability in ((8, 0), (12, 0), (7, 5)):
        verdict = verdict_on()
        assert bool(verdict.in_use) == (card.capability >= (8, 0))
    assert card.tried == [CARD] * 2
    assert verdict.switched_off == {
        ALL: "kernels need an NVIDIA GPU of compute capability 8.0 or newer, and this one has 7.5"
    }
    assert verdict.warning is None


def test_on_a_cpu_nothing_is_tried(card: Card) -> None:
    for device in (CPU, torch.device("mps")):
        verdict = verdict_on(device)
        assert verdict.operations == PLAIN_TORCH
        assert verdict.as_json() is verdict.warning is None
    assert card.tried == []


@pytest.mark.parametrize(
    ("variable", "num_bytes", "has_triton", "because"),
    [
        ("off", LARGE, True, "LLM_DIFFUSIONGEMMA_KERNELS is off"),
        (" OFF ", LARGE, True, "LLM_DIFFUSIONGEMMA_KERNELS is off"),
        (None, LARGE, True, None),
        (None, None, True, None),
        (None, LARGE, False, "Triton is not installed"),
        (None, LARGE - 1, True, "so small a network gains nothing"),
        ("on", LARGE - 1, True, None),
        ("on", LARGE - 1, False, "Triton is not installed"),
    ],
)
def test_why_there_are_none(
    variable: str | None,
    num_bytes: int | None,
    has_triton: bool,
    because: str | None,
    card: Card,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if variable is not None:
        monkeypatch.setenv(KERNELS_VARIABLE, variable)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace() if has_triton else None)
    assert none_because(CPU, num_bytes) is None
    told = none_because(CARD, num_bytes)
    assert told is None if because is None else told is not None and told.startswith(because)
    entered = []

    @contextmanager
    def trying() -> Iterator[None]:
        entered.append(True)
        yield

    verdict = prove_all(CONFIG, PLAIN, torch.float32, [CARD], num_bytes or LARGE, trying, lambda: None)
    assert (verdict.in_use, bool(entered)) == ((), False) if because else (("gelu_gate",), True)
    assert verdict.switched_off == ({ALL: told} if because else {})
    assert verdict.warning is None  # somebody has it so, or it is nobody's fault


def test_several_cards_use_what_is_right_on_all(card: Card) -> None:
    def of_the_first(gate_up: torch.Tensor) -> torch.Tensor:
        return right(gate_up) if card.tried == [CARD] else right(gate_up) * 2

    card.kernels = {"gelu_gate": of_the_first, "route": PLAIN_TORCH.route}
    verdict = prove_all(CONFIG, PLAIN, torch.float32, [CARD, OTHER_CARD], LARGE, nullcontext, lambda: None)
    assert card.tried == [CARD, OTHER_CARD]
    assert (verdict.in_use, verdict.failed) == (("route",), ("gelu_gate",))
    assert verdict.operations.gelu_gate is PLAIN_TORCH.gelu_gate
    none = Verdict(PLAIN_TORCH, switched_off={ALL: "why"}, failed=(ALL,))
    assert in_common([verdict, none]).in_use == in_common([none, verdict]).in_use == ()


def raising(error: BaseException) -> Any:
    def fail(*arguments: Any) -> NoReturn:
        raise error

    return fail


class CompilationError(Exception):
    """Triton's: its text is the kernel's, with what is wrong behind it."""

    error_message = "unsupported type\nand a page more"


WHYS = [
    (CompilationError("at 1:2:\ndef kernel(x)"), "it fails on this GPU (CompilationError: unsupported type)"),
    (ValueError("no file /home/ada/x.py\nmore"), "it fails on this GPU (ValueError: no file …)"),
    (RuntimeError("Failed to find C compiler. Please specify"), "Triton finds no C compiler that works"),
    (subprocess.CalledProcessError(1, ["gcc", "/home/ada/x.c"]), "Triton finds no C compiler that works"),
    (FileNotFoundError(errno.ENOENT, "No such file", "/opt/icc"), "calls a program that is not here (icc)"),
    (PermissionError(errno.EACCES, "Permission denied", "/home/ada/.triton"), "its cache (Permission denied)"),
    (OSError(errno.ENOSPC, "No space left on device"), "have TRITON_CACHE_DIR name a folder"),
]


@pytest.mark.parametrize(("error", "why"), WHYS, ids=[type(error).__name__ for error, _ in WHYS])
def test_what_a_kernel_raises(error: Exception, why: str, card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said in a sentence that anybody may be shown; of what keeps all from running once."""
    card.kernels["finish"] = raising(error)
    verdict = verdict_on()
    assert (verdict.in_use, verdict.failed) == (("gelu_gate",), ("finish",))
    assert why in verdict.switched_off["finish"]
    assert "ada" not in str(verdict.warning)
    monkeypatch.setattr(proving, "_start_triton", raising(error))
    verdict = verdict_on()
    assert (verdict.in_use, verdict.operations, verdict.failed) == ((), PLAIN_TORCH, (ALL,))
    assert why in verdict.switched_off[ALL]
    assert f"in their place ({verdict.switched_off[ALL]})." in str(verdict.warning)


def test_where_there_is_no_room_to_try_them_there_are_none(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second card may be there for a few layers, and be smaller than what a trial takes. Its own memory is given
    back behind it."""

    def too_large(*arguments: Any) -> NoReturn:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    card.kernels["finish"] = too_large
    trials: list[weakref.ref[trial.Trial]] = []
    make_trial = card.make_trial

    def noted(*of: Any) -> trial.Trial:
        made = make_trial(*of)
        trials.append(weakref.ref(made))
        return made

    monkeypatch.setattr(proving, "Trial", noted)
    alive: list[Any] = []
    monkeypatch.setattr(proving, "give_memory_back", lambda: alive.extend(each() for each in trials))
    gc.disable()
    try:
        verdict = verdict_on()
    finally:
        gc.enable()
    assert (verdict.in_use, verdict.operations) == ((), PLAIN_TORCH)
    assert "(cuda:0 has no room to try them, which" in str(verdict.warning)
    assert alive == [None]


def test_what_is_none_of_a_kernels_faults_goes_on(card: Card) -> None:
    # A Ctrl-C ends the compiler, too.
    card.kernels["finish"] = raising(RuntimeError("ptxas was killed by a signal"))
    asked = []

    def check_wanted() -> None:
        asked.append(True)
        if len(asked) > 1:
            raise KeyboardInterrupt

    card.kernels.pop("gelu_gate")
    with pytest.raises(KeyboardInterrupt):
        verdict_on(check_wanted=check_wanted)
    card.is_broken = True
    with pytest.raises(DeviceError, match=r"^cuda:0 failed .*ptxas was.* set LLM_DIFFUSIONGEMMA_KERNELS=off"):
        verdict_on()


def test_a_model_is_loaded_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its weights take the memory."""
    verdict = Verdict(PLAIN_TORCH.__class__(gelu_gate=right), ("gelu_gate",))
    asked: list[Any] = []

    def pretend(*arguments: Any) -> Verdict:
        asked.append(arguments)
        return verdict

    monkeypatch.setattr(loading, "prove_all", pretend)
    described = describe(EMBEDDED_CHECKPOINT)
    placement = whole("bf16", described.config.text_config.num_hidden_layers, "cpu")
    loaded = load_model(described, placement)
    assert loaded.verdict is verdict
    assert loaded.network.operations is verdict.operations
    ((config, formats, dtype, devices, num_bytes, *_),) = asked
    assert (config, formats, dtype) == (loaded.network.config, loaded.formats, loaded.dtype)
    assert (devices, num_bytes) == ([CPU], loaded.weight_bytes)
    monkeypatch.setattr(loading, "prove_all", raising(torch.OutOfMemoryError("CUDA out of memory.")))
    with pytest.raises(DeviceMemoryError):
        load_model(described, placement)
