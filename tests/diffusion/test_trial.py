"""Trials of kernels: what is right passes, and whatever is wrong is found. Pretended ones, made of their twins."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import Any

import pytest
import torch

from llm_diffusiongemma.diffusion import trial
from llm_diffusiongemma.diffusion.operations import PLAIN_TORCH, Operations
from llm_diffusiongemma.diffusion.packed import PLAIN, Plain
from llm_diffusiongemma.diffusion.softmax import Softmax
from llm_diffusiongemma.diffusion.trial import WRITTEN, Kernels, Trial

from .small_network import CONFIG, CPU, FORMATS

# Of a softmax, what an operation writes.
PARTS = {"temper": "logits", "temper_and_measure": "logits", "measure": "part_sum", "conclude": "total"}
LENGTH = 64
NAMES = [each.name for each in fields(Operations)]


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "CHUNKS", (11, 1))


def explain(error: Exception) -> str:
    return f"it raised {error}"


def make(dtype: torch.dtype = torch.float32, formats: Any = PLAIN) -> Trial:
    config = replace(CONFIG, canvas_length=LENGTH, vocab_size=400, final_logit_softcapping=30.0)
    return Trial(config, formats, dtype, CPU, explain)


Change = Callable[[torch.Tensor], object]


def changed(name: str, change: Change, *arguments: Any) -> Any:
    """What the twin gives, all numbers of it changed in place."""
    result = getattr(PLAIN_TORCH, name)(*arguments)
    written = [arguments[i] for i in WRITTEN.get(name, ())]
    written = [getattr(each, PARTS[name]) if isinstance(each, Softmax) else each for each in written]
    for tensor in [*trial._tensors(result), *written]:
        if tensor.is_floating_point():
            change(tensor)
    return result


def all_changed(change: Change) -> Kernels:
    return {name: partial(changed, name, change) for name in NAMES}


@pytest.mark.parametrize("formats", FORMATS.values(), ids=FORMATS)
def test_twins_are_right(formats: Any) -> None:
    state = torch.get_rng_state()
    assert make(torch.bfloat16, formats).faults({name: getattr(PLAIN_TORCH, name) for name in NAMES}) == {}
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_off_by_a_hundredth_is_found(dtype: torch.dtype) -> None:
    """Whatever operation it is. In bf16 a row is off by nearly as much when it is rounded, but not to one side."""
    faults = make(dtype).faults(all_changed(lambda tensor: tensor.mul_(1.01)))
    assert set(faults) == set(NAMES)
    assert all("on this GPU are up to" in why for why in faults.values())
    # Rounded once more, as a kernel may have it.
    rounded = all_changed(lambda tensor: tensor.copy_(tensor.to(torch.bfloat16)))
    assert (make(dtype).faults(rounded) == {}) == (dtype == torch.bfloat16)


@pytest.mark.parametrize(("format_", "name", "bits"), [("fp8", "weight", 8), ("compressed-tensors", "scale", 7)])
def test_whatever_bit_is_not_decoded(format_: str, name: str, bits: int) -> None:
    """All are in use: of real weights the largest number is the largest that there is."""
    for bit in range(bits):

        def blind(x: torch.Tensor, matrices: Any, scratch: Any) -> torch.Tensor:
            misread = copy.copy(matrices)
            if not isinstance(matrices, Plain):
                setattr(misread, name, getattr(matrices, name) & (0xFF ^ 1 << bit))  # noqa: B023
            return PLAIN_TORCH.linear(x, misread, scratch)

        assert set(make(torch.bfloat16, FORMATS[format_]).faults({"linear": blind})) == {"linear"}, bit


def test_what_is_no_number_is_found() -> None:
    faults = make().faults(all_changed(lambda tensor: tensor[-1:].fill_(torch.nan)))
    assert set(faults) == set(NAMES)
    assert all("NaN" in why for why in faults.values())


def fail(*arguments: Any) -> Any:
    raise RuntimeError("shared memory")


def test_what_raises_is_found_and_leaves_the_others() -> None:
    kernels = {name: getattr(PLAIN_TORCH, name) for name in NAMES}
    tried = make()
    assert tried.faults({**kernels, "route": fail}) == {"route": "it raised shared memory"}
    assert tried.faults(kernels) == {}


def test_wrong_in_other_ways() -> None:
    def one_less(gate_up: torch.Tensor) -> torch.Tensor:
        return PLAIN_TORCH.gelu_gate(gate_up)[:, :-1]

    def only_for_one(x: torch.Tensor, attended: torch.Tensor, norms: Any) -> Any:
        result = PLAIN_TORCH.after_attention(x, attended, norms)
        return result if len(x) > 1 else result._replace(x=result.x + 1)

    def not_written(*arguments: Any) -> torch.Tensor:
        *inputs, keys, values = arguments
        return PLAIN_TORCH.heads(*inputs, keys, torch.empty_like(values))

    def the_worst(scores: torch.Tensor, scale: torch.Tensor, top_k: int) -> Any:
        return PLAIN_TORCH.route(-scores, scale, top_k)

    def one_twice(scores: torch.Tensor, scale: torch.Tensor, top_k: int) -> Any:
        chosen, weights = PLAIN_TORCH.route(scores, scale, top_k)
        chosen[:, 1:] = chosen[:, :1]
        return chosen, weights

    def the_first(softmax: Softmax, uniforms: torch.Tensor) -> Any:
        concluded = PLAIN_TORCH.conclude(softmax, uniforms)
        return concluded._replace(drawn=torch.zeros_like(concluded.drawn))

    def first_block_too(total: torch.Tensor, added: torch.Tensor, softmax: Softmax, block: int) -> None:
        moved = softmax.maximum[:, block] - softmax.maximum[:, block + 1]
        total.mul_(moved.exp_()[:, None]).add_(added)

    wrong: Kernels = {
        "gelu_gate": one_less,
        "after_attention": only_for_one,
        "heads": not_written,
        "route": the_worst,
        "conclude": the_first,
        "add_up": first_block_too,
    }
    faults = make().faults(wrong)
    assert set(faults) == set(wrong)
    assert "another shape" in faults["gelu_gate"]
    assert "NaN" in faults["heads"]  # not what was there from an earlier trial
    assert "chooses otherwise" in faults["conclude"]
    assert set(make().faults({"route": one_twice})) == {"route"}


def test_of_equal_scores_any_may_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 there are many: torch.topk takes some, and a kernel the first ones."""

    def the_last(scores: torch.Tensor, scale: torch.Tensor, top_k: int) -> Any:
        chosen, weights = PLAIN_TORCH.route(scores.flip(-1), scale.flip(-1), top_k)
        return (scores.shape[-1] - 1 - chosen).int(), weights

    original = trial._fill

    def fill(network: Any, generator: torch.Generator) -> None:
        original(network, generator)
        for name, tensor in network.tensors():
            if name.endswith("router.proj.weight"):
                tensor[1:] = tensor[:1]

    monkeypatch.setattr(trial, "_fill", fill)
    assert make(torch.bfloat16).faults({"route": the_last}) == {}


