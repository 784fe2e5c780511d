"""Steps that are captured and replayed: the same replies, whatever comes of it."""

from __future__ import annotations

import functools
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from llm_diffusiongemma.catalog import GRAPH_VARIABLE
from llm_diffusiongemma.diffusion import graphs as graphs_module
from llm_diffusiongemma.diffusion.drafting import DraftedText
from llm_diffusiongemma.diffusion.graphs import NOT_YET, USED, CudaRecorder, StepGraphs
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.operations import PLAIN_TORCH, gelu_gate
from llm_diffusiongemma.diffusion.pipeline import Block, BlockDiffusionPipeline, Draft
from llm_diffusiongemma.diffusion.request import ConstrainedText, Prompt, Request, Text
from llm_diffusiongemma.diffusion.sampler import GeneratorRandomness, SamplerSettings
from llm_diffusiongemma.errors import NotANumberError
from llm_diffusiongemma.grammar.automaton import build
from llm_diffusiongemma.grammar.constraint import TextConstraint
from llm_diffusiongemma.grammar.pattern import regex_language
from tests.grammar.languages import BYTE_TOKENS, EOS, PAD, vocabulary_of

from .taped import TapeRecorder
from .tiny_models import network_of, prompt_of, tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_diffusiongemma.diffusion.experts import Experts

CPU, CARD = torch.device("cpu"), torch.device("cuda", 1)
CANVAS = 16
VOCAB = len(BYTE_TOKENS)
SETTINGS = SamplerSettings(5, 0.1, 0.4, 0.8, 0.005, 1)
DATES = r"\d{4}-\d{2}-\d{2}( [a-z]+){3,9}"


def through_all_experts(
    x: torch.Tensor, experts: Experts, chosen: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """As `Experts` does, but of every position through every expert: nothing depends on the routing."""
    gated = gelu_gate(torch.einsum("nh,eoh->neo", x, experts.gate_up.weight))
    results = torch.einsum("nei,ehi->neh", gated, experts.down.weight)
    return results.gather(1, chosen[..., None].expand(-1, -1, x.shape[-1])) * weights[..., None]


@functools.cache
def network() -> Network:
    """One whose steps could be captured, if it were on a card."""
    result = network_of(tiny_model(vocab_size=VOCAB, sharpness=16.0))
    result.operations = replace(PLAIN_TORCH, through_experts=through_all_experts)
    return result


def pipeline_with(graphs: StepGraphs) -> BlockDiffusionPipeline:
    return BlockDiffusionPipeline(network(), eos_token_ids=[EOS], pad_token_id=PAD, graphs=graphs)


def plain() -> BlockDiffusionPipeline:
    return pipeline_with(StepGraphs(None, None))


def reply(
    pipeline: BlockDiffusionPipeline,
    *,
    prompt: Sequence[int] = (20, 30, 40),
    seed: int = 0,
    settings: SamplerSettings = SETTINGS,
    canvases: int = 1,
    canvas_length: int | None = None,
    pattern: str | None = None,
    draft: Sequence[int] | None = None,
    **watched: Any,
) -> list[Draft | Block]:
    drafted = None if draft is None else DraftedText(draft, 0.5, EOS)
    constraint = None if pattern is None else TextConstraint(automaton_of(pattern), CPU)
    part = Text(drafted) if constraint is None else ConstrainedText(constraint, drafted)
    records = pipeline.generate(
        Request(Prompt(prompt), settings, canvases * (canvas_length or CANVAS), (part,), canvas_length),
        randomness=GeneratorRandomness(torch.Generator().manual_seed(seed)),
        **watched,
    )
    return [replace(record, seconds=0.0) if isinstance(record, Block) else record for record in records]


@functools.cache
def automaton_of(pattern: str) -> Any:
    return build(regex_language(pattern), vocabulary_of(BYTE_TOKENS, eos=(EOS,)))


def tokens_of(records: Sequence[Draft | Block]) -> list[int]:
    return [token for record in records if isinstance(record, Block) for token in record.tokens]


# --- the same replies --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": prompt_of(40, VOCAB)},
        {"drafts": True, "candidates": 3, "seed": 2},
        {"settings": replace(SETTINGS, max_denoising_steps=20)},
        {"settings": replace(SETTINGS, max_denoising_steps=20, stop_at_end=True), "drafts": True},
        {"pattern": DATES, "drafts": True, "candidates": 2},
        {"draft": prompt_of(6, VOCAB), "drafts": True},
    ],
    ids=["long prompt", "watched", "converging", "stopping at the end", "constrained", "drafted"],
)
def test_a_replayed_step_is_a_step(asked: dict[str, Any]) -> None:
    recorder = TapeRecorder()
    replayed = pipeline_with(StepGraphs(recorder))
    expected = reply(plain(), **asked, canvases=2)
    assert reply(replayed, **asked, canvases=2) == expected
    blocks = [record for record in expected if isinstance(record, Block)]
    assert len(blocks) == 2
    assert any(block.converged for block in blocks) == ("settings" in asked)
    # Each canvas is captured once, behind other tokens than the one before; the first of all is replayed to see.
    assert recorder.recorded == len(blocks)
    assert recorder.replayed == 1 + sum(block.denoising_steps - 2 for block in blocks) > 5
    assert replayed.graph_state == USED


