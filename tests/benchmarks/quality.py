"""What a representation costs: how far the network's logits move, what it still answers, and in how many steps."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.diffusion.kv_cache import KVCache
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.request import Prompt, Request
from llm_diffusiongemma.diffusion.sampler import SamplerSettings
from llm_diffusiongemma.tiny import data
from llm_diffusiongemma.tiny.evaluate import Examiner, Score

from ..layouts import writer
from ..layouts.synthetic import FORMATS
from ..layouts.writer import Layout
from .contestants import our_pipeline, our_randomness

LAYOUTS = tuple(FORMATS)
REFERENCE: Layout = "google bf16"


class State(NamedTuple):
    """What a denoising step begins with, behind a prompt."""

    prompt: Sequence[int]
    canvas: torch.Tensor
    soft_embeddings: torch.Tensor | None


@dataclass(frozen=True)
class Deviation:
    """Of logits from those of the reference, over all positions of some steps."""

    relative_error: float
    divergence: float
    """Kullback-Leibler, of the reference's distribution: nats a position"""
    kept: float
    """The share of positions whose most likely token is the reference's."""


def examiners(folder: Path) -> dict[Layout, Examiner]:
    """Of the embedded checkpoint, written in each layout and loaded from there."""
    return {layout: Examiner(writer.write(EMBEDDED_CHECKPOINT, folder / layout, layout)) for layout in LAYOUTS}


def packed_twins(network: Network) -> dict[Layout, Network]:
    """A plain network in each layout. All of it is bf16 first, as on the Hub. They compute in its dtype."""
    tensors = {name: tensor.bfloat16() for name, tensor in network.tensors()}
    twins = {}
    for layout in LAYOUTS:
        twins[layout] = Network(network.config, network.dtype, network.device, FORMATS[layout])
        stored = dict(writer.converted(tensors, layout))
        for name, place in twins[layout].tensors():
            place.copy_(stored[name].view(place.shape))
    return twins


def lessons() -> Iterator[data.Lesson]:
    """One of each skill, but for the one with pictures."""
    for name, (skill, _) in data.SKILLS.items():
        lesson = skill(random.Random(name), True)
        if lesson.colour is None:
            yield lesson


def states(network: Network, prompts: Sequence[Sequence[int]], settings: SamplerSettings) -> list[State]:
    """Those of a network's replies to prompts, their first canvas each."""
    found: list[State] = []
    denoise = network.denoise
    for prompt in prompts:

        def note(canvas: torch.Tensor, soft: torch.Tensor | None, cache: KVCache) -> torch.Tensor:
            found.append(State(prompt, canvas.clone(), None if soft is None else soft.clone()))  # noqa: B023
            return denoise(canvas, soft, cache)

        request = Request(Prompt(list(prompt)), settings, network.config.canvas_length)
        with patch.object(network, "denoise", note):
            list(our_pipeline(network).generate(request, randomness=our_randomness()))
    return found


def logits(network: Network, state: State, cache: KVCache) -> torch.Tensor:
    """`[256, V]`, fp32, softcapped as the sampler does it."""
    hidden = network.denoise(state.canvas, state.soft_embeddings, cache)
    out = network.logits(hidden, slice(0, network.size)).float()
    cap = network.config.final_logit_softcapping
    return out if cap is None else cap * torch.tanh(out / cap)


def read(network: Network, prompt: Sequence[int]) -> KVCache:
    cache = KVCache(network.config, network.dtype, network.device)
    network.encode(network.embed(torch.tensor(prompt, device=network.device)), cache)
    return cache


@torch.no_grad()
def deviations(
    reference: Network, networks: dict[Layout, Network], steps: Sequence[State]
) -> dict[Layout, Deviation]:
    """Of each from the reference."""
    errors, divergences, kept = (dict.fromkeys(networks, 0.0) for _ in range(3))
    square, positions = 0.0, 0
    for prompt, of_prompt in itertools.groupby(steps, key=lambda state: state.prompt):
        right_cache = read(reference, prompt)
        caches = {layout: read(network, prompt) for layout, network in networks.items()}
        for state in of_prompt:
            right = logits(reference, state, right_cache)
            square += float(right.square().sum())
            positions += len(right)
            for layout, network in networks.items():
                ours = logits(network, state, caches[layout])
                errors[layout] += float((ours - right).square().sum())
                divergences[layout] += float(
                    torch.nn.functional.kl_div(
                        ours.log_softmax(-1), right.log_softmax(-1), log_target=True, reduction="sum"
                    )
                )
                kept[layout] += int((ours.argmax(-1) == right.argmax(-1)).sum())
    return {
        layout: Deviation(
            (errors[layout] / square) ** 0.5, divergences[layout] / positions, kept[layout] / positions
        )
        for layout in networks
    }


def scores(examiner: Examiner, questions: int) -> dict[str, Score]:
    """Of each skill: so many questions as in training, and as many never seen."""

    def both(skill: str) -> Score:
        known, unseen = (examiner.examine(skill, questions, held_out=held_out) for held_out in (False, True))
        return total((known, unseen))

    return {skill: both(skill) for skill in data.SKILLS}


def total(each: Iterable[Score]) -> Score:
    result = Score()
    for score in each:
        result.right += score.right
        result.asked += score.asked
        result.blocks += score.blocks
        result.denoising_steps += score.denoising_steps
    return result
