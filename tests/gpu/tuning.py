"""Products of experts and of packed matrices cut up otherwise: is the table of diffusion/kernels/tiles.py the best
for the card at hand?

    python -m tests.gpu.first_light --only machine,tune

says for each format and product what the table's tiling takes, and the fastest ones as lines to be put there. What
is tried is compiled ahead, into Triton's cache on disk, by as many processes as there are cores: one after the
other it would take most of a loan.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING
from unittest.mock import patch

import torch

from llm_diffusiongemma.bench.networks import random_network
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.packed import PLAIN, Formats, Fp8, ModelOptNvfp4
from llm_diffusiongemma.diffusion.sizes import META

from .bench import Bench, Result
from .launches import Launch, pretended, written_down
from .networks import network_config, routing_of

if TYPE_CHECKING:
    from llm_diffusiongemma.diffusion.kernels.cards import Card
    from llm_diffusiongemma.diffusion.kernels.tiles import Product, Tiling
FORMATS = {
    "bf16": PLAIN,
    "fp8": Formats(Fp8, Fp8, Fp8),
    "nvfp4": Formats(ModelOptNvfp4, ModelOptNvfp4, ModelOptNvfp4),
}
PRODUCTS: tuple[Product, ...] = ("up", "down", "dense")
# Of each a layer: so many that what one has left in a card's cache is gone when it is its turn again.
LAYERS = 4
# A step's time is that of the weights' way to the processor, and these are what may be on it.
SHARED_BYTES = 200 * 1024
WRONG = 1e-2


@contextmanager
def cut_up(product: Product, tiling: Tiling | None) -> Iterator[None]:
    """With that tiling of one of the products; None for the table's."""
    from llm_diffusiongemma.diffusion.kernels import experts

    table = experts.tiling_of

    def chosen(card: Card, name: str, asked: Product, mean_rows: float) -> Tiling:
        return tiling if tiling and asked == product else table(card, name, asked, mean_rows)

    with patch.object(experts, "tiling_of", chosen):
        yield


def tilings(name: str, product: Product) -> list[Tiling]:
    """A few dozen: whole rows of 64 to 256 bytes, three to five of them on their way."""
    from llm_diffusiongemma.diffusion.kernels.tiles import Tiling

    bits = {"bf16": 16, "fp8": 8, "nvfp4": 4}[name]
    found = []
    for columns, channels, stages, swap in itertools.product(
        (32, 64, 128), (64, 128, 256), (3, 4, 5), (False, True)
    ):
        rows = 64 if product == "dense" else 32
        weights = columns * channels * bits // 8 * (2 if product == "up" else 1)
        fits = stages * (weights + rows * channels * 2) <= SHARED_BYTES
        if fits and 64 <= channels * bits // 8 <= 256 and (columns >= 64 or not swap):
            found.append(Tiling(rows, columns, channels, 4, stages, swap))
    return found


class Products:
    """One of the products of a few layers, for a canvas's positions."""

    def __init__(self, network: Network, product: Product, card: torch.device | None = None) -> None:
        """`card` is what it is compiled for, if the network isn't there."""
        from llm_diffusiongemma.diffusion.kernels import experts

        kernels, _ = experts.usable(network.config, network.formats, network.dtype, card or network.device)
        self._kernels = kernels
        self._network, self._product = network, product
        config = network.config
        widths = {config.hidden_size, config.intermediate_size}
        widths |= {config.num_attention_heads * kind.head_dim for kind in config.layers}
        n, where, dtype = config.canvas_length, network.device, network.dtype
        self._inputs = {width: torch.randn(n, width, device=where, dtype=dtype) for width in widths}
        x = self._inputs[config.hidden_size]
        self._routings = [routing_of(network, i, x) for i in range(len(config.layers))]

    def results(self) -> list[torch.Tensor]:
        layers = self._network._layers
        if self._product == "dense":
            matrices = [
                (each, layer.scratch)
                for layer in layers
                for each in (layer.qkv, layer.output, layer.mlp._gate_up, layer.mlp._down)
            ]
            return [
                self._kernels["linear"](self._inputs[each.inputs], each, scratch) for each, scratch in matrices
            ]
        x = self._inputs[self._network.hidden_size]
        found = []
        for layer, routing in zip(layers, self._routings, strict=True):
            assert layer.experts is not None
            found.append(self._kernels["through_experts"](x, layer.experts, *routing))
        return found

    def weight_bytes(self) -> int:
        """Of a layer."""
        layer = self._network._layers[0]
        assert layer.experts is not None
        chosen = {
            "up": [layer.experts.gate_up],
            "down": [layer.experts.down],
            "dense": [layer.qkv, layer.output, layer.mlp._gate_up, layer.mlp._down],
        }[self._product]
        return sum(tensor.nbytes for matrices in chosen for tensor in matrices.held())

    def launches(self) -> list[Launch]:
        """Those of this product alone, of all layers."""
        with written_down(launched=True) as heard:
            self.results()
        return [each for each in heard if each.constants.get("PRODUCT") == self._product]


