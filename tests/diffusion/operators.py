"""What torch runs, by name: what a device would have to launch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.utils._python_dispatch import TorchDispatchMode

from .taped import name_of

if TYPE_CHECKING:
    from collections.abc import Callable

# A device computes nothing for them: views, and memory.
FREE = set(
    "view _unsafe_view slice select transpose t permute expand unsqueeze split alias"
    " empty empty_like empty_strided new_empty".split()
)


class Operators(TorchDispatchMode):
    """The names of the operators that run, but for free ones. What is `counted_as_one` hides its inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self._inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = name_of(func, args)
        if not self._inside and name not in FREE:
            self.names.append(name)
        return func(*args, **(kwargs or {}))

    def counted_as_one(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self.names.append(function.__name__)
            self._inside = True
            try:
                return function(*arguments, **named)
            finally:
                self._inside = False

        return counted
