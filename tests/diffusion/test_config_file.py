"""Values of a config.json and a generation_config.json are used as they may be, or refused by their names."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import DiffusionGemmaConfig, DiffusionGemmaTextConfig, Gemma4TextConfig, PreTrainedConfig

from llm_diffusiongemma.bench.theirs import as_read
from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.diffusion.config import AttentionConfig
from llm_diffusiongemma.diffusion.config_file import (
    ConfigFile,
    TextConfig,
    read_config,
    read_generation_settings,
)
from llm_diffusiongemma.errors import CheckpointError

REMOVED = object()
TOKENS = ("boi_token_id", "eoi_token_id", "image_token_id")


def spoiled(file: str, place: str, value: Any, folder: Path) -> Path:
    """A folder with that file of the embedded checkpoint, with another value at a place."""
    document = json.loads((EMBEDDED_CHECKPOINT / file).read_text())
    *steps, key = place.split(".")
    parent = document
    for step in steps:
        parent = parent[step]
    if value is REMOVED:
        del parent[key]
    else:
        parent[key] = value
    (folder / file).write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("text_config", None, "text_config is null"),
        ("text_config", REMOVED, "it has no text_config"),
        ("text_config.top_k_experts", REMOVED, "it has no text_config.top_k_experts"),
        ("text_config.top_k_experts", 5, "top_k_experts must be at most num_experts"),
        ("text_config.num_experts", None, "text_config.num_experts is null"),
        ("text_config.num_experts", 10**9, "num_experts is 1000000000"),
        ("text_config.sliding_window", -1, "sliding_window is -1"),
        ("text_config.sliding_window", 1, "sliding_window is 1"),
        ("text_config.num_hidden_layers", -4, "num_hidden_layers is -4"),
        ("text_config.num_hidden_layers", 3, "layer_types must name each"),
        ("text_config.layer_types", ["full_attention"] * 5, "layer_types must name each"),
        ("text_config.layer_types", ["full_attention"] * 3 + ["sliding_attention"], "must be full_attention"),
        ("text_config.layer_types", ["\x1b[2J"] * 4, r"layer_types.0 is '\\x1b\[2J'"),
        ("text_config.layer_types", "full", "layer_types is 'full'"),
        ("text_config.vocab_size", 10**12, "vocab_size is 1000000000000"),
        ("text_config.vocab_size", 0, "vocab_size is 0"),
        ("text_config.vocab_size", 100, "_token_id 10[789] must be below vocab_size"),
        ("text_config.pad_token_id", 3072, "pad_token_id must be below vocab_size"),
        ("text_config.bos_token_id", -1, "bos_token_id is -1"),
        ("text_config.hidden_size", 128.0, "hidden_size is 128.0"),
        ("text_config.hidden_size", "128", "hidden_size is '128'"),
        ("text_config.hidden_size", True, "hidden_size is true"),
        ("text_config.head_dim", 31, "head_dim is 31"),
        ("text_config.num_key_value_heads", 3, "multiple of the key and value heads"),
        ("text_config.num_attention_heads", 0, "num_attention_heads is 0"),
        ("text_config.per_layer_config", {"1": {"head_dim": 64}}, "the same of all layers of a type"),
        ("text_config.per_layer_config", {"-1": {}}, "per_layer_config"),
        ("text_config.per_layer_config", {"9": {}}, "of layers that there are"),
        ("text_config.per_layer_config", [], "per_layer_config is"),
        ("text_config.final_logit_softcapping", 0, "final_logit_softcapping is 0"),
        ("text_config.final_logit_softcapping", 1e4, "final_logit_softcapping is 10000.0"),
        ("text_config.final_logit_softcapping", float("inf"), "final_logit_softcapping is inf"),
        ("text_config.rms_norm_eps", float("nan"), "rms_norm_eps is nan"),
        ("text_config.max_position_embeddings", 2**63, "max_position_embeddings is 9223372036854775808"),
        ("text_config.hidden_activation", "relu", "hidden_activation is 'relu'"),
        ("text_config.attention_bias", True, "attention_bias is true"),
        ("text_config.tie_word_embeddings", False, "tie_word_embeddings is false"),
        ("text_config.use_bidirectional_attention", "all", "use_bidirectional_attention is 'all'"),
        ("text_config.rope_parameters.full_attention.rope_type", "yarn", "rope_type is 'yarn'"),
        ("text_config.rope_parameters.full_attention.rope_type", "default", "only rope_type proportional"),
        ("text_config.rope_parameters.full_attention.rope_theta", 0, "rope_theta is 0"),
        ("text_config.rope_parameters.full_attention.rope_theta", "x", "rope_theta is 'x'"),
        ("text_config.rope_parameters.full_attention.partial_rotary_factor", 2, "partial_rotary_factor is 2"),
        ("text_config.rope_parameters.sliding_attention", REMOVED, "has no .*rope_parameters.sliding_attention"),
        ("text_config.rope_parameters", [], "rope_parameters is"),
        ("text_config.rope_parameters.full_attention.factor", 8.0, "full_attention.factor is 8.0"),
        ("text_config.rope_scaling", {"type": "linear", "factor": 8.0}, "rope_scaling is {'type'"),
        ("text_config.per_layer_config", {"1": {"sliding_window": 9}}, "per_layer_config.1.sliding_window is 9"),
        ("text_config.attention_k_eq_v", False, "attention_k_eq_v is false"),
        ("text_config.enable_moe_block", False, "enable_moe_block is false"),
        ("text_config.hidden_size_per_layer_input", 256, "hidden_size_per_layer_input is 256"),
        ("text_config.num_kv_shared_layers", 2, "num_kv_shared_layers is 2"),
        ("text_config.use_double_wide_mlp", True, "use_double_wide_mlp is true"),
        ("text_config.mlp_bias", True, "mlp_bias is true"),
        ("text_config.attn_logit_softcapping", 50.0, "attn_logit_softcapping is 50.0"),
        ("text_config.query_pre_attn_scalar", 256, "query_pre_attn_scalar is 256"),
        ("vision_config.model_type", "evil", "vision_config.model_type is 'evil'"),
        ("vision_config.patch_size", 0, "patch_size is 0"),
        ("vision_config.position_embedding_size", 10**10, "position_embedding_size is"),
        ("vision_config.rope_parameters.rope_type", "yarn", "rope_type is 'yarn'"),
        ("vision_config.num_key_value_heads", 2, "multiple of num_key_value_heads"),
        ("boi_token_id", 2**63, "boi_token_id is 9223372036854775808"),
        ("boi_token_id", REMOVED, "boi_token_id 255999 must be below vocab_size"),
        ("image_token_id", None, "image_token_id is null"),
        ("eoi_token_id", 3072, "eoi_token_id 3072 must be below vocab_size"),
        ("canvas_length", 0, "canvas_length is 0"),
        ("canvas_length", 10**9, "canvas_length is 1000000000"),
        ("dtype", "int8", "dtype is 'int8'"),
        ("dtype", "__class__", "dtype is '__class__'"),
        ("model_type", "\x1b]52;c;eA==\x07", r"a model of type '\\x1b\]52;c;eA==\\x07', and this plugin"),
        ("model_type", ["x"], r"a model of type \['x'\], and"),
    ],
)
def test_a_config_that_is_refused(place: str, value: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=words) as raised:
        read_config(spoiled("config.json", place, value, tmp_path))
    assert str(tmp_path) in str(raised.value)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("text_config.per_layer_config", REMOVED),
        ("text_config.per_layer_config", {"1": {"head_dim": 64}, "3": {"head_dim": 64}}),
        ("text_config.global_head_dim", 64),
        ("text_config.num_global_key_value_heads", None),
        ("text_config.layer_types", None),
        ("text_config.rope_parameters", None),
        ("text_config.final_logit_softcapping", None),
        ("text_config.pad_token_id", None),
        ("text_config.rms_norm_eps", 0),
        ("text_config.attention_k_eq_v", True),
        ("text_config.hidden_size_per_layer_input", 0),
        ("text_config.hidden_size_per_layer_input", None),
        ("text_config.num_kv_shared_layers", 0),
        ("text_config.rope_parameters.full_attention.factor", 1),
        ("vision_config", None),
        ("vision_config.rope_parameters.rope_type", "default"),
        ("dtype", None),
        ("torch_dtype", "float16"),
        ("auto_map", {"AutoConfig": "evil.Evil"}),
        ("_attn_implementation", "somebody/kernels"),
        ("transformers_weights", "../x.safetensors"),
        ("fusion_config", {"patch_embeddings": True}),
    ],
)
def test_a_config_that_is_taken(place: str, value: Any, tmp_path: Path) -> None:
    """What is not in the schema goes no further."""
    config = as_read(read_config(spoiled("config.json", place, value, tmp_path)))
    names = "auto_map|_attn_implementation|transformers_weights|fusion_config|k_eq_v|per_layer_input|kv_shared"
    assert not re.search(names, json.dumps(config))


REAL_TEXT = {
    "hidden_size": 2816,
    "intermediate_size": 2112,
    "num_hidden_layers": 30,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "num_global_key_value_heads": 2,
    "sliding_window": 1024,
    "num_experts": 128,
    "top_k_experts": 8,
    "moe_intermediate_size": 704,
    "max_position_embeddings": 262_144,
    "use_bidirectional_attention": "vision",
}


@pytest.mark.parametrize("all_of_it", [False, True])
def test_what_transformers_writes_of_the_real_sizes(all_of_it: bool, tmp_path: Path) -> None:
    """It writes a layer's number with a zero in front: a whole checkpoint was refused for that."""
    config = DiffusionGemmaConfig(text_config=REAL_TEXT, vision_config={"model_type": "gemma4_vision"})
    written = config.to_json_string(use_diff=not all_of_it)
    assert '"05"' in written
    (tmp_path / "config.json").write_text(written)
    read = DiffusionGemmaConfig(**as_read(read_config(tmp_path)))
    assert read.text_config.to_dict() == config.text_config.to_dict()
    assert read.vision_config.to_dict() == config.vision_config.to_dict()


