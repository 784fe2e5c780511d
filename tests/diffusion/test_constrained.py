"""Replies held to a language, by networks that know nothing of it."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.chat.tokenizer import token_bytes
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.pipeline import Block, BlockDiffusionPipeline, Draft
from llm_diffusiongemma.diffusion.request import ConstrainedText, Part, Prompt, Request, Thought
from llm_diffusiongemma.diffusion.sampler import EntropyBoundSampler, GeneratorRandomness, SamplerSettings
from llm_diffusiongemma.errors import ConstraintError
from llm_diffusiongemma.grammar.automaton import TokenAutomaton, build
from llm_diffusiongemma.grammar.choices import ChoiceTexts
from llm_diffusiongemma.grammar.constraint import TextConstraint
from llm_diffusiongemma.grammar.pattern import choices_language, regex_language
from tests.grammar.languages import BYTE_TOKENS, EOS, PAD, text_of, vocabulary_of
from tests.tokenizers import ours

from ..whole import load_whole
from .plain_vocabulary import PlainVocabulary, step_of
from .pretended import PretendedCard
from .scripted import Scripted, letters
from .tiny_models import network_of, prompt_of, tiny_model

if TYPE_CHECKING:
    from collections.abc import Sequence

CANVAS = 16
CPU = torch.device("cpu")
STRING = r'"[^"\\\x00-\x1f\x7f]*"'
# A text that is short or long, short only, long only, of multi-byte characters, of one form only.
PATTERNS = [
    r'\{"name": ' + STRING + r', "age": (0|[1-9][0-9]{0,2})\}',
    r"\d{4}-\d{2}-\d{2}",
    r"yes|no|unsure",
    r"\[(\d+(, \d+){20,})\]",
    r"[☃é日]+",
    r"(ab){30}",
    r"",
    r"(\+|-)?\d+(\.\d+)?",
]
# Ends a thought; not text.
CLOSES = 3


@functools.cache
def automaton_of(pattern: str) -> TokenAutomaton:
    return build(regex_language(pattern), vocabulary_of(BYTE_TOKENS, eos=(EOS,)))


@functools.cache
def nonsense(seed: int = 0, sharpness: float = 12.0, dtype: torch.dtype = torch.float32) -> Network:
    """A random network with a vocabulary of bytes and words."""
    return network_of(tiny_model(vocab_size=len(BYTE_TOKENS), sharpness=sharpness, seed=seed, dtype=dtype))


def pipeline_of(network: Network, eos: Sequence[int] = (EOS,)) -> BlockDiffusionPipeline:
    return BlockDiffusionPipeline(network, eos_token_ids=eos, pad_token_id=PAD)


@dataclass
class Reply:
    blocks: list[Block]
    drafts: list[Draft]

    @property
    def tokens(self) -> list[int]:
        return [token for block in self.blocks for token in block.tokens]

    @property
    def text(self) -> bytes:
        return text_of(BYTE_TOKENS, self.tokens)


def reply(
    pipeline: BlockDiffusionPipeline,
    constraint: TextConstraint,
    *,
    max_tokens: int,
    seed: int = 0,
    steps: int = 4,
    prompt: Sequence[int] = (20, 30, 40),
    thought_closes: int | None = None,
) -> Reply:
    thought: tuple[Part, ...] = () if thought_closes is None else (Thought(thought_closes),)
    settings = SamplerSettings(steps, 0.1, 0.4, 0.8, 0.005, 1)
    records = list(
        pipeline.generate(
            Request(Prompt(prompt), settings, max_tokens, (*thought, ConstrainedText(constraint))),
            randomness=GeneratorRandomness(torch.Generator().manual_seed(seed)),
            drafts=True,
            candidates=3,
        )
    )
    blocks = [record for record in records if isinstance(record, Block)]
    return Reply(blocks, [record for record in records if isinstance(record, Draft)])


# --- the guarantee -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_reply_belongs_to_the_language(pattern: str) -> None:
    automaton, dfa = automaton_of(pattern), regex_language(pattern)
    fewest = int(automaton.distance[0])
    budgets = sorted({max(fewest - 1, 1), fewest + 2, CANVAS, 4 * CANVAS - 1, 6 * CANVAS + 3})
    for seed, max_tokens in itertools.product(range(2), budgets):
        if max_tokens < fewest - 1:
            continue
        model = nonsense(seed, sharpness=(2.0, 40.0)[seed])
        result = reply(
            pipeline_of(model), TextConstraint(automaton, CPU), max_tokens=max_tokens, seed=seed, steps=2
        )
        assert dfa.accepts(result.text), (seed, max_tokens, result.text)
        assert len(result.tokens) <= max_tokens
        last = result.blocks[-1]
        assert (last.finish_reason, last.eos_token_id) == ("stop", EOS)
        assert all(block.constraint is not None for block in result.blocks)
        # At any step it could have stopped: what stands in a draft up to its end is allowed.
        state = 0
        for index, drafts in itertools.groupby(result.drafts, lambda draft: draft.block_index):
            assert all(automaton.advance(state, draft.tokens) != automaton.dead for draft in drafts)
            state = automaton.advance(state, result.blocks[index].tokens)


def test_candidates_are_of_what_is_allowed() -> None:
    """Not of what the network would say without the constraint."""
    constraint = TextConstraint(automaton_of("[xq]{6}"), CPU)
    drafts = reply(pipeline_of(nonsense(1)), constraint, max_tokens=20).drafts
    for draft in drafts:
        assert draft.candidates is not None
        for of_position in draft.candidates[:6]:
            assert {BYTE_TOKENS[token] for token, share in of_position if share > 1e-6} <= {b"x", b"q"}
            assert sum(share for _, share in of_position) == pytest.approx(1)
        # Behind the text there is nothing but its end.
        assert draft.end == 6


def test_texts_over_several_canvases() -> None:
    result = reply(pipeline_of(nonsense()), TextConstraint(automaton_of("(ab){30}"), CPU), max_tokens=100)
    assert result.text == b"ab" * 30
    assert len(result.blocks) == 4
    assert [block.finish_reason for block in result.blocks] == [None, None, None, "stop"]


def test_the_end_may_come_right_behind_the_last_token_of_the_budget() -> None:
    """Where the last canvas is full of text as well: the end then has one to itself."""
    automaton = automaton_of(r"a{16}")
    result = reply(pipeline_of(nonsense()), TextConstraint(automaton, CPU), max_tokens=CANVAS)
    assert result.text == b"a" * CANVAS
    assert [block.tokens for block in result.blocks[1:]] == [[]]
    assert result.blocks[-1].finish_reason == "stop"


def test_bfloat16_is_held_to_it_too() -> None:
    for pattern in PATTERNS[:3]:
        model = nonsense(dtype=torch.bfloat16)
        result = reply(pipeline_of(model), TextConstraint(automaton_of(pattern), CPU), max_tokens=40)
        assert regex_language(pattern).accepts(result.text)


def test_the_same_seed_makes_the_same_reply() -> None:
    texts = {
        reply(
            pipeline_of(nonsense()), TextConstraint(automaton_of(PATTERNS[0]), CPU), max_tokens=50, seed=seed
        ).text
        for seed in (1, 1, 2)
    }
    assert len(texts) == 2


def test_the_next_turn_finds_what_was_committed() -> None:
    """The prefix cache holds what the encoder has read of a constrained reply."""
    pipeline = pipeline_of(nonsense())
    prompt = prompt_of(10)
    first = reply(
        pipeline_of(nonsense()), TextConstraint(automaton_of("(ab){30}"), CPU), max_tokens=100, prompt=prompt
    )
    again = reply(pipeline, TextConstraint(automaton_of("(ab){30}"), CPU), max_tokens=100, prompt=prompt)
    assert again.tokens == first.tokens
    longer = [*prompt, *first.tokens, 50, 51]
    cached = reply(pipeline, TextConstraint(automaton_of("[ab]{20}"), CPU), max_tokens=40, prompt=longer)
    assert cached.blocks[0].encoded_tokens < len(longer) - 3 * CANVAS + 1
    fresh = reply(
        pipeline_of(nonsense()), TextConstraint(automaton_of("[ab]{20}"), CPU), max_tokens=40, prompt=longer
    )
    assert cached.tokens == fresh.tokens


def test_a_step_sees_the_constraint_in_all_it_does() -> None:
    """Draws, self-conditioning and stop: where everything is forced, the first two canvases settle it."""
    automaton = automaton_of("(ab){4}")
    forced = torch.tensor([*[4 + ord("a"), 4 + ord("b")] * 4, EOS])
    size = len(BYTE_TOKENS)
    settings = SamplerSettings(48, 0.1, 0.4, 0.8, 0.005, 1)
    sampler = EntropyBoundSampler(
        settings,
        vocabulary=PlainVocabulary(size),
        canvas_length=len(forced),
        device=CPU,
        softcap=30.0,
        randomness=GeneratorRandomness(torch.Generator().manual_seed(0)),
    )
    constraint = TextConstraint(automaton, CPU)
    constraint.start_canvas(len(forced), len(forced))
    sampler.start_canvas(constraint)
    for steps_left in (48, 47):
        logits = torch.randn(len(forced), size, generator=torch.Generator().manual_seed(steps_left)) * 20
        step = step_of(sampler, logits)
        assert step.argmax.tolist() == forced.tolist()
        assert step.entropy.max() < 1e-6
        assert step.accepted.all()
        assert step.canvas.tolist() == forced.tolist()
        # Here they are the probabilities.
        assert torch.allclose(step.soft_embeddings[range(len(forced)), forced], torch.ones(len(forced)))
        assert step.converged == (steps_left == 47)
    sampler.start_canvas()
    assert step_of(sampler, logits).argmax.tolist() != forced.tolist()


def test_a_step_on_a_card_waits_for_the_constraint_and_for_what_the_host_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For nothing else. What the constraint decides goes back without a wait."""
    size = len(BYTE_TOKENS)

    def steps(device: torch.device) -> list[tuple[list[int], list[bool], float]]:
        sampler = EntropyBoundSampler(
            SamplerSettings(48, 0.1, 0.4, 0.8, 0.005, 1),
            vocabulary=PlainVocabulary(size),
            canvas_length=CANVAS,
            device=device,
            softcap=30.0,
            randomness=GeneratorRandomness(torch.Generator().manual_seed(0)),
        )
        constraint = TextConstraint(automaton_of(PATTERNS[0]), device)
        constraint.start_canvas(CANVAS, 100)
        sampler.start_canvas(constraint)
        generator = torch.Generator().manual_seed(1)
        results = []
        for _ in range(3):
            hidden = torch.randn(CANVAS, size, generator=generator) * 8
            sampler.measure(hidden.to(device))
            step = sampler.conclude()
            results.append((step.tokens, step.accepted, step.mean_entropy))
        return results

    with PretendedCard(monkeypatch) as card:
        on_card = steps(card.device)
    assert on_card == steps(CPU)
    there, back = ("cpu", "cuda:0"), ("cuda:0", "cpu")
    hidden_states = [there]
    assert card.crossings[-12:] == [*hidden_states, back, there, back] * 3
    assert back not in card.crossings[:-12]
    assert card.waits == 3 * 2