def tune(bench: Bench) -> Result:
    """Each format and product: the table's tiling, and the fastest others that are right."""
    if bench.on_card:
        compile_ahead(bench)
    found = bench.begin()
    for name, formats in FORMATS.items():
        config = bench.config.network()
        layers = config.layers[:1] * (1 if bench.is_tiny else LAYERS)
        network = random_network(replace(config, layers=layers), bench.device, formats)
        for product in PRODUCTS:
            if (name, product) != ("bf16", "dense"):  # that is torch's
                found[f"{name} {product}"] = tuned(bench, name, Products(network, product), product)
        del network
    return {"ok": all(each["wrong"] == [] for each in found.values()), **found}


def tuned(bench: Bench, name: str, products: Products, product: Product) -> Result:
    candidates: Sequence[Tiling | None] = [None, *tilings(name, product)]
    if not bench.on_card:
        candidates = candidates[:2]
    times: dict[Tiling | None, float] = {}
    wrong: list[str] = []
    expected: list[torch.Tensor] = []
    for tiling in candidates:
        with cut_up(product, tiling):
            try:
                results = products.results()
                expected = expected or results
                if not all(is_near(ours, theirs) for ours, theirs in zip(results, expected, strict=True)):
                    wrong.append(str(tiling))
                    continue
                times[tiling] = timed(bench, products.launches()) / len(products._network.config.layers)
            except Exception as error:
                # Too much shared memory, a program that Triton can't make: that one isn't for this card.
                if tiling is None or isinstance(error, torch.AcceleratorError):
                    raise
                wrong.append(f"{tiling}: {type(error).__name__}: {error}"[:200])
    rate = products.weight_bytes() / bench.copy_rate * 1e3
    best = sorted((each for each in times if each is not None), key=lambda each: times[each])[:3]
    return {
        "table_ms": round(times[None], 4),
        "table's share of the copy rate": round(rate / times[None], 3),
        "best": [f'("{name}", "{product}"): {line(each)},  # {times[each]:.3f}' for each in best],
        "best's share": round(rate / times[best[0]], 3) if best else None,
        "tried": len(times) - 1,
        "wrong": [each for each in wrong if ": " not in each],
        "not for this card": [each for each in wrong if ": " in each][:5],
    }


def line(tiling: Tiling) -> str:
    """As it is written in the table."""
    numbers = (tiling.rows, tiling.columns, tiling.channels, tiling.warps, tiling.stages)
    return f"Tiling({', '.join(map(str, numbers))}, swap={tiling.swap})"


def is_near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    difference = (found.double() - expected.double()).norm() / expected.double().norm()
    return bool(difference < WRONG)  # not so if it is NaN


def timed(bench: Bench, launches: Sequence[Launch]) -> float:
    """Milliseconds of all of them, without the host."""

    def all_of_them() -> torch.Tensor:
        for launch in launches:
            launch.again()
        return torch.empty(0)

    from .speed import captured

    return bench.ms(captured(bench, all_of_them)[0], 5, 1)


def compile_ahead(bench: Bench) -> None:
    """All that will be tried, for this card."""
    major, minor = torch.cuda.get_device_capability(bench.device)
    target = f"sm_{major}{minor}"
    if torch.version.hip is not None:
        target = str(torch.cuda.get_device_properties(bench.device).gcnArchName).partition(":")[0]
    jobs = [
        (name, product, tiling)
        for name in FORMATS
        for product in PRODUCTS
        if (name, product) != ("bf16", "dense")
        for tiling in tilings(name, product)
    ]
    workers = max(1, (os.cpu_count() or 1) - 1)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(partial(compile_one, target), jobs, chunksize=4))


def compile_one(target: str, job: tuple[str, Product, Tiling]) -> None:
    """In a process of its own. What doesn't compile is said when it is tried."""
    from .compiling import compile_for, triton_target, variant

    name, product, tiling = job
    for launch in launches_of(name, product, tiling, target):
        with suppress(Exception):
            compile_for(*variant(launch, triton_target(target)), triton_target(target))


def launches_of(name: str, product: Product, tiling: Tiling, target: str) -> list[Launch]:
    """Of one layer of the real widths, on the meta device."""
    config = network_config(is_tiny=False).network()
    network = Network(replace(config, layers=config.layers[:1]), torch.bfloat16, META, FORMATS[name])
    with pretended(target) as card, cut_up(product, tiling), written_down() as launches:
        Products(network, product, card).results()
    return [each for each in launches if each.constants.get("PRODUCT") == product]