def attention_of(text: DiffusionGemmaTextConfig, layer: int) -> AttentionConfig:
    """As transformers understands its own config."""
    kind, own = text.layer_types[layer], text.per_layer_config[layer]
    rope = text.rope_parameters[kind]
    return AttentionConfig(
        head_dim=own.head_dim,
        num_key_value_heads=own.num_key_value_heads,
        rope_theta=rope["rope_theta"],
        rope_share=rope.get("partial_rotary_factor", 1.0),
        window=text.sliding_window if kind == "sliding_attention" else None,
    )


@pytest.mark.parametrize(
    "text",
    [
        json.loads((EMBEDDED_CHECKPOINT / "config.json").read_text())["text_config"],
        REAL_TEXT,
        REAL_TEXT | {"per_layer_config": {}},
        REAL_TEXT | {"per_layer_config": {f"{i:02}": {"head_dim": 512} for i in range(5, 30, 6)}},
        REAL_TEXT | {"global_head_dim": 128, "num_global_key_value_heads": None},
        {"num_experts": 2, "top_k_experts": 1, "moe_intermediate_size": 8},
    ],
    ids=["embedded", "real", "no sizes of a layer", "each layer", "global", "defaults"],
)
def test_the_network_is_what_transformers_understands(text: dict[str, Any]) -> None:
    theirs = DiffusionGemmaTextConfig(**copy.deepcopy(text))
    for document in (text, theirs.to_dict()):
        file = ConfigFile.model_validate({"text_config": document} | dict.fromkeys(TOKENS, 1))
        network = file.network()
        assert network.layers == tuple(attention_of(theirs, i) for i in range(theirs.num_hidden_layers))
        assert network.window == theirs.sliding_window
        assert network.context_length == theirs.max_position_embeddings
        assert network.image_tokens_see_each_other == (theirs.use_bidirectional_attention == "vision")
        same = [field.name for field in dataclasses.fields(network) if hasattr(theirs, field.name)]
        assert len(same) == 9
        assert [getattr(network, name) for name in same] == [getattr(theirs, name) for name in same]


