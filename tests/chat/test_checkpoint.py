"""The text side of a checkpoint's folder is refused if it would change a text, and taken otherwise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.chat.checkpoint import SAMPLE, load_tokenizer
from llm_diffusiongemma.chat.tokenizer import decode, encode
from llm_diffusiongemma.errors import CheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(
        EMBEDDED_CHECKPOINT, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("*.safetensors")
    )


def load(folder: Path) -> Any:
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    return load_tokenizer(folder, config, GenerationConfig.from_pretrained(folder))


def change(file: Path, how: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    how(content)
    file.write_text(json.dumps(content))


def token_of(name: str) -> int:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_CHECKPOINT, local_files_only=True)
    token_id = tokenizer.convert_tokens_to_ids(name)
    assert isinstance(token_id, int)
    return token_id


def test_the_embedded_checkpoint_is_taken(folder: Path) -> None:
    tokenizer = load(folder)
    assert tokenizer.decode(tokenizer.encode(SAMPLE, add_special_tokens=False)) == SAMPLE


def test_a_template_in_tokenizer_config_is_taken(folder: Path) -> None:
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    change(folder / "tokenizer_config.json", lambda config: config.update(chat_template=template))
    assert load(folder).chat_template == template


def without(name: str) -> Callable[[dict[str, Any]], None]:
    """Takes an added token out of a tokenizer.json: its marker becomes text."""

    def how(tokenizer: dict[str, Any]) -> None:
        tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] != name]
        tokenizer["model"]["vocab"].pop(name, None)

    return how


def lowercase(tokenizer: dict[str, Any]) -> None:
    tokenizer["normalizer"] = {"type": "Lowercase"}


def strip(tokenizer: dict[str, Any]) -> None:
    tokenizer["normalizer"] = {"type": "Strip", "strip_left": False, "strip_right": True}


def no_decoder(tokenizer: dict[str, Any]) -> None:
    tokenizer["decoder"] = None


def part(name: str, **content: Any) -> Callable[[dict[str, Any]], None]:
    """Puts another part into the pipeline. Its library panics over some: one of these ended the process."""
    return lambda tokenizer: tokenizer.update({name: content})


def one_token_more(tokenizer: dict[str, Any]) -> None:
    token = {**tokenizer["added_tokens"][0], "id": 5000, "content": "<more>"}
    tokenizer["added_tokens"].append(token)


CHANGED = "changes the text that goes through it"
DISAGREE = "not of one checkpoint"


@pytest.mark.parametrize(
    ("file", "how", "words"),
    [
        # Where its kind is not named transformers guesses, and takes Gemma's: `Ġ` for blanks.
        ("tokenizer_config.json", dict.clear, CHANGED),
        ("tokenizer_config.json", lambda c: c.pop("tokenizer_class"), CHANGED),
        ("tokenizer_config.json", lambda c: c.update(tokenizer_class="GemmaTokenizer"), CHANGED),
        ("tokenizer_config.json", lambda c: c.update(extra_special_tokens=["The"]), CHANGED),
        ("tokenizer.json", lowercase, CHANGED),
        ("tokenizer.json", strip, CHANGED),
        ("tokenizer.json", no_decoder, CHANGED),
        ("tokenizer_config.json", lambda c: c.update(mask_token="<mask>"), "and the network 2,816"),
        ("tokenizer.json", one_token_more, "has 2,817 tokens and the network 2,816"),
        ("tokenizer.json", without("<|turn>"), r"writes <\|turn>, which its tokenizer doesn't know"),
        ("tokenizer_config.json", lambda c: c.pop("bos_token"), "writes bos_token, which its tokenizer"),
        ("tokenizer_config.json", lambda c: c.update(bos_token="<eos>"), DISAGREE),
        (
            "tokenizer_config.json",
            lambda c: c.update(tokenizer_class="Evil\x1b[2J"),
            r"tokenizer Evil\\x1b",
        ),
        ("tokenizer_config.json", lambda c: c.update(bos_token=3), "bos_token is 3"),
        ("tokenizer_config.json", lambda c: c.update(added_tokens_decoder={"x": {"content": "a"}}), "decoder"),
        ("tokenizer_config.json", lambda c: c.update(extra_special_tokens=[None]), r"special_tokens\.0 is None"),
        ("tokenizer.json", lambda c: c["model"].update(type="Unigram"), "model.type is 'Unigram'"),
        ("tokenizer.json", lambda c: c["model"].update(dropout=0.1), "model.dropout is 0.1"),
        ("tokenizer.json", lambda c: c["model"].update(continuing_subword_prefix="##"), "subword_prefix is '##'"),
        ("tokenizer.json", lambda c: c["model"].update(merges=[["a"]]), "can't be read"),
        ("tokenizer.json", lambda c: c["model"]["vocab"].update(q=1), "an id of its own"),
        ("tokenizer.json", lambda c: c["model"]["vocab"].update(q=2**31), "model.vocab.q is 2147483648"),
        (
            "tokenizer.json",
            lambda c: c["model"]["vocab"].update(zz=9999),
            "10,000 tokens and the network",
        ),
        ("tokenizer.json", lambda c: c["model"]["vocab"].update(zz=c["model"]["vocab"].pop("Ã")), CHANGED),
        ("tokenizer.json", lambda c: c["added_tokens"][0].update(id=7), "an id of its own"),
        ("tokenizer.json", lambda c: c["added_tokens"][0].update({"\x1b[2J": 1}), r"added_tokens\.0\.\\x1b\[2J"),
        ("tokenizer.json", part("normalizer", type="Precompiled", precompiled_charsmap="/////w=="), "no part of"),
        ("tokenizer.json", part("normalizer", type=["Replace"]), "no part of"),
        (
            "tokenizer.json",
            part("normalizer", type="Replace", pattern={"String": ""}, content="x"),
            "an empty",
        ),
        ("tokenizer.json", part("normalizer", type="Sequence", normalizers=[{"type": "Evil"}]), "no part of"),
        ("tokenizer.json", part("pre_tokenizer", type="Split", pattern={"Regex": "(a+)+$"}), "repeats a group"),
        ("tokenizer.json", part("decoder", type="CTC"), "no part of"),
        ("config.json", lambda c: c.update(image_token_id=300), rf"<\|image\|> is token \d+.*{DISAGREE}"),
        ("config.json", lambda c: c.update(boi_token_id=300), rf"<\|image> is token \d+.*{DISAGREE}"),
        ("config.json", lambda c: c["text_config"].update(vocab_size=2000), "tokens and the network 2,000"),
        ("generation_config.json", lambda c: c.update(eos_token_id=[1, 300]), f"reply at token 300.*{DISAGREE}"),
        ("generation_config.json", lambda c: c.update(eos_token_id=300), f"reply at token 300.*{DISAGREE}"),
    ],
)
def test_what_does_not_belong_together(file: str, how: Any, words: str, folder: Path) -> None:
    change(folder / file, how)
    with pytest.raises(CheckpointError, match=words) as raised:
        load(folder)
    assert str(folder) in str(raised.value)
    assert "from where the model comes from" in str(raised.value)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("file", "how"),
    [
        ("tokenizer_config.json", lambda c: c.update(model_max_length="")),
        ("tokenizer_config.json", lambda c: c.update(model_max_length=1000000000000000019884624838656)),
        ("tokenizer_config.json", lambda c: c.update(auto_map={"AutoTokenizer": ["evil.Evil", None]})),
        ("tokenizer_config.json", lambda c: c.update(tokenizer_class="PreTrainedTokenizerFast")),
        ("tokenizer_config.json", lambda c: c.update(tokenizer_file="/etc/passwd", vocab_file="../x")),
        ("tokenizer_config.json", lambda c: c.update(fast_tokenizer_files=["../../x"])),
        ("tokenizer_config.json", lambda c: c.update(bos_token={"__type": "AddedToken", "content": "<bos>"})),
        ("tokenizer_config.json", lambda c: c.update(extra_special_tokens={"image_token": "<|image|>"})),
        ("tokenizer_config.json", lambda c: c.update(extra_special_tokens=None, chat_template=None)),
        ("tokenizer.json", lambda c: c.update(truncation=None, padding=None)),
    ],
)
def test_what_is_legal_or_not_used(file: str, how: Any, folder: Path) -> None:
    change(folder / file, how)
    tokenizer = load(folder)
    assert decode(tokenizer, encode(tokenizer, SAMPLE)) == SAMPLE


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for message in messages %}", "can't render"),
        ("{% for m in messages %}<start_of_turn>{{ m.content }}{% endfor %}", "another model's"),
        ("", "has no chat template"),
    ],
)
def test_a_template_that_is_not_the_checkpoints(template: str, words: str, folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(CheckpointError, match=words):
        load(folder)


def test_gemmas_own_kind_of_tokenizer_is_taken(folder: Path) -> None:
    """`▁` for blanks, byte fallback, and the class that its tokenizer_config.json names."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    names = [token["content"] for token in tokenizer["added_tokens"]]
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    free = (token_id for token_id in range(2816) if token_id not in ids.values())
    characters = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", "<mask>", *map(chr, range(0x21, 0x7F))]
    tokenizer["model"] |= {
        "vocab": {name: ids[name] for name in names} | {name: next(free) for name in characters},
        "merges": [],
        "byte_fallback": True,
        "unk_token": "<unk>",
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    change(folder / "tokenizer_config.json", lambda config: config.update(tokenizer_class="GemmaTokenizer"))
    loaded = load(folder)
    assert type(loaded).__name__ == "GemmaTokenizer"
    assert loaded.decode(loaded.encode(SAMPLE, add_special_tokens=False)) == SAMPLE