# --- choices -----------------------------------------------------------------------------------------------


class Overheard(TextConstraint):
    """Keeps what the network says in the last step."""

    def decide(self, logits: torch.Tensor) -> torch.Tensor:
        self.last = logits.clone()
        return super().decide(logits)


def test_a_choice_comes_with_the_probabilities_of_its_last_step() -> None:
    choices = ["true", "tru", "false", "日"]
    texts = ChoiceTexts(choices, BYTE_TOKENS, eos_token_ids=(EOS,), pad_token_id=PAD)
    automaton = build(choices_language(choices), vocabulary_of(BYTE_TOKENS, eos=(EOS,)))
    constraint = Overheard(automaton, CPU, choices=texts)
    (block,) = reply(pipeline_of(nonsense()), constraint, max_tokens=CANVAS).blocks
    assert block.denoising_steps > 1
    log_p = constraint.last.double().log_softmax(-1).numpy()[:, texts.tokens]
    assert block.choices == pytest.approx(texts.log_probabilities(log_p).tolist(), rel=1e-6, abs=1e-4)


# --- what is refused ---------------------------------------------------------------------------------------


def test_a_budget_too_small_for_any_text_is_refused_with_the_least_one() -> None:
    automaton = automaton_of("(ab){30}")
    with pytest.raises(ConstraintError, match=r"takes 60 tokens, but max_tokens is 59.* 60 or more"):
        reply(pipeline_of(nonsense()), TextConstraint(automaton, CPU), max_tokens=59)
    assert reply(pipeline_of(nonsense()), TextConstraint(automaton, CPU), max_tokens=60).text == b"ab" * 30
    with pytest.raises(ConstraintError, match=r"takes 61 tokens.* 61 or more"):
        reply(pipeline_of(nonsense()), TextConstraint(automaton, CPU), max_tokens=60, thought_closes=CLOSES)