# Fields of transformers' classes that don't change what the text network computes.
HARMLESS = {
    "attention_dropout",  # in training only
    "eos_token_id",  # generation_config.json says it
    "initializer_range",
    "use_cache",
    "vocab_size_per_layer_input",  # nothing where hidden_size_per_layer_input is
}


def test_every_field_that_transformers_knows_is_known() -> None:
    """A feature that is added there must be had here or refused, and not overlooked."""

    def names(config: type) -> set[str]:
        return {field.name for field in dataclasses.fields(config)}

    general = names(PreTrainedConfig)
    assert names(DiffusionGemmaTextConfig) | names(Gemma4TextConfig) <= (
        general | set(TextConfig.model_fields) | HARMLESS
    )
    assert names(DiffusionGemmaConfig) <= general | set(ConfigFile.model_fields) | HARMLESS


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("eos_token_id", REMOVED, "names no end-of-sequence tokens"),
        ("eos_token_id", [], "names no end-of-sequence tokens"),
        ("eos_token_id", -1, r"eos_token_id\.0 is -1"),
        ("eos_token_id", [1, None], r"eos_token_id\.1 is null"),
        ("eos_token_id", [1, 3072], "names a token 3072, and the network of .*config.json has 3,072"),
        ("eos_token_id", True, r"eos_token_id\.0 is true"),
        ("eos_token_id", {"a": 1}, "eos_token_id is {'a': 1}"),
        ("pad_token_id", 9999, "names a token 9999"),
        ("stability_threshold", 10**30, "stability_threshold is 1000000000000000000000000000000"),
        ("max_denoising_steps", 0, "max_denoising_steps is 0"),
        ("max_denoising_steps", 10**9, "max_denoising_steps is 1000000000"),
        ("t_min", 0.8, "t_min must be below t_max"),
        ("t_max", 0.3, "t_min must be below t_max"),
        ("t_max", float("nan"), "t_max is nan"),
        ("confidence_threshold", 0, "confidence_threshold is 0"),
        ("sampler_config", "EntropyBound", "sampler_config is 'EntropyBound'"),
        ("sampler_config._cls_name", "DiffusionGemmaGenerationConfig", "_cls_name is 'Diff"),
        ("sampler_config.entropy_bound", -1, "entropy_bound is -1"),
    ],
)
def test_generation_settings_that_are_refused(place: str, value: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=words):
        read_generation_settings(spoiled("generation_config.json", place, value, tmp_path), 3072)


@pytest.mark.parametrize(
    ("place", "value", "check"),
    [
        ("eos_token_id", 1, lambda settings: settings.eos_token_id == [1]),
        ("pad_token_id", None, lambda settings: settings.pad_token_id is None),
        ("sampler_config", None, lambda settings: settings.sampler_config is None),
        ("confidence_threshold", 1, lambda settings: settings.confidence_threshold == 1.0),
        ("custom_generate", "evil", lambda settings: "evil" not in str(settings)),
        ("top_k", -1, lambda settings: settings.t_min == 0.4),
    ],
)
def test_generation_settings_that_are_taken(
    place: str, value: Any, check: Callable[[Any], bool], tmp_path: Path
) -> None:
    assert check(read_generation_settings(spoiled("generation_config.json", place, value, tmp_path), 3072))
