"""The text side of a checkpoint's folder: its tokenizer and chat template, refused if they would change a text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from ..documents import Document, DocumentError, conform, parse_object, refuse_unless
from ..errors import CheckpointError
from ..layout import (
    CONFIG_FILE,
    GENERATION_FILE,
    TEMPLATE_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    TokenId,
    is_here,
    read_bytes,
    read_document,
)
from ..wording import quoted
from .prompt import PromptEncoder
from .tokenizer import MARKERS, ChatTokenizer, is_panic

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# What a tokenizer has to give back as it was: every byte that UTF-8 has, which a vocabulary may lack; capitals,
# digits, blanks, code, and characters that no vocabulary has in one piece.
SAMPLE = "".join(
    chr(code)
    for code in [*range(0x20, 0x100), *range(0x100, 0x800, 0x40), *range(0x800, 0x10FFFF, 0x1000)]
    if not 0xD800 <= code < 0xE000
) + (
    "The Quick Brown FOX, 0123456789:\n\n\tif (x != 'Größe €') { return [1.5, -2]; }  // don't stop , now .\n"
    'naïve Ωж 日本語 👩‍🔬 <b>bold</b> C:\\dir {"key": null}\r\n '
)
TAKE_BOTH = "Take both files from where the model comes from."

# transformers' names for what is made of a tokenizer.json: Gemma's own kind, and any kind as the file says.
GEMMA_CLASS = "GemmaTokenizer"
TOKENIZER_CLASSES = (GEMMA_CLASS, "TokenizersBackend", "PreTrainedTokenizer")

# What a tokenizer_config.json may name, in the order in which they are added where they have no ids yet, and what
# Gemma's kind has for those that it doesn't name.
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
GEMMA_TOKENS = {
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}

# What Gemma's tokenizers and byte-level ones are made of.
PARTS = frozenset(
    (
        "Sequence Replace Split ByteLevel ByteFallback Fuse Strip Lowercase NFC NFKC Metaspace TemplateProcessing "
        "BertProcessing RobertaProcessing"
    ).split()
)
MAX_REPLACEMENT = 16
MAX_REGEX = 1000
REPEATED_GROUP = re.compile(r"\)[*+?{]")

# The tokens around an image's soft tokens and in their place, as a vocabulary has them.
IMAGE_TOKENS = ("<|image>", "<|image|>", "<image|>")


@dataclass(frozen=True)
class NetworkTokens:
    """What a network and its configs take tokens for. None where they don't say."""

    vocab_size: int
    bos_token_id: int | None
    image_tokens: tuple[int | None, int | None, int | None]
    """Of `IMAGE_TOKENS`."""
    eos_token_ids: tuple[int, ...]


def _as_texts(value: Any) -> Any:
    """Tokens may have names, and there may be none."""
    return list(value.values()) if isinstance(value, dict) else value or []


def _as_templates(value: Any) -> Any:
    """One template may stand alone."""
    return [{"name": "default", "template": value}] if isinstance(value, str) else value or []


class _AddedToken(Document):
    content: str = Field(min_length=1)
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False
    special: bool = False


class _AddedTokenWithId(_AddedToken):
    # The library prints the names of what it does not know.
    model_config = ConfigDict(extra="forbid")

    id: TokenId


def _text_of_token(value: Any) -> Any:
    """A token is written as its text, or as an object that has it."""
    return value.get("content", value) if isinstance(value, dict) else value


TokenText = Annotated[str, BeforeValidator(_text_of_token)]


class _NamedTemplate(Document):
    name: str
    template: str


