"""A denoising step captured once and replayed: one launch in place of hundreds, and the host out of the way.

A canvas's first step has no self-conditioning. Its second one is the first that is like those behind it: it runs
as it always does and is captured right behind that, while the card is still at it. Nothing of a graph is used for
another canvas, whose context is longer. So no tensor that a graph knows has moved when it is replayed.

No reply rests on it: the first graph of each kind of step and of each length of a canvas is replayed at once over
the step that it was captured from, and what comes out compared bit for bit. Whatever goes wrong, steps run as they
always do from there on.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import torch

from ..catalog import GRAPH_VARIABLE
from ..switches import switch
from ..wording import quoted
from .devices import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch.cuda import _POOL_HANDLE

    from .network import Network

USED = "used"
NOT_YET = "not used yet: no canvas has come to a third step"


class Recorder(Protocol):
    """What captures."""

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        """What does again what `call` does on the device. `call` itself is not done, nothing is read or written.

        What it returned before must not be called any more. Raises whatever goes wrong.
        """


class StepGraphs:
    """Runs steps of one network, and captures them where it can. For one thread at a time."""

    def __init__(self, recorder: Recorder | None, state: str | None = NOT_YET) -> None:
        """Without a recorder for good as they are; `state` then says why, if there is something to say."""
        self._recorder = recorder
        self._proved: set[tuple[torch.Size, ...]] = set()
        """Shapes of all that a step reads, changes and writes: for others other kernels may run."""
        self.state = state
        """`USED`, or why none is: for people. None where there is no CUDA."""

    @classmethod
    def of(cls, network: Network, *, has_room: bool = True) -> StepGraphs:
        """`has_room`: whether the device has memory left for it."""
        if network.device.type != "cuda":
            return cls(None, None)
        why_not = _why_not(network, has_room)
        return cls(CudaRecorder(network.device)) if why_not is None else cls(None, f"off: {why_not}")

    def run(
        self, call: Callable[[], None], carried: Sequence[torch.Tensor], written: Sequence[torch.Tensor]
    ) -> Callable[[], None]:
        """Do `call`, and return what does it again from there: as a graph, or `call` itself.

        `carried` are the tensors that it reads and changes, `written` those that it writes anew, all of each.
        """
        if self._recorder is None:
            call()
            return call
        shapes = tuple(tensor.shape for tensor in (*carried, *written))
        is_proved = shapes in self._proved
        before = [] if is_proved else _copies(carried)
        call()
        after = None
        try:
            replay = self._recorder.record(call)
            if not is_proved:
                after = _copies([*carried, *written])
                _put_back(before, carried)
                _spoil(written)  # or what the step has left there passes for what the replay should write
                replay()
                if not _are_the_same(after, [*carried, *written]):
                    raise _DiffersError
        except Exception as error:  # the step has been made, whatever it was
            self._recorder, self.state = None, f"off: {_reason(error)}"
            if after is not None:
                _put_back(after, [*carried, *written])
            return call
        self._proved.add(shapes)
        self.state = USED
        return replay


class CudaRecorder:
    """Captures CUDA graphs on one device, the last one of which can be replayed.

    torch's own context manager waits for the device and gives all of the allocator's memory back each time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        """Always the same one: memory that was captured on another would not be used again."""
        self._last: torch.cuda.CUDAGraph | None = None
        """Whose memory the next one takes: torch can't take it up again when its last graph is gone."""

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        """See `Recorder`."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        if self._last is None:
            # While it captures torch can't take from what it has in store for all else.
            torch.cuda.empty_cache()
        pool = torch.cuda.graph_pool_handle() if self._last is None else self._last.pool()
        reserved = torch.cuda.memory_reserved(self._device)
        try:
            graph = self._capture(call, self._stream, pool)
        except Exception:
            # Up to PyTorch 2.12 the program's random numbers on this device fail behind a capture that has, until
            # another one has ended well.
            with suppress(Exception):
                self._capture(self._next_to_nothing, self._stream, torch.cuda.graph_pool_handle())
            raise
        has_grown = self._last is not None and torch.cuda.memory_reserved(self._device) > reserved
        # Some kernel of attention takes more for a longer context, and what it took for a shorter one is of no use
        # any more: then the next one begins anew.
        self._last = None if has_grown else graph
        return graph.replay

    def _next_to_nothing(self) -> None:
        torch.zeros(1, device=self._device)

    def _capture(
        self, call: Callable[[], None], stream: torch.cuda.Stream, pool: _POOL_HANDLE
    ) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        device, usual = torch.cuda.current_device(), torch.cuda.current_stream(self._device)
        # By hand: a Ctrl-C may come between any two of these.
        try:
            torch.cuda.set_stream(stream)  # and with it the device
            # What other threads do meanwhile is theirs.
            graph.capture_begin(pool, capture_error_mode="thread_local")
            call()
            graph.capture_end()
        except BaseException:
            _break_off(graph, self._device, pool)
            raise
        finally:
            torch.cuda.set_stream(usual)
            torch.cuda.set_device(device)
        return graph


_BROKEN: list[torch.cuda.CUDAGraph] = []
"""Those that could not be ended. torch's allocators may go on asking them what they capture."""


def _break_off(graph: torch.cuda.CUDAGraph, device: torch.device, pool: _POOL_HANDLE) -> None:
    """Leave torch as if nothing had been captured."""
    if torch.cuda.is_current_stream_capturing():
        with suppress(RuntimeError):  # of one that is no good any more
            graph.capture_end()
            return
    # torch's allocator is not told of it: it would go on as if something were captured, and never give the pool
    # back. Where it was told this raises.
    with suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(device.index, pool)
        _BROKEN.append(graph)
        torch._C._cuda_releasePool(device.index, pool)


class _DiffersError(Exception):
    """A replay gave other bits than the step. Never shown to anybody."""


def _why_not(network: Network, has_room: bool) -> str | None:
    """Why steps of a network on CUDA are not captured, if they are not."""
    if switch(GRAPH_VARIABLE) is False:
        return f"{GRAPH_VARIABLE} says so"
    if len({network.device, *network.layer_devices}) > 1:
        return "the model is spread over several cards"
    if network.is_streamed:
        return "not all of the model stays on the card"
    if network.waits_for_experts:
        return "PyTorch computes the experts here, and the host waits for it in every layer"
    return None if has_room else "the card has no room for what it takes"


def _reason(error: Exception) -> str:
    if isinstance(error, _DiffersError):
        return "its first replay differed from the step that was captured"
    if is_out_of_memory(error):
        return "the card had no memory left for it"
    return f"capturing failed: {quoted(str(error).partition(chr(10))[0] or type(error).__name__, 200)}"


def _copies(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """On the host: the logits alone would be 268 MB of a card."""
    return [_copy(tensor) for tensor in tensors]


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").copy_(tensor)


def _put_back(copies: Iterable[torch.Tensor], tensors: Iterable[torch.Tensor]) -> None:
    for copy, tensor in zip(copies, tensors, strict=True):
        tensor.copy_(copy)


def _spoil(tensors: Iterable[torch.Tensor]) -> None:
    for tensor in tensors:
        tensor.fill_(torch.nan if tensor.is_floating_point() else 0)


def _are_the_same(copies: Iterable[torch.Tensor], tensors: Iterable[torch.Tensor]) -> bool:
    """Bit for bit: NaN is not equal to itself."""
    return all(torch.equal(_bits(one), _bits(_copy(other))) for one, other in zip(copies, tensors, strict=True))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flatten().view(torch.uint8)
