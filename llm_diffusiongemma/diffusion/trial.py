"""Kernels tried on a device, each beside its twin in plain torch, with what a network gives it.

The network is a small one of random weights: of another's widths, formats and dtype, but of three layers. It reads
a chunk of a prompt and a single position, and denoises a canvas twice, free and as under a constraint. So what is
tried is what a reply launches, with arguments of the same kinds, and all of it is compiled by then.

Of the real widths it takes 6 GiB in bf16 and 3 in nvfp4, and some 2 to compare: less than a model of them does,
but maybe more than a few layers of one on a second card.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from .kv_cache import KVCache
from .network import Network
from .operations import PLAIN_TORCH
from .pipeline import MAX_PREFILL_TOKENS
from .sampler import Distributions
from .softmax import Softmax

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .config import NetworkConfig
    from .packed import Formats

Kernels = dict[str, Callable[..., Any]]
"""By the name of the twin, a field of `Operations`."""

# How far a row may be from the twin's, over its size: what rounding makes of one, several times in a twin and less
# often in a kernel, is about half of that. Products in TF32 are no fp32: they are off by 3e-4.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 2e-2}
# What all together may be larger or smaller, over the same: of so many numbers rounding cancels.
TOGETHER, MANY = 0.25, 64

# Of the tokens that are chosen the share that may be others: where a random number falls between two of them, the
# last bit decides.
OTHERS = 0.05

# No logit is as large.
LARGE = 1e30

# That of e4m3 numbers whose bytes are drawn, a root of a mean square.
E4M3_SIZE = 100.0

# The lengths of what is read before the canvas: the longest chunk of a prompt without images, and the shortest.
CHUNKS = (MAX_PREFILL_TOKENS, 1)

# What an operation writes to, by the numbers of its arguments, besides what it returns.
WRITTEN = {
    "heads": (5, 6),
    "temper": (3,),
    "measure": (0, 2),
    "temper_and_measure": (3, 5),
    "add_up": (0,),
    "conclude": (0,),
}


class Trial:
    """A place to try kernels at, with a network of random weights."""

    def __init__(
        self,
        config: NetworkConfig,
        formats: Formats,
        dtype: torch.dtype,
        device: torch.device,
        explain: Callable[[Exception], str],
        check_wanted: Callable[[], None] = lambda: None,
    ) -> None:
        """`explain` makes a sentence of what a kernel raises, or raises what isn't the kernel's fault.
        `check_wanted` is called before each is tried, and may raise."""
        self._tolerance = TOLERANCES[dtype]
        self._explain, self._check_wanted = explain, check_wanted
        kinds = tuple(dict.fromkeys(config.layers))
        # The last layer is read only up to its keys and values.
        self._network = Network(replace(config, layers=(*kinds, kinds[0])), dtype, device, formats)
        self._generator = torch.Generator(device).manual_seed(0)
        _fill(self._network, self._generator)
        self._kernels: Kernels = {}
        self._faults: dict[str, str] = {}

    @torch.no_grad()
    def faults(self, kernels: Kernels) -> dict[str, str]:
        """What is wrong with some of them, by their names, for people. Each is tried with what those before have
        made; where one is wrong, once more: what comes behind it had been tried with arguments of another kind,
        maybe."""
        self._kernels, self._faults = kernels, {}
        while True:
            before = len(self._faults)
            beside = {name: partial(self._beside, name) for name in kernels if name not in self._faults}
            self._network.operations = replace(PLAIN_TORCH, **beside)
            try:
                self._reply()
            finally:
                # They hold this object, and it holds them: nobody collects such garbage while a model is loaded.
                self._network.operations = PLAIN_TORCH
            if len(self._faults) == before:
                return self._faults

    def _reply(self) -> None:
        network, config, device = self._network, self._network.config, self._network.device
        cache = KVCache(config, network.dtype, device)
        for length in CHUNKS:
            network.encode(network.embed(self._draw(length)), cache)
        distributions = Distributions(network, config.canvas_length, device, config.final_logit_softcapping)
        distributions.soft.fill_(torch.nan)  # what stands there is nothing to the first block
        temperature = torch.tensor(0.6, device=device)
        uniforms = torch.rand(config.canvas_length, dtype=torch.float64, device=device, generator=self._generator)
        canvas = self._draw(config.canvas_length)
        distributions.measure(network.denoise(canvas, None, cache), temperature)
        distributions.conclude(uniforms)
        hidden = network.denoise(canvas, distributions.soft_embeddings(), cache)
        distributions.write(hidden, temperature)
        distributions.add()
        distributions.conclude(uniforms)

    def _draw(self, length: int) -> torch.Tensor:
        """Tokens, int64 `[length]`."""
        size, device = self._network.size, self._network.device
        return torch.randint(size, (length,), generator=self._generator, device=device)

    def _beside(self, name: str, *arguments: Any) -> Any:
        """What the kernel gives, or its twin if there is anything wrong with that.

        The kernel goes first: what it leaves unwritten can't be there from its twin.
        """
        twin = getattr(PLAIN_TORCH, name)
        if name in self._faults:
            return twin(*arguments)
        self._check_wanted()
        copies = [_copied(argument) for argument in arguments]
        written, right = ([each[i] for i in WRITTEN.get(name, ())] for each in (arguments, copies))
        if name == "heads":
            for tensor in written:
                tensor.fill_(torch.nan)
        theirs = []  # one, once it is there
        try:
            ours = self._kernels[name](*arguments)
            theirs.append(twin(*copies))
            # What the device was still at may fail here.
            fault = self._difference(name, arguments, _tensors((ours, written)), _tensors((theirs, right)))
        except Exception as error:
            fault = self._explain(error)
        if fault is None:
            return ours
        self._faults[name] = fault
        (result,) = theirs or [twin(*copies)]
        for place, tensor in zip(_tensors(written), _tensors(right), strict=True):
            place.copy_(tensor)
        return result

    def _difference(
        self, name: str, arguments: Sequence[Any], ours: list[torch.Tensor], theirs: list[torch.Tensor]
    ) -> str | None:
        """What is wrong with a kernel's results; None if nothing is."""
        if [each.shape for each in ours] != [each.shape for each in theirs]:
            return "its results on this GPU have another shape than PyTorch's"
        if name == "route":
            ours, theirs = (_routing(arguments, *results) for results in (ours, theirs))
        distances = [_distance(*pair) for pair in zip(ours, theirs, strict=True)]
        row, together, choices = torch.stack(distances).amax(0).tolist()  # one wait for all; NaN if one is
        if math.isnan(row):
            return "it gives what is no number (NaN) on this GPU, where PyTorch gives numbers"
        if row > self._tolerance or together > self._tolerance * TOGETHER:
            return f"its results on this GPU are up to {_share(row)} away from PyTorch's"
        if choices > OTHERS:
            return f"on this GPU it chooses otherwise than PyTorch in {_share(choices)} of all places"
        return None


