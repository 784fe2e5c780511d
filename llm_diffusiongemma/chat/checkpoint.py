"""The text side of a checkpoint's folder: its tokenizer and chat template, refused if they would change a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..layout import CONFIG_FILE, GENERATION_FILE, TEMPLATE_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, is_here
from .messages import PromptEncoder
from .tokenizer import MARKERS, control_tokens, decode

# What a tokenizer has to give back as it was: capitals, digits, blanks, code, and characters that no
# vocabulary has in one piece.
SAMPLE = (
    "The Quick Brown FOX, 0123456789:\n\n\tif (x != 'Größe €') { return [1.5, -2]; }  // don't stop , now .\n"
    'naïve Ωж 日本語 👩‍🔬 <b>bold</b> C:\\dir {"key": null}\r\n '
)
TAKE_BOTH = "Take both files from where the model comes from."

# The config's names for tokens of images, and what they are called in the vocabulary.
IMAGE_TOKENS = {"boi_token_id": "<|image>", "image_token_id": "<|image|>", "eoi_token_id": "<image|>"}


def load_tokenizer(folder: Path, config: Any, generation_config: Any) -> Any:
    """The tokenizer of a folder with its chat template, fit for the network of that config.

    Without all of its files transformers guesses what kind of tokenizer it is. So what comes out is tried,
    which takes milliseconds.

    Raises `CheckpointError` if a file is missing or broken, and if the tokenizer changes a text or knows other
    tokens than the network.
    """
    from transformers import AutoTokenizer

    for name in (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE):
        if not is_here(folder / name):
            raise CheckpointError(
                f"{folder} has no {name}, or an empty one. A DiffusionGemma checkpoint folder holds config.json, "
                "*.safetensors, generation_config.json, tokenizer.json, tokenizer_config.json and "
                "chat_template.jinja: take the file from where the model comes from."
            )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever it finds wrong is wrong with the folder
        raise CheckpointError(f"The tokenizer in {folder} can't be read: {error}") from error
    if not tokenizer.chat_template:
        raise CheckpointError(
            f"{folder} has no chat template. Put the checkpoint's {TEMPLATE_FILE} into the folder."
        )
    _check_text(folder, tokenizer)
    _check_ids(folder, tokenizer, config, generation_config)
    _check_template(folder, tokenizer)
    return tokenizer


def _check_text(folder: Path, tokenizer: Any) -> None:
    ids = tokenizer.encode(SAMPLE, add_special_tokens=False)
    if decode(tokenizer, ids) != SAMPLE or not control_tokens(tokenizer).keys().isdisjoint(ids):
        raise CheckpointError(
            f"The tokenizer in {folder} changes the text that goes through it: {TOKENIZER_FILE} and "
            f"{TOKENIZER_CONFIG_FILE}, read as a {type(tokenizer).__name__}, don't belong together. {TAKE_BOTH}"
        )


def _check_ids(folder: Path, tokenizer: Any, config: Any, generation_config: Any) -> None:
    # Its look-ups are quick; a dictionary of the whole vocabulary takes a tenth of a second.
    backend = tokenizer.backend_tokenizer
    control = control_tokens(tokenizer)
    known = config.get_text_config().vocab_size
    size = max([backend.get_vocab_size() - 1, *tokenizer.added_tokens_decoder]) + 1
    if size > known:
        raise CheckpointError(
            f"The tokenizer in {folder} has {size:,} tokens and the network {known:,}: {TOKENIZER_FILE} and "
            f"{TOKENIZER_CONFIG_FILE} are not those of this checkpoint. {TAKE_BOTH}"
        )
    bos = getattr(config.get_text_config(), "bos_token_id", None)
    expected = {name: getattr(config, field, None) for field, name in IMAGE_TOKENS.items()}
    if tokenizer.bos_token is not None:
        expected[tokenizer.bos_token] = bos
    for name, token_id in expected.items():
        found = backend.token_to_id(name)
        if None not in (found, token_id) and found != token_id:
            raise CheckpointError(
                f"{name} is token {found} in the tokenizer in {folder} and {token_id} in its "
                f"{CONFIG_FILE}: they are not of one checkpoint. {TAKE_BOTH}"
            )
    eos = generation_config.eos_token_id
    for token_id in [eos] if isinstance(eos, int) else eos or []:
        if token_id not in control:
            raise CheckpointError(
                f"{GENERATION_FILE} in {folder} ends a reply at token {token_id}, which its tokenizer takes for "
                f"text: they are not of one checkpoint. {TAKE_BOTH}"
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
            f"The chat template in {folder} writes {', '.join(unknown)}, which its tokenizer doesn't know as "
            f"control tokens: {TEMPLATE_FILE}, {TOKENIZER_FILE} and {TOKENIZER_CONFIG_FILE} are not of one "
            "checkpoint. Take all three from where the model comes from."
        )
    prompt = PromptEncoder(tokenizer).encode([{"role": "user", "content": "Hello"}])
    if not MARKERS & {control.get(token_id) for token_id in prompt}:
        raise CheckpointError(
            f"The chat template in {folder} marks a turn with nothing that its tokenizer knows: {TEMPLATE_FILE} "
            "is another model's. Take it from where the model comes from."
        )
