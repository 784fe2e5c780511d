"""The embedded checkpoint's tokenizer and configuration: the real architecture, very small."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..catalog import EMBEDDED_CHECKPOINT
from . import data
from .questions import QUESTIONS, UNKNOWN

if TYPE_CHECKING:
    from transformers import DiffusionGemmaConfig, PreTrainedTokenizerFast

VOCAB_SIZE = 3072
# Gemma's control tokens. Those with an id below the vocabulary's end keep the id they have in the
# real checkpoint, so that the EOS set [1, 106, 50] is the same; the image tokens (255999, 258880,
# 258882 there) come right after.
CONTROL_TOKENS = {
    "<pad>": 0,
    "<eos>": 1,
    "<bos>": 2,
    "<unk>": 3,
    "<|tool>": 46,
    "<tool|>": 47,
    "<|tool_call>": 48,
    "<tool_call|>": 49,
    "<|tool_response>": 50,
    "<tool_response|>": 51,
    '<|"|>': 52,
    "<|think|>": 98,
    "<|channel>": 100,
    "<channel|>": 101,
    "<|turn>": 105,
    "<turn|>": 106,
    "<|image>": 107,
    "<|image|>": 108,
    "<image|>": 109,
}
EOS_TOKEN_IDS = [1, 106, 50]
PAD = CONTROL_TOKENS["<pad>"]
STOP = CONTROL_TOKENS["<turn|>"]
TOOL_STOP = CONTROL_TOKENS["<|tool_response>"]

GENERATION_CONFIG: dict[str, Any] = {
    # What the real checkpoint ships, its 256 new tokens included.
    "bos_token_id": 2,
    "eos_token_id": EOS_TOKEN_IDS,
    "pad_token_id": 0,
    "max_new_tokens": 256,
    "max_denoising_steps": 48,
    "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
    "t_max": 0.8,
    "t_min": 0.4,
    "stability_threshold": 1,
    "confidence_threshold": 0.005,
}


def build_config() -> DiffusionGemmaConfig:
    """DiffusionGemma with 4 layers of width 128 and 4 experts, canvas 256."""
    from transformers import DiffusionGemmaConfig, DiffusionGemmaTextConfig, Gemma4VisionConfig

    text = DiffusionGemmaTextConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=192,
        moe_intermediate_size=64,
        num_experts=4,
        top_k_experts=2,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        global_head_dim=32,
        num_global_key_value_heads=2,
        layer_types=["sliding_attention", "full_attention"] * 2,
        sliding_window=256,
        max_position_embeddings=4096,
        use_bidirectional_attention="vision",
        pad_token_id=0,
        eos_token_id=EOS_TOKEN_IDS,
        bos_token_id=2,
    )
    vision = Gemma4VisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=32,
        patch_size=4,
        pooling_kernel_size=2,  # with 1 transformers 5.23 keeps the padding and drops the image
        position_embedding_size=160,
    )
    # vLLM reads the number of soft tokens from here; transformers from the image processor.
    vision.default_output_length = 70
    return DiffusionGemmaConfig(
        text_config=text,
        vision_config=vision,
        canvas_length=256,
        boi_token_id=CONTROL_TOKENS["<|image>"],
        image_token_id=CONTROL_TOKENS["<|image|>"],
        eoi_token_id=CONTROL_TOKENS["<image|>"],
    )


# Words that the chat template puts right after a control token or a bracket.
_TEMPLATE_WORDS = (
    "user model system thought declaration description parameters properties required type response value call "
    "OBJECT STRING INTEGER city name age weather multiply llm_version llm_time"
).split()
# Of schemas as people write them, and of what their members are often called.
_JSON_WORDS = (
    "object string integer number array items title uniqueItems additionalProperties false true null date "
    "time name description url text type value user model version message category unit first last birth code "
    "phone state"
).split()


def _corpus() -> list[str]:
    """Text whose words should become single tokens: numbers, names, words, every answer twice."""
    rng = random.Random(0)
    lines: list[str] = []
    lines += [" " + " ".join(str(number) for number in range(1000))] * 400
    lines += ["\n".join(str(number) for number in range(100))] * 400
    listed = [*data.WORDS, *data.NAMES, *data.CITIES, *data.WEATHER, *data.COLOURS]
    for word in listed:
        lines += [f" {word}", word] * 30
    lines += [f" {word.upper()}" for word in data.WORDS] * 30
    lines += [f'"{name}"' for name in [*data.NAMES, *data.CITIES]] * 60
    lines += _TEMPLATE_WORDS * 400
    for field in [*data.TEXT_FIELDS, *data.NUMBER_FIELDS, *data.PRICE_FIELDS, *data.LIST_FIELDS, *_JSON_WORDS]:
        lines += [f" {field}", f'"{field}": '] * 60
    for entry in QUESTIONS:
        lines += [*entry.phrasings, entry.answer] * 6 + [entry.answer.upper()] * 5
    lines += [UNKNOWN, UNKNOWN.upper()] * 10
    for _ in range(6000):
        lesson = data.draw(rng)
        lines += [part for message in lesson.messages if isinstance(part := message["content"], str)]
    return lines


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every number from 0 to 999 after a space is one token.

    Counting is then "the successor of the token before" instead of an alignment puzzle of digits.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # Words and punctuation with the space before them; digits in groups of three at the most.
            pre_tokenizers.Split(Regex(r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(CONTROL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(_corpus(), trainer)

    # Move the learned tokens to the ids that the control tokens leave free.
    description = json.loads(raw.to_str())
    vocabulary: dict[str, int] = description["model"]["vocab"]
    taken = set(CONTROL_TOKENS.values())
    free = (token_id for token_id in range(VOCAB_SIZE) if token_id not in taken)
    learned = {token: next(free) for token, _ in sorted(vocabulary.items(), key=lambda item: item[1])}
    description["model"]["vocab"] = learned
    description["model"]["vocab"] = {**learned, **CONTROL_TOKENS}
    description["added_tokens"] = [
        {
            "id": token_id,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token, token_id in CONTROL_TOKENS.items()
    ]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(description)),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = (EMBEDDED_CHECKPOINT / "chat_template.jinja").read_text()
    for number in range(1000):
        if len(tokenizer.encode(f" {number}")) != 1:
            raise AssertionError(f" {number} is not one token: train the BPE on more numbers")
    return tokenizer


def load_or_build_tokenizer(*folders: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of the first folder that has one, then the shipped one, else a new one.

    A network is bound to its vocabulary. A new BPE depends on the lessons' words, so training that goes on,
    or starts again with other lessons, must not build another.
    """
    from transformers import AutoTokenizer

    for folder in (*folders, EMBEDDED_CHECKPOINT):
        if (folder / "tokenizer.json").is_file():
            tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            for how_it_was_loaded in ("is_local", "local_files_only"):  # would be saved with it
                tokenizer.init_kwargs.pop(how_it_was_loaded, None)
            return tokenizer
    return build_tokenizer()


