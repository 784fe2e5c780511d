"""A folder to a network: every weight in its place, or a sentence before any is read."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DiffusionGemmaForBlockDiffusion

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.diffusion import loading, weights
from llm_diffusiongemma.diffusion.config_file import ConfigFile
from llm_diffusiongemma.diffusion.loading import EMBEDDING, describe, load_model
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.placement import LayerHome, whole
from llm_diffusiongemma.diffusion.sampler import SamplerSettings
from llm_diffusiongemma.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    DeviceError,
    DeviceMemoryError,
    FileAccessError,
)

from ..layouts import synthetic
from ..whole import load_whole
from .tiny_models import network_of, tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as transformers writes it: one bf16 file, tied weights once."""
    folder: Path = tmp_path_factory.mktemp("saved")
    tiny_model(dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved_in_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("saved_in_shards")
    tiny_model().save_pretrained(folder, max_shard_size="20KB")
    return folder


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(saved, tmp_path / "checkpoint")


@pytest.fixture
def sharded(saved_in_shards: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved_in_shards, tmp_path / "sharded")


def change_json(file: Path, **changes: Any) -> None:
    """Set these keys; None takes one out."""
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# --- loading ---------------------------------------------------------------------------------------------


def values(network: Network) -> dict[str, torch.Tensor]:
    return dict(network.tensors())


def same(network: Network, other: Network) -> bool:
    return all(torch.equal(tensor, values(other)[name]) for name, tensor in network.tensors())


def test_a_small_checkpoint_becomes_fp32_on_the_cpu(saved: Path) -> None:
    loaded = load_whole(saved)
    assert loaded.dtype == loaded.network.dtype == torch.float32
    assert loaded.device == loaded.network.device == CPU
    assert loaded.weight_bytes == (saved / "model.safetensors").stat().st_size
    assert 0 < loaded.load_seconds < 60
    stored = load_file(saved / "model.safetensors")
    for name, tensor in loaded.network.tensors():
        assert torch.equal(tensor, stored[name].float()), name  # the upcast is exact


@pytest.mark.parametrize(
    ("stored", "named", "dtype"),
    [
        (torch.bfloat16, {}, torch.bfloat16),
        (torch.bfloat16, {"dtype": None}, torch.bfloat16),
        (torch.float16, {"dtype": None}, torch.float16),
        (torch.float32, {"dtype": "float16"}, torch.float16),
        (torch.float32, {"dtype": None, "torch_dtype": "bfloat16"}, torch.bfloat16),
        (torch.float64, {"dtype": None}, torch.float32),
    ],
)
def test_a_large_checkpoint_keeps_its_dtype(
    stored: torch.dtype,
    named: dict[str, Any],
    dtype: torch.dtype,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the config says, or else the embedding is of."""
    monkeypatch.setattr(loading, "MAX_UPCAST_BYTES", 1)
    change_weights(
        checkpoint, lambda tensors: tensors.update({name: each.to(stored) for name, each in tensors.items()})
    )
    change_json(checkpoint / "config.json", **named)
    loaded = load_whole(checkpoint)
    assert loaded.dtype == dtype
    kept = load_file(checkpoint / "model.safetensors")
    for name, tensor in loaded.network.tensors():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, kept[name].to(dtype)), name


@pytest.mark.parametrize("staged_bytes", [8, 1000, 1 << 24])
def test_what_is_loaded_is_what_was_saved(
    staged_bytes: int, saved_in_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From many files, in pieces of any size, merged on the way."""
    monkeypatch.setattr(weights, "STAGED_BYTES", staged_bytes)
    assert same(load_whole(saved_in_shards).network, network_of(tiny_model()))


def rename(tensors: dict[str, torch.Tensor], keep: bool = False) -> None:
    """The names that transformers has for the encoder's side of what both share."""
    for name in [name for name in tensors if "model.decoder." in name and "self_conditioning" not in name]:
        if not name.endswith("layer_scalar"):
            other = name.replace("model.decoder.", "model.encoder.language_model.")
            tensors[other] = tensors[name].clone() if keep else tensors.pop(name)


@pytest.mark.parametrize("keep", [False, True])
def test_what_encoder_and_decoder_share_under_either_name(keep: bool, checkpoint: Path) -> None:
    """transformers takes both, too."""
    expected = load_whole(checkpoint).network
    change_weights(checkpoint, lambda tensors: rename(tensors, keep))
    assert same(load_whole(checkpoint).network, expected)
    if not keep:
        theirs = DiffusionGemmaForBlockDiffusion.from_pretrained(checkpoint, dtype=torch.float32)
        assert same(network_of(theirs), expected)


def test_an_embedding_that_only_the_head_has(checkpoint: Path) -> None:
    expected = load_whole(checkpoint).network
    change_weights(checkpoint, lambda tensors: tensors.update({"lm_head.weight": tensors.pop(FIRST)}))
    assert same(load_whole(checkpoint).network, expected)


@pytest.mark.parametrize("name", ["lm_head.weight", "model.encoder.language_model.layers.0.mlp.down_proj.weight"])
def test_an_encoder_or_head_of_its_own_is_refused(name: str, checkpoint: Path) -> None:
    """transformers would run it with two sets of weights; here there is one."""
    own = FIRST if name.startswith("lm_head") else name.replace("encoder.language_model", "decoder")

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[own].clone()
        tensors[name].view(-1)[-1] += 1

    change_weights(checkpoint, add)
    refused(checkpoint, rf"holds weights as {own} and others as {name}, which this model shares")


def test_an_encoder_of_its_own_is_refused_where_experts_stay_in_the_files(checkpoint: Path) -> None:
    """They were not read when it was loaded: whether it was taken was a matter of the memory that there was."""
    described = describe(checkpoint)
    layers = (LayerHome("cpu", "files"),) * len(described.config.network().layers)
    placement = replace(whole("bf16", len(layers), "cpu"), layers=layers)
    name = "model.encoder.language_model.layers.1.experts.down_proj"

    def add(difference: float) -> Callable[[dict[str, torch.Tensor]], None]:
        def change(tensors: dict[str, torch.Tensor]) -> None:
            tensors[name] = tensors[name.replace("encoder.language_model", "decoder")].clone()
            tensors[name].view(-1)[-1] += difference

        return change

    change_weights(checkpoint, add(0))
    load_model(describe(checkpoint), placement)
    change_weights(checkpoint, add(1))
    with pytest.raises(CheckpointError, match=f"others as {name}, which this model shares"):
        load_model(describe(checkpoint), placement)


MEMORY = """
import sys
from pathlib import Path
from tests.whole import load_whole

def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

load_whole(Path(sys.argv[1]))
before = kilobytes("VmRSS")
network = load_whole(Path(sys.argv[2])).network
print((kilobytes("VmHWM") - before) * 1024, sum(tensor.nbytes for _, tensor in network.tensors()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_the_weights_are_never_twice_in_memory(tmp_path: Path) -> None:
    """Neither as they are stored, packed or half as large as here, nor as they become."""
    sizes = {"vocab_size": 100_000, "num_experts": 32, "moe_intermediate_size": 2048}
    folder = synthetic.write(tmp_path / "large", "nvidia nvfp4", **sizes)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(EMBEDDED_CHECKPOINT), str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    peak, size = map(int, done.stdout.split())
    assert size > 100 << 20
    assert 0.9 * size < peak < 1.2 * size


def test_loading_stops_between_two_tensors(saved: Path) -> None:
    class EnoughError(Exception):
        pass

    asked = 0

    def check_wanted() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise EnoughError

    with pytest.raises(EnoughError):
        load_whole(saved, check_wanted=check_wanted)


def test_nothing_goes_to_the_network(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_whole(saved)


# --- what is not loaded ----------------------------------------------------------------------------------


def refused(folder: Path, message: str, error: type[Exception] = CheckpointError) -> None:
    with pytest.raises(error, match=message) as raised:
        load_whole(folder)
    assert str(folder) in str(raised.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "There is no folder", CheckpointNotFoundError)


def test_a_file_in_place_of_a_folder(checkpoint: Path) -> None:
    refused(checkpoint / "config.json", "There is no folder", CheckpointNotFoundError)


def test_an_empty_folder(tmp_path: Path) -> None:
    refused(tmp_path, r"has no config\.json")


def test_gguf_files(checkpoint: Path) -> None:
    """With a config.json or without."""
    (checkpoint / "diffusiongemma-Q4_K_M.gguf").touch()
    load_whole(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    words = r"GGUF files, which are for llama\.cpp\. Run them there, or use diffusiongemma-nvfp4"
    refused(checkpoint, words)
    (checkpoint / "config.json").unlink()
    refused(checkpoint, words)


@pytest.mark.parametrize("text", ["", "{", "\xff", '["model_type"]'])
def test_a_config_that_is_no_json_object(text: str, checkpoint: Path) -> None:
    (checkpoint / "config.json").write_bytes(text.encode("latin-1"))
    refused(checkpoint, r"config\.json (can't be read as JSON|is no JSON object)")


@pytest.mark.parametrize("model_type", ["gemma4", None])
def test_another_model(model_type: str | None, checkpoint: Path) -> None:
    change_json(checkpoint / "config.json", model_type=model_type)
    refused(checkpoint, f"model of type {model_type!r}, and this plugin runs 'diffusion_gemma' only")


def test_a_config_with_a_value_of_another_kind(checkpoint: Path) -> None:
    text_config = json.loads((checkpoint / "config.json").read_text())["text_config"]
    change_json(checkpoint / "config.json", text_config={**text_config, "hidden_size": "wide"})
    refused(checkpoint, "config.json can't be right: text_config.hidden_size is 'wide'")


def test_a_checkpoint_for_another_engine(checkpoint: Path) -> None:
    change_json(checkpoint / "config.json", quantization_config={"quant_method": "awq"})
    refused(checkpoint, "quantised as AWQ, which is for vLLM")


def test_no_weights(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "model.bin")
    refused(checkpoint, r"has no weights: neither model\.safetensors nor")


def test_a_missing_shard(sharded: Path) -> None:
    shards = sorted(sharded.glob("*.safetensors"))
    assert len(shards) > 4
    shards[1].unlink()
    refused(sharded, rf"incomplete: 1 of {len(shards)} weight files are missing \({shards[1].name}\)")
    for shard in shards:
        shard.unlink(missing_ok=True)
    refused(sharded, rf"incomplete: {len(shards)} of .*{shards[2].name} and {len(shards) - 3} more")


@pytest.mark.parametrize("index", ["{", "{}", '{"weight_map": {}}'])
def test_an_index_without_weights(index: str, sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text(index)
    refused(sharded, r"index\.json can't be (read as JSON|right: it has no weight_map|right: weight_map is \{\})")


@pytest.mark.parametrize("kept", [0, 5, 100, 0.5, 0.999])
def test_a_truncated_file(kept: float, checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: kept if isinstance(kept, int) else int(len(content) * kept)])
    refused(checkpoint, r"model\.safetensors is damaged or was not downloaded whole")


def test_a_truncated_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(sharded, f"{shard.name} is damaged")


def write_weights(file: Path, header: object, num_bytes: int) -> None:
    """A file of weights that takes no room on the disk."""
    described = json.dumps(header).encode()
    file.write_bytes(len(described).to_bytes(8, "little") + described)
    os.truncate(file, 8 + len(described) + num_bytes)


@pytest.mark.parametrize(
    ("second", "num_bytes"),
    [
        ([8, 12], 12),  # a hole
        ([2, 6], 6),  # twice
        ([4, 12], 12),  # more than it has
        ([4, 8], 9),
        ([4, 8], 7),
        ([4.0, "8"], 8),
        ([], 4),
        (None, 4),
    ],
)
def test_tensors_that_are_not_one_behind_the_other(second: Any, num_bytes: int, checkpoint: Path) -> None:
    tensors = {"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}
    tensors["b"] = {"dtype": "BF16", "shape": [1, 2], "data_offsets": second}
    write_weights(checkpoint / "model.safetensors", tensors, num_bytes)
    refused(checkpoint, "is damaged or was not downloaded whole")


@pytest.mark.parametrize(
    "change", [{"dtype": "F5"}, {"dtype": []}, {"shape": [-1, -1]}, {"shape": [1.0]}, {"shape": None}], ids=str
)
def test_a_tensor_of_no_size(change: dict[str, Any], checkpoint: Path) -> None:
    tensor = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1], **change}
    write_weights(checkpoint / "model.safetensors", {"a": tensor}, 1)
    refused(checkpoint, "is damaged or was not downloaded whole")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_a_file_larger_than_the_memory_that_may_be_addressed(checkpoint: Path) -> None:
    """As where a shell or a batch job sets `ulimit -v`: a mapped file counts whole."""
    import resource

    size = 1 << 30
    tensors = {"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    write_weights(checkpoint / "model.safetensors", tensors, size)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + size // 4, hard))
    try:
        found = weights.read_headers(checkpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert found.tensors["a"].shape == (size,)


def test_missing_weights(checkpoint: Path) -> None:
    """They would stay random."""
    names = ["model.decoder.layers.0.mlp.up_proj.weight", "model.decoder.self_conditioning.up_proj.weight"]
    change_weights(checkpoint, lambda tensors: [tensors.pop(name) for name in names])
    refused(checkpoint, rf"missing weights \({names[0]}, {names[1]}\)\.")


def test_an_encoder_without_its_own_scales(checkpoint: Path) -> None:
    """The decoder's have the same shape, and would read a prompt wrongly without anybody seeing it."""
    name = "model.encoder.language_model.layers.1.layer_scalar"
    change_weights(checkpoint, lambda tensors: tensors.pop(name))
    refused(checkpoint, rf"no scales for the encoder, which would read with the decoder's \({name}\)")


def test_extra_weights_are_let_through(checkpoint: Path) -> None:
    """They make nothing random: a checkpoint may carry tensors for other programs."""
    change_weights(checkpoint, lambda tensors: tensors.update({"model.extra.weight": torch.zeros(3)}))
    assert load_whole(checkpoint).weight_bytes > 0


@pytest.mark.parametrize(
    "name",
    [
        "model.decoder.layers.0.self_attn.q_proj.bias",
        "model.decoder.layers.0.mlp.up_proj.weight_scale",
        "model.decoder.layers.1.self_attn.v_proj.weight",  # a full layer has none
        "model.encoder.language_model.layers.0.per_layer_input_gate.weight",
        "lm_head.bias",
    ],
)
def test_weights_that_this_network_lacks_are_refused(name: str, checkpoint: Path) -> None:
    """Without them it would compute something else than what was trained."""
    change_weights(checkpoint, lambda tensors: tensors.update({name: torch.zeros(3)}))
    refused(checkpoint, rf"weights that it has no use for \({name}\)")


def test_saved_buffers_are_let_through(checkpoint: Path) -> None:
    name = "model.decoder.rotary_emb.full_attention_inv_freq"
    change_weights(checkpoint, lambda tensors: tensors.update({name: torch.zeros(3)}))
    load_whole(checkpoint)


def test_copies_of_what_is_no_number_are_equal(checkpoint: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[EMBEDDING][0] = float("nan")
        tensors["lm_head.weight"] = tensors[EMBEDDING].clone()

    change_weights(checkpoint, spoil)
    load_whole(checkpoint)


def test_weights_of_another_size(checkpoint: Path) -> None:
    name = "model.decoder.layers.1.mlp.up_proj.weight"
    change_weights(checkpoint, lambda tensors: tensors.update({name: torch.zeros(7, 32)}))
    refused(checkpoint, rf"weights of another size \({name} is \[7, 32\], not \[32, 32\]\)")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e5m2])
def test_weights_that_are_no_plain_numbers(dtype: torch.dtype, checkpoint: Path) -> None:
    """Without their scales they would be taken for other ones."""
    name = "model.decoder.layers.1.mlp.up_proj.weight"
    change_weights(checkpoint, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    refused(checkpoint, rf"no plain floating-point numbers \({name} is ")


def test_whole_numbers_for_another_program_are_let_through(checkpoint: Path) -> None:
    change_weights(checkpoint, lambda tensors: tensors.update({"position_ids": torch.arange(3)}))
    load_whole(checkpoint)


def change_header(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    new = json.dumps(header).encode()
    file.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + length :])


FIRST = "model.decoder.embed_tokens.weight"


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header[FIRST].update(data_offsets=[0, 4]),
        lambda header: header[FIRST].update(data_offsets=[-1, 4]),
        lambda header: header[FIRST].update(data_offsets=[0, 2**63]),
        lambda header: header[FIRST].update(shape=[2**40, 2**40]),
        lambda header: header[FIRST].update(shape=[-1]),
        lambda header: header[FIRST].update(dtype="\x1b[2J"),
        lambda header: header[FIRST].update(dtype=None),
        lambda header: header.update({"\x1b]52;c;eA==\x07": 3}),
    ],
)
def test_a_header_that_lies(change: Callable[[dict[str, Any]], object], checkpoint: Path) -> None:
    change_header(checkpoint, change)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged") as raised:
        load_whole(checkpoint)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("length", [1 << 27, 2**63, 2**64 - 1])
