from __future__ import annotations

import functools
import math
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch

from llm_diffusiongemma.diffusion import pipeline as pipeline_module
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.pipeline import Block, BlockDiffusionPipeline, Draft
from llm_diffusiongemma.diffusion.request import Part, Prompt, Request, Text
from llm_diffusiongemma.diffusion.sampler import DenoisingStep, GeneratorRandomness, SamplerSettings
from llm_diffusiongemma.errors import (
    ContextLengthError,
    DeviceMemoryError,
    NotANumberError,
    OptionError,
    PromptError,
)
from llm_diffusiongemma.view.records import Reading

from .tiny_models import NEVER, network_of, prompt_of, shared_model, tiny_model

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

CANVAS = 16
CONTEXT = 128
PROMPT = prompt_of(20)
SETTINGS = SamplerSettings(8, 0.1, 0.4, 0.8, 0.005, 1)
PATIENT = replace(SETTINGS, max_denoising_steps=20)
"""Of these some canvases converge."""


@functools.cache
def shared_network() -> Network:
    return network_of(shared_model())


def start(
    network: Network | None = None,
    *,
    prompt: Sequence[int] = PROMPT,
    max_tokens: int = 3 * CANVAS,
    seed: int = 0,
    drafts: bool = False,
    candidates: int = 0,
    readings: bool = False,
    eos: Sequence[int] = (NEVER,),
    pad: int | None = 0,
    parts: tuple[Part, ...] | None = None,
    settings: SamplerSettings = SETTINGS,
) -> Generator[Reading | Draft | Block, None, None]:
    pipeline = BlockDiffusionPipeline(network or shared_network(), eos_token_ids=eos, pad_token_id=pad)
    return pipeline.generate(
        Request(Prompt(prompt), settings, max_tokens, parts or (Text(),)),
        randomness=GeneratorRandomness(torch.Generator().manual_seed(seed)),
        drafts=drafts,
        candidates=candidates,
        readings=readings,
    )


def blocks_of(network: Network | None = None, **arguments: Any) -> list[Block]:
    blocks = []
    for record in start(network, **arguments):
        assert isinstance(record, Block)
        blocks.append(record)
    return blocks


def tokens_of(blocks: list[Block]) -> list[int]:
    return [token for block in blocks for token in block.tokens]


@functools.cache
def usual_tokens() -> tuple[int, ...]:
    """Of three canvases, where nobody asks for anything else."""
    return tuple(tokens_of(blocks_of()))


@contextmanager
def calls_of(mode: str) -> Iterator[list[bool]]:
    """One entry for each time that a network encodes or denoises: whether autograd was on in it."""
    calls: list[bool] = []
    original = getattr(Network, mode)

    def note(*arguments: Any) -> Any:
        calls.append(torch.is_grad_enabled())
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, mode, note)
        yield calls


# --- what a pipeline knows of its network ----------------------------------------------------------------


def test_reads_its_sizes_from_the_network() -> None:
    network = network_of(tiny_model(canvas_length=24, max_position_embeddings=77))
    pipeline = BlockDiffusionPipeline(network, eos_token_ids=[1, 9], pad_token_id=None)
    assert (pipeline.canvas_length, pipeline.context_length) == (24, 77)
    assert pipeline.eos_token_ids == {1, 9}