def carry_embeddings(model: Any, old: PreTrainedTokenizerFast, new: PreTrainedTokenizerFast) -> None:
    """Give a network another vocabulary: a token that it knew keeps its embedding, another begins as the
    mean of those that it was written with."""
    import torch

    known = old.get_vocab()
    embeddings = model.get_input_embeddings().weight.detach().clone()  # [V, H]; the head's are the same
    rows = torch.empty(len(new), embeddings.shape[1])
    for token, token_id in new.get_vocab().items():
        pieces = [known[token]] if token in known else old.encode(new.decode([token_id]), add_special_tokens=False)
        rows[token_id] = embeddings[pieces].mean(0)
    model.resize_token_embeddings(len(new), mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(rows)
    model.config.text_config.vocab_size = len(new)


def render(tokenizer: PreTrainedTokenizerFast, lesson: data.Lesson) -> str:
    """The prompt of a lesson as text, by the checkpoint's own chat template."""
    text = tokenizer.apply_chat_template(
        lesson.messages,
        tools=lesson.tools or None,
        enable_thinking=lesson.thinking,
        add_generation_prompt=True,
        tokenize=False,
    )
    assert isinstance(text, str)
    return text


def save_checkpoint(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a folder in the layout of a Hub repository: weights in bf16, configs, tokenizer, template."""
    import copy

    import torch

    from .images import image_processor

    folder.mkdir(parents=True, exist_ok=True)
    copied = copy.deepcopy(model).to(torch.bfloat16).eval()
    for part in (copied.config.text_config, copied.config.vision_config):
        part.dtype = torch.bfloat16  # not what it was trained in
    copied.save_pretrained(folder)
    # transformers writes its own defaults; the real checkpoint's file has only what is set.
    (folder / "generation_config.json").write_text(json.dumps(GENERATION_CONFIG, indent=2) + "\n")
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)
