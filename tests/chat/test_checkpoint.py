"""The text side of a checkpoint's folder is refused if it would change a text, and taken otherwise."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from transformers import GemmaTokenizer, TokenizersBackend

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.chat.checkpoint import SAMPLE, NetworkTokens, load_tokenizer
from llm_diffusiongemma.chat.tokenizer import ChatTokenizer
from llm_diffusiongemma.errors import CheckpointError

from ..tokenizers import EMBEDDED_TOKENS, TEXTS, PanicException, write_sentencepiece


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(
        EMBEDDED_CHECKPOINT, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("*.safetensors")
    )


def load(folder: Path, network: NetworkTokens = EMBEDDED_TOKENS) -> ChatTokenizer:
    return load_tokenizer(folder, network)


def change(file: Path, how: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    how(content)
    file.write_text(json.dumps(content))


def test_the_embedded_checkpoint_is_taken_without_transformers_and_torch() -> None:
    code = f"""
import sys
from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.chat.checkpoint import SAMPLE, NetworkTokens, load_tokenizer
tokenizer = load_tokenizer(EMBEDDED_CHECKPOINT, {EMBEDDED_TOKENS})
assert tokenizer.decode(tokenizer.encode(SAMPLE)) == SAMPLE
print(*{{"transformers", "torch", "PIL", "jinja2"}} & set(sys.modules))
"""
    environment = {**os.environ, "LLM_LOAD_PLUGINS": "llm-diffusiongemma"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, timeout=120
    )
    # jinja2 shows that the template was tried.
    assert done.stdout.split() == ["jinja2"]


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
        ("tokenizer_config.json", lambda c: c.update(mask_token="<mask>"), "and the network 3,072"),
        ("tokenizer.json", one_token_more, "has 3,073 tokens and the network 3,072"),
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
        ("tokenizer_config.json", lambda c: c.update(extra_special_tokens=[None]), r"special_tokens\.0 is null"),
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
    ],
)
def test_what_does_not_belong_together(file: str, how: Any, words: str, folder: Path) -> None:
    change(folder / file, how)
    assert_refused(folder, EMBEDDED_TOKENS, words)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ({"image_tokens": (107, 300, 109)}, rf"<\|image\|> is token 108 .* and 300 in .*{DISAGREE}"),
        ({"image_tokens": (300, 108, 109)}, rf"<\|image> is token 107 .*{DISAGREE}"),
        ({"image_tokens": (107, 108, 300)}, rf"<image\|> is token 109 .*{DISAGREE}"),
        ({"bos_token_id": 300}, f"<bos> is token 2 .*{DISAGREE}"),
        ({"vocab_size": 2000}, "tokens and the network 2,000"),
        ({"eos_token_ids": (1, 300)}, f"reply at token 300.*{DISAGREE}"),
    ],
)
def test_a_network_of_other_tokens(network: dict[str, Any], words: str, folder: Path) -> None:
    assert_refused(folder, replace(EMBEDDED_TOKENS, **network), words)


@pytest.mark.parametrize("key", ["extra_special_tokens", "additional_special_tokens"])
def test_an_added_token_behind_a_vocabulary_with_a_hole(key: str, folder: Path) -> None:
    """There are no more tokens than the network has rows, and yet an id that it has none for."""

    def dig(tokenizer: dict[str, Any]) -> None:
        *_, hole, last = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
        token_id = tokenizer["model"]["vocab"].pop(hole)
        tokenizer["model"]["merges"] = [each for each in tokenizer["model"]["merges"] if "".join(each) != hole]
        tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": token_id + 1, "content": last})

    change(folder / "tokenizer.json", dig)
    change(folder / "tokenizer_config.json", lambda c: c.update({key: ["<more>"]}))
    assert_refused(folder, EMBEDDED_TOKENS, "has 3,073 tokens and the network 3,072")


def test_a_panic_of_the_library_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(_: bytes) -> NoReturn:
        raise PanicException("index out of bounds")

    monkeypatch.setattr("tokenizers.Tokenizer", SimpleNamespace(from_buffer=panic))
    assert_refused(folder, EMBEDDED_TOKENS, "can't be read: index out of bounds")


def assert_refused(folder: Path, network: NetworkTokens, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as raised:
        load(folder, network)
    assert str(folder) in str(raised.value)
    assert "from where the model comes from" in str(raised.value)
    assert str(raised.value).isprintable()


def test_a_network_that_does_not_say(folder: Path) -> None:
    assert load(folder, NetworkTokens(3072, None, (None, None, None), ()))


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
        ("tokenizer_config.json", lambda c: c.update(added_tokens_decoder=None)),
        ("tokenizer.json", lambda c: c.update(truncation=None, padding=None)),
    ],
)
def test_what_is_legal_or_not_used(file: str, how: Any, folder: Path) -> None:
    change(folder / file, how)
    tokenizer = load(folder)
    assert tokenizer.decode(tokenizer.encode(SAMPLE)) == SAMPLE


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


# --- as transformers reads the same files -----------------------------------------------------------------


def assert_as(kind: Any, folder: Path, loaded: ChatTokenizer) -> None:
    """The pipeline part for part, and what it makes of texts. What is around a text is the template's to write."""
    witness = kind.from_pretrained(folder, local_files_only=True)
    assert loaded.special_tokens == witness.special_tokens_map
    control = {id_: token.content for id_, token in witness.added_tokens_decoder.items() if token.special}
    assert control.items() <= loaded.control_tokens.items()
    for text in TEXTS:
        assert loaded.encode(text) == witness.encode(text, add_special_tokens=False)
    ours, theirs = (json.loads(each.to_str()) for each in (loaded.backend, witness.backend_tokenizer))
    for part in ("normalizer", "pre_tokenizer", "decoder", "added_tokens", "model", "truncation", "padding"):
        assert ours[part] == theirs[part], part


