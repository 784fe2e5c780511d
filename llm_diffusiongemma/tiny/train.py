"""Train the embedded checkpoint from scratch: `python -m llm_diffusiongemma.tiny.train --out FOLDER`.

The objective is that of uniform-state block diffusion. A level t of noise is drawn for each canvas, each
of its tokens is replaced by a uniformly random one with probability t, and the network predicts all of
the original tokens. In half of the steps it first predicts once without gradient, and these logits come
back as self-conditioning, sharpened by a temperature as the sampler will do. In some steps the encoder
also reads the reply and learns to predict each next token of it.

Progress is saved every few minutes; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import inspect
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import DiffusionGemmaForBlockDiffusion, DiffusionGemmaModel, DynamicCache

from ..catalog import EMBEDDED_CHECKPOINT
from . import data, images
from .network import (
    PAD,
    STOP,
    TOOL_STOP,
    build_config,
    build_tokenizer,
    carry_embeddings,
    load_or_build_tokenizer,
    render,
    save_checkpoint,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# transformers 5.24 gave the KV cache's argument another name, and warns of the old one.
CACHE_ARGUMENT = (
    "cache" if "cache" in inspect.signature(DiffusionGemmaModel.forward).parameters else "past_key_values"
)

POOL_BATCHES = 16
SHORT_CANVAS = 64
# Of the padding far behind a reply this share is looked at, and all of it within so many positions.
PADDING_SAMPLE = 0.25
NEAR_TEXT = 8
# For the autoregressive loss: the token that ends a reply is one of many, and the hardest.
STOP_WEIGHT = 20.0
# How often the last block of a long reply is picked whatever its length.
LAST_BLOCK_SHARE = 0.3
# In how many steps the encoder learns to read on by itself.
AUTOREGRESSIVE_SHARE = 0.3


@dataclass
class Batch:
    """Right-padded prompts `[B, P]` and their canvases `[B, C]`."""

    prompts: torch.Tensor
    lengths: torch.Tensor
    canvases: torch.Tensor
    pixels: dict[str, torch.Tensor] | None


@dataclass(frozen=True)
class Example:
    prompt: list[int]
    canvas: list[int]
    colour: tuple[int, int, int] | None


class LessonSource:
    """Draws lessons and tokenises them exactly as the plugin will."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random, image_token_id: int) -> None:
        self.tokenizer = tokenizer
        self.rng = rng
        self.image_token_id = image_token_id

    def example(self, canvas_length: int) -> Example:
        lesson = data.draw(self.rng)
        prompt = self.tokenizer.encode(render(self.tokenizer, lesson), add_special_tokens=False)
        if lesson.decides:
            prompt += self.tokenizer.encode(data.EMPTY_THOUGHT, add_special_tokens=False)
        reply = self.tokenizer.encode(lesson.reply, add_special_tokens=False)
        reply.append(TOOL_STOP if lesson.calls_tool else STOP)
        # A long reply is learned block by block: the earlier blocks are part of the prompt.
        # The last block is the hardest, for it has to stop.
        blocks = math.ceil(len(reply) / canvas_length)
        block = blocks - 1 if self.rng.random() < LAST_BLOCK_SHARE else self.rng.randrange(blocks)
        prompt = prompt + reply[: block * canvas_length]
        canvas = reply[block * canvas_length : (block + 1) * canvas_length]
        return Example(prompt, canvas + [PAD] * (canvas_length - len(canvas)), lesson.colour)

    def batches(self, size: int, canvas_length: int) -> Iterator[Batch]:
        """Batches of prompts of similar length. Every lesson drawn is used, so the mix stays the mix."""
        while True:
            pool = [self.example(canvas_length) for _ in range(size * POOL_BATCHES)]
            # Images go together: they need the vision tower.
            pool.sort(key=lambda example: (example.colour is not None, len(example.prompt)))
            chunks = [pool[i : i + size] for i in range(0, len(pool), size)]
            self.rng.shuffle(chunks)
            for chunk in chunks:
                yield self._collate(chunk)

    def _collate(self, chunk: list[Example]) -> Batch:
        pixels = None
        prompts = [example.prompt for example in chunk]
        if any(example.colour for example in chunk):
            shown = [images.plain(example.colour, self.rng) for example in chunk if example.colour]
            pixels, counts = images.preprocess(shown)
            of_image = iter(counts)
            prompts = [
                images.expand(example.prompt, next(of_image), self.image_token_id)
                if example.colour
                else example.prompt
                for example in chunk
            ]
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        width = int(lengths.max())
        padded = torch.tensor([prompt + [PAD] * (width - len(prompt)) for prompt in prompts])
        canvases = torch.tensor([example.canvas for example in chunk])
        return Batch(padded, lengths, canvases, pixels)


