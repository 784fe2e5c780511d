"""The layouts of packed checkpoints: every stored byte in its place, or a sentence before any is read."""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_diffusiongemma.diffusion.experts import Experts
from llm_diffusiongemma.diffusion.kv_cache import KVCache
from llm_diffusiongemma.diffusion.loading import describe, load_model
from llm_diffusiongemma.diffusion.packed import (
    Formats,
    Fp8,
    Matrices,
    ModelOptNvfp4,
    Plain,
)
from llm_diffusiongemma.diffusion.placement import ExpertsHome, LayerHome, Placement, whole
from llm_diffusiongemma.errors import CheckpointError, FileAccessError

from ..layouts.synthetic import FORMATS
from ..layouts.writer import QUANTIZATION, REPOSITORIES, Layout, write
from ..whole import load_whole
from .tiny_models import tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llm_diffusiongemma.diffusion.network import Network

PACKED = [layout for layout in FORMATS if layout != "google bf16"]
EXPERT = "model.decoder.layers.1.experts.2"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[Layout, Path]:
    """The same small network in each layout."""
    place: Path = tmp_path_factory.mktemp("layouts")
    tiny_model(dtype=torch.bfloat16).save_pretrained(place / "plain")
    return {layout: write(place / "plain", place / layout, layout) for layout in REPOSITORIES}


@pytest.fixture
def copy_of(originals: dict[Layout, Path], tmp_path: Path) -> Callable[[Layout], Path]:
    """One to spoil."""
    return lambda layout: shutil.copytree(originals[layout], tmp_path / layout)


Tensors = dict[str, torch.Tensor]


