"""The text side of a checkpoint's folder: its tokenizer and chat template, refused if they would change a text."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from ..documents import Document, DocumentError, conform, parse_object, refuse_unless
from ..errors import CheckpointError, FileAccessError
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
from .messages import PromptEncoder
from .tokenizer import MARKERS, control_tokens, decode, encode, is_panic

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
TOKENIZER_CLASSES = ("GemmaTokenizer", "TokenizersBackend", "PreTrainedTokenizer")

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

# The config's names for tokens of images, and what they are called in the vocabulary.
IMAGE_TOKENS = {"boi_token_id": "<|image>", "image_token_id": "<|image|>", "eoi_token_id": "<image|>"}


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
    added_tokens_decoder: dict[Annotated[str, Field(pattern=r"^\d{1,7}$")], _AddedToken] | None = None
    chat_template: Annotated[list[_NamedTemplate], BeforeValidator(_as_templates)] = Field(default_factory=list)


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


def load_tokenizer(folder: Path, config: Any, generation_config: Any) -> Any:
    """The tokenizer of a folder with its chat template, fit for the network of that config.

    Without all of its files transformers guesses what kind of tokenizer it is. So what comes out is tried,
    which takes milliseconds.

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
    template = _read_template(folder, settings)
    content = read_bytes(folder / TOKENIZER_FILE)
    _check_vocabulary(folder, content, config)
    tokenizer = _build(folder, settings, content)
    tokenizer.chat_template = template
    _check_text(folder, tokenizer)
    _check_ids(folder, tokenizer, config, generation_config)
    _check_template(folder, tokenizer)
    return tokenizer


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


def _check_vocabulary(folder: Path, content: bytes, config: Any) -> None:
    """Refuse ids that the network has no row for, before anything is made that is as long as the largest."""
    file = folder / TOKENIZER_FILE
    try:
        document = conform(_TokenizerFile, parse_object(content))
    except DocumentError as error:
        raise CheckpointError(
            f"{quoted(file)} can't be read as a tokenizer: {error}. Take the file from where the model comes from."
        ) from error
    known = config.get_text_config().vocab_size
    # Added tokens that are not in it are looked at when they have got their ids.
    if (size := max(document.model.vocab.values()) + 1) > known:
        _refuse_size(folder, size, known)


def _build(folder: Path, settings: _TokenizerConfig, content: bytes) -> Any:
    """A tokenizer of one of the kinds that Gemma's checkpoints name, from these two files alone.

    transformers gets a folder of its own, with what passed the schema: in the checkpoint's it would follow what
    other files say, to code and to files elsewhere.
    """
    from transformers import GemmaTokenizer, TokenizersBackend

    name = (settings.tokenizer_class or "GemmaTokenizer").removesuffix("Fast")
    if name not in TOKENIZER_CLASSES:
        raise CheckpointError(
            f"{quoted(folder / TOKENIZER_CONFIG_FILE)} asks for a tokenizer {quoted(name)}, which is none of "
            f"{', '.join(TOKENIZER_CLASSES)}. {TAKE_BOTH}"
        )
    kind = GemmaTokenizer if name == "GemmaTokenizer" else TokenizersBackend
    values = settings.model_dump(exclude={"tokenizer_class", "chat_template"}, exclude_unset=True)
    try:
        with _folder_of(content, json.dumps(values)) as own:
            return kind.from_pretrained(own, local_files_only=True)
    except FileAccessError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise CheckpointError(
            f"The tokenizer in {quoted(folder)} can't be read: {quoted(error)}. {TAKE_BOTH}"
        ) from error


@contextmanager
def _folder_of(tokenizer: bytes, config: str) -> Iterator[Path]:
    """A temporary folder with these two files. Raises `FileAccessError`."""
    try:
        directory = tempfile.TemporaryDirectory()
        (Path(directory.name) / TOKENIZER_FILE).write_bytes(tokenizer)
        (Path(directory.name) / TOKENIZER_CONFIG_FILE).write_text(config, encoding="utf-8")
    except OSError as error:
        raise FileAccessError(
            f"There is no folder for temporary files that can be written ({quoted(error)}). Set TMPDIR to one."
        ) from error
    with directory:
        yield Path(directory.name)


def _check_text(folder: Path, tokenizer: Any) -> None:
    ids = encode(tokenizer, SAMPLE)
    if decode(tokenizer, ids) != SAMPLE or not control_tokens(tokenizer).keys().isdisjoint(ids):
        raise CheckpointError(
            f"The tokenizer in {quoted(folder)} changes the text that goes through it: {TOKENIZER_FILE} and "
            f"{TOKENIZER_CONFIG_FILE}, read as a {type(tokenizer).__name__}, don't belong together. {TAKE_BOTH}"
        )


def _check_ids(folder: Path, tokenizer: Any, config: Any, generation_config: Any) -> None:
    # Its look-ups are quick; a dictionary of the whole vocabulary takes a tenth of a second.
    backend = tokenizer.backend_tokenizer
    control = control_tokens(tokenizer)
    known = config.get_text_config().vocab_size
    size = max([backend.get_vocab_size() - 1, *tokenizer.added_tokens_decoder]) + 1
    if size > known:
        _refuse_size(folder, size, known)
    bos = getattr(config.get_text_config(), "bos_token_id", None)
    expected = {name: getattr(config, field, None) for field, name in IMAGE_TOKENS.items()}
    if tokenizer.bos_token is not None:
        expected[tokenizer.bos_token] = bos
    for name, token_id in expected.items():
        found = backend.token_to_id(name)
        if None not in (found, token_id) and found != token_id:
            raise CheckpointError(
                f"{quoted(name)} is token {found} in the tokenizer in {quoted(folder)} and {token_id} in its "
                f"{CONFIG_FILE}: they are not of one checkpoint. {TAKE_BOTH}"
            )
    eos = generation_config.eos_token_id
    for token_id in [eos] if isinstance(eos, int) else eos or []:
        if token_id not in control:
            raise CheckpointError(
                f"{GENERATION_FILE} in {quoted(folder)} ends a reply at token {token_id}, which its tokenizer "
                f"takes for text: they are not of one checkpoint. {TAKE_BOTH}"
            )


def _refuse_size(folder: Path, size: int, known: int) -> NoReturn:
    raise CheckpointError(
        f"The tokenizer in {quoted(folder)} has {size:,} tokens and the network {known:,}: {TOKENIZER_FILE} and "
        f"{TOKENIZER_CONFIG_FILE} are not those of this checkpoint. {TAKE_BOTH}"
    )


def _check_template(folder: Path, tokenizer: Any) -> None:
    """Refuse a template whose markers would reach the network as text, or not at all."""
    template = str(tokenizer.chat_template)
    control = control_tokens(tokenizer)
    unknown = sorted(marker for marker in MARKERS - set(control.values()) if marker in template)
    if "bos_token" in template and tokenizer.bos_token is None:
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