def _copied(argument: Any) -> Any:
    """What an operation may write to is copied, weights are not."""
    if isinstance(argument, torch.Tensor):
        return argument.clone()
    if isinstance(argument, Softmax):
        tensors = {name: value.clone() for name, value in vars(argument).items() if name != "size"}
        return replace(argument, **tensors)
    return argument


def _tensors(results: Any) -> list[torch.Tensor]:
    """All that there are: in several of what an operation returns or writes to, or in one."""
    if isinstance(results, torch.Tensor):
        return [results]
    if isinstance(results, Softmax):
        results = [value for name, value in vars(results).items() if name != "size"]
    return [] if results is None else [tensor for each in results for tensor in _tensors(each)]


def _distance(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """How far results are from those of the twin, fp32 `[3]`: of numbers the row which is the farthest, over its
    size, and by how much all together are larger or smaller; of tokens or experts how many are others, as a share.
    """
    if not theirs.is_floating_point():
        return F.pad((ours != theirs).float().mean()[None], (2, 0))
    ours, theirs = ours.float(), theirs.float()
    # What nobody has written yet, and what stands for minus infinity.
    is_out = (ours.isnan() & theirs.isnan()) | ((ours == theirs) & (theirs.abs() > LARGE))
    ours, theirs = ours.masked_fill(is_out, 0.0), theirs.masked_fill(is_out, 0.0)
    apart, least = ours - theirs, torch.finfo(torch.float32).tiny
    rows = apart.norm(dim=-1) / theirs.norm(dim=-1).clamp(min=least)
    excess = (apart * theirs).sum() / theirs.square().sum().clamp(min=least) * (theirs.numel() >= MANY)
    return F.pad(torch.stack((rows.max(), excess.abs())), (0, 1))


def _routing(arguments: Sequence[Any], chosen: torch.Tensor, weights: torch.Tensor) -> list[torch.Tensor]:
    """A routing as what must be the same whoever made it: of equal scores any may be chosen.

    Scores of the chosen, their weights without each expert's scale, and how often each is chosen.
    """
    scores, scale, _ = arguments
    chosen = chosen.long().clamp(0, scores.shape[-1] - 1)
    times = (chosen[:, :, None] == chosen[:, None, :]).sum(-1)
    return [scores.gather(-1, chosen), weights / scale[chosen], times.float()]


def _share(part: float) -> str:
    return f"{part:.1%}" if part < 10 else "many times"


def _fill(network: Network, generator: torch.Generator) -> None:
    """Random weights, of a size that keeps what goes through a layer near one. Small floats are all that there
    are: of real weights the largest is the largest possible."""

    def between(least: float, most: float, tensor: torch.Tensor) -> None:
        tensor.uniform_(least, most, generator=generator)

    size = network.hidden_size**-0.5
    packed_size = size / E4M3_SIZE
    for name, tensor in network.tensors():
        is_scale = name.endswith("weight_scale")
        if tensor.dtype == torch.float8_e4m3fn and is_scale:
            tensor.view(torch.uint8).random_(1, 0x7F, generator=generator)  # up to 448, none of them negative
        elif tensor.dtype == torch.float8_e4m3fn:
            codes = tensor.view(torch.uint8)
            codes.random_(generator=generator)
            codes.masked_fill_((codes & 0x7F) == 0x7F, 0)  # no NaN
        elif tensor.dtype == torch.uint8:
            tensor.random_(generator=generator)
        elif is_scale:
            between(0.6 * packed_size, 1.2 * packed_size, tensor)
        elif name.endswith("weight_scale_2"):
            between(0.25 * packed_size, 0.5 * packed_size, tensor)
        elif name.endswith("weight_global_scale"):
            between(2 / packed_size, 4 / packed_size, tensor)
        elif tensor.ndim > 1:
            tensor.normal_(0.0, tensor.shape[-1] ** -0.5, generator=generator)
        else:
            between(0.75, 1.25, tensor)  # norms and scales
