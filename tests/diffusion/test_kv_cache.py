"""The KV cache against a naive one, which keeps the keys and values of every position."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from llm_diffusiongemma.diffusion import kv_cache
from llm_diffusiongemma.diffusion.config import AttentionConfig, NetworkConfig
from llm_diffusiongemma.diffusion.kv_cache import KVCache

PIECE, SLIDING_PIECE = 8, 4
# None: full layers only.
WINDOWS = [None, 2, 3, 7]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "PIECE", PIECE)
    monkeypatch.setattr(kv_cache, "SLIDING_PIECE", SLIDING_PIECE)


def config_of(window: int | None) -> NetworkConfig:
    full = AttentionConfig(head_dim=4, num_key_value_heads=1, rope_theta=1e4, rope_share=1.0, window=None)
    sliding = AttentionConfig(head_dim=2, num_key_value_heads=3, rope_theta=1e4, rope_share=1.0, window=window)
    return NetworkConfig(
        vocab_size=9,
        hidden_size=8,
        intermediate_size=8,
        num_attention_heads=3,
        num_experts=1,
        top_k_experts=1,
        moe_intermediate_size=8,
        layers=(full, full) if window is None else (sliding, sliding, full),
        rms_norm_eps=1e-6,
        final_logit_softcapping=None,
        image_tokens_see_each_other=True,
        context_length=100,
        canvas_length=4,
    )


class Checked:
    """A cache and a naive one beside it. What is written is a number that nothing else has."""

    def __init__(self, window: int | None) -> None:
        self.config = config_of(window)
        self.cache = KVCache(self.config, torch.float32, torch.device("cpu"))
        self.naive: list[int] = []
        self._written = 0

    def write(self, positions: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """As a denoiser does: nothing is committed. Returns what each layer sees, which has been checked."""
        self.cache.reserve(positions)
        numbers = list(range(self._written, self._written + positions))
        self._written += positions
        views = []
        for i, layer in enumerate(self.config.layers):
            reach = len(self.naive) if layer.window is None else min(len(self.naive), layer.window - 1)
            assert self.cache.first_seen(layer.window) == len(self.naive) - reach
            seen = self.naive[len(self.naive) - reach :] + numbers
            content = self._content(i, seen)
            written = content[-positions:].transpose(0, 1)
            for slots, values in zip(self.cache.slots(i, positions), (written, -written), strict=True):
                slots.copy_(values)
            keys, values = self.cache.seen(i, positions)
            assert torch.equal(keys.transpose(0, 1), content)
            assert torch.equal(values.transpose(0, 1), -content)
            views.append((keys, values))
        return views

    def read(self, positions: int) -> None:
        """As an encoder does."""
        self.write(positions)
        self.cache.commit(positions)
        self.naive += range(self._written - positions, self._written)
        assert self.cache.length == len(self.naive)

    def rewind(self, length: int) -> int:
        left = self.cache.rewind(length)
        assert left == self.cache.length <= length
        del self.naive[left:]
        return left

    def _content(self, layer: int, numbers: list[int]) -> torch.Tensor:
        kind = self.config.layers[layer]
        heads_and_dims = torch.arange(kind.num_key_value_heads * kind.head_dim).view(-1, kind.head_dim)
        content: torch.Tensor = 100.0 * torch.tensor(numbers)[:, None, None] + 20 * layer + heads_and_dims
        return content


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["read", "write"]), st.sampled_from([1, 2, 3, 5, 13, 30])),
        st.tuples(st.just("mark"), st.none()),
        st.tuples(st.just("rewind"), st.floats(0, 1)),
    ),
    max_size=25,
)


@pytest.mark.parametrize("window", WINDOWS)
@hypothesis.given(steps=STEPS)
@hypothesis.settings(
    max_examples=20, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], deadline=None
)
def test_it_holds_what_a_naive_one_holds(window: int | None, steps: list[tuple[str, Any]]) -> None:
    checked, marked = Checked(window), 0
    for name, value in steps:
        if name == "mark":
            checked.cache.mark()
            marked = len(checked.naive)
        elif name == "rewind":
            length, before = round(value * len(checked.naive)), len(checked.naive)
            left = checked.rewind(length)
            if window is None or length == before:
                assert left == length
            elif length >= marked:
                assert left >= marked
            marked = min(marked, left)
        elif name == "read":
            checked.read(value)
        else:
            checked.write(value)
    checked.write(3)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("chunks", [(5, 13, 1, 9), (1,) * 9], ids=str)
@pytest.mark.parametrize("marked_at", [1, 11])
def test_rewinding_to_every_length(window: int | None, chunks: tuple[int, ...], marked_at: int) -> None:
    """Back to the mark at least. From there on it goes as if nothing had been."""
    for length in range(marked_at + sum(chunks)):
        checked = Checked(window)
        checked.read(marked_at)
        checked.cache.mark()
        for positions in chunks:
            checked.read(positions)
        assert checked.rewind(length) >= (marked_at if length >= marked_at else 0)
        checked.write(4)
        checked.read(20)
        checked.write(4)


def test_a_short_context_can_be_rewound_anywhere() -> None:
    """As long as nothing has been forgotten."""
    checked = Checked(7)
    checked.cache.reserve(20)
    checked.read(15)
    for length in range(15, -1, -1):
        assert checked.rewind(length) == length
        checked.write(3)


def test_a_mark_does_not_outlive_what_it_marked() -> None:
    checked = Checked(3)
    checked.read(20)
    checked.cache.mark()
    checked.read(20)
    assert checked.rewind(19) == 0  # the mark stands behind it, and all else is forgotten
    for _ in range(3):
        checked.read(20)
    assert checked.rewind(30) == 0
    checked.write(4)


@pytest.mark.parametrize("window", [2, 7])
def test_the_memory_of_sliding_layers_is_bounded(window: int) -> None:
    """A window, the longest chunk and a piece, whatever the context; full layers grow by pieces."""
    checked = Checked(window)
    for _ in range(30):
        checked.read(13)
        for (keys, _), layer in zip(checked.write(4), checked.config.layers, strict=True):
            per_position = 4 * layer.num_key_value_heads * layer.head_dim
            room = keys.untyped_storage().nbytes() / per_position
            assert room < (
                window - 1 + 13 + SLIDING_PIECE if layer.window else checked.cache.length + 4 + PIECE + 13
            )


def test_tensors_stay_where_they_are() -> None:
    """Until they have to grow: what a captured step reads and writes has a fixed place."""
    checked = Checked(7)
    checked.read(13)
    checked.read(13)
    seen = []  # kept, or another tensor may have the place of one that is gone
    for _ in range(20):
        checked.read(5)
        for first, second in zip(checked.write(4), checked.write(4), strict=True):
            assert [view.data_ptr() for view in first] == [view.data_ptr() for view in second]
        seen.append(checked.write(4))
    for layer, *views in zip(checked.config.layers, *seen, strict=True):
        for each in zip(*views, strict=True):
            places = {view.untyped_storage().data_ptr() for view in each}
            assert len(places) == 1 if layer.window else 1 < len(places) <= 20 * 5 // PIECE + 1


class _Interrupt(TorchDispatchMode):
    """Raises in the place of an operator."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("act", ["reserve for a chunk", "reserve for a canvas", "rewind"])
def test_broken_off_it_holds_nothing_or_everything(act: str) -> None:
    """Wherever memory ran out or a user interrupted."""
    lengths, operators = set(), 0
    while True:
        checked = Checked(7)
        checked.read(9)
        checked.cache.mark()
        checked.read(13)
        checked.read(13)
        interrupt = _Interrupt(operators)
        try:
            with interrupt:
                if act == "rewind":
                    checked.rewind(12)
                else:
                    checked.cache.reserve(40 if act == "reserve for a chunk" else 12)
        except KeyboardInterrupt:
            pass
        else:
            break
        lengths.add(checked.cache.length)
        assert checked.cache.length in (0, len(checked.naive))
        del checked.naive[checked.cache.length :]
        checked.write(4)
        checked.read(30)
        checked.rewind(10)
        checked.write(4)
        operators += 1
    assert operators > 5
    assert 0 in lengths