def test_a_conversation_goes_on_in_the_same_cache() -> None:
    pipelines, prompt = [plain(), pipeline_with(StepGraphs(TapeRecorder()))], prompt_of(20, VOCAB)
    for seed in range(2):
        ours, theirs = (reply(each, prompt=prompt, seed=seed) for each in pipelines)
        assert ours == theirs
        prompt = [*prompt, *tokens_of(ours), *prompt_of(4, VOCAB, seed)]
    assert pipelines[1].graph_state == USED


def test_the_first_replay_of_each_length_of_a_canvas_is_compared() -> None:
    """Other kernels may run for it."""

    class Lying(TapeRecorder):
        def record(self, call: Callable[[], None]) -> Callable[[], None]:
            replay = super().record(call)

            def lie() -> None:
                replay()
                if len(sampler_of(call).canvas) < CANVAS:
                    sampler_of(call).canvas.zero_()

            return lie

    recorder = Lying()
    pipeline = pipeline_with(StepGraphs(recorder))
    pipelines = pipeline, plain()
    for seed, length, state, replayed in [(0, CANVAS, USED, 4), (1, CANVAS, USED, 7), (2, 8, "off: ", 8)]:
        ours, theirs = (reply(each, seed=seed, canvas_length=length, drafts=True) for each in pipelines)
        assert ours == theirs
        assert str(pipeline.graph_state).startswith(state)
        assert recorder.replayed == replayed


def test_a_canvas_of_two_steps_is_not_captured() -> None:
    recorder = TapeRecorder()
    pipeline = pipeline_with(StepGraphs(recorder))
    reply(pipeline, settings=replace(SETTINGS, max_denoising_steps=2))
    assert (recorder.recorded, pipeline.graph_state) == (0, NOT_YET)


def test_what_is_no_number_is_found_in_a_replayed_step() -> None:
    class Breaking(TapeRecorder):
        def record(self, call: Callable[[], None]) -> Callable[[], None]:
            replay = super().record(call)

            def and_break() -> None:
                replay()
                if self.replayed > 2:
                    sampler_of(call)._told.on_device[1] = 0

            return and_break

    with pytest.raises(NotANumberError):
        reply(pipeline_with(StepGraphs(Breaking())))


def sampler_of(call: Callable[[], None]) -> Any:
    names = call.__code__.co_freevars  # type: ignore[attr-defined]
    return call.__closure__[names.index("sampler")].cell_contents  # type: ignore[attr-defined]


# --- what goes wrong ---------------------------------------------------------------------------------------


class Failing(TapeRecorder):
    """Raises while it records, or in the first replay, behind which nothing is as it was."""

    def __init__(self, error: BaseException, *, in_replay: bool = False) -> None:
        super().__init__()
        self._error: BaseException | None = error
        self._in_replay = in_replay

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        replay = super().record(call)
        error, self._error = self._error, None
        if error is None:
            return replay
        if not self._in_replay:
            raise error

        def fail() -> None:
            replay()
            sampler_of(call).canvas.zero_()
            raise error

        return fail