def test_a_header_that_would_be_gigabytes(length: int, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(length.to_bytes(8, "little") + b" " * 1000)
    refused(checkpoint, "is damaged or was not downloaded whole")


@pytest.mark.parametrize("place", ["precious", "blobs/precious", "snapshots/precious"])
def test_nobody_is_advised_to_delete_what_a_link_leads_to(place: str, checkpoint: Path, tmp_path: Path) -> None:
    """But for a content of the Hub's cache, which a test with one holds."""
    precious = tmp_path / place
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("not yours")
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors").symlink_to(precious)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged") as raised:
        load_whole(checkpoint)
    assert not re.search("precious|delete", str(raised.value), re.IGNORECASE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 1 << 18}, r"weights of another size \(.* and \d+ more\)"),
        ({"vocab_size": 4_000_000}, "weights of another size .*4000000, 32"),
        ({"num_experts": 4096}, r"weights of another size .*\[4096, "),
        (
            {"num_hidden_layers": 900, "layer_types": ["full_attention"] * 900},
            "describes 900 layers of the text network",
        ),
    ],
)
def test_a_config_of_another_size_takes_no_memory(changes: dict[str, Any], words: str, checkpoint: Path) -> None:
    """It took what it said, and then the machine was to blame for having too little."""
    config = json.loads((checkpoint / "config.json").read_text())
    text = {key: value for key, value in {**config["text_config"], **changes}.items() if value is not None}
    change_json(checkpoint / "config.json", text_config=text)
    refused(checkpoint, words)