class _TokenizerConfig(Document):
    """What is used of a tokenizer_config.json."""

    tokenizer_class: str | None = None
    bos_token: TokenText | None = None
    eos_token: TokenText | None = None
    unk_token: TokenText | None = None
    pad_token: TokenText | None = None
    mask_token: TokenText | None = None
    sep_token: TokenText | None = None
    cls_token: TokenText | None = None
    extra_special_tokens: Annotated[list[TokenText], BeforeValidator(_as_texts)] = Field(default_factory=list)
    # Its name before transformers 5.
    additional_special_tokens: Annotated[list[TokenText], BeforeValidator(_as_texts)] = Field(default_factory=list)
    added_tokens_decoder: dict[Annotated[str, Field(pattern=r"^\d{1,7}$")], _AddedToken] | None = None
    chat_template: Annotated[list[_NamedTemplate], BeforeValidator(_as_templates)] = Field(default_factory=list)

    @property
    def kind(self) -> str:
        """The class that transformers reads it as, maybe none of `TOKENIZER_CLASSES`."""
        return (self.tokenizer_class or GEMMA_CLASS).removesuffix("Fast")

    @property
    def named_tokens(self) -> dict[str, str]:
        """Those of `NAMED_TOKENS` that there are."""
        named: dict[str, str | None] = {**GEMMA_TOKENS} if self.kind == GEMMA_CLASS else {}
        named |= {name: getattr(self, name) for name in NAMED_TOKENS if name in self.model_fields_set}
        return {name: text for name in NAMED_TOKENS if (text := named.get(name)) is not None}


def _check_part(part: Any) -> Any:
    """Of a tokenizer's pipeline. Its library panics over some kinds of parts, and says so at the terminal."""
    if part is None:
        return None
    refuse_unless(isinstance(part, dict) and str(part.get("type")) in PARTS, "it is no part of a Gemma tokenizer")
    for key in ("normalizers", "pretokenizers", "decoders", "processors"):
        nested = part.get(key, [])
        refuse_unless(isinstance(nested, list), f"it has {key} that are no list")
        for each in nested:
            _check_part(each)
    refuse_unless(len(str(part.get("content", ""))) <= MAX_REPLACEMENT, "it replaces by a long text")
    pattern = part.get("pattern", {})
    refuse_unless(isinstance(pattern, dict) and "" not in pattern.values(), "it has an empty pattern")
    regex = str(pattern.get("Regex", ""))
    refuse_unless(len(regex) <= MAX_REGEX, "it has a very long regular expression")
    refuse_unless(not REPEATED_GROUP.search(regex), "it has a regular expression that repeats a group")
    return part


Part = Annotated[Any, AfterValidator(_check_part)]


class _Model(Document):
    type: Literal["BPE"]
    vocab: dict[str, TokenId] = Field(min_length=1)
    merges: list[Any]
    dropout: Annotated[float, Field(ge=0, le=0)] | None = None
    continuing_subword_prefix: Literal[""] | None = None
    end_of_word_suffix: Literal[""] | None = None


class _TokenizerFile(Document):
    """What is checked of a tokenizer.json; the library reads it by itself."""

    model: _Model
    added_tokens: list[_AddedTokenWithId]
    normalizer: Part = None
    pre_tokenizer: Part = None
    post_processor: Part = None
    decoder: Part = None

    @model_validator(mode="after")
    def _has_one_token_an_id(self) -> _TokenizerFile:
        """Or a text would be read as the control token that shares its id."""
        vocab = self.model.vocab
        # Those that are not in the vocabulary get the next free ids, whatever the file says.
        ids = [*vocab.values(), *(token.id for token in self.added_tokens if token.content not in vocab)]
        moved = any(vocab.get(token.content, token.id) != token.id for token in self.added_tokens)
        refuse_unless(not moved and len(set(ids)) == len(ids), "every token must have an id of its own")
        return self


def load_tokenizer(folder: Path, network: NetworkTokens) -> ChatTokenizer:
    """The tokenizer of a folder with its chat template, fit for that network.

    What comes out of the files is tried, which takes milliseconds.

    Raises `CheckpointError` if a file is missing or broken, and if the tokenizer changes a text or knows other
    tokens than the network; `FileAccessError` if one can't be read.
    """
    for name in (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE):
        if not is_here(folder / name):
            raise CheckpointError(
                f"{quoted(folder)} has no {name}, or an empty one. A DiffusionGemma checkpoint folder holds "
                "config.json, *.safetensors, generation_config.json, tokenizer.json, tokenizer_config.json and "
                "chat_template.jinja: take the file from where the model comes from."
            )
    settings = read_document(folder / TOKENIZER_CONFIG_FILE, _TokenizerConfig)
    _check_kind(folder, settings.kind)
    template = _read_template(folder, settings)
    content = read_bytes(folder / TOKENIZER_FILE)
    document = _read_vocabulary(folder, content, network)
    backend = _build(folder, settings, content, document)
    tokenizer = ChatTokenizer(backend, settings.named_tokens, template)
    _check_text(folder, settings.kind, tokenizer)
    _check_ids(folder, tokenizer, network)
    _check_template(folder, tokenizer)
    return tokenizer