@dataclass(frozen=True)
class Encoded:
    """What the encoder reads: the prompts, and for the autoregressive loss the clean canvases behind them.

    All `[B, P]` or `[B, P + C]`. The denoiser must see none of the canvases' keys and values.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    is_prompt: torch.Tensor
    is_real: torch.Tensor

    @classmethod
    def of(cls, batch: Batch, with_canvases: bool) -> Encoded:
        size, canvas_length = batch.canvases.shape
        position = torch.arange(batch.prompts.shape[1]).expand(size, -1)
        is_prompt = position < batch.lengths[:, None]
        if not with_canvases:
            return cls(batch.prompts, position, is_prompt, is_prompt)
        behind = batch.lengths[:, None] + torch.arange(canvas_length)
        return cls(
            torch.cat([batch.prompts, batch.canvases], dim=1),
            torch.cat([position, behind], dim=1),
            F.pad(is_prompt, (0, canvas_length), value=False),
            F.pad(is_prompt, (0, canvas_length), value=True),
        )


def additive(seen: torch.Tensor) -> torch.Tensor:
    """What eager attention adds to its scores: nothing where `seen`, else a number that leaves no weight."""
    return torch.where(seen, 0.0, torch.finfo(torch.bfloat16).min)


def encoder_masks(encoded: Encoded, image_token_id: int, window: int) -> dict[str, torch.Tensor]:
    """Causal masks `[B, 1, n, n]`; the soft tokens of an image see each other."""
    distance = encoded.positions[:, :, None] - encoded.positions[:, None, :]
    full = (distance >= 0) & encoded.is_real[:, None, :]
    is_image = encoded.tokens == image_token_id
    same_image = is_image[:, :, None] & is_image[:, None, :]
    sliding = full & (distance < window)
    return {
        "full_attention": additive((full | same_image)[:, None]),
        "sliding_attention": additive((sliding | same_image)[:, None]),
    }


def denoiser_masks(encoded: Encoded, batch: Batch, window: int) -> dict[str, torch.Tensor]:
    """Masks `[B, 1, C, n + C]`: all of the canvas, and of the prompt what the cache would still hold."""
    size, canvas_length = batch.canvases.shape
    kept = encoded.is_prompt & (encoded.positions > batch.lengths[:, None] - window)
    canvas = torch.ones(size, canvas_length, dtype=torch.bool)

    def expand(prompt: torch.Tensor) -> torch.Tensor:
        return additive(torch.cat([prompt, canvas], dim=1)[:, None, None, :].expand(-1, 1, canvas_length, -1))

    return {"full_attention": expand(encoded.is_prompt), "sliding_attention": expand(kept)}


def autoregressive_loss(model: Any, batch: Batch, hidden: torch.Tensor) -> torch.Tensor:
    """Next-token loss of the encoder on the canvases' text; `hidden` `[B, P + C, H]` is its output.

    Encoder and denoiser are one network. Reading clean text from left to right is an easier lesson in
    copying and counting than denoising, and the denoiser inherits it.
    """
    width = batch.prompts.shape[1]
    before_canvas = hidden[torch.arange(len(hidden)), batch.lengths - 1][:, None]
    before_each = torch.cat([before_canvas, hidden[:, width:-1]], dim=1)  # [B, C, H]
    is_text = batch.canvases != PAD
    target = batch.canvases[is_text]
    weight = torch.where((target == STOP) | (target == TOOL_STOP), STOP_WEIGHT, 1.0)
    loss = F.cross_entropy(softcapped_logits(model, before_each[is_text]), target, reduction="none")
    return (loss * weight).sum() / weight.sum()


def training_loss(model: Any, batch: Batch, rng: random.Random) -> torch.Tensor:
    """Weighted cross-entropy of one noised batch (see the module's text)."""
    config = model.config.text_config
    size, canvas_length = batch.canvases.shape
    cache = DynamicCache()  # without the config: no layer drops what the padding still needs
    encoded = Encoded.of(batch, with_canvases=rng.random() < AUTOREGRESSIVE_SHARE)
    encoder_output = model.model.encoder(
        input_ids=encoded.tokens,
        attention_mask=encoder_masks(encoded, model.config.image_token_id, config.sliding_window),
        **{CACHE_ARGUMENT: cache},
        position_ids=encoded.positions,
        **(batch.pixels or {}),
    )
    # sqrt favours high noise, since every reply starts from nothing but noise. Every other row without it:
    # copying is learned where the neighbours are clean.
    level = torch.rand(size, 1)
    level[::2] = level[::2].sqrt()
    noise = torch.randint(0, config.vocab_size, batch.canvases.shape)
    noised = torch.where(torch.rand(batch.canvases.shape) < level, noise, batch.canvases)
    call = {
        "decoder_input_ids": noised,
        CACHE_ARGUMENT: cache,
        "decoder_attention_mask": denoiser_masks(encoded, batch, config.sliding_window),
        "decoder_position_ids": batch.lengths[:, None] + torch.arange(canvas_length)[None, :],
    }
    previous = None
    if rng.random() < 0.5:
        with torch.no_grad():
            hidden = model.model.decoder(**call).last_hidden_state
            previous = softcapped_logits(model, hidden) / rng.uniform(0.4, 0.8)
    hidden = model.model.decoder(**call, self_conditioning_logits=previous).last_hidden_state

    # The padding after the end is easy and most of the canvas: a sample of it stands for the rest.
    is_text = batch.canvases != PAD
    sampled = ~is_text & (torch.rand(batch.canvases.shape) < PADDING_SAMPLE)
    near_text = ~is_text & (torch.arange(canvas_length) < is_text.sum(1, keepdim=True) + NEAR_TEXT)
    chosen = is_text | near_text | sampled
    logits = softcapped_logits(model, hidden[chosen])
    # The weight may depend on the position but not on what stands there. The sampler accepts by entropy:
    # a network that was taught with cheap padding believes that every count goes on.
    weight = (1 + torch.arange(canvas_length) / 16).rsqrt().expand(size, -1).clone()
    weight[sampled & ~near_text] /= PADDING_SAMPLE
    loss = F.cross_entropy(logits, batch.canvases[chosen], reduction="none")
    denoising = (loss * weight[chosen]).sum() / weight[chosen].sum()
    if encoded.tokens.shape == batch.prompts.shape:
        return denoising
    return denoising + 0.5 * autoregressive_loss(model, batch, encoder_output.last_hidden_state)


def softcapped_logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    cap = model.config.text_config.final_logit_softcapping
    logits: torch.Tensor = torch.tanh(model.lm_head(hidden) / cap) * cap
    return logits


def optimizers(model: Any) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for everything else."""
    matrices: list[torch.Tensor] = []
    others: list[torch.Tensor] = []
    for name, parameter in model.named_parameters():
        inside = ".layers." in name or "self_conditioning" in name
        (matrices if inside and parameter.ndim == 2 and "router" not in name else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=1.0, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=1.0, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def learning_rate(progress: float, peak: float) -> float:
    """Short warm-up, a long plateau, then down to zero: in the middle the network still talks noise."""
    warm_up, decay_from = 0.01, 0.55
    if progress < warm_up:
        return peak * progress / warm_up
    if progress < decay_from:
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - decay_from) / (1 - decay_from)))


def train(
    out: Path,
    minutes: float,
    peak: float,
    seed: int,
    short_share: float,
    start_from: Path | None = None,
    new_vocabulary: bool = False,
) -> None:
    """Train for `minutes` of wall time, saving to `out` on the way, and write the checkpoint there.

    `start_from` is a checkpoint folder to start with instead of random weights, for new lessons; with
    `new_vocabulary` it is given one that is built from the words of these.
    """
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    torch.manual_seed(seed)
    state_file = out / "training.pt"
    if start_from is None:
        tokenizer = load_or_build_tokenizer(out / "checkpoint")
        model = DiffusionGemmaForBlockDiffusion(build_config())
    else:
        model = DiffusionGemmaForBlockDiffusion.from_pretrained(start_from, dtype=torch.float32)
        tokenizer = old = load_or_build_tokenizer(start_from)
        if new_vocabulary:
            tokenizer = load_or_build_tokenizer(out / "checkpoint") if state_file.exists() else build_tokenizer()
            carry_embeddings(model, old, tokenizer)
    model.set_attn_implementation("eager")  # with heads of 32 and masks faster than the fused kernel on a CPU
    model.train()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.998))  # type: ignore[no-untyped-call]
    optimizer_list = optimizers(model)
    source = LessonSource(tokenizer, rng, model.config.image_token_id)
    step, spent = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=False)
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        for optimizer, saved in zip(optimizer_list, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, spent = state["step"], state["spent"]
        rng.seed(seed + step)
        torch.manual_seed(seed + step)

    def save() -> None:
        optimizer_states = [optimizer.state_dict() for optimizer in optimizer_list]
        state = {
            "model": model.state_dict(),
            "averaged": averaged.state_dict(),
            "optimizers": optimizer_states,
        }
        torch.save({**state, "step": step, "spent": spent}, state_file.with_suffix(".new"))
        state_file.with_suffix(".new").replace(state_file)
        save_checkpoint(averaged.module, tokenizer, out / "checkpoint")

    short = source.batches(32, SHORT_CANVAS)
    long = source.batches(16, model.config.canvas_length)
    started = last_save = time.monotonic() - spent
    smooth: dict[int, float] = {}
    while (spent := time.monotonic() - started) < minutes * 60:
        progress = spent / (minutes * 60)
        # Cheap short canvases first, then more and more of the real length.
        use_short = rng.random() < short_share * (1 - progress)
        batch = next(short if use_short else long)
        with torch.autocast("cpu", torch.bfloat16):
            loss = training_loss(model, batch, rng)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizer_list:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(progress, peak)
            optimizer.step()
            optimizer.zero_grad()
        averaged.update_parameters(model)
        step += 1
        width = batch.canvases.shape[1]
        smooth[width] = 0.98 * smooth.get(width, loss.item()) + 0.02 * loss.item()
        if step % 50 == 0:
            shown = " ".join(f"canvas {key}: {value:.3f}" for key, value in sorted(smooth.items()))
            print(f"step {step} {spent / 60:.1f} min, loss {shown}", flush=True)
        if time.monotonic() - last_save > 180:
            save()
            last_save = time.monotonic()
    save()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded checkpoint.")
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"), help="folder for progress and checkpoint")
    parser.add_argument("--minutes", type=float, default=100, help="wall time to train for, all in all")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short-share", type=float, default=0.9, help="share of short canvases at the start")
    parser.add_argument("--start-from", type=Path, help="checkpoint folder to start with, for new lessons")
    parser.add_argument("--new-vocabulary", action="store_true", help="build it anew from the lessons' words")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.new_vocabulary and arguments.start_from is None:
        parser.error("--new-vocabulary takes a checkpoint to start from; without one it is new anyway")
    torch.set_num_threads(arguments.threads)
    train(
        arguments.out,
        arguments.minutes,
        arguments.learning_rate,
        arguments.seed,
        arguments.short_share,
        arguments.start_from,
        arguments.new_vocabulary,
    )
    print(f"Trained. To embed it, copy {arguments.out / 'checkpoint'} over {EMBEDDED_CHECKPOINT}.")


if __name__ == "__main__":
    main()
