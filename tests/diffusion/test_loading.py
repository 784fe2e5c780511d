from __future__ import annotations

import json
import logging.handlers
import re
import shutil
import socket
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from llm_diffusiongemma.diffusion import loading
from llm_diffusiongemma.diffusion.loading import check_fits, load_model, resolve_device
from llm_diffusiongemma.diffusion.pipeline import BlockDiffusionPipeline
from llm_diffusiongemma.diffusion.sampler import GeneratorRandomness, SamplerSettings
from llm_diffusiongemma.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    DeviceError,
    DeviceMemoryError,
    NoGpuError,
)

from .tiny_models import prompt_of, tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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


# --- devices ---------------------------------------------------------------------------------------------


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


# --- loading ---------------------------------------------------------------------------------------------


def test_a_small_checkpoint_becomes_fp32_on_the_cpu(saved: Path) -> None:
    loaded = load_model(saved, CPU)
    assert loaded.dtype == loaded.model.dtype == torch.float32
    assert loaded.device == loaded.model.device == CPU
    assert not loaded.model.training
    assert loaded.weight_bytes == (saved / "model.safetensors").stat().st_size
    assert 0 < loaded.load_seconds < 60
    for name, tensor in load_file(saved / "model.safetensors").items():
        assert torch.equal(loaded.model.state_dict()[name], tensor.float()), name  # the upcast is exact


