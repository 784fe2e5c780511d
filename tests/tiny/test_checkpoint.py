"""What is shipped: a small folder in the layout of the real checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from safetensors import safe_open
from transformers import PreTrainedTokenizerFast

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.tiny.network import (
    CONTROL_TOKENS,
    build_config,
    build_tokenizer,
    load_or_build_tokenizer,
)


def test_size_and_files() -> None:
    files = {file.name: file.stat().st_size for file in EMBEDDED_CHECKPOINT.iterdir()}
    assert sum(files.values()) < 8_000_000
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "preprocessor_config.json",
        # Under what terms they are, and where they come from.
        "LICENSE",
        "README.md",
    } == set(files)


def test_weights_are_bf16() -> None:
    with safe_open(EMBEDDED_CHECKPOINT / "model.safetensors", framework="pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118


def test_configs_match_the_real_one() -> None:
    config = json.loads((EMBEDDED_CHECKPOINT / "config.json").read_text())
    assert config["architectures"] == ["DiffusionGemmaForBlockDiffusion"]
    assert config["canvas_length"] == 256
    assert config["text_config"]["head_dim"] >= 32  # vLLM's attention kernels know no smaller one
    generation = json.loads((EMBEDDED_CHECKPOINT / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [1, 106, 50]
    assert generation["pad_token_id"] == 0
    assert generation["max_denoising_steps"] == 48
    assert generation["sampler_config"]["entropy_bound"] == 0.1
    assert (generation["t_min"], generation["t_max"]) == (0.4, 0.8)
    assert (generation["stability_threshold"], generation["confidence_threshold"]) == (1, 0.005)


def test_config_is_what_the_code_builds() -> None:
    config = json.loads((EMBEDDED_CHECKPOINT / "config.json").read_text())
    built = build_config()
    for key in (
        "hidden_size",
        "num_hidden_layers",
        "intermediate_size",
        "num_experts",
        "sliding_window",
        "vocab_size",
    ):
        assert config["text_config"][key] == getattr(built.text_config, key)


@pytest.mark.parametrize("make", [load_or_build_tokenizer, build_tokenizer], ids=["shipped", "built anew"])
def test_tokenizer(make: Callable[[], PreTrainedTokenizerFast]) -> None:
    tokenizer = make()
    assert len(tokenizer) == build_config().text_config.vocab_size
    for token, token_id in CONTROL_TOKENS.items():
        assert tokenizer.convert_tokens_to_ids(token) == token_id
        assert tokenizer.added_tokens_decoder[token_id].special
    for number in range(1000):
        assert len(tokenizer.encode(f" {number}")) == 1
    for text in ("Zürich ☃\n\ttab  two", "<|turn>user", "".join(map(chr, range(32, 127)))):
        assert tokenizer.decode(tokenizer.encode(text)) == text
