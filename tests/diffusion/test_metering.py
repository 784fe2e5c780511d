"""What streaming costs is counted right. On a card: see test_streaming.py."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.diffusion import metering
from llm_diffusiongemma.diffusion.experts import Experts
from llm_diffusiongemma.diffusion.loading import describe, load_model
from llm_diffusiongemma.diffusion.pipeline import BlockDiffusionPipeline
from llm_diffusiongemma.diffusion.placement import LayerHome, whole
from llm_diffusiongemma.diffusion.request import Prompt, Request
from llm_diffusiongemma.diffusion.sampler import GeneratorRandomness, SamplerSettings
from llm_diffusiongemma.diffusion.sizes import sizes_of
from llm_diffusiongemma.view.records import Reading

from .small_network import NUM_LAYERS, network_at, reply, resident_network

if TYPE_CHECKING:
    from llm_diffusiongemma.diffusion.network import Network

FROM_FILES = [LayerHome("cpu", "files")] * NUM_LAYERS


class Clock:
    """Goes on when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        monkeypatch.setattr(metering.time, "perf_counter", lambda: self.seconds)

    def go_on(self, *_: object) -> None:
        self.seconds += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Whoever needs a layer's experts reads them, at once."""

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    return Clock(monkeypatch)


def experts_bytes(network: Network) -> int:
    experts = network._layers[0].experts
    assert experts is not None
    return NUM_LAYERS * sum(tensor.nbytes for tensor in experts.held())


def test_what_is_waited_for_all_the_time(clock: Clock) -> None:
    resident = resident_network()
    network, files = network_at(FROM_FILES, resident)
    files.before = clock.go_on
    assert network.streaming_report() is None
    network.start_reply()
    assert network.streaming_report() is None
    reply(network, chunks=(5,), steps=3)
    before, started = len(files.layers), clock.seconds
    network.start_reply()
    assert network.streaming_report() is None
    reply(network, chunks=(5,), steps=3)
    bytes_a_step = experts_bytes(resident)
    bytes_read = (len(files.layers) - before) * bytes_a_step / NUM_LAYERS
    assert network.streaming_report() == {
        "bytes_a_step": bytes_a_step,
        "waited_share": 1.0,
        "bytes_a_second": round(bytes_read / (clock.seconds - started)),
    }


def test_what_comes_while_something_else_is_computed_is_not_waited_for(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = Experts.__call__

    def compute_slowly(*arguments: Any) -> torch.Tensor:
        clock.go_on()
        return compute(*arguments)

    monkeypatch.setattr(Experts, "__call__", compute_slowly)
    network, files = network_at(FROM_FILES, resident_network())
    for is_slow, share in ((True, 0.75), (False, 0.0)):
        # Reading a layer takes three seconds then, computing it one.
        files.before = clock.go_on if is_slow else lambda _: None
        network.start_reply()
        reply(network, chunks=(), steps=1)
        report = network.streaming_report()
        assert report is not None
        assert report["waited_share"] == share


def test_where_all_stays_there_is_nothing_to_report() -> None:
    network = resident_network()
    network.start_reply()
    reply(network)
    assert network.streaming_report() is None


def test_what_breaks_off_is_no_step(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    network, files = network_at(FROM_FILES, resident_network())
    network.start_reply()
    files.before = lambda _: 1 / 0
    with pytest.raises(ZeroDivisionError):
        reply(network)
    assert network.streaming_report() is None


def test_a_reply_of_the_product_is_reported_as_it_was_planned() -> None:
    """And the first layers are on their way before anything of its prompt is read."""
    described = describe(EMBEDDED_CHECKPOINT)
    homes = (LayerHome("cpu", "files"),) * described.config.text_config.num_hidden_layers
    network = load_model(described, replace(whole("bf16", len(homes), "cpu"), layers=homes)).network
    pipeline = BlockDiffusionPipeline(network, eos_token_ids=[1], pad_token_id=0)
    request = Request(Prompt(range(200, 220)), SamplerSettings(2, 0.1, 0.4, 0.8, 0.005, 1), max_tokens=20)
    randomness = GeneratorRandomness(torch.Generator().manual_seed(0))
    records = pipeline.generate(request, randomness=randomness, readings=True)
    assert isinstance(next(records), Reading)
    assert [buffer._layer for stream in network._streams.values() for buffer in stream._buffers] == [0, 1]
    assert len(list(records)) == 2
    report = network.streaming_report()
    assert report is not None
    planned = sizes_of(network.config, network.formats, network.dtype, 0)
    assert report["bytes_a_step"] == len(homes) * planned.experts_bytes
    assert 0 <= report["waited_share"] <= 1
