"""Experts that come from elsewhere give the same bits as those that stay, whatever goes wrong in between."""

from __future__ import annotations

import os
import random
import shutil
import sys
import threading
import time
import weakref
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.diffusion import streaming
from llm_diffusiongemma.diffusion.experts import Experts
from llm_diffusiongemma.diffusion.kv_cache import KVCache
from llm_diffusiongemma.diffusion.loading import describe, load_model
from llm_diffusiongemma.diffusion.metering import CardStopwatch, StreamingMeter
from llm_diffusiongemma.diffusion.operations import Operations
from llm_diffusiongemma.diffusion.placement import LayerHome, whole
from llm_diffusiongemma.diffusion.streaming import StreamedExperts
from llm_diffusiongemma.errors import CheckpointError, FileAccessError

from .small_network import CPU, FORMATS, LAST, NUM_LAYERS, assert_same, network_at, reply, resident_network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from llm_diffusiongemma.diffusion.network import Network
    from llm_diffusiongemma.diffusion.packed import Formats
    from llm_diffusiongemma.diffusion.placement import ExpertsHome

    from .small_network import Files

ALL = range(NUM_LAYERS)
PATIENCE_SECONDS = 30
CARD = torch.device("cuda")


def streamed_network(resident: Network, homes: Sequence[ExpertsHome]) -> tuple[Network, Files]:
    return network_at([LayerHome("cpu", home) for home in homes], resident)


def homes_of(streamed: Sequence[int], home: ExpertsHome = "files") -> list[ExpertsHome]:
    return [home if layer in streamed else "device" for layer in ALL]


