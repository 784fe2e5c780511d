"""Kernels tried on a device, each beside its twin in plain torch, with what a network gives it.

The network is a small one of random weights: of another's widths, formats and dtype, but of three layers. It reads
a chunk of a prompt and a single position, and denoises a canvas twice. So what is tried is what a reply launches,
with arguments of the same kinds, and all of it is compiled by then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from .kv_cache import KVCache
from .network import Network
from .operations import PLAIN_TORCH
from .pipeline import MAX_PREFILL_TOKENS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .config import NetworkConfig
    from .packed import Formats

Kernels = dict[str, Callable[..., Any]]
"""By the name of the twin, a field of `Operations`."""

# How far a row may be from the twin's, over its size: what rounding makes of one, several times in a twin and less
# often in a kernel, is about half of that. Products in TF32 are no fp32: they are off by 3e-4.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 2e-2}
# How far all of them together may be from being as large, over the same: there rounding cancels.
TOGETHER = 0.25

# The lengths of what is read before the canvas: the longest chunk of a prompt without images, and the shortest.
CHUNKS = (MAX_PREFILL_TOKENS, 1)
# Of the embedding only so much: its size is no kernel's business but that of the sampler's pass.
MOST_TOKENS = 4096

# What an operation fills, by the numbers of its arguments, besides what it returns.
FILLED = {"heads": (5, 6)}


class Trial:
    """One trial of some kernels on a device."""

    def __init__(
        self,
        kernels: Kernels,
        config: NetworkConfig,
        formats: Formats,
        dtype: torch.dtype,
        device: torch.device,
        explain: Callable[[Exception], str],
        check_wanted: Callable[[], None] = lambda: None,
    ) -> None:
        """`explain` makes a sentence of what a kernel raises, or raises what isn't the kernel's fault.
        `check_wanted` is called before each is tried, and may raise."""
        self.faults: dict[str, str] = {}
        """By the names of those that are not right: why, as a sentence for people."""
        self._kernels = kernels
        self._tolerance = TOLERANCES[dtype]
        self._explain, self._check_wanted = explain, check_wanted
        kinds = tuple(dict.fromkeys(config.layers))
        # The last layer is read only up to its keys and values.
        size = min(config.vocab_size, MOST_TOKENS)
        small = replace(config, layers=(*kinds, kinds[0]), vocab_size=size)
        self._network = Network(small, dtype, device, formats)
        self._generator = torch.Generator(device).manual_seed(0)
        _fill(self._network, self._generator)

    @property
    def right(self) -> Kernels:
        """Those without a fault."""
        return {name: kernel for name, kernel in self._kernels.items() if name not in self.faults}

    @torch.no_grad()
    def run(self) -> None:
        """Try all, each with what those before have made. Where one is wrong, once more: what comes behind it was
        tried with what that had made, and of another kind maybe."""
        before = -1
        while len(self.faults) > before:
            before = len(self.faults)
            self._reply()

    def _reply(self) -> None:
        network = self._network
        network.operations = replace(PLAIN_TORCH, **{name: partial(self._beside, name) for name in self.right})
        cache = KVCache(network.config, network.dtype, network.device)
        for length in CHUNKS:
            network.encode(network.embed(self._draw(length)), cache)
        canvas = self._draw(network.config.canvas_length)
        hidden = network.denoise(canvas, None, cache)
        network.denoise(canvas, hidden.float(), cache)

    def _draw(self, length: int) -> torch.Tensor:
        """Tokens, int64 `[length]`."""
        size, device = self._network.size, self._network.device
        return torch.randint(size, (length,), generator=self._generator, device=device)

    def _beside(self, name: str, *arguments: Any) -> Any:
        """What the kernel gives, or its twin if there is anything wrong with that.

        The kernel goes first: what it left unwritten can't be there from the twin, and where it spoils its
        arguments the twin's results are others.
        """
        twin = getattr(PLAIN_TORCH, name)
        filled = [arguments[i] for i in FILLED.get(name, ())]
        if name not in self.faults:
            self._check_wanted()
            for tensor in filled:
                tensor.fill_(torch.nan)
            try:
                ours = self._kernels[name](*arguments)
                results = [*_tensors(ours), *(tensor.clone() for tensor in filled)]
                theirs = twin(*arguments)
                fault = self._difference(name, arguments, results, [*_tensors(theirs), *filled])
            except Exception as error:
                fault = self._explain(error)
            if fault is None:
                return ours
            self.faults[name] = fault
        return twin(*arguments)

    def _difference(
        self, name: str, arguments: Sequence[Any], ours: list[torch.Tensor], theirs: list[torch.Tensor]
    ) -> str | None:
        """What is wrong with a kernel's results; None if nothing is."""
        if [each.shape for each in ours] != [each.shape for each in theirs]:
            return "its results on this GPU have another shape than PyTorch's"
        if name == "route":
            ours, theirs = (_routing(arguments, *results) for results in (ours, theirs))
        # One wait for all of them.
        worst = torch.stack([_distance(*pair) for pair in zip(ours, theirs, strict=True)]).max().item()
        if worst != worst:
            return "it gives what is no number (NaN) on this GPU, where PyTorch gives numbers"
        if worst > self._tolerance:
            return f"its results on this GPU are up to {_share(worst)} away from PyTorch's"
        return None