@pytest.mark.parametrize("in_replay", [False, True])
@pytest.mark.parametrize(
    ("error", "state"),
    [
        (
            RuntimeError("CUDA error: operation not permitted\nCompile with"),
            "off: capturing failed: CUDA error: operation not permitted",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to"), "off: the card had no memory left for it"),
        (ValueError(), "off: capturing failed: ValueError"),
    ],
    ids=str,
)
def test_a_capture_that_fails_leaves_the_reply_as_it_is(error: Exception, state: str, in_replay: bool) -> None:
    recorder = Failing(error, in_replay=in_replay)
    pipeline = pipeline_with(StepGraphs(recorder))
    assert reply(pipeline, drafts=True) == reply(plain(), drafts=True)
    assert (recorder.recorded, pipeline.graph_state) == (1, state)
    assert tokens_of(reply(pipeline, seed=1)) == tokens_of(reply(plain(), seed=1))
    assert recorder.recorded == 1


def test_a_replay_that_differs_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a step leaves behind, by a single bit; and the reply has what the step itself has left."""
    differing = 0

    class Lying(TapeRecorder):
        def record(self, call: Callable[[], None]) -> Callable[[], None]:
            replay = super().record(call)

            def lie() -> None:
                replay()
                tensor = tensors[differing]
                tensor.view(torch.uint8)[..., -1:] ^= 1

            return lie

    tensors: list[torch.Tensor] = []
    run = StepGraphs.run

    def noting(graphs: StepGraphs, call: Any, carried: Any, written: Any) -> Any:
        tensors[:] = [each if each.dim() else each[None] for each in (*carried, *written) if each.numel()]
        return run(graphs, call, carried, written)

    monkeypatch.setattr(StepGraphs, "run", noting)
    asked: Any = {"settings": replace(SETTINGS, max_denoising_steps=3), "drafts": True, "candidates": 2}
    expected = reply(plain(), **asked)
    # Canvas, what it is conditioned on, history, counter; logits, flag, what is told; each layer's keys and values
    num_tensors = 4 + 3 + 2 * 2
    for differing in range(num_tensors):  # noqa: B007  # `lie` reads it
        pipeline = pipeline_with(StepGraphs(Lying()))
        assert reply(pipeline, **asked) == expected
        assert pipeline.graph_state == "off: its first replay differed from the step that was captured"
    assert len(tensors) == num_tensors


def test_a_replay_that_leaves_something_out_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the step itself has left there can't pass for what the replay should have written."""
    written: list[torch.Tensor] = []
    forgotten = 0

    class Forgetful(TapeRecorder):
        def record(self, call: Callable[[], None]) -> Callable[[], None]:
            replay = super().record(call)

            def all_but_one() -> None:
                before = written[forgotten].clone()
                replay()
                written[forgotten].copy_(before)

            return all_but_one

    run = StepGraphs.run

    def noting(graphs: StepGraphs, call: Any, carried: Any, its: Any) -> Any:
        written[:] = its
        return run(graphs, call, carried, its)

    monkeypatch.setattr(StepGraphs, "run", noting)
    asked: Any = {"settings": replace(SETTINGS, max_denoising_steps=3)}
    expected = reply(plain(), **asked)
    # Logits, flag, what is told; each layer's keys and values
    for forgotten in range(3 + 2 * 2):  # noqa: B007  # `all_but_one` reads it
        pipeline = pipeline_with(StepGraphs(Forgetful()))
        assert reply(pipeline, **asked) == expected
        assert pipeline.graph_state == "off: its first replay differed from the step that was captured"
    assert len(written) == forgotten + 1


@pytest.mark.parametrize("in_replay", [False, True])
def test_an_interruption_ends_the_reply_and_the_next_one_is_right(in_replay: bool) -> None:
    recorder = Failing(KeyboardInterrupt(), in_replay=in_replay)
    pipeline = pipeline_with(StepGraphs(recorder))
    with pytest.raises(KeyboardInterrupt):
        reply(pipeline)
    assert tokens_of(reply(pipeline)) == tokens_of(reply(plain()))
    assert pipeline.graph_state == USED


def test_a_reply_that_is_closed_in_a_replayed_canvas_harms_no_other() -> None:
    pipeline = pipeline_with(StepGraphs(TapeRecorder()))
    request = Request(Prompt([20, 30, 40]), SETTINGS, CANVAS)
    records = pipeline.generate(request, randomness=GeneratorRandomness(torch.Generator()), drafts=True)
    for _ in range(3):
        next(records)
    records.close()
    assert tokens_of(reply(pipeline)) == tokens_of(reply(plain()))


# --- where steps are captured ------------------------------------------------------------------------------


def on_card(**changes: Any) -> Any:
    network = {"device": CARD, "layer_devices": [CARD] * 3, "is_streamed": False, "waits_for_experts": False}
    return SimpleNamespace(**network | changes)


def test_on_a_card_and_nowhere_else() -> None:
    assert StepGraphs.of(on_card()).state == NOT_YET
    elsewhere = StepGraphs.of(network())
    assert (elsewhere.state, elsewhere._recorder) == (None, None)
    assert BlockDiffusionPipeline(network(), eos_token_ids=[], pad_token_id=None).graph_state is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"layer_devices": [CARD, torch.device("cuda", 0)]}, "spread over several cards"),
        ({"is_streamed": True}, "not all of the model stays on the card"),
        ({"waits_for_experts": True}, "the host waits"),
    ],
)
def test_what_can_not_be_captured_is_not_tried(changes: dict[str, Any], why: str) -> None:
    graphs = StepGraphs.of(on_card(**changes))
    assert graphs._recorder is None
    assert str(graphs.state).startswith("off: ")
    assert why in str(graphs.state)