def test_a_large_checkpoint_keeps_its_dtype(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MAX_UPCAST_BYTES", 1)
    loaded = load_model(saved, CPU)
    assert loaded.dtype == loaded.model.get_input_embeddings().weight.dtype == torch.bfloat16


@pytest.mark.parametrize("layout", ["saved", "saved_in_shards"])
def test_tied_weights_are_in_the_file_once_and_not_reported_missing(
    layout: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(layout)
    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            names |= set(tensors.keys())
    model = load_model(folder, CPU).model
    assert len(set(model.state_dict()) - names) > 20
    encoder, decoder = model.model.encoder.language_model, model.model.decoder
    assert encoder.layers[0].mlp.up_proj.weight is decoder.layers[0].mlp.up_proj.weight
    assert model.lm_head.weight is decoder.embed_tokens.weight


def test_what_is_loaded_writes_what_was_saved(saved_in_shards: Path) -> None:
    def reply(model: Any) -> list[int]:
        pipeline = BlockDiffusionPipeline(model)
        blocks = pipeline.generate(
            prompt_of(20),
            settings=SamplerSettings.from_generation_config(model.generation_config),
            max_tokens=32,
            randomness=GeneratorRandomness(torch.Generator().manual_seed(0)),
        )
        return [token for block in blocks for token in block.tokens]

    assert reply(load_model(saved_in_shards, CPU).model) == reply(tiny_model())


def test_nothing_goes_to_the_network(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_model(saved, CPU)


def test_transformers_is_quiet_and_as_before_afterwards(
    saved: Path, checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def bar_hook(bar: Any, args: Any, kwargs: Any) -> Any:
        raise AssertionError("a bar was made")

    change_weights(checkpoint, lambda tensors: tensors.pop("model.decoder.norm.weight"))
    log = logging.handlers.BufferingHandler(capacity=1000)
    transformers_logging.add_handler(log)
    verbosity = transformers_logging.get_verbosity()
    before = transformers_logging.set_tqdm_hook(bar_hook)
    try:
        transformers_logging.set_verbosity_info()
        load_model(saved, CPU)
        with pytest.raises(CheckpointError):
            load_model(checkpoint, CPU)
        assert transformers_logging.get_verbosity() == transformers_logging.INFO
        assert transformers_logging.set_tqdm_hook(None) is bar_hook
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.set_tqdm_hook(before)
        transformers_logging.remove_handler(log)
    assert log.buffer == []
    assert capfd.readouterr() == ("", "")


# --- what is not loaded ----------------------------------------------------------------------------------


def refused(folder: Path, message: str, error: type[Exception] = CheckpointError) -> None:
    with pytest.raises(error, match=message) as raised:
        load_model(folder, CPU)
    assert str(folder) in str(raised.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "There is no folder", CheckpointNotFoundError)


def test_a_file_in_place_of_a_folder(checkpoint: Path) -> None:
    refused(checkpoint / "config.json", "There is no folder", CheckpointNotFoundError)


def test_an_empty_folder(tmp_path: Path) -> None:
    refused(tmp_path, r"has no config\.json")


def test_gguf_files(tmp_path: Path) -> None:
    (tmp_path / "diffusiongemma-Q4_K_M.gguf").touch()
    refused(tmp_path, r"GGUF files, which are for llama\.cpp")


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


@pytest.mark.parametrize("method", ["compressed-tensors", "modelopt", "fp8"])
def test_a_checkpoint_quantised_for_vllm(method: str, checkpoint: Path) -> None:
    change_json(checkpoint / "config.json", quantization_config={"quant_method": method})
    refused(checkpoint, rf"quantised \({method}\), a layout for vLLM.* Serve it with vLLM")


def test_a_checkpoint_quantised_for_mlx(checkpoint: Path) -> None:
    change_json(checkpoint / "config.json", quantization={"group_size": 64, "bits": 8})
    refused(checkpoint, "quantised for MLX")


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


def test_missing_weights(checkpoint: Path) -> None:
    """transformers would leave them random and go on."""
    names = ["model.decoder.layers.0.mlp.up_proj.weight", "model.decoder.self_conditioning.up_proj.weight"]
    change_weights(checkpoint, lambda tensors: [tensors.pop(name) for name in names])
    refused(checkpoint, rf"missing weights \({names[0]}, {names[1]}, .*\)\.")


def test_extra_weights_are_let_through(checkpoint: Path) -> None:
    """They make nothing random: a checkpoint may carry tensors for other programs."""
    change_weights(checkpoint, lambda tensors: tensors.update({"model.extra.weight": torch.zeros(3)}))
    assert load_model(checkpoint, CPU).weight_bytes > 0


def test_weights_of_another_size(checkpoint: Path) -> None:
    name = "model.decoder.layers.1.mlp.up_proj.weight"
    change_weights(checkpoint, lambda tensors: tensors.update({name: torch.zeros(7, 32)}))
    refused(checkpoint, rf"weights of another size \({name} is \[7, 32\], not \[32, 32\]\)")


def test_a_tensor_for_each_expert(checkpoint: Path) -> None:
    """The layout of vLLM's checkpoints, which transformers loads with a mere warning and random experts."""

    def split_experts(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if ".experts." in name]:
            module, weight = name.rsplit(".", 1)
            for expert, tensor in enumerate(tensors.pop(name)):
                tensors[f"{module}.{expert}.{weight}.weight"] = tensor.clone()

    change_weights(checkpoint, split_experts)
    refused(checkpoint, r"each expert in a tensor of its own \(.*experts\.0\..* and 13 more\)")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn])
def test_weights_that_are_no_plain_numbers(dtype: torch.dtype, checkpoint: Path) -> None:
    """transformers takes them for what they would be unscaled."""
    name = "model.decoder.layers.1.mlp.up_proj.weight"
    change_weights(checkpoint, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    refused(checkpoint, rf"no plain floating-point numbers \({name} is ")


def test_whole_numbers_for_another_program_are_let_through(checkpoint: Path) -> None:
    change_weights(checkpoint, lambda tensors: tensors.update({"position_ids": torch.arange(3)}))
    load_model(checkpoint, CPU)


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
        lambda header: header.update(__metadata__={"format": 3}),
    ],
)
def test_a_header_that_lies(change: Callable[[dict[str, Any]], object], checkpoint: Path) -> None:
    change_header(checkpoint, change)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged") as raised:
        load_model(checkpoint, CPU)
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
        load_model(checkpoint, CPU)
    assert not re.search("precious|delete", str(raised.value), re.IGNORECASE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 1 << 18}, r"weights of another size \(.* and \d+ more\)"),
        ({"vocab_size": 4_000_000}, "weights of another size .*4000000, 32"),
        ({"num_experts": 4096}, r"weights of another size .*\[4096, "),
        (
            {"num_hidden_layers": 900, "layer_types": ["full_attention"] * 900},
            "describes 900 layers of the decoder",
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
def test_what_transformers_would_load_in_place_of_the_weights(name: str, words: str, checkpoint: Path) -> None:
    (checkpoint / name).write_text('{"base_model_name_or_path": "somebody/else"}')
    refused(checkpoint, words)


def test_the_generation_config_is_that_of_the_file(checkpoint: Path) -> None:
    change_json(
        checkpoint / "generation_config.json", t_max=0.9, eos_token_id=5, sampler_config={"entropy_bound": 0.7}
    )
    config = load_model(checkpoint, CPU).model.generation_config
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
    """transformers makes one up instead, and what was said was that it names no end-of-sequence tokens."""
    (checkpoint / "generation_config.json").write_text(text)
    refused(checkpoint, r"generation_config\.json (can't be read as JSON|is no JSON object)")


def test_a_model_larger_than_the_device(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(loading.DiffusionGemmaForBlockDiffusion, "from_pretrained", fail)
    with pytest.raises(DeviceMemoryError, match=r"weights take 0\.0 GiB, and cpu ran out of memory"):
        load_model(saved, CPU)


def test_out_of_memory_on_the_cpu(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its allocator has no error class; the words are taken from a real failure."""

    def fail(*_: object, **__: object) -> NoReturn:
        torch.empty(2**55, dtype=torch.uint8)
        raise AssertionError("that much memory should not be there")

    monkeypatch.setattr(loading.DiffusionGemmaForBlockDiffusion, "from_pretrained", fail)
    with pytest.raises(DeviceMemoryError, match="cpu ran out of memory"):
        load_model(saved, CPU)


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
    monkeypatch.setattr(loading, "_total_memory", lambda _: memory_gib and memory_gib * GIB)
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
    monkeypatch.setattr(loading, "_total_memory", lambda _: memory_gib * GIB)
    with pytest.raises(error, match=words):
        check_fits(48 * GIB, device, chosen=chosen)


def test_the_memory_of_this_machine() -> None:
    total = loading._total_memory(CPU)
    assert total is None or GIB // 4 < total < 2**50
