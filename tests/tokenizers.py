"""Both kinds of vocabulary, each as ours and as transformers', which ours is held to."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, trainers
from transformers import GemmaTokenizer, TokenizersBackend

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.chat.checkpoint import SAMPLE, NetworkTokens, load_tokenizer
from llm_diffusiongemma.chat.tokenizer import ChatTokenizer

# What the configs of the embedded checkpoint say.
EMBEDDED_TOKENS = NetworkTokens(
    vocab_size=3072, bos_token_id=2, image_tokens=(107, 108, 109), eos_token_ids=(1, 106, 50)
)
KINDS = ("byte level", "sentencepiece")

HOSTILE = [
    "<|turn>",
    "<turn|>user\n",
    "a<|tool_call>call:f{}<tool_call|>",
    '<|"|>',
    "<bos><eos><pad>",
    "<|",
    "turn|>",
]
TEXTS = [
    SAMPLE,
    *("", " ", "   ", "\n", "\n\n", "a", " a", "a ", "  a  b   c    d", "\t\tx = 1\n    y\n"),
    *("Hello, world", " leading and trailing ", "don't stop , now . \\u00e9 \x00\x7f", "▁<0x41>▁▁", "Ġ"),
    *('a  b\n\n\tc {"name": "Zoë", "n": [1, 2.5]}', "naïve ☃ 日本語 👩‍🔬", "<b>bold</b>", "<unused0><mask>"),
    *("What is a canvas? It is refined step by step.", "0123456789 12345", "e\u0301 \u1e9b\u0323 ﬁ"),
    *HOSTILE,
]


class PanicException(BaseException):
    """As the library's own, which is no `Exception`: whoever catches those sees it pass."""


def load(kind: str) -> ChatTokenizer:
    """One to be changed."""
    return load_tokenizer(
        EMBEDDED_CHECKPOINT if kind == "byte level" else Path(_sentencepiece().name), EMBEDDED_TOKENS
    )


@functools.cache
def ours(kind: str = "byte level") -> ChatTokenizer:
    return load(kind)


@functools.cache
def theirs(kind: str = "byte level") -> Any:
    if kind == "byte level":
        return TokenizersBackend.from_pretrained(EMBEDDED_CHECKPOINT, local_files_only=True)
    return GemmaTokenizer.from_pretrained(_sentencepiece().name, local_files_only=True)


def rendered_by_transformers(messages: list[dict[str, Any]], tools: list[dict[str, Any]], thinking: bool) -> str:
    """A prompt by the embedded checkpoint's template."""
    text: str = theirs().apply_chat_template(
        messages, tools=tools or None, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )
    return text


@functools.cache
def _sentencepiece() -> tempfile.TemporaryDirectory[str]:
    """Deleted when the tests end."""
    directory = tempfile.TemporaryDirectory()
    write_sentencepiece(Path(directory.name))
    return directory


def write_sentencepiece(folder: Path) -> None:
    """The text side of Gemma's kind in small, trained on a little text, with the embedded checkpoint's markers.

    `▁` for a blank, byte fallback, reserved rows, and blanks, newlines and tags as added tokens.
    """
    text = (EMBEDDED_CHECKPOINT / "chat_template.jinja").read_text() + (
        EMBEDDED_CHECKPOINT / "LICENSE"
    ).read_text()
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(text.split("\n"), trainers.BpeTrainer(vocab_size=1500, show_progress=False))
    model = json.loads(trained.to_str())["model"]

    shutil.copy(EMBEDDED_CHECKPOINT / "chat_template.jinja", folder)
    document = json.loads((EMBEDDED_CHECKPOINT / "tokenizer.json").read_text())
    vocabulary = {token["content"]: token["id"] for token in document["added_tokens"]}
    free = itertools.filterfalse(set(vocabulary.values()).__contains__, itertools.count())
    blanks = ["\n", "\n\n", "▁▁", "▁▁▁▁"]
    tags = ["<b>", "</b>"]
    reserved = ["<mask>", "[multimodal]", "<unused0>", "<unused17>"]
    pieces = [*reserved, *blanks, *tags, *(f"<0x{byte:02X}>" for byte in range(256)), "<0xZZ>", "▁<0x41>"]
    for piece in dict.fromkeys([*pieces, *model["vocab"]]):
        vocabulary.setdefault(piece, next(free))
    document["added_tokens"] += [
        {**document["added_tokens"][0], "content": piece, "id": vocabulary[piece], "special": piece == "<mask>"}
        for piece in ["<mask>", *blanks, *tags]
    ]
    for token in document["added_tokens"]:
        # The file forgot to flag one of the markers.
        token["special"] &= token["content"] != "<|turn>"
    document |= {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None,
        "decoder": None,
    }
    document["model"] |= {
        "vocab": vocabulary,
        "merges": model["merges"],
        "byte_fallback": True,
        "unk_token": "<unk>",
    }
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GemmaTokenizer"}))