def test_one_tensor_in_two_files(sharded: Path) -> None:
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    shutil.copy(first, second)
    refused(sharded, "the same tensors in two of its files")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adapter_config.json", "holds an adapter"),
        ("shard-00000-model-00001-of-00002.safetensors", "as a distributed training saves them"),
    ],
)
def test_what_is_meant_in_place_of_the_weights(name: str, words: str, checkpoint: Path) -> None:
    (checkpoint / name).write_text('{"base_model_name_or_path": "somebody/else"}')
    refused(checkpoint, words)


def test_the_generation_config_is_that_of_the_file(checkpoint: Path) -> None:
    change_json(
        checkpoint / "generation_config.json", t_max=0.9, eos_token_id=5, sampler_config={"entropy_bound": 0.7}
    )
    config = load_whole(checkpoint).generation
    settings = SamplerSettings.from_generation_config(config)
    assert (settings.t_max, settings.entropy_bound, config.eos_token_id) == (0.9, 0.7, [5])


@pytest.mark.parametrize("eos_token_id", [None, []])
def test_no_end_of_sequence(eos_token_id: Any, checkpoint: Path) -> None:
    change_json(checkpoint / "generation_config.json", eos_token_id=eos_token_id)
    refused(checkpoint, "no end-of-sequence tokens")