def test_a_context_too_small_for_any_text_is_refused() -> None:
    context = nonsense().config.context_length
    automaton = automaton_of("(ab){30}")  # 61 tokens with its end: 4 canvases
    fits = prompt_of(context - 4 * CANVAS)
    assert (
        reply(pipeline_of(nonsense()), TextConstraint(automaton, CPU), max_tokens=500, prompt=fits).text
        == b"ab" * 30
    )
    for prompt, thought_closes in ((prompt_of(context - 4 * CANVAS + 1), None), (fits, CLOSES)):
        with pytest.raises(ConstraintError, match="takes 61 tokens, but the prompt leaves room for 48"):
            reply(
                pipeline_of(nonsense()),
                TextConstraint(automaton, CPU),
                max_tokens=500,
                prompt=prompt,
                thought_closes=thought_closes,
            )


# --- behind a thought --------------------------------------------------------------------------------------


def behind_thought(pattern: str, max_tokens: int, **options: Any) -> Reply:
    constraint = TextConstraint(automaton_of(pattern), CPU)
    return reply(pipeline_of(nonsense()), constraint, max_tokens=max_tokens, thought_closes=CLOSES, **options)


@pytest.mark.parametrize("canvases", [1, 2])
def test_the_context_bounds_the_text_as_max_tokens_does(monkeypatch: pytest.MonkeyPatch, canvases: int) -> None:
    Scripted(monkeypatch, letters("a" * CANVAS))
    context = nonsense().config.context_length
    prompt = prompt_of(context - canvases * CANVAS)
    result = reply(
        pipeline_of(nonsense()), TextConstraint(automaton_of("a*b"), CPU), max_tokens=500, prompt=prompt
    )
    assert result.text == b"a" * (canvases * CANVAS - 2) + b"b"