def change(folder: Path, how: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    how(tensors)
    save_file(tensors, folder / "model.safetensors")


def set_quantization(folder: Path, quantization: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        load_whole(folder)
    assert str(folder) in str(raised.value)


def numbers(matrices: Matrices) -> torch.Tensor:
    """All of them, fp32 `[S, out, in]`."""
    out = torch.empty(matrices.stack, matrices.outputs, matrices.inputs)
    return matrices.dequantise(slice(None), slice(None), out)


def matrices_of(folder: Path) -> Iterator[Matrices]:
    for layer in load_whole(folder).network._layers:
        yield from (layer.experts.gate_up, layer.experts.down, layer.qkv, layer.output)
        yield from (layer.mlp._gate_up, layer.mlp._down)


@pytest.mark.parametrize("layout", FORMATS)
def test_each_layout_is_recognised_and_each_byte_in_its_place(
    layout: Layout, originals: dict[Layout, Path]
) -> None:
    folder = originals[layout]
    stored = load_file(folder / "model.safetensors")
    loaded = load_whole(folder)
    assert describe(folder).formats == loaded.formats == FORMATS[layout]
    for name, place in loaded.network.tensors():
        assert torch.equal(place.float(), stored[name].view(place.shape).float()), name


@pytest.mark.parametrize(
    ("layout", "error"), [("redhat fp8", 0.04), ("nvidia nvfp4", 0.13), ("redhat nvfp4", 0.13)]
)
def test_what_the_bytes_stand_for(layout: Layout, error: float, originals: dict[Layout, Path]) -> None:
    """Gates before ups, q before k, each expert in its own place."""
    for plain, packed in zip(*(matrices_of(originals[each]) for each in ("google bf16", layout)), strict=True):
        expected = numbers(plain)
        assert (numbers(packed) - expected).norm() < error * expected.norm()


def test_scalars_and_scales_of_other_programs_are_known(copy_of: Callable[[Layout], Path]) -> None:
    """A scalar may have an axis; a packed KV cache and packed activations have scales of their own."""
    folder = copy_of("nvidia nvfp4")
    expected = dict(load_whole(folder).network.tensors())

    def reshape(tensors: Tensors) -> None:
        for name in tensors:
            if name.endswith("weight_scale_2"):
                tensors[name] = tensors[name].reshape(1)
        attention = "model.decoder.layers.0.self_attn"
        names = (f"{attention}.k_scale", f"{attention}.v_proj.v_scale", f"{attention}.q_proj.input_scale")
        tensors.update({name: torch.ones(()) for name in names})

    change(folder, reshape)
    for name, tensor in load_whole(folder).network.tensors():
        assert torch.equal(tensor.float(), expected[name].float())


def test_a_finetune_that_leaves_attention_alone(
    originals: dict[Layout, Path], copy_of: Callable[[Layout], Path]
) -> None:
    """Another ignore list, and in shards."""
    folder = copy_of("redhat fp8")
    tensors = load_file(folder / "model.safetensors")
    plain = load_file(originals["google bf16"] / "model.safetensors")
    tensors = {name: each for name, each in tensors.items() if "self_attn" not in name}
    tensors |= {name: each for name, each in plain.items() if "self_attn" in name}
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    for shard, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / shard)
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    loaded = load_whole(folder)
    assert loaded.formats == Formats(Fp8, Plain, Fp8)
    for name, place in loaded.network.tensors():
        assert torch.equal(place.float(), tensors[name].view(place.shape).float()), name
    (folder / "model-2-of-2.safetensors").write_bytes((folder / "model-2-of-2.safetensors").read_bytes()[:-1])
    refused(folder, r"model-2-of-2\.safetensors is damaged or was not downloaded whole")
    (folder / "model-2-of-2.safetensors").unlink()
    refused(folder, r"incomplete: 1 of 2 weight files are missing \(model-2-of-2\.safetensors\)")


def test_plain_experts_by_themselves(copy_of: Callable[[Layout], Path]) -> None:
    """Some programs write each matrix of each expert, and not a layer's stacks."""
    folder = copy_of("google bf16")
    expected = dict(load_whole(folder).network.tensors())

    def unstack(tensors: Tensors) -> None:
        for name in [name for name in tensors if ".experts." in name]:
            module, _, which = name.rpartition(".")
            for expert, each in enumerate(tensors.pop(name)):
                parts = each.chunk(2) if which == "gate_up_proj" else (each,)
                for kind, part in zip(("gate", "up") if len(parts) == 2 else ("down",), parts, strict=True):
                    tensors[f"{module}.{expert}.{kind}_proj.weight"] = part.clone()

    change(folder, unstack)
    for name, place in load_whole(folder).network.tensors():
        assert torch.equal(place, expected[name]), name
    change(folder, lambda tensors: tensors.pop(f"{EXPERT}.up_proj.weight"))
    refused(folder, rf"missing weights \({EXPERT}\.up_proj\.weight\)")


# --- what is not loaded at once --------------------------------------------------------------------------


def homes(*experts: ExpertsHome) -> Placement:
    return replace(whole("bf16", len(experts), "cpu"), layers=tuple(LayerHome("cpu", each) for each in experts))


def step(network: Network) -> torch.Tensor:
    """What comes of reading and of a denoising step."""
    cache = KVCache(network.config, network.dtype, network.layer_devices)
    network.encode(network.embed(torch.arange(40)), cache)
    return network.denoise(torch.arange(16), None, cache)


@pytest.mark.parametrize("layout", FORMATS)
def test_experts_that_stay_elsewhere(layout: Layout, originals: dict[Layout, Path]) -> None:
    folder = originals[layout]
    resident = load_whole(folder).network
    read: list[int] = []
    loaded = load_model(describe(folder), homes("host", "files"), progress=read.append)
    names = [name for name, _ in loaded.network.tensors()]
    assert any(".layers.0.experts." in name for name in names)
    assert not any(".layers.1.experts." in name for name in names)
    stored = load_file(folder / "model.safetensors")
    assert sum(read) == sum(stored[name].nbytes for name in names)
    assert torch.equal(step(loaded.network), step(resident))


def test_several_threads_read_experts_wherever_the_program_is_by_then(
    originals: dict[Layout, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = originals["redhat fp8"]
    network = load_whole(folder).network
    monkeypatch.chdir(folder.parent)
    described = describe(Path(folder.name))
    monkeypatch.chdir(tmp_path)
    buffers = [Experts(4, 32, 16, torch.float32, torch.device("cpu"), Fp8) for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(described.read_experts, [0, 1] * 4, buffers))
    for i, buffer in enumerate(buffers):
        for ours, theirs in zip(buffer.held(), network._layers[i % 2].experts.held(), strict=True):
            assert torch.equal(ours, theirs)


def test_fp8_where_a_device_has_no_such_numbers(originals: dict[Layout, Path]) -> None:
    """Apple's take the bytes as they are."""
    described = describe(originals["redhat fp8"])
    name = f"{EXPERT}.up_proj.weight"
    place = torch.empty(16, 32, dtype=torch.uint8)
    described.weights.read({name: place}, described.found)
    stored = load_file(described.folder / "model.safetensors")[name]
    assert torch.equal(place, stored.view(torch.uint8))


def test_a_file_that_is_replaced_meanwhile(copy_of: Callable[[Layout], Path]) -> None:
    """Its bytes would have been taken for experts of the network that has been loaded."""
    folder = copy_of("nvidia nvfp4")
    described = describe(folder)
    experts = Experts(4, 32, 16, torch.float32, torch.device("cpu"), ModelOptNvfp4)
    described.read_experts(1, experts)
    change(folder, lambda tensors: tensors.update({f"{EXPERT}.up_proj.weight_scale_2": torch.tensor(2.0)}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors was changed while it was in use"):
        described.read_experts(1, experts)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileAccessError, match=r"can't read .*model\.safetensors: No such file"):
        described.read_experts(1, experts)


# --- what is not loaded ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", PACKED)
def test_a_missing_scale(layout: Layout, copy_of: Callable[[Layout], Path]) -> None:
    folder = copy_of(layout)
    change(folder, lambda tensors: tensors.pop(f"{EXPERT}.up_proj.weight_scale"))
    refused(folder, rf"missing weights \({EXPERT}\.up_proj\.weight_scale\)")


@pytest.mark.parametrize(
    ("layout", "end", "shape"),
    [
        ("redhat fp8", "weight", (16, 16)),
        ("redhat fp8", "weight_scale", (16,)),
        ("redhat fp8", "weight_scale", (1,)),
        ("nvidia nvfp4", "weight", (16, 32)),
        ("nvidia nvfp4", "weight_scale", (16, 1)),
        ("nvidia nvfp4", "weight_scale_2", (2,)),
        ("redhat nvfp4", "weight_packed", (32, 16)),
        ("redhat nvfp4", "weight_global_scale", (1, 1)),
    ],
)
def test_a_tensor_of_another_shape(
    layout: Layout, end: str, shape: tuple[int, ...], copy_of: Callable[[Layout], Path]
) -> None:
    name = f"{EXPERT}.up_proj.{end}"
    folder = copy_of(layout)
    change(folder, lambda tensors: tensors.update({name: tensors[name].new_zeros(shape)}))
    refused(folder, rf"weights of another size \({name} is {re.escape(str(list(shape)))}, not ")


@pytest.mark.parametrize(
    ("layout", "end", "dtype", "words"),
    [
        ("redhat fp8", "weight_scale", torch.uint8, "no plain floating-point numbers"),
        ("redhat fp8", "weight", torch.int8, "packed otherwise than their like"),
        ("nvidia nvfp4", "weight_scale", torch.float32, "packed otherwise than their like"),
        ("nvidia nvfp4", "weight_scale_2", torch.float8_e4m3fn, "no plain floating-point numbers"),
        ("redhat nvfp4", "weight_packed", torch.bfloat16, "packed otherwise than their like"),
    ],
)
def test_a_tensor_of_other_numbers(
    layout: Layout, end: str, dtype: torch.dtype, words: str, copy_of: Callable[[Layout], Path]
) -> None:
    name = f"{EXPERT}.up_proj.{end}"
    folder = copy_of(layout)
    change(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    refused(folder, rf"weights that are {words} \({name} is ")


def test_a_weight_that_this_network_lacks(copy_of: Callable[[Layout], Path]) -> None:
    """Without what it does to activations this would compute something else."""
    folder = copy_of("nvidia nvfp4")
    name = f"{EXPERT}.up_proj.pre_quant_scale"
    change(folder, lambda tensors: tensors.update({name: torch.ones(32)}))
    refused(folder, rf"weights that it has no use for \({name}\)")


def test_two_conventions_in_one_checkpoint(copy_of: Callable[[Layout], Path]) -> None:
    folder = copy_of("redhat nvfp4")

    def rename(tensors: Tensors) -> None:
        for old, new in (("weight_packed", "weight"), ("weight_global_scale", "weight_scale_2")):
            tensors[f"{EXPERT}.up_proj.{new}"] = tensors.pop(f"{EXPERT}.up_proj.{old}")

    change(folder, rename)
    refused(
        folder, rf"mixes two conventions of NVFP4: .*multiplies \({EXPERT}\.up_proj\.weight_scale_2\).*divides"
    )


def test_a_kind_of_matrix_in_two_ways(copy_of: Callable[[Layout], Path]) -> None:
    folder = copy_of("redhat fp8")
    name = "model.decoder.layers.1.mlp.up_proj.weight"
    change(folder, lambda tensors: tensors.update({name: tensors[name].bfloat16()}))
    with pytest.raises(CheckpointError, match="packs matrices of one kind in several ways") as raised:
        load_whole(folder)
    assert f"{name} is plain" in str(raised.value)
    assert "is FP8 by row" in str(raised.value)


@pytest.mark.parametrize(
    ("layout", "said", "words"),
    [
        (
            "nvidia nvfp4",
            "redhat nvfp4",
            "says that weights are compressed-tensors' NVFP4, .*files is ModelOpt's NVFP4",
        ),
        (
            "redhat nvfp4",
            "nvidia nvfp4",
            "says that weights are ModelOpt's NVFP4, .*files is compressed-tensors' NVFP4",
        ),
        ("redhat fp8", "nvidia nvfp4", "says that weights are ModelOpt's NVFP4, .*files is FP8 by row"),
        ("redhat fp8", "google bf16", "says nothing of packed weights, .*files is FP8 by row"),
        ("google bf16", "redhat fp8", "says that weights are FP8 by row, .*files is plain"),
    ],
)
def test_a_config_of_another_layout(
    layout: Layout, said: Layout, words: str, copy_of: Callable[[Layout], Path]
) -> None:
    folder = copy_of(layout)
    set_quantization(folder, QUANTIZATION[said])
    refused(folder, words)


def test_a_config_of_more_experts_takes_no_memory(copy_of: Callable[[Layout], Path]) -> None:
    """It would be asked for the names of millions of tensors."""
    folder = copy_of("nvidia nvfp4")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_experts"] = 4096
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "describes 8192 experts in all layers, and there are weights of 8")


def test_widths_without_whole_blocks(copy_of: Callable[[Layout], Path]) -> None:
    folder = copy_of("nvidia nvfp4")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["moe_intermediate_size"] = 24
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "describes matrices 24 wide, and NVFP4 has a scale for each 16")


@pytest.mark.parametrize(
    ("layout", "end", "value", "called"),
    [
        *[("redhat fp8", "weight_scale", value, value) for value in ("nan", "inf", "-inf", "0.0", "-0.5")],
        *[("nvidia nvfp4", "weight_scale_2", value, value) for value in ("nan", "inf", "0.0", "-0.5")],
        *[("redhat nvfp4", "weight_global_scale", value, value) for value in ("nan", "inf", "0.0", "-0.5")],
        ("nvidia nvfp4", "weight_scale", "nan", "NaN"),
        ("nvidia nvfp4", "weight_scale", "-0.5", "a number below 0"),
    ],
)
def test_a_scale_that_is_none(
    layout: Layout, end: str, value: str, called: str, copy_of: Callable[[Layout], Path]
) -> None:
    """One flipped bit, and every number behind it is nothing."""
    folder = copy_of(layout)
    name = f"{EXPERT}.up_proj.{end}"

    def flip(tensors: Tensors) -> None:
        tensors[name].view(-1)[-1] = float(value)

    change(folder, flip)
    refused(folder, rf"model\.safetensors is damaged .*its {name} holds {called}, which is no scale.*Replace it")


def test_a_block_of_zeros_has_a_scale_of_zero(copy_of: Callable[[Layout], Path]) -> None:
    folder = copy_of("nvidia nvfp4")

    def clear(tensors: Tensors) -> None:
        tensors[f"{EXPERT}.up_proj.weight_scale"][3] = 0

    change(folder, clear)
    load_whole(folder)