def _check_kind(folder: Path, name: str) -> None:
    if name not in TOKENIZER_CLASSES:
        raise CheckpointError(
            f"{quoted(folder / TOKENIZER_CONFIG_FILE)} asks for a tokenizer {quoted(name)}, which is none of "
            f"{', '.join(TOKENIZER_CLASSES)}. {TAKE_BOTH}"
        )


def _read_template(folder: Path, settings: _TokenizerConfig) -> str:
    """The chat template, from its own file or where it was kept before there was one."""
    if is_here(folder / TEMPLATE_FILE):
        try:
            return read_bytes(folder / TEMPLATE_FILE).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{quoted(folder / TEMPLATE_FILE)} is no text in UTF-8: replace it by a whole copy."
            ) from error
    templates = {each.name: each.template for each in settings.chat_template}
    if not templates.get("default"):
        raise CheckpointError(
            f"{quoted(folder)} has no chat template. Put the checkpoint's {TEMPLATE_FILE} into the folder."
        )
    return templates["default"]


def _read_vocabulary(folder: Path, content: bytes, network: NetworkTokens) -> _TokenizerFile:
    """Refuse ids that the network has no row for, before anything is made that is as long as the largest."""
    file = folder / TOKENIZER_FILE
    try:
        document = conform(_TokenizerFile, parse_object(content))
    except DocumentError as error:
        raise CheckpointError(
            f"{quoted(file)} can't be read as a tokenizer: {error}. Take the file from where the model comes from."
        ) from error
    # Added tokens that are not in it are looked at when they have got their ids.
    if (size := max(document.model.vocab.values()) + 1) > network.vocab_size:
        _refuse_size(folder, size, network.vocab_size)
    return document


def _build(folder: Path, settings: _TokenizerConfig, content: bytes, document: _TokenizerFile) -> Tokenizer:
    """What transformers' class of that name makes of the two files. `document` is what is checked of `content`."""
    from tokenizers import Tokenizer

    try:
        if settings.kind == GEMMA_CLASS:
            tokenizer = _gemma(document.model, settings.named_tokens.get("unk_token"))
        else:
            tokenizer = Tokenizer.from_buffer(content)
            tokenizer.no_truncation()
            tokenizer.no_padding()
        _add_tokens(tokenizer, settings, document)
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise CheckpointError(
            f"The tokenizer in {quoted(folder)} can't be read: {quoted(error)}. {TAKE_BOTH}"
        ) from error
    return tokenizer