def test_the_text_begins_in_the_canvas_behind_the_thought(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stood behind the marker is forgotten: by the reply, and by the encoder."""
    thought = [*letters("hm"), CLOSES]
    Scripted(monkeypatch, letters("a long thought, "), [*thought, *letters("nonsense")], [*letters("ab"), EOS])
    result = behind_thought("(ab)+", 100)
    assert [block.tokens for block in result.blocks] == [letters("a long thought, "), thought, letters("ab")]
    assert [block.constraint is None for block in result.blocks] == [True, True, False]
    assert [block.encoded_tokens for block in result.blocks] == [3, CANVAS, 3]
    assert result.blocks[-1].finish_reason == "stop"


def test_a_reply_that_ends_inside_its_thought_goes_on_with_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    Scripted(monkeypatch, [*letters("hm"), EOS, CLOSES], letters("?"))
    result = behind_thought("(ab){3}", 100)
    assert [block.tokens for block in result.blocks] == [[*letters("hm"), CLOSES], letters("ababab")]


def test_a_thought_of_nothing_but_padding_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    Scripted(monkeypatch, [PAD] * CANVAS, [*letters("ababab"), EOS])
    result = behind_thought("(ab){3}", 100)
    assert [block.tokens for block in result.blocks] == [[CLOSES], letters("ababab")]


@pytest.mark.parametrize("max_tokens", [61, 62, 61 + CANVAS - 1, 61 + CANVAS, 61 + CANVAS + 1, 61 + 3 * CANVAS])
def test_an_endless_thought_is_closed_while_there_is_room_for_the_text(
    monkeypatch: pytest.MonkeyPatch, max_tokens: int
) -> None:
    Scripted(monkeypatch, letters("on and on and on"))
    result = behind_thought("(ab){30}", max_tokens)
    assert len(result.tokens) == max_tokens
    thought, text = result.tokens[:-60], result.tokens[-60:]
    assert (text, thought[-1], thought.count(CLOSES)) == (letters("ab" * 30), CLOSES, 1)


def test_a_thought_that_ends_too_late_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    Scripted(monkeypatch, [*letters("too long"), CLOSES])
    assert behind_thought("(ab){30}", 64).tokens == [*letters("too"), CLOSES, *letters("ab" * 30)]


def test_an_endless_thought_is_closed_before_the_context_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    Scripted(monkeypatch, letters("on and on and on"))
    context = nonsense().config.context_length
    result = behind_thought("(ab){30}", 10_000, prompt=prompt_of(context - 7 * CANVAS))
    assert [len(block.tokens) for block in result.blocks[:3]] == [CANVAS] * 3
    assert result.blocks[2].tokens[-1] == CLOSES
    assert result.tokens[-60:] == letters("ab" * 30)


def test_a_thought_of_nonsense_leads_to_a_text_all_the_same() -> None:
    for seed in range(4):
        result = behind_thought(PATTERNS[0], 60, seed=seed)
        text = result.tokens[result.tokens.index(CLOSES) + 1 :]
        assert regex_language(PATTERNS[0]).accepts(text_of(BYTE_TOKENS, text))


# --- the embedded checkpoint -------------------------------------------------------------------------------


@functools.cache
def embedded() -> tuple[Any, Any, list[bytes | None]]:
    tokenizer = ours()
    return load_whole(EMBEDDED_CHECKPOINT), tokenizer, token_bytes(tokenizer)


@pytest.mark.parametrize("pattern", [PATTERNS[0], PATTERNS[1], r"yes|no|unsure"])
def test_the_embedded_checkpoint_keeps_to_it_on_a_prompt_it_has_never_seen(pattern: str) -> None:
    loaded, tokenizer, table = embedded()
    eos = tuple(loaded.generation.eos_token_id)
    vocabulary = vocabulary_of(table, eos=eos, size=loaded.network.size)
    automaton = build(regex_language(pattern), vocabulary)
    prompt = tokenizer.encode("What do the birds think of the price of tea?")
    pipeline = pipeline_of(loaded.network, eos)
    result = reply(pipeline, TextConstraint(automaton, CPU), max_tokens=300, prompt=prompt, steps=6)
    text = text_of(table, result.tokens)
    assert regex_language(pattern).accepts(text), text
    text.decode()