def test_no_generation_config(checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").unlink()
    refused(checkpoint, "no end-of-sequence tokens")


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_damaged_generation_config(text: str, checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").write_text(text)
    refused(checkpoint, r"generation_config\.json (can't be read as JSON|is no JSON object)")


# --- what goes wrong while weights are read ----------------------------------------------------------------


def test_no_weight_is_read_and_no_memory_taken_before_all_is_checked(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 50 GB, in a file without content, the last one has another shape."""
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"].update(vocab_size=1 << 20, hidden_size=4096, moe_intermediate_size=2048, num_experts=512)
    (checkpoint / "config.json").write_text(json.dumps(config))
    network = Network(ConfigFile.model_validate(config).network(), torch.bfloat16, torch.device("meta"))
    header, start = {}, 0
    for name, tensor in network.tensors():
        header[name] = {
            "dtype": "BF16",
            "shape": list(tensor.shape),
            "data_offsets": [start, start + tensor.nbytes],
        }
        start += tensor.nbytes
    assert start > 50e9
    header[name]["shape"] = list(tensor.T.shape)
    described = json.dumps(header).encode()
    (checkpoint / "model.safetensors").write_bytes(len(described).to_bytes(8, "little") + described)
    os.truncate(checkpoint / "model.safetensors", 8 + len(described) + start)

    made = []

    def make(config: Any, dtype: torch.dtype, device: torch.device, *more: Any) -> Network:
        made.append(device.type)
        return Network(config, dtype, device, *more)

    def fail(*_: object) -> NoReturn:
        raise AssertionError("weights were read")

    monkeypatch.setattr(loading, "Network", make)
    monkeypatch.setattr(weights.Reader, "fill", fail)
    refused(checkpoint, rf"weights of another size \({name} is ")
    assert made == ["meta"]


def test_a_file_that_becomes_shorter_meanwhile(checkpoint: Path) -> None:
    """Mapped into memory, it ends the process."""
    asked = 0

    def cut() -> None:
        nonlocal asked
        asked += 1
        if asked == 2:
            os.truncate(checkpoint / "model.safetensors", 9000)

    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged .*it has become shorter.*Replace it"):
        load_whole(checkpoint, check_wanted=cut)


def test_a_disk_that_fails(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> NoReturn:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(weights, "_read_whole", fail)
    refused(saved, r"can't read .*model.safetensors: Input/output error.*check the disk", FileAccessError)


def test_a_model_larger_than_the_device(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> NoReturn:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(weights.Reader, "fill", fail)
    with pytest.raises(DeviceMemoryError, match=r"weights take 0\.0 GiB, and cpu ran out of memory"):
        load_whole(saved)
    described = describe(saved)
    num_layers = described.config.text_config.num_hidden_layers
    placement = replace(whole("bf16", num_layers, "cpu"), layers=(LayerHome("cpu", "host"),) * num_layers)
    with pytest.raises(DeviceMemoryError, match="and cpu or the host ran out of memory"):
        load_model(described, placement)


def test_a_device_that_fails(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was the folder that was to blame."""

    def fail(*_: object) -> NoReturn:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(weights.Reader, "fill", fail)
    with pytest.raises(
        DeviceError, match=r"meta failed while .*launch failure.*LLM_DIFFUSIONGEMMA_DEVICE to anot"
    ):
        load_whole(saved, "meta")
