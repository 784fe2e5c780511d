"""Captures on a CPU what a CUDA graph captures: the operators of a call with the very tensors that they are of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# They give the host what it would have to wait for, or a shape that depends on data.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount", "equal", "is_nonzero")


def name_of(func: Any, args: Any) -> str:
    """An operator's, without its overload."""
    name: str = func.overloadpacket.__name__
    if name in ("index", "index_put_") and any(each is not None and each.dtype == torch.bool for each in args[1]):
        return "nonzero"  # what a mask for an index comes to
    return name


class TapeRecorder:
    """A `Recorder`. As CUDA does it reads and writes nothing while it records, and refuses what reads a value.

    A value of Python's is what it was then, however often the tape is played.
    """

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        tape = _Tape()
        try:
            with tape:
                call()
        finally:
            tape.undo()

        def replay() -> None:
            self.replayed += 1
            tape.play()

        return replay


class _Operation(NamedTuple):
    func: Any
    args: Any
    kwargs: Any
    results: Any


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._operations: list[_Operation] = []
        self._made: set[int] = set()
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if name_of(func, args).startswith(WAITING):
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._keep(value)
        for argument in func._schema.arguments:
            if argument.name in kwargs and argument.alias_info is not None and argument.alias_info.is_write:
                self._keep(kwargs[argument.name])
        results = func(*args, **kwargs)
        self._operations.append(_Operation(func, args, kwargs, results))
        known = {_place(tensor) for tensor in _tensors((args, kwargs))}
        self._made |= {_place(tensor) for tensor in _tensors(results)} - known
        return results

    def _keep(self, tensor: torch.Tensor) -> None:
        if _place(tensor) not in self._made and _place(tensor) not in self._before:
            whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
            self._before[_place(tensor)] = (whole, whole.clone())

    def undo(self) -> None:
        for whole, before in self._before.values():
            whole.copy_(before)

    def play(self) -> None:
        for func, args, kwargs, results in self._operations:
            again = func(*args, **kwargs)
            given = {_place(tensor) for tensor in _tensors((args, kwargs))}
            for place, fresh in zip(_tensors(results), _tensors(again), strict=True):
                if _place(place) not in given:
                    place.copy_(fresh)


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
