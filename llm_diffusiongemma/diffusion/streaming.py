"""Experts that don't stay on their device: they pass through two buffers on it, a layer ahead of the computation.

A step goes through all layers in their order and begins again with the first. While one layer's experts are
computed from in one buffer, the next one's come into the other: from the host's memory or from the weight files.

From pinned host memory a card fetches them itself, on a stream of its own; nothing waits on the host. From files a
thread for each layer reads them, which ends with that: no pool is kept, and a process may fork. The files are read
and not mapped: where a mapped file becomes shorter the process is killed, mappings count against a limit of its
address space, and what is read again comes from the page cache all the same.

A step may be cut off anywhere, and the process forked. **Invariant**: a buffer is computed from only if all of a
layer has come into it, and is handed on only when nobody writes to it any more.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch

from .metering import stopwatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .experts import Experts


class StreamedExperts:
    """The experts of some layers of one device. For one thread at a time."""

    def __init__(
        self,
        device: torch.device,
        new_buffer: Callable[[], Experts],
        kept: Mapping[int, Experts | None],
        read: Callable[[int, Experts, Callable[[], None]], None] | None,
    ) -> None:
        """`kept` are the layers in their order, and what of them is in the host's memory: the others are `read`,
        maybe in another thread. It calls its last argument now and then, which raises if nobody waits for it."""
        self._buffers = [_Buffer(new_buffer()) for _ in range(2)]
        self._kept = dict(kept)
        self._read = read
        self.waiting = stopwatch(device)
        """How long the device waited for experts."""
        self.bytes_fetched = 0
        """So much has been brought, or is on its way."""
        self._stream: torch.cuda.Stream | None = None
        """What comes to the device comes on this one."""
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            # Without this their memory could be another's while a last copy is still on its way.
            for tensor in (tensor for buffer in self._buffers for tensor in buffer.experts.held()):
                tensor.record_stream(self._stream)

    def prefetch(self) -> None:
        """Let the first layers' experts come, if they aren't there or on their way."""
        first, *others = self._kept
        self._bring(first, others[0] if others else first)

    def give_up(self) -> None:
        """Let nobody go on reading ahead. Who is at it isn't waited for."""
        for buffer in self._buffers:
            buffer.give_up()

    @contextmanager
    def experts_of(self, layer: int, skipped: int | None = None) -> Iterator[Experts]:
        """The experts of a layer, for what is computed before this is left; after that the next ones come.

        `skipped` is a layer whose experts this pass doesn't need.

        Raises what `read` raises.
        """
        order = [each for each in self._kept if each != skipped]
        here = order.index(layer)
        following, later = (order[(here + ahead) % len(order)] for ahead in (1, 2))
        buffer = self._bring(layer, following)
        with self.waiting.running():
            buffer.finish()
        yield buffer.experts
        self._bring(following, later)

    def _bring(self, first: int, second: int) -> _Buffer:
        """Let one buffer hold the experts of a layer, and the other one those of a second. Returns the former."""
        one, other = self._buffers
        if other.fetches(first) or (one.fetches(second) and first != second):
            one, other = other, one
        self._let_hold(one, first)
        if first != second:
            self._let_hold(other, second)
        return one

    def _let_hold(self, buffer: _Buffer, layer: int) -> None:
        if buffer.fetches(layer):
            return
        buffer.leave()
        if self._stream is not None:
            # Behind all that has been computed from this buffer.
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        self.bytes_fetched += sum(tensor.nbytes for tensor in buffer.experts.held())
        buffer.begin(layer, self._fetch_of(layer, buffer.experts))

    def _fetch_of(self, layer: int, target: Experts) -> _Fetch:
        source = self._kept[layer]
        if source is None:
            assert self._read is not None
            return _Threaded(partial(self._read, layer, target), self._stream)
        if self._stream is None:
            return _Threaded(lambda check_wanted: _copy(source, target), None)
        return _Queued(partial(_copy, source, target), self._stream)