# --- length ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_tokens", [1, CANVAS - 1, CANVAS, CANVAS + 1, 2 * CANVAS, 2 * CANVAS + 7])
def test_max_tokens_is_exact(max_tokens: int) -> None:
    whole = list(usual_tokens())
    blocks = blocks_of(max_tokens=max_tokens)
    assert tokens_of(blocks) == whole[:max_tokens]
    assert len(blocks) == -(-max_tokens // CANVAS)
    assert [block.index for block in blocks] == list(range(len(blocks)))
    assert [block.finish_reason for block in blocks] == [None] * (len(blocks) - 1) + ["length"]
    assert all(block.eos_token_id is None for block in blocks)


def test_the_context_ends_a_reply() -> None:
    blocks = blocks_of(prompt=prompt_of(CONTEXT - 2 * CANVAS - 5), max_tokens=1000)
    assert [block.finish_reason for block in blocks] == [None, "length"]
    assert len(tokens_of(blocks)) == 2 * CANVAS


def test_a_prompt_that_leaves_room_for_one_canvas_is_answered() -> None:
    (block,) = blocks_of(prompt=prompt_of(CONTEXT - CANVAS), max_tokens=1000)
    assert (len(block.tokens), block.finish_reason) == (CANVAS, "length")


def test_a_prompt_that_leaves_no_room_is_refused_at_the_call() -> None:
    with calls_of("encode") as encoder_calls:
        with pytest.raises(ContextLengthError, match="113 tokens") as raised:
            start(prompt=prompt_of(CONTEXT - CANVAS + 1))
        assert (raised.value.prompt_tokens, raised.value.context_tokens) == (113, 128)
    assert encoder_calls == []


def test_senseless_arguments_are_refused_at_the_call() -> None:
    with pytest.raises(PromptError, match="empty"):
        start(prompt=[])
    with pytest.raises(OptionError, match="max_tokens must be at least 1, but it is 0"):
        start(max_tokens=0)


# --- end of sequence -------------------------------------------------------------------------------------


def test_the_first_end_of_sequence_ends_the_reply() -> None:
    whole = list(usual_tokens())
    position = next(i for i in range(CANVAS + 3, 3 * CANVAS) if whole[i] not in whole[:i])
    later = next(token for token in whole[position + 1 :] if token not in whole[: position + 1])
    eos = (later, whole[position])
    blocks = blocks_of(eos=eos)
    assert tokens_of(blocks) == whole[:position]
    assert len(blocks) == position // CANVAS + 1
    assert [block.finish_reason for block in blocks] == [None] * (len(blocks) - 1) + ["stop"]
    assert [block.eos_token_id for block in blocks] == [None] * (len(blocks) - 1) + [whole[position]]

    # The budget ends where the reply does: it is whole, and says so. One less, and it is not.
    exact = blocks_of(max_tokens=position, eos=eos)
    assert (tokens_of(exact), exact[-1].finish_reason) == (whole[:position], "stop")
    short = blocks_of(max_tokens=position - 1, eos=eos)
    assert (tokens_of(short), short[-1].finish_reason) == (whole[: position - 1], "length")
    assert short[-1].eos_token_id is None


def test_a_block_may_hold_nothing_but_the_end() -> None:
    whole = tokens_of(blocks_of(seed=1))
    assert whole[CANVAS] not in whole[:CANVAS]
    first, block = blocks_of(seed=1, eos=[whole[CANVAS]])
    assert (block.tokens, block.eos_token_id, block.finish_reason) == ([], whole[CANVAS], "stop")
    assert (first.redrawn, block.redrawn) == (0, 0)


def test_an_output_that_is_no_number_is_an_error() -> None:
    network = network_of(shared_model())
    dict(network.tensors())["model.decoder.norm.weight"].fill_(float("nan"))
    with pytest.raises(NotANumberError):
        blocks_of(network)


def test_what_is_no_number_stays_in_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other replies begin like this one, and would have failed with it to the end of the process."""
    pipeline = BlockDiffusionPipeline(shared_network(), eos_token_ids=[NEVER], pad_token_id=0)
    denoise = Network.denoise
    monkeypatch.setattr(Network, "denoise", lambda *args: denoise(*args) * float("nan"))
    randomness = GeneratorRandomness(torch.Generator().manual_seed(0))
    with pytest.raises(NotANumberError):
        list(pipeline.generate(Request(Prompt(PROMPT), SETTINGS, CANVAS), randomness=randomness))
    assert pipeline.prefix_cache.take(PROMPT) is None


def test_a_part_may_end_without_a_token() -> None:
    """The next one begins where it began, with nothing more to read."""
    network = network_of(shared_model())
    dict(network.tensors())["model.decoder.norm.weight"].zero_()  # the first token is the most likely one
    first, second = blocks_of(network, eos=[0], parts=(Text(), Text()))
    assert (first.tokens, first.eos_token_id, first.finish_reason) == ([], 0, None)
    assert (second.tokens, second.encoded_tokens, second.finish_reason) == ([], 0, "stop")


def test_nothing_but_padding_ends_the_reply() -> None:
    """Seen of the embedded checkpoint: fifteen canvases of it, to the end of the context, and nothing to read."""
    network = network_of(shared_model())
    # All logits are equal: the most likely token is the first.
    dict(network.tensors())["model.decoder.norm.weight"].zero_()
    (block,) = blocks_of(network, eos=[5])
    assert (block.tokens, block.eos_token_id, block.finish_reason) == ([], None, "stop")
    assert tokens_of(blocks_of(network, eos=[5], pad=None)) == [0] * 3 * CANVAS


# --- denoising -------------------------------------------------------------------------------------------


def test_says_whether_a_canvas_converged_and_in_how_many_steps() -> None:
    with calls_of("denoise") as denoiser_calls:
        blocks = [block for seed in range(3) for block in blocks_of(seed=seed, settings=PATIENT)]
    assert {block.converged for block in blocks} == {True, False}
    assert all(block.converged or block.denoising_steps == 20 for block in blocks)
    assert {block.denoising_steps for block in blocks if block.converged} - {20}
    assert sum(block.denoising_steps for block in blocks) == len(denoiser_calls)
    assert all(block.seconds > 0 for block in blocks)


def test_the_encoder_reads_the_prompt_once_and_every_block_that_another_follows() -> None:
    with calls_of("encode") as encoder_calls:
        assert len(blocks_of(max_tokens=3 * CANVAS)) == 3
        assert len(encoder_calls) == 3  # the prompt, block 0, block 1
        blocks_of(max_tokens=CANVAS)
        assert len(encoder_calls) == 4


def test_the_prompt_matters() -> None:
    assert tokens_of(blocks_of(prompt=prompt_of(20, seed=1))) != list(usual_tokens())


# --- drafts ----------------------------------------------------------------------------------------------


def test_drafts_come_after_every_step_and_the_last_one_is_committed() -> None:
    records = list(start(drafts=True, settings=PATIENT))
    blocks = [record for record in records if isinstance(record, Block)]
    expected = [
        (block.index, step) for block in blocks for step in [*range(1, block.denoising_steps + 1), "block"]
    ]
    assert expected == [
        (record.block_index, record.step) if isinstance(record, Draft) else (record.index, "block")
        for record in records
    ]
    for before, record in pairwise(records):
        if isinstance(record, Block):
            assert isinstance(before, Draft)
            assert before.tokens == record.tokens
            assert not record.converged or before.mean_entropy < 0.005
        elif isinstance(record, Draft):
            assert len(record.tokens) == len(record.accepted) == len(record.entropies) == CANVAS
            assert any(record.accepted)
            assert record.mean_entropy == pytest.approx(sum(record.entropies) / CANVAS)
            assert (record.max_steps, record.candidates) == (20, None)


def test_a_draft_knows_where_the_reply_would_end() -> None:
    drafts = [record for record in start(drafts=True, max_tokens=CANVAS + 3) if isinstance(record, Draft)]
    assert {draft.end for draft in drafts if draft.block_index == 0} == {None}
    assert {draft.end for draft in drafts if draft.block_index == 1} == {3}
    eos = drafts[0].tokens[5]
    first = next(iter(start(drafts=True, eos=[eos])))
    assert isinstance(first, Draft)
    assert first.end == drafts[0].tokens.index(eos)


def test_candidates_are_what_the_step_has_drawn_from() -> None:
    drafts = [record for record in start(drafts=True, candidates=3) if isinstance(record, Draft)]
    for draft in drafts:
        assert draft.candidates is not None
        assert [of_position[0][0] for of_position in draft.candidates] == draft.tokens
        for of_position, entropy in zip(draft.candidates, draft.entropies, strict=True):
            shares = [share for _, share in of_position]
            assert len({token for token, _ in of_position}) == len(shares) == 3
            assert shares == sorted(shares, reverse=True)
            assert 0 < shares[0] <= sum(shares) <= 1 + 1e-5
            # Of all distributions with this maximum none has less entropy.
            assert entropy >= -math.log(shares[0]) - 1e-4


def test_readings_begin_at_what_is_cached_and_come_with_each_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "MAX_PREFILL_TOKENS", 8)
    pipeline = BlockDiffusionPipeline(shared_network(), eos_token_ids=[NEVER], pad_token_id=0)

    def read(prompt: Sequence[int]) -> list[int]:
        reply = pipeline.generate(
            Request(Prompt(prompt), SETTINGS, CANVAS),
            randomness=GeneratorRandomness(torch.Generator().manual_seed(0)),
            readings=True,
        )
        *readings, block = reply
        assert isinstance(block, Block)
        assert all(isinstance(each, Reading) and each.of == len(prompt) for each in readings)
        return [each.tokens for each in readings if isinstance(each, Reading)]

    assert read(PROMPT) == [0, 8, 16, 20]
    assert read([*PROMPT, *PROMPT[:3]]) == [20, 23]
    assert read(PROMPT) == [20]


def test_watching_changes_nothing() -> None:
    watched = [record for record in start(readings=True, drafts=True, candidates=4) if isinstance(record, Block)]
    assert tokens_of(watched) == list(usual_tokens())


def test_time_spent_on_who_watches_is_not_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    entropies = DenoisingStep.entropies.fget

    def slowly_made(step: DenoisingStep) -> Any:
        nonlocal now
        now += 1
        return entropies(step)

    monkeypatch.setattr("llm_diffusiongemma.diffusion.pipeline.time.perf_counter", lambda: now)
    monkeypatch.setattr(DenoisingStep, "entropies", property(slowly_made))
    for record in start(readings=True, drafts=True):
        if isinstance(record, Block):
            assert record.seconds == 0
        now += 1


# --- stopping --------------------------------------------------------------------------------------------


def test_closing_a_watched_reply_stops_within_a_step() -> None:
    with calls_of("denoise") as denoiser_calls:
        reply = start(drafts=True)
        assert denoiser_calls == []  # nothing happens before somebody asks
        drafts = [next(reply) for _ in range(3)]
        reply.close()
        assert list(reply) == []
    assert [draft.step for draft in drafts if isinstance(draft, Draft)] == [1, 2, 3]
    assert len(denoiser_calls) == 3


def test_closing_between_blocks_stops_at_once() -> None:
    with (
        calls_of("denoise") as denoiser_calls,
        calls_of("encode") as encoder_calls,
    ):
        reply = start()
        block = next(reply)
        assert isinstance(block, Block)
        reply.close()
        assert list(reply) == []
    assert len(denoiser_calls) == block.denoising_steps
    assert len(encoder_calls) == 1


# --- randomness and autograd -----------------------------------------------------------------------------


def test_the_seed_decides() -> None:
    replies = [tuple(tokens_of(blocks_of(seed=seed))) for seed in (0, 1)]
    assert replies[0] == usual_tokens() != replies[1]


def test_the_global_rng_is_not_touched() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    blocks_of()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("grad_mode", [True, False])
def test_autograd_is_off_inside_and_the_consumers_own_outside(grad_mode: bool) -> None:
    """A `with torch.no_grad()` around a `yield` would stay on in whoever consumes the generator."""
    with (
        torch.set_grad_enabled(grad_mode),
        calls_of("denoise") as denoiser_calls,
        calls_of("encode") as encoder_calls,
    ):
        reply = start(drafts=True)
        assert torch.is_grad_enabled() is grad_mode
        num_drafts = 0
        for record in reply:
            assert torch.is_grad_enabled() is grad_mode
            num_drafts += isinstance(record, Draft)
        assert torch.is_grad_enabled() is grad_mode

        closed_early = start(drafts=True)
        next(closed_early)
        closed_early.close()
        assert torch.is_grad_enabled() is grad_mode
        with pytest.raises(KeyError):
            _throw_into_a_reply()
        assert torch.is_grad_enabled() is grad_mode
    assert len(denoiser_calls) == num_drafts + 2
    assert not any(denoiser_calls + encoder_calls)


def _throw_into_a_reply() -> None:
    reply = start(drafts=True)
    next(reply)
    reply.throw(KeyError("from the consumer"))


# --- memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["encode", "denoise"])
def test_running_out_of_memory_names_the_way_out(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Network, mode, fail)
    with pytest.raises(DeviceMemoryError, match=r"cpu ran out of memory .* Shorten the prompt"):
        list(start())
    assert torch.is_grad_enabled()