@pytest.fixture(params=[TokenizersBackend, GemmaTokenizer])
def kind(request: pytest.FixtureRequest, folder: Path) -> Any:
    if request.param is GemmaTokenizer:
        write_sentencepiece(folder)
    return request.param


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"eos_token": None, "sep_token": "<eos>"},
        {"cls_token": "quantum", "extra_special_tokens": ["licence", "<eos>", "licence"]},
        {"bos_token": {"__type": "AddedToken", "content": "<bos>", "lstrip": True}},
        {"add_bos_token": True, "add_eos_token": True, "split_special_tokens": False, "padding_side": "left"},
    ],
)
def test_each_kind_is_read_as_transformers_reads_it(config: dict[str, Any], kind: Any, folder: Path) -> None:
    change(folder / "tokenizer_config.json", lambda c: c.update(config))
    # Rows that stand for nothing yet, so that what is added has one.
    free = EMBEDDED_TOKENS.vocab_size + 2
    loaded = load(folder, replace(EMBEDDED_TOKENS, vocab_size=free))
    assert_as(kind, folder, loaded)


@pytest.mark.parametrize("merges", ["pairs", "texts"])
def test_added_tokens_of_the_config(merges: str, kind: Any, folder: Path) -> None:
    """In another order than their ids, with flags of their own, and some unset."""
    document = json.loads((folder / "tokenizer.json").read_text())
    listed = {str(token["id"]): {"content": token["content"]} for token in reversed(document["added_tokens"])}
    listed["1"]["special"] = True
    listed["105"] |= {"lstrip": True, "rstrip": True, "normalized": True}
    listed["106"] |= {"single_word": True, "special": True, "normalized": False}
    # They are nowhere yet.
    listed |= {"9001": {"content": "<second>", "special": True}, "9000": {"content": "<first>"}}
    if merges == "texts":
        pairs = document["model"]["merges"]
        change(folder / "tokenizer.json", lambda c: c["model"].update(merges=[" ".join(pair) for pair in pairs]))
    config = {"added_tokens_decoder": listed, "extra_special_tokens": ["<|turn>", "<third>"]}
    change(folder / "tokenizer_config.json", lambda c: c.update(config))
    network = replace(EMBEDDED_TOKENS, eos_token_ids=(1, 106), vocab_size=EMBEDDED_TOKENS.vocab_size + 3)
    assert_as(kind, folder, load(folder, network))


def test_nothing_is_put_around_a_text_and_nothing_is_cut_off(kind: Any, folder: Path) -> None:
    """Whatever a tokenizer.json sets for its library's other callers."""
    around = {
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 64},
            "direction": "Left",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<pad>",
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
        },
    }
    change(folder / "tokenizer.json", lambda c: c.update(around))
    assert_as(kind, folder, load(folder))