class _Fetch(Protocol):
    """How a layer's experts come into a buffer."""

    def start(self) -> None: ...

    def finish(self) -> None:
        """What is computed from here on finds them there, though it was cut off before. Raises what goes wrong."""

    def leave(self) -> None:
        """They needn't come any more. From here on nothing is written but by a later fetch."""

    def give_up(self) -> None:
        """They needn't come before somebody waits for them."""


@dataclass
class _Buffer:
    """Room on the device for the experts of one layer, and how they came into it last."""

    experts: Experts
    _layer: int | None = None
    _fetch: _Fetch | None = None

    def fetches(self, layer: int) -> bool:
        """Whether that layer's experts are in here, or on their way."""
        return self._fetch is not None and self._layer == layer

    def begin(self, layer: int, fetch: _Fetch) -> None:
        self._fetch = None
        self._layer, self._fetch = layer, fetch
        fetch.start()

    def finish(self) -> None:
        assert self._fetch is not None
        self._fetch.finish()

    def leave(self) -> None:
        if self._fetch is not None:
            self._fetch.leave()

    def give_up(self) -> None:
        if self._fetch is not None:
            self._fetch.give_up()


class _Queued:
    """Copies that a card makes by itself, behind those that were queued before."""

    def __init__(self, work: Callable[[], None], stream: torch.cuda.Stream) -> None:
        self._work = work
        self._stream = stream
        self._done: torch.cuda.Event | None = None

    def start(self) -> None:
        with torch.cuda.stream(self._stream):
            self._work()
            self._done = self._stream.record_event()

    def finish(self) -> None:
        if self._done is None:
            self.start()
        assert self._done is not None
        torch.cuda.current_stream(self._stream.device).wait_event(self._done)

    def leave(self) -> None:
        """The next copy comes behind this one."""

    def give_up(self) -> None:
        """A card can't be told to."""


class _GivenUpError(Exception):
    """Nobody waits for what a thread reads. Never shown to anybody."""


class _Threaded(threading.Thread):
    """Work for a thread of its own, or for who needs it if the thread hasn't come to it by then.

    Whoever sets `_claim`, which is never released, does the work or has taken it back: so two never write at once,
    wherever `start` was interrupted, and it goes on where no thread can be had.
    """

    def __init__(self, work: Callable[[Callable[[], None]], None], stream: torch.cuda.Stream | None) -> None:
        # Not a daemon: at the end of the process one would be cut off in the middle of torch, which aborts.
        super().__init__(name="experts of a layer", daemon=False)
        self._work = work
        self._stream = stream
        self._claim = threading.Lock()
        self._is_given_up = False
        self._is_done = False

    def start(self) -> None:
        with suppress(RuntimeError):  # there are too many of them
            super().start()

    def run(self) -> None:
        if self._claim.acquire(blocking=False):
            with suppress(BaseException):  # it goes wrong again for who needs it, or right
                self._do(self._check_wanted)

    def finish(self) -> None:
        self._take_back()
        if not self._is_done:  # the thread hasn't come to it, or won't end it
            self._do(lambda: None)

    def leave(self) -> None:
        self.give_up()
        self._take_back()

    def give_up(self) -> None:
        self._is_given_up = True

    def _check_wanted(self) -> None:
        if self._is_given_up:
            raise _GivenUpError

    def _take_back(self) -> None:
        # In a forked process a thread of the parent's is not alive.
        if not self._claim.acquire(blocking=False) and self.is_alive():
            self.join()

    def _do(self, check_wanted: Callable[[], None]) -> None:
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            self._work(check_wanted)
            if self._stream is not None:
                self._stream.synchronize()
        self._is_done = True


def pin(experts: Experts) -> None:
    """Give experts that nobody has filled yet pinned memory instead, which a card copies from by itself."""
    for tensor in experts.held():
        tensor.data = torch.empty_like(tensor, pin_memory=True)


def _copy(source: Experts, target: Experts) -> None:
    for theirs, ours in zip(source.held(), target.held(), strict=True):
        ours.copy_(theirs, non_blocking=True)
