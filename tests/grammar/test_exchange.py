from __future__ import annotations

import pytest
import torch

from llm_diffusiongemma.grammar.exchange import Exchange
from tests.diffusion.pretended import PretendedCard, PretendedDevices

CPU = torch.device("cpu")


def test_on_a_cpu_nothing_is_copied() -> None:
    exchange = Exchange((2, 3), CPU)
    assert exchange.fetch() is exchange.send() is exchange.on_device


def test_numbers_come_and_go_through_memory_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with PretendedCard(monkeypatch) as card:
        exchange = Exchange((2, 3), card.device)
        for number in (0, 10, 20):
            exchange.on_host.fill_(number)
            exchange.send().add_(1)
            fetched = exchange.fetch()
            exchange.on_device.fill_(-1)  # later
            assert fetched.tolist() == [[number + 1] * 3] * 2
    assert card.crossings == [("cpu", "cuda:0"), ("cuda:0", "cpu")] * 3
    assert card.waits == 3


def test_where_no_memory_is_pinned_each_copy_is_waited_for() -> None:
    """Or it would be read or written behind the host's back."""
    with PretendedDevices() as devices:
        exchange = Exchange((2, 3), torch.device("mps", 0))
        exchange.on_device.fill_(1)
        assert exchange.fetch().tolist() == [[1] * 3] * 2
        exchange.on_host.fill_(2)
        assert (exchange.send() == 2).all()
    assert devices.crossings == [("mps:0", "cpu"), ("cpu", "mps:0")]