def test_where_there_is_no_room_or_it_is_switched_off_nothing_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert StepGraphs.of(on_card(), has_room=False).state == "off: the card has no room for what it takes"
    monkeypatch.setenv(GRAPH_VARIABLE, " OFF ")
    assert StepGraphs.of(on_card()).state == f"off: {GRAPH_VARIABLE} says so"
    monkeypatch.setenv(GRAPH_VARIABLE, "on")
    assert StepGraphs.of(on_card()).state == NOT_YET


def test_a_network_says_whether_its_steps_wait() -> None:
    result = network_of(tiny_model(vocab_size=VOCAB))
    assert result.waits_for_experts
    for layer in result._layers:
        layer.experts._is_grouped = True
    assert not result.waits_for_experts
    assert not network().waits_for_experts


# --- CUDA's own, pretended ---------------------------------------------------------------------------------


class Cuda:
    """What of `torch.cuda` captures, and in what state it is. Raises in the call that it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.stream, self.device = "usual", 0
        self.reserved = 0
        self.capturing: Any = None
        self.underway: set[Any] = set()
        self.in_use: list[Any] = []
        """Pools, once for each graph."""
        self.fails: dict[str, BaseException] = {}
        cuda = self

        class Graph:
            def __init__(self) -> None:
                self._pool: Any = None
                self._has_ended = False

            def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
                assert capture_error_mode == "thread_local"
                assert (cuda.stream, cuda.device, cuda.capturing) == ("side", 1, None)
                # torch takes a pool up again only while a graph of it lives.
                assert pool not in cuda.underway
                assert pool in cuda.in_use or pool not in cuda.given_up
                cuda.underway.add(pool)
                cuda.in_use.append(pool)
                cuda.capturing, self._pool = self, pool
                cuda.call("begin")

            def capture_end(self) -> None:
                assert (cuda.stream, cuda.capturing) == ("side", self)
                cuda.capturing = None
                cuda.call("end")
                cuda.underway.discard(self._pool)
                self._has_ended = True
                cuda.call("ended")

            def pool(self) -> Any:
                assert self._has_ended
                return self._pool

            def replay(self) -> None:
                assert self._has_ended

            def __del__(self) -> None:
                if self._has_ended:
                    cuda.release(1, self._pool)

        self.given_up: set[Any] = set()
        pools = iter(range(100))
        for name, stand_in in {
            "CUDAGraph": Graph,
            "Stream": lambda device: "side",
            "current_device": lambda: self.device,
            "current_stream": lambda device: self.stream,
            "set_stream": self.set_stream,
            "set_device": lambda device: setattr(self, "device", device),
            "is_current_stream_capturing": lambda: self.capturing is not None,
            "graph_pool_handle": lambda: (0, next(pools)),
            "memory_reserved": lambda device: self.reserved,
            "empty_cache": lambda: self.calls.append("empty_cache"),
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_allocating, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", self.release, raising=False)
        monkeypatch.setattr(graphs_module.CudaRecorder, "_next_to_nothing", lambda recorder: None)

    def call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fails:
            raise self.fails.pop(name)

    def set_stream(self, stream: str) -> None:
        self.stream, self.device = stream, 1
        self.call(stream)

    def end_allocating(self, device: int, pool: Any) -> None:
        assert device == 1
        if pool not in self.underway:
            raise RuntimeError("not currently recording to mempool_id")
        self.underway.discard(pool)

    def release(self, device: int, pool: Any) -> None:
        self.in_use.remove(pool)
        self.given_up.add(pool)

    @property
    def is_as_before(self) -> bool:
        """But for graphs that are kept."""
        return (self.stream, self.device, self.capturing, self.underway) == ("usual", 0, None, set())


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    return Cuda(monkeypatch)


def test_each_graph_takes_the_pool_of_the_last_one(cuda: Cuda) -> None:
    recorder = CudaRecorder(CARD)
    for _ in range(3):
        recorder.record(lambda: cuda.call("work"))()
        assert cuda.is_as_before
        assert cuda.in_use == [(0, 0)]
    captured = ["side", "begin", "work", "end", "ended", "usual"]
    assert cuda.calls == ["empty_cache", *captured * 3]


def test_a_pool_that_grows_is_given_up(cuda: Cuda) -> None:
    recorder = CudaRecorder(CARD)
    pools = []
    for grows in (True, False, True, False):
        replay = recorder.record(lambda grows=grows: setattr(cuda, "reserved", cuda.reserved + grows))
        pools += [cuda.in_use[-1]]
        replay()
        del replay
        assert len(cuda.in_use) <= 1
    assert pools == [(0, 0), (0, 0), (0, 0), (0, 1)]
    assert cuda.calls.count("empty_cache") == 2


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["side", "begin", "work", "end", "ended"])
@pytest.mark.parametrize("earlier", [0, 1])
def test_a_capture_that_is_cut_anywhere_leaves_torch_as_it_was(
    cuda: Cuda, earlier: int, where: str, error: type[BaseException]
) -> None:
    recorder = CudaRecorder(CARD)
    for _ in range(earlier):
        recorder.record(lambda: cuda.call("work"))
    cuda.fails[where] = error(where)
    came = False
    try:  # `pytest.raises` would keep what the error came through
        recorder.record(lambda: cuda.call("work"))
    except error as raised:
        came = str(raised) == where
    assert came
    assert cuda.is_as_before
    assert len(cuda.in_use) == earlier
    recorder.record(lambda: cuda.call("work"))()
    assert cuda.is_as_before


def test_an_invalid_capture_is_ended_by_hand(cuda: Cuda) -> None:
    """As torch does not: its allocator would take the pool for one that something is still captured to."""
    cuda.fails = {"work": RuntimeError("not permitted"), "end": RuntimeError("failed due to a previous error")}
    with pytest.raises(RuntimeError, match="not permitted"):
        CudaRecorder(CARD).record(lambda: cuda.call("work"))
    assert cuda.is_as_before
    # Another capture has ended well behind it.
    assert cuda.calls[-4:] == ["begin", "end", "ended", "usual"]
    assert (0, 0) in cuda.given_up