def test_what_comes_behind_is_tried_with_what_is_used() -> None:
    """A kernel is compiled for the types of its arguments: those that it will have in a reply, whatever has turned
    out to be wrong by then."""
    seen = set()

    def narrow(scores: torch.Tensor, scale: torch.Tensor, top_k: int) -> Any:
        chosen, weights = PLAIN_TORCH.route(scores, scale, top_k)
        return chosen.int(), weights

    def wrong_for_a_canvas(scores: torch.Tensor, *arguments: Any) -> Any:
        return narrow(scores, *arguments) if len(scores) != LENGTH else fail()

    def through_experts(x: torch.Tensor, experts: Any, chosen: torch.Tensor, weights: torch.Tensor) -> Any:
        seen.add((len(x), chosen.dtype))
        return PLAIN_TORCH.through_experts(x, experts, chosen.long(), weights)

    lengths = (*trial.CHUNKS, LENGTH)
    make().faults({"route": narrow, "through_experts": through_experts})
    assert seen == {(length, torch.int32) for length in lengths}
    assert set(make().faults({"route": wrong_for_a_canvas, "through_experts": through_experts})) == {"route"}
    assert seen >= {(length, torch.int64) for length in lengths}


def test_its_memory_is_free_behind_it() -> None:
    """Without the garbage collector, which is off while a model is loaded: gigabytes, where its weights belong."""
    gc.disable()
    try:
        tried = make()
        assert set(tried.faults({"route": fail, "finish": PLAIN_TORCH.finish})) == {"route"}
        held = [weakref.ref(each) for each in (tried, tried._network, next(tried._network.tensors())[1])]
        del tried
        assert [each() for each in held] == [None] * len(held)
    finally:
        gc.enable()


def test_it_is_asked_before_each_whether_it_is_wanted() -> None:
    class StopError(Exception):
        pass

    def stop() -> None:
        raise StopError

    tried = Trial(CONFIG, PLAIN, torch.float32, CPU, explain, stop)
    with pytest.raises(StopError):
        tried.faults({"finish": fail})