@torch.no_grad()
def one_step(network: Network) -> list[torch.Tensor]:
    """The least there is to compute: a canvas without a context."""
    cache = KVCache(network.config, network.dtype, network.layer_devices)
    return [network.denoise(torch.arange(network.config.canvas_length), None, cache)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("formats", FORMATS.values(), ids=FORMATS.keys())
def test_the_same_bits_in_every_format(formats: Formats, dtype: torch.dtype) -> None:
    resident = resident_network(formats, dtype)
    network, _ = streamed_network(resident, ["host", "files", "device", "files", "host"])
    assert_same(reply(network), reply(resident))


def test_the_same_bits_whatever_is_streamed() -> None:
    resident = resident_network()
    expected = reply(resident)
    draw = random.Random(0)
    drawn = (draw.choices(["device", "host", "files"], k=NUM_LAYERS) for _ in range(4))
    for homes in (homes_of(ALL), homes_of(ALL, "host"), homes_of([LAST]), *drawn):
        network, _ = streamed_network(resident, homes)
        assert_same(reply(network), expected)
        assert_same(reply(network), expected)  # by now the buffers hold something


def test_what_is_loaded_and_what_is_read() -> None:
    """Experts in the host's memory are filled once and for all, those in files at every step."""
    network, files = streamed_network(resident_network(), ["device", "host", "files", "host", "files"])
    filled = {name.split(".")[3] for name, _ in network.tensors() if ".experts." in name}
    assert filled == {"0", "1", "3"}
    reply(network)
    assert set(files.layers) == {2, 4}


@pytest.mark.parametrize(
    ("streamed", "encoder", "denoiser"),
    [(ALL, 4, 5), (range(LAST), 4, 4), ([1, 3, LAST], 0, 3), ([0, 3], 0, 0), ([2], 0, 0), ([LAST], 0, 0)],
    ids=str,
)
def test_each_pass_reads_each_layer_once(streamed: Sequence[int], encoder: int, denoiser: int) -> None:
    """An encoder doesn't need its last layer's; two layers stay in their buffers."""
    network, files = streamed_network(resident_network(), homes_of(streamed))
    chunks, steps = (5, 20), 2
    reply(network, chunks, steps)  # the first two are there from now on
    files.layers.clear()
    files.before = lambda _: time.sleep(0.0005)  # they are waited for
    reply(network, chunks, steps)
    wait_for_threads()
    assert len(files.layers) == (len(chunks) + 1) * encoder + 2 * steps * denoiser


def test_two_buffers_whatever_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[Experts] = weakref.WeakSet()
    init = Experts.__init__

    def note(self: Experts, *arguments: Any) -> None:
        alive.add(self)
        init(self, *arguments)

    resident = resident_network()
    monkeypatch.setattr(Experts, "__init__", note)
    network, files = streamed_network(resident, homes_of(ALL))
    counts = []
    files.before = lambda layer: counts.append(len(alive))
    reply(network)
    assert set(counts) == {2}


def wait_for_threads() -> None:
    for thread in threading.enumerate():
        if isinstance(thread, streaming._Threaded):
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()


def test_the_next_layers_come_while_one_is_computed_and_as_soon_as_it_was() -> None:
    network, files = streamed_network(resident_network(), homes_of(ALL))
    (streamed,) = network._streams.values()
    came = threading.Condition()

    def come(_: int) -> None:
        with came:
            came.notify_all()

    def wait_for(layers: set[int]) -> None:
        with came:
            assert came.wait_for(lambda: {*files.layers} == layers, PATIENCE_SECONDS)

    files.before = come
    with streamed.experts_of(0):
        wait_for({0, 1})
    wait_for({0, 1, 2})


# --- what goes wrong -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")  # a thread doesn't show what it raises
@pytest.mark.parametrize("layer", [0, LAST])
@pytest.mark.parametrize("after", [0, 1])
def test_an_error_while_reading_is_raised_and_the_next_reply_is_right(layer: int, after: int) -> None:
    """Before anything of a layer came, and in the middle of it."""
    resident = resident_network()
    expected = reply(resident)
    network, files = streamed_network(resident, homes_of(ALL))
    assert_same(reply(network), expected)
    wait_for_threads()
    calls: dict[int, int] = {}

    def end_early(which: int) -> None:
        calls[which] = calls.get(which, 0) + 1
        if which == layer and (calls[which] - 1) % (after + 1) == after:
            raise CheckpointError("it has become shorter")

    files.before = end_early
    for _ in range(2):
        with pytest.raises(CheckpointError, match="shorter"):
            reply(network)
    files.before = lambda _: None
    assert_same(reply(network), expected)


@pytest.mark.parametrize(
    "spoil", [lambda file: file.write_bytes(b"short"), lambda file: None], ids=["cut", "gone"]
)
def test_weight_files_that_go_and_come_back(spoil: Callable[[Path], object], tmp_path: Path) -> None:
    folder = shutil.copytree(EMBEDDED_CHECKPOINT, tmp_path / "model")
    described = describe(folder)
    homes = (LayerHome("cpu", "files"),) * described.config.text_config.num_hidden_layers
    placement = replace(whole("bf16", len(homes), "cpu"), layers=homes)
    network = load_model(described, placement).network
    expected = one_step(network)
    wait_for_threads()
    file = folder / "model.safetensors"
    file.rename(folder / "elsewhere")
    spoil(file)
    for _ in range(2):
        with pytest.raises((CheckpointError, FileAccessError), match=r"model.safetensors"):
            one_step(network)
    (folder / "elsewhere").replace(file)
    assert_same(one_step(network), expected)


class _Cut(BaseException):
    """Raised where a Ctrl-C could be."""


@contextmanager
def cut_off(after: int) -> Iterator[list[str]]:
    """Raises in the place of some line of streaming.py, or before or behind the start or the end of a thread.

    Gives a list of the places that were passed.
    """
    passed: list[str] = []

    def here(place: str) -> None:
        passed.append(place)
        if len(passed) == after + 1:
            raise _Cut

    def trace(frame: Any, event: str, _: object) -> Any:
        if frame.f_code.co_filename != streaming.__file__:
            return None
        if event == "line":
            here(f"line {frame.f_lineno}")
        return trace

    def around(name: str) -> Callable[..., None]:
        original = getattr(threading.Thread, name)

        def call(*arguments: Any) -> None:
            here(f"before {name}")
            original(*arguments)
            here(f"behind {name}")

        return call

    before = sys.gettrace()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("start", "join"):
            patch.setattr(threading.Thread, name, around(name))
        sys.settrace(trace)
        try:
            yield passed
        except _Cut:
            pass
        finally:
            sys.settrace(before)


def test_cut_off_anywhere_the_next_step_is_right() -> None:
    resident = resident_network()
    expected = one_step(resident)
    network, _ = streamed_network(resident, ["files", "host", "device", "files", "device"])
    with cut_off(after=sys.maxsize) as passed:
        one_step(network)
    assert "behind start" in passed
    places = {place: at for at, place in enumerate(passed)}  # of each its last
    places |= {f"first {place}": passed.index(place) for place in {*passed}}
    for after in {*places.values()}:
        with cut_off(after):
            one_step(network)
        assert_same(one_step(network), expected)


def test_who_reads_for_a_step_that_was_given_up_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would write over what the next step reads into its buffer."""
    resident = resident_network()
    expected = one_step(resident)
    network, files = streamed_network(resident, homes_of(ALL))
    readers: list[threading.Thread] = []
    may_go_on = threading.Event()

    def wait(layer: int) -> None:
        if layer == 3 and threading.current_thread() is not threading.main_thread():
            readers.append(threading.current_thread())
            assert may_go_on.wait(PATIENCE_SECONDS)

    files.before = wait
    compute = Experts.__call__
    computed = 0

    def give_up_at_the_third(*arguments: Any) -> torch.Tensor:
        nonlocal computed
        computed += 1
        if computed == 3:
            while not readers:
                time.sleep(0.001)
            raise _Cut
        if readers:
            readers[0].join(PATIENCE_SECONDS)  # at the latest, now it does what it does
        return compute(*arguments)

    monkeypatch.setattr(Experts, "__call__", give_up_at_the_third)
    with pytest.raises(_Cut):
        one_step(network)
    timer = threading.Timer(0.2, may_go_on.set)
    timer.start()
    assert_same(one_step(network), expected)
    timer.join()


def test_after_an_interrupt_nobody_reads_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process waits for its threads at its end, and two layers are some gigabytes."""
    resident = resident_network()
    network, files = streamed_network(resident, homes_of(ALL))
    calls: list[int] = []
    may_go_on = threading.Event()

    def wait(layer: int) -> None:
        calls.append(layer)
        assert may_go_on.wait(PATIENCE_SECONDS)

    def interrupt(*_: Any) -> None:
        raise _Cut

    files.before = wait
    with monkeypatch.context() as patch:
        patch.setattr(network, "operations", Operations(heads=interrupt))
        with pytest.raises(_Cut):
            one_step(network)
    may_go_on.set()
    wait_for_threads()
    # Each before its first tensor and behind it, and not behind the second.
    assert sorted(calls) in ([], [0, 0], [1, 1], [0, 0, 1, 1])
    assert_same(one_step(network), one_step(resident))


def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    resident = resident_network()
    network, _ = streamed_network(resident, homes_of(ALL))
    monkeypatch.setattr(threading.Thread, "start", start)
    assert_same(reply(network), reply(resident))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_forked_in_the_middle_of_reading_goes_on() -> None:
    """Its copy of the thread that reads is gone."""
    resident = resident_network()
    expected = reply(resident)
    network, files = streamed_network(resident, homes_of(ALL))
    parent, may_go_on = os.getpid(), threading.Event()

    def wait_in_the_parent(_: int) -> None:
        if os.getpid() == parent:
            assert may_go_on.wait(PATIENCE_SECONDS)

    files.before = wait_in_the_parent
    network.prefetch()
    child = os.fork()
    if child == 0:
        is_same = False
        try:
            ours = reply(network)
            is_same = all(map(torch.equal, ours, expected))
        finally:
            os._exit(0 if is_same else 1)
    may_go_on.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert_same(reply(network), expected)


# --- as on a card --------------------------------------------------------------------------------------------


class _Event:
    """A place in a stream's queue."""

    def __init__(self, stream: _Stream) -> None:
        self._stream, self._place = stream, stream.queued

    def has_come(self) -> bool:
        return self._stream.done >= self._place


class _TimedEvent:
    """Notes when a stream comes to it. Nobody is to wait for that."""

    def __init__(self, card: _Card) -> None:
        self._card = card
        self._time: int | None = None

    def record(self, stream: _Stream) -> None:
        def come() -> None:
            self._time = self._card.time

        stream.put(come, takes_time=False)

    def query(self) -> bool:
        return self._time is not None

    def elapsed_time(self, end: _TimedEvent) -> float:
        """milliseconds"""
        assert self._time is not None
        assert end._time is not None
        return 1000 * (end._time - self._time)


class _Stream:
    """One of a pretended card's: what is queued happens later, in its order, behind the events it waits for."""

    def __init__(self, device: object = None) -> None:
        self.device = device
        self.queued = self.done = 0
        self._queue: list[tuple[Callable[[], object], Callable[[], bool], bool]] = []

    def put(
        self, work: Callable[[], object], may_begin: Callable[[], bool] = lambda: True, takes_time: bool = True
    ) -> None:
        self._queue.append((work, may_begin, takes_time))
        self.queued += 1

    def record_event(self) -> _Event:
        return _Event(self)

    def wait_event(self, event: _Event) -> None:
        self.put(lambda: None, event.has_come, takes_time=False)

    def wait_stream(self, other: _Stream) -> None:
        self.wait_event(other.record_event())

    def go_on(self) -> None:
        if self.may_go_on():
            self._queue.pop(0)[0]()
            self.done += 1

    def may_go_on(self) -> bool:
        return bool(self._queue) and self._queue[0][1]()

    def takes_time(self) -> bool:
        return self._queue[0][2]


class _Card:
    """Whatever can be at its turn happens next, by lot. Copies are queued to the stream of the moment."""

    def __init__(self, seed: int) -> None:
        self.compute = _Stream()
        self.copies = _Stream()
        self.copies_left = 4 + seed
        """Then one is cut off."""
        self.time = 0
        """seconds"""
        self._draw = random.Random(seed)

    @contextmanager
    def stream(self, stream: _Stream) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            copy = torch.Tensor.copy_

            def queue(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> None:
                assert non_blocking
                self.copies_left -= 1
                if self.copies_left == 0:
                    raise _Cut
                stream.put(lambda: copy(target, source))

            patch.setattr(torch.Tensor, "copy_", queue)
            yield

    def run(self, turns: int) -> None:
        for _ in range(turns):
            self._draw.choice([self.compute, self.copies]).go_on()

    def run_in_time(self, compute_seconds: int, copy_seconds: int) -> None:
        """All that is queued, where a piece of work takes so long and happens at the end of that."""
        seconds = {self.compute: compute_seconds, self.copies: copy_seconds}
        ends: dict[_Stream, int] = {}
        while True:
            for _ in seconds:  # one may let the other go on
                for stream in seconds:
                    while stream not in ends and stream.may_go_on():
                        if stream.takes_time():
                            ends[stream] = self.time + seconds[stream]
                        else:
                            stream.go_on()
            if not ends:
                return
            stream = min(ends, key=lambda each: ends[each])
            self.time = ends.pop(stream)
            stream.go_on()


def streamed_on(card: _Card, monkeypatch: pytest.MonkeyPatch) -> StreamedExperts:
    """From the host's memory. What a layer's consist of is its number."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: card.copies)
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: _TimedEvent(card))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: card.compute)
    monkeypatch.setattr(torch.cuda, "stream", card.stream)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)

    def new() -> Experts:
        return Experts(1, 16, 16, torch.float32, CPU)

    kept = {layer: new() for layer in ALL}
    for layer, experts in kept.items():
        for tensor in experts.held():
            tensor.fill_(layer)
    return StreamedExperts(CARD, new, kept, None)


@pytest.mark.parametrize("seed", range(10))
def test_a_card_computes_from_what_has_come_and_overwrites_what_was_used(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of its streams is ahead, and though a copy was cut off. The host waits for neither of them."""
    card = _Card(seed)
    streamed = streamed_on(card, monkeypatch)
    seen: list[set[float]] = []
    expected: list[set[float]] = []

    def step() -> None:
        streamed.prefetch()
        for layer in ALL:
            with streamed.experts_of(layer) as experts:
                for tensor in experts.held():
                    card.compute.put(lambda tensor=tensor: seen.append({*tensor.flatten().tolist()}))
                    expected.append({float(layer)})
            card.run(card._draw.randrange(12))

    for _ in range(4):
        with suppress(_Cut):
            step()
    card.run(1000)
    assert seen == expected
    assert len(seen) >= 3 * 2 * NUM_LAYERS


@pytest.mark.parametrize(
    ("compute_seconds", "copy_seconds", "least", "most"), [(1, 100, 0.95, 0.99), (100, 1, 0, 0.01)]
)
def test_a_card_says_how_long_it_waited(
    compute_seconds: int, copy_seconds: int, least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own clock: the host waits for nothing, and remembers no more than what the card hasn't come to."""
    card = _Card(seed=10**6)
    streamed = streamed_on(card, monkeypatch)
    meter = StreamingMeter([streamed], CARD)
    assert isinstance(streamed.waiting, CardStopwatch)
    for number in range(3):
        with meter.one_pass(is_step=number > 0):
            streamed.prefetch()
            for layer in ALL:
                with streamed.experts_of(layer):
                    for _ in range(3):
                        card.compute.put(lambda: None)
        assert len(streamed.waiting._laps) == NUM_LAYERS
        card.run_in_time(compute_seconds, copy_seconds)
    report = meter.report()
    assert report is not None
    assert report["bytes_a_step"] == NUM_LAYERS * 3 * 16 * 16 * 4
    assert least <= report["waited_share"] <= most
    # Behind each pass two layers of the next one come, which is no pass's time.
    rate = (3 * NUM_LAYERS + 2) * 3 * 16 * 16 * 4 / card.time
    assert rate <= report["bytes_a_second"] < 2 * rate
    assert not streamed.waiting._laps


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_says_how_long_it_waited() -> None:
    """For layers in pinned memory, and for those in files."""
    resident = resident_network()
    homes = [LayerHome("cuda:0", home) for home in ("host", "files", "host", "files", "host")]
    network, _ = network_at(homes, resident)
    reply(network)  # whatever comes up once
    network.start_reply()
    expected = reply(resident, chunks=(5,), steps=3)
    results = reply(network, chunks=(5,), steps=3)
    torch.cuda.synchronize()
    report = network.streaming_report()
    assert report is not None
    (stream,) = network._streams.values()
    assert report["bytes_a_step"] == NUM_LAYERS * sum(tensor.nbytes for tensor in stream._kept[0].held())
    assert 0 < report["waited_share"] < 1
    assert isinstance(stream.waiting, CardStopwatch)
    assert not stream.waiting._laps
    assert all(torch.allclose(one.cpu(), other, atol=1e-4) for one, other in zip(results, expected, strict=True))
