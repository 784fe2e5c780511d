"""What the network says of canvases of pure noise, held against transformers' own forward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from llm_diffusiongemma.diffusion import sampler
from llm_diffusiongemma.diffusion.graphs import StepGraphs
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.pipeline import Block, BlockDiffusionPipeline, Read
from llm_diffusiongemma.diffusion.request import Prompt, Reads, Request
from llm_diffusiongemma.diffusion.sampler import SamplerSettings
from llm_diffusiongemma.errors import (
    ContextLengthError,
    ContextMemoryError,
    DeviceMemoryError,
    NotANumberError,
    OptionError,
    PromptError,
)
from llm_diffusiongemma.view.records import Reading

from .generate import numbers_of
from .reference import Reference
from .taped import TapeRecorder
from .test_graphs import network as capturable
from .test_pipeline import shared_network
from .tiny_models import NEVER, network_of, prompt_of, tiny_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import DiffusionGemmaForBlockDiffusion

PROMPT, TOKENS = prompt_of(20), (3, 0, 95, 40)
SETTINGS = SamplerSettings(3, 0.1, 0.4, 0.8, 0.005, 1)


def pipeline_of(network: Network | None = None, **settings: Any) -> BlockDiffusionPipeline:
    return BlockDiffusionPipeline(network or shared_network(), eos_token_ids=[NEVER], pad_token_id=0, **settings)


def reads_of(
    pipeline: BlockDiffusionPipeline,
    count: int = 1,
    *,
    prompt: Sequence[int] = PROMPT,
    length: int | None = None,
    seed: int = 0,
    **asked: Any,
) -> list[Read]:
    asked_of = Reads(Prompt(prompt), TOKENS, length, count)
    records = list(pipeline.read(asked_of, randomness=numbers_of(seed), **asked))
    return [record for record in records if isinstance(record, Read)]


@torch.no_grad()
def theirs(
    model: DiffusionGemmaForBlockDiffusion, prompt: Sequence[int], length: int, count: int
) -> list[torch.Tensor]:
    reference = Reference(model)
    reference.encode(reference.embed(torch.tensor(prompt)))
    noise = numbers_of(0)
    canvases = [noise.canvas(1, length, model.config.text_config.vocab_size).tokens[0] for _ in range(count)]
    return [reference.denoise(each, None).log_softmax(-1)[:, TOKENS] for each in canvases]


@pytest.mark.parametrize(
    ("length", "config"),
    [(None, {}), (16, {"canvas_length": 48}), (None, {"vocab_size": 1100, "sharpness": 4.0, "canvas_length": 32})],
    ids=["its own", "a shorter one", "several parts of a vocabulary"],
)
def test_log_probabilities_are_those_of_transformers(
    length: int | None, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "CHUNK_BYTES_CPU", 1)  # a block for each part
    model = tiny_model(**config)
    assert model.config.get_text_config().final_logit_softcapping is not None
    read = reads_of(pipeline_of(network_of(model)), 3, length=length)
    expected = theirs(model, PROMPT, length or model.config.canvas_length, 3)
    assert not torch.allclose(expected[0], expected[1], atol=0.1)
    for ours, of_theirs in zip(read, expected, strict=True):
        assert ours.log_probabilities.dtype == torch.float64
        torch.testing.assert_close(ours.log_probabilities, of_theirs.double(), rtol=0, atol=2e-4)
    assert [each.encoded_tokens for each in read] == [len(PROMPT), 0, 0]


def test_nothing_is_mixed_that_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Network, "mix")
    assert len(reads_of(pipeline_of())) == 1


def test_replayed_as_a_graph() -> None:
    """From the third read on, and nothing of it for the next decision."""
    recorder = TapeRecorder()
    replayed, plain = (pipeline_of(capturable(), graphs=each) for each in (StepGraphs(recorder), StepGraphs(None)))
    for count, recorded in ((2, 0), (5, 1), (4, 2)):
        expected = reads_of(plain, count, seed=count)
        for ours, each in zip(reads_of(replayed, count, seed=count), expected, strict=True):
            assert torch.equal(ours.log_probabilities, each.log_probabilities)
        assert recorder.recorded == recorded


def test_a_conversation_goes_on_behind_a_decision() -> None:
    """What was read for it is not read again, and changes no reply."""
    replies = []
    for decides in (False, True):
        pipeline = pipeline_of()
        if decides:
            reads_of(pipeline, 2)
        request = Request(Prompt([*PROMPT, 11, 12]), SETTINGS, 16)
        (block,) = pipeline.generate(request, randomness=numbers_of(1))
        assert isinstance(block, Block)
        assert block.encoded_tokens == (2 if decides else len(PROMPT) + 2)
        replies.append(block.tokens)
    assert replies[0] == replies[1]


def test_readings_and_a_stop() -> None:
    pipeline = pipeline_of()
    asked = Reads(Prompt(PROMPT), TOKENS, None, 3)
    records = list(pipeline.read(asked, randomness=numbers_of(0), readings=True))
    assert records[:2] == [Reading(0, 20), Reading(20, 20)]
    assert [type(each) for each in records[2:]] == [Read] * 3
    calls = iter((False, False, False, True))
    stopped = list(pipeline_of().read(asked, randomness=numbers_of(0), should_stop=lambda: next(calls)))
    assert len(stopped) == 1


def test_what_cannot_be_read() -> None:
    pipeline = pipeline_of()
    with pytest.raises(PromptError, match="empty"):
        reads_of(pipeline, prompt=[])
    with pytest.raises(OptionError, match="canvas_length is 32"):
        reads_of(pipeline, length=32)
    with pytest.raises(ContextLengthError):
        reads_of(pipeline, prompt=prompt_of(113))
    with pytest.raises(ContextMemoryError):
        reads_of(pipeline_of(context_tokens=35))


@pytest.mark.parametrize("fault", ["nan", "memory"])
def test_what_goes_wrong_stays_in_no_cache(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, denoise = pipeline_of(), Network.denoise

    def broken(*arguments: Any) -> torch.Tensor:
        if fault == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return denoise(*arguments) * float("nan")

    monkeypatch.setattr(Network, "denoise", broken)
    with pytest.raises(NotANumberError if fault == "nan" else DeviceMemoryError):
        reads_of(pipeline)
    assert pipeline.prefix_cache.take(PROMPT) is None
