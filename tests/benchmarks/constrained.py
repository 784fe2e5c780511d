"""What it costs to hold a reply to a language: its automaton once, then every denoising step."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from llm_diffusiongemma.chat.tokenizer import token_bytes
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.pipeline import Block, BlockDiffusionPipeline
from llm_diffusiongemma.diffusion.request import ConstrainedText, Part, Prompt, Request, Text
from llm_diffusiongemma.grammar.automaton import TokenAutomaton, Vocabulary
from llm_diffusiongemma.grammar.cache import load_or_build
from llm_diffusiongemma.grammar.constraint import TextConstraint
from llm_diffusiongemma.grammar.dfa import ByteDFA
from llm_diffusiongemma.grammar.pattern import regex_language
from llm_diffusiongemma.grammar.schema import schema_language

from ..tokenizers import ours
from .contestants import Task, our_randomness
from .measure import Sizes

FREE = "free"

_STRING = r'"([^"\\\x00-\x1f\x7f]|\\["\\/bfnrt])*"'
_PRODUCT = (
    r'\{"sku": ?"[A-Z]{3}[0-9]{5}", ?"label": ?' + _STRING + r', ?"price": ?[0-9]{1,5}\.[0-9]{2}, '
    r'?"email": ?"[a-z0-9._]{1,30}@[a-z0-9]{1,20}\.[a-z]{2,5}", ?"active": ?(true|false)\}'
)
LANGUAGES = {
    "a date": r"\d{4}-\d{2}-\d{2}",
    "a person": r'\{"name": ?' + _STRING + r', ?"age": ?(0|[1-9][0-9]{0,5})\}',
    "an article": (
        r'\{ ?"title": ?' + _STRING + r', ?"tags": ?\[(' + _STRING + r"(, ?" + _STRING + r")*)?\], "
        r'?"kind": ?("alpha"|"beta"|"gamma"), ?"score": ?-?(0|[1-9][0-9]{0,8})(\.[0-9]{1,6})?, '
        r'?"when": ?"[0-9]{4}-[0-1][0-9]-[0-3][0-9]"(, ?"note": ?(' + _STRING + r"|null))? ?\}"
    ),
    "a price list": r'\{ ?"items": ?\[(' + _PRODUCT + r"(, ?" + _PRODUCT + r')*)?\], ?"note": ?' + _STRING + r"\}",
}
# Of 8,000, 13,000 and 53,000 states; an automaton may get 65,536.
ROOMS = (5, 18, 72)
# Of some 8,000, from most of which many others can be reached by a token.
TAGGED = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
    },
    "required": ["title", "tags"],
}

# Positions of a canvas, and how many of them a network is in doubt about that is sure of the others, nats.
CANVAS, DOUBTFUL, SURE = 256, 0.07, 40.0

# Where a step takes seconds.
FEW = ("an article", "unique tags", *(f"a house of {rooms} rooms" for rooms in ROOMS[1:]))


@dataclass(frozen=True)
class BuildCost:
    """Seconds to the classes of all tokens, and how much came out."""

    states: int
    classes: int
    arcs: int
    first_seconds: float
    cached_seconds: float


def house(rooms: int) -> dict[str, Any]:
    """A schema of so many rooms with two devices each."""
    device = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "kind": {"enum": ["sensor", "switch", "lamp", "display"]},
            "watts": {"type": "integer", "minimum": 0, "maximum": 5000},
            "installed": {"type": "string", "format": "date"},
            "tags": {"type": "array", "items": {"enum": ["old", "new", "spare"]}, "maxItems": 3},
        },
        "required": ["name", "kind"],
    }
    room = {
        "type": "object",
        "properties": {"label": {"type": "string"}, "main": device, "spare": device},
        "required": ["label", "main"],
    }
    return {"type": "object", "properties": {f"room_{number:02}": room for number in range(rooms)}}


def languages() -> dict[str, ByteDFA]:
    """By name: patterns, a schema with a list of unique texts, and schemas of houses."""
    patterns = {name: regex_language(pattern) for name, pattern in LANGUAGES.items()}
    houses = {f"a house of {rooms} rooms": schema_language(house(rooms)) for rooms in ROOMS}
    return {**patterns, "unique tags": schema_language(TAGGED), **houses}


def gemma_like_tokens(sizes: Sizes) -> list[bytes | None]:
    """As many tokens as Gemma has, made up: words of Latin and other scripts, punctuation, runs of blanks."""
    dice = random.Random(0)
    onsets, rimes = "b c d f g h k l m n p r s t v w z st tr ch sh".split(), "a e i o u er ing".split()
    syllables = [onset + rime for onset in onsets for rime in rimes]
    # Han, Cyrillic, Hiragana, Greek, Devanagari, Hangul
    scripts = [(0x4E00, 0x9FA5), (0x430, 0x44F), (0x3041, 0x3096), (0x391, 0x3C9), (0x905, 0x939)]
    scripts.append((0xAC00, 0xD7A3))
    punctuation = "{}[]\":,.;!?()<>/\\|=+-*&^%$#@~`'_"

    def word() -> str:
        kind = dice.random()
        if kind < 0.65:
            text = "".join(dice.choice(syllables) for _ in range(dice.randint(1, 5)))
            text = text.capitalize() if dice.random() < 0.3 else text
        elif kind < 0.92:
            first, last = dice.choice(scripts)
            text = "".join(chr(dice.randint(first, last)) for _ in range(dice.randint(1, 4)))
        else:
            text = "".join(dice.choice(punctuation) for _ in range(dice.randint(1, 4)))
            text += dice.choice(["", dice.choice(syllables)])
        return f" {text}" if dice.random() < 0.4 else text

    blanks = [blank * count for blank in (" ", "\n", "\t") for count in range(1, 32)]
    special: list[bytes | None] = [None] * 100
    tokens = [*special, *(bytes([byte]) for byte in range(256)), *(blank.encode() for blank in blanks)]
    words: dict[bytes, None] = {}
    while len(tokens) + len(words) < sizes.vocabulary:
        words[word().encode()] = None
    return [*tokens, *words]


def gemma_like_vocabulary(sizes: Sizes) -> Vocabulary:
    return Vocabulary(gemma_like_tokens(sizes), size=sizes.vocabulary, eos_token_ids=[1], pad_token_id=0)


def tiny_vocabulary(network: Network) -> Vocabulary:
    return Vocabulary(token_bytes(ours()), size=network.size, eos_token_ids=[1], pad_token_id=0)


def build_costs(vocabulary: Vocabulary, repeats: int) -> dict[str, BuildCost]:
    """Medians for each language, its byte automaton in hand: into an empty cache, and out of it."""
    costs = {}
    for name, dfa in languages().items():
        first, cached = [], []
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as folder:
                first.append(_seconds(dfa, vocabulary, Path(folder)))
                cached.append(_seconds(dfa, vocabulary, Path(folder)))
                automaton = load_or_build(dfa, vocabulary, Path(folder))
        costs[name] = BuildCost(
            states=len(dfa.accepting),
            classes=automaton.num_classes,
            arcs=len(automaton.arcs),
            first_seconds=sorted(first)[repeats // 2],
            cached_seconds=sorted(cached)[repeats // 2],
        )
    return costs


def _seconds(dfa: ByteDFA, vocabulary: Vocabulary, folder: Path) -> float:
    started = time.perf_counter()
    load_or_build(dfa, vocabulary, folder)
    return time.perf_counter() - started


def host_costs(vocabulary: Vocabulary, repeats: int) -> dict[str, tuple[float, float]]:
    """Of each language, seconds of the host in a step: for a network that is vague about everything, and behind
    two steps for one that is sure of 93 positions in 100. Medians; the numbers are made up."""
    generator = torch.Generator().manual_seed(0)
    vague = torch.randn(CANVAS, vocabulary.size, generator=generator) * 2
    doubtful = torch.rand(CANVAS, generator=generator) < DOUBTFUL
    costs = {}
    for name, dfa in languages().items():
        with tempfile.TemporaryDirectory() as folder:
            constraint = TextConstraint(load_or_build(dfa, vocabulary, Path(folder)), vague.device)
        at_first, later = [], []
        for _ in range(repeats):
            constraint.start_canvas(CANVAS, tokens_left=4 * CANVAS)
            seconds, canvas = _host_seconds(constraint, vague)
            at_first.append(seconds)
            sure = vague.scatter_add(1, canvas[:, None], torch.where(doubtful, 0.0, SURE)[:, None])
            for _ in range(2):
                seconds, canvas = _host_seconds(constraint, sure)
            later.append(seconds)
        costs[name] = statistics.median(at_first), statistics.median(later)
    return costs


def _host_seconds(constraint: TextConstraint, logits: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Of a step how long the device waits for the host, and the step's canvas."""
    constraint.observe(slice(0, len(logits)), logits)
    marks = []

    def fetch(fetched: Callable[[], torch.Tensor] = constraint._statistics.fetch) -> torch.Tensor:
        result = fetched()
        marks.append(time.perf_counter())
        return result

    def send(sent: Callable[[], torch.Tensor] = constraint._decision.send) -> torch.Tensor:
        marks.append(time.perf_counter())
        return sent()

    with (
        mock.patch.object(constraint._statistics, "fetch", fetch),
        mock.patch.object(constraint._decision, "send", send),
    ):
        canvas = constraint.decide(logits)
    return marks[1] - marks[0], canvas


def replies(
    network: Network, vocabulary: Vocabulary, task: Task, names: Collection[str] | None = None
) -> dict[str, Callable[[], object]]:
    """A reply of one canvas, free and held to each of these languages (None: to all); the automata are in hand."""
    with tempfile.TemporaryDirectory() as folder:
        automata: dict[str, TokenAutomaton | None] = {
            name: load_or_build(dfa, vocabulary, Path(folder))
            for name, dfa in languages().items()
            if names is None or name in names
        }

    def action(automaton: TokenAutomaton | None) -> Callable[[], None]:
        def run() -> None:
            text: Part = (
                Text() if automaton is None else ConstrainedText(TextConstraint(automaton, network.device))
            )
            request = Request(Prompt(task.prompt_ids), task.settings, network.config.canvas_length, (text,))
            pipeline = BlockDiffusionPipeline(network, eos_token_ids=[1], pad_token_id=None)
            results = pipeline.generate(request, randomness=our_randomness())
            block = next(results)
            results.close()
            assert isinstance(block, Block)
            assert block.denoising_steps == task.steps

        return run

    return {name: action(automaton) for name, automaton in {FREE: None, **automata}.items()}