def _tensors(results: Any) -> list[torch.Tensor]:
    """What an operation returns, one or several, without what is None."""
    several = (results,) if isinstance(results, torch.Tensor) else results
    return [each for each in several if each is not None]


def _distance(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """That of the row which is the farthest away, over that row's own size, or if that is more, by how much all
    together are larger or smaller, over `TOGETHER`: fp32 scalar, NaN if anything is no number."""
    ours, theirs = ours.float(), theirs.float()
    rows = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    excess = ((ours - theirs) * theirs).sum() / theirs.square().sum()
    return torch.maximum(rows.max(), excess.abs() / TOGETHER)


def _routing(arguments: Sequence[Any], chosen: torch.Tensor, weights: torch.Tensor) -> list[torch.Tensor]:
    """A routing as what it must be the same in whoever made it: of equal scores any may be chosen.

    Scores of the chosen, their weights without each expert's scale, and how many of them are the same expert.
    """
    scores, scale, _ = arguments
    chosen = chosen.long().clamp(0, scores.shape[-1] - 1)
    twice = (chosen[:, :, None] == chosen[:, None, :]).sum(-1)
    return [scores.gather(-1, chosen), weights / scale[chosen], twice]


def _share(part: float) -> str:
    return f"{part:.1%}" if part < 10 else "many times"


def _fill(network: Network, generator: torch.Generator) -> None:
    """Random weights, of a size that keeps what goes through a layer near one."""

    def between(least: float, most: float, tensor: torch.Tensor) -> None:
        tensor.uniform_(least, most, generator=generator)

    size = network.hidden_size**-0.5
    for name, tensor in network.tensors():
        is_scale = name.endswith("weight_scale")
        if tensor.dtype == torch.float8_e4m3fn and is_scale:
            tensor.view(torch.uint8).random_(0x30, 0x40, generator=generator)  # 0.5 to 1.875
        elif tensor.dtype == torch.float8_e4m3fn:
            # Without the highest bit of the exponent: below 2, and no NaN.
            codes = tensor.view(torch.uint8)
            codes.random_(generator=generator)
            codes &= 0b1011_1111
        elif tensor.dtype == torch.uint8:
            tensor.random_(generator=generator)
        elif is_scale:
            between(size, 2 * size, tensor)
        elif name.endswith("weight_scale_2"):
            between(0.2 * size, 0.4 * size, tensor)
        elif name.endswith("weight_global_scale"):
            between(2.5 / size, 5 / size, tensor)
        elif tensor.ndim > 1:
            tensor.normal_(0.0, tensor.shape[-1] ** -0.5, generator=generator)
        else:
            between(0.75, 1.25, tensor)  # norms and scales
