"""The judgement of recorded logits: every format passes, and whatever is wrong in all of a network fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from llm_diffusiongemma.check import first_layers, logits
from llm_diffusiongemma.diffusion import network as network_module
from llm_diffusiongemma.diffusion.config_file import ConfigFile
from llm_diffusiongemma.diffusion.packed import Fp8, Nvfp4, Plain

from ..layouts.writer import Layout
from .conftest import LAYOUTS, load

if TYPE_CHECKING:
    from llm_diffusiongemma.diffusion.experts import Experts
    from llm_diffusiongemma.diffusion.network import Network

FolderOf = Callable[[Layout], Path]


def nibbles(experts: Experts) -> None:
    for matrices in (experts.gate_up, experts.down):
        if isinstance(matrices, Nvfp4):
            matrices.weight.copy_(matrices.weight << 4 | matrices.weight >> 4)


def inverted_scales(experts: Experts) -> None:
    for matrices in (experts.gate_up, experts.down):
        if isinstance(matrices, Fp8):
            matrices.scale.reciprocal_()
        elif isinstance(matrices, Nvfp4):
            matrices.global_scale.reciprocal_()


def gate_for_up(experts: Experts) -> None:
    for tensor in experts.gate_up.held():
        tensor.copy_(tensor.roll(tensor.shape[1] // 2, 1))


def random(experts: Experts) -> None:
    generator = torch.Generator().manual_seed(0)
    for matrices in (experts.gate_up, experts.down):
        if isinstance(matrices, Plain):
            matrices.weight.normal_(0, matrices.weight.std().item(), generator=generator)
        elif isinstance(matrices, (Fp8, Nvfp4)):
            matrices.weight.random_(0, 120, generator=generator)  # no NaN


def in_all_layers(change: Callable[[Experts], None]) -> Callable[[Network, pytest.MonkeyPatch], None]:
    return lambda network, patch: [change(layer.experts) for layer in network._layers]  # type: ignore[return-value]


def one_layer_random(network: Network, patch: pytest.MonkeyPatch) -> None:
    random(network._layers[2].experts)


def layers_exchanged(network: Network, patch: pytest.MonkeyPatch) -> None:
    layers = network._layers
    layers[0], layers[2] = layers[2], layers[0]


def experts_renumbered(network: Network, patch: pytest.MonkeyPatch) -> None:
    for layer in network._layers:
        layer.router = layer.router.roll(1, 0)


def positions_off_by_one(network: Network, patch: pytest.MonkeyPatch) -> None:
    """Those of the canvas."""
    rotation = network_module._rotation

    def off_by_one(frequencies: torch.Tensor, positions: torch.Tensor, *rest: Any) -> Any:
        return rotation(frequencies, positions + (len(positions) == network.config.canvas_length), *rest)

    patch.setattr(network_module, "_rotation", off_by_one)


MISTAKES = {
    "nibbles": in_all_layers(nibbles),
    "inverted scales": in_all_layers(inverted_scales),
    "gate for up": in_all_layers(gate_for_up),
    "experts of a layer random": one_layer_random,
    "layers exchanged": layers_exchanged,
    "experts renumbered": experts_renumbered,
    "positions off by one": positions_off_by_one,
}
# All of them in the format whose limit is the widest, and of the others what only they can have.
CASES: list[tuple[Layout, str]] = [
    *(("nvidia nvfp4", name) for name in MISTAKES),
    ("redhat nvfp4", "inverted scales"),
    ("redhat fp8", "inverted scales"),
    ("google bf16", "gate for up"),
]


def judge(network: Network) -> str:
    recorded = {each.num_layers: each for each in logits.recordings(network.config)}
    return logits.compare(network, recorded[len(network.config.layers)]).outcome


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_format_passes_whole_and_cut_short(folder_of: FolderOf, layout: Layout) -> None:
    whole = load(folder_of(layout))
    recorded = logits.recordings(whole.config)
    assert [each.num_layers for each in recorded] == [4, 2]
    assert logits.compare(whole, recorded[0]).outcome == "passed"
    assert logits.compare(load(folder_of(layout), 2), recorded[1], is_cut=True).outcome == "passed"


def test_what_transformers_said_of_the_embedded_checkpoint_is_what_ours_says(folder_of: FolderOf) -> None:
    network = load(folder_of("google bf16"))
    recording = logits.recordings(network.config)[0]
    (prompt,) = recording.prompts.values()
    found = logits.logits(network, prompt, recording.logits.shape)
    torch.testing.assert_close(found, recording.logits, atol=2e-3, rtol=0)


@pytest.mark.parametrize(("layout", "mistake"), CASES)
def test_what_is_wrong_in_the_whole_network_fails(
    folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch, layout: Layout, mistake: str
) -> None:
    network = load(folder_of(layout))
    MISTAKES[mistake](network, monkeypatch)
    assert judge(network) == "failed"


def test_numbers_that_are_none_fail(folder_of: FolderOf) -> None:
    network = load(folder_of("google bf16"))
    network._final_norm.weight.fill_(torch.nan)
    assert judge(network) == "failed"


def test_what_is_made_wrong_for_the_scale_is_put_right_again(folder_of: FolderOf) -> None:
    network = load(folder_of("nvidia nvfp4"))
    recording = logits.recordings(network.config)[0]
    (prompt,) = recording.prompts.values()
    before = logits.logits(network, prompt, recording.logits.shape)
    assert judge(network) == "passed"
    assert torch.equal(logits.logits(network, prompt, recording.logits.shape), before)


def test_the_figures_of_the_real_network_are_found_by_its_shape() -> None:
    real = ConfigFile.model_validate(
        {
            "text_config": {
                "hidden_size": 2816,
                "num_experts": 128,
                "top_k_experts": 8,
                "moe_intermediate_size": 704,
                "num_hidden_layers": 30,
            }
        }
    )
    whole, cut = logits.recordings(real.network())
    assert (whole.num_layers, cut.num_layers) == (30, 6)
    assert whole.logits.shape == cut.logits.shape == (10, 12)
    assert len(whole.prompts) == 2
    for num_layers in (6, 8):
        assert first_layers(real, num_layers).network().layers == real.network().layers[:num_layers]