def _gemma(model: _Model, unk_token: str | None) -> Tokenizer:
    """Gemma's kind of SentencePiece BPE. Of a tokenizer.json it has vocabulary and merges, nothing else."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model.merges]
    tokenizer = Tokenizer(models.BPE(model.vocab, merges, unk_token=unk_token, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _add_tokens(tokenizer: Tokenizer, settings: _TokenizerConfig, document: _TokenizerFile) -> None:
    """Those that tokenizer_config.json lists, or else tokenizer.json; then what the former names besides.

    Each has its id from the vocabulary, or the next free one if it is not in there.
    """
    from tokenizers import AddedToken

    listed: dict[int, _AddedToken] = {token.id: token for token in document.added_tokens}
    if settings.added_tokens_decoder is not None:
        listed = {int(token_id): token for token_id, token in settings.added_tokens_decoder.items()}
    names = settings.named_tokens.values()
    tokens = []
    for _, token in sorted(listed.items()):
        # What is not set is not false: what the library takes for `normalized` depends on `special`.
        added = AddedToken(**token.model_dump(exclude={"id"}, exclude_unset=True))
        added.special = added.special or added.content in names
        tokens.append(added)
    known = {token.content for token in (*tokens, *tokenizer.get_added_tokens_decoder().values())}
    others = dict.fromkeys((*names, *settings.extra_special_tokens, *settings.additional_special_tokens))
    tokens += [AddedToken(text, special=True) for text in others if text not in known]
    tokenizer.add_tokens(tokens)


def _check_text(folder: Path, kind: str, tokenizer: ChatTokenizer) -> None:
    ids = tokenizer.encode(SAMPLE)
    if tokenizer.decode(ids) != SAMPLE or not tokenizer.control_tokens.keys().isdisjoint(ids):
        raise CheckpointError(
            f"The tokenizer in {quoted(folder)} changes the text that goes through it: {TOKENIZER_FILE} and "
            f"{TOKENIZER_CONFIG_FILE}, read as a {kind}, don't belong together. {TAKE_BOTH}"
        )


def _check_ids(folder: Path, tokenizer: ChatTokenizer, network: NetworkTokens) -> None:
    # Its look-ups are quick; a dictionary of the whole vocabulary takes a tenth of a second.
    backend = tokenizer.backend
    size = max([backend.get_vocab_size() - 1, *backend.get_added_tokens_decoder()]) + 1
    if size > network.vocab_size:
        _refuse_size(folder, size, network.vocab_size)
    expected = dict(zip(IMAGE_TOKENS, network.image_tokens, strict=True))
    if "bos_token" in tokenizer.special_tokens:
        expected[tokenizer.special_tokens["bos_token"]] = network.bos_token_id
    for name, token_id in expected.items():
        found = backend.token_to_id(name)
        if None not in (found, token_id) and found != token_id:
            raise CheckpointError(
                f"{quoted(name)} is token {found} in the tokenizer in {quoted(folder)} and {token_id} in its "
                f"{CONFIG_FILE}: they are not of one checkpoint. {TAKE_BOTH}"
            )
    for token_id in network.eos_token_ids:
        if token_id not in tokenizer.control_tokens:
            raise CheckpointError(
                f"{GENERATION_FILE} in {quoted(folder)} ends a reply at token {token_id}, which its tokenizer "
                f"takes for text: they are not of one checkpoint. {TAKE_BOTH}"
            )


def _refuse_size(folder: Path, size: int, known: int) -> NoReturn:
    raise CheckpointError(
        f"The tokenizer in {quoted(folder)} has {size:,} tokens and the network {known:,}: {TOKENIZER_FILE} and "
        f"{TOKENIZER_CONFIG_FILE} are not those of this checkpoint. {TAKE_BOTH}"
    )


def _check_template(folder: Path, tokenizer: ChatTokenizer) -> None:
    """Refuse a template whose markers would reach the network as text, or not at all."""
    template = tokenizer.chat_template
    control = tokenizer.control_tokens
    unknown = sorted(marker for marker in MARKERS - set(control.values()) if marker in template)
    if "bos_token" in template and "bos_token" not in tokenizer.special_tokens:
        unknown.insert(0, "bos_token")
    if unknown:
        raise CheckpointError(
            f"The chat template in {quoted(folder)} writes {quoted(', '.join(unknown))}, which its tokenizer "
            f"doesn't know as control tokens: {TEMPLATE_FILE}, {TOKENIZER_FILE} and {TOKENIZER_CONFIG_FILE} are "
            "not of one checkpoint. Take all three from where the model comes from."
        )
    prompt = PromptEncoder(tokenizer).encode([{"role": "user", "content": "Hello"}])
    if not MARKERS & {control.get(token_id) for token_id in prompt}:
        raise CheckpointError(
            f"The chat template in {quoted(folder)} marks a turn with nothing that its tokenizer knows: "
            f"{TEMPLATE_FILE} is another model's. Take it from where the model comes from."
        )
