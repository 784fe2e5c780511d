"""What goes where: a table at the real sizes, and what holds at any."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_diffusiongemma.diffusion.config import DIFFUSIONGEMMA_26B_A4B
from llm_diffusiongemma.diffusion.packed import PLAIN, Formats, Fp8, ModelOptNvfp4
from llm_diffusiongemma.diffusion.placement import (
    LEAST_CONTEXT_TOKENS,
    PLANNED_CONTEXT_TOKENS,
    DeviceMemory,
    Machine,
    Placement,
    place,
    step_seconds,
    whole,
)
from llm_diffusiongemma.diffusion.sizes import Sizes, sizes_of
from llm_diffusiongemma.errors import DeviceMemoryError

GIB = 2**30
FORMATS = {"bf16": PLAIN, "fp8": Formats(Fp8, Fp8, Fp8), "nvfp4": Formats(ModelOptNvfp4)}


@cache
def real(representation: str) -> Sizes:
    return sizes_of(DIFFUSIONGEMMA_26B_A4B, FORMATS[representation], torch.bfloat16, int(1.07 * GIB))


def cards(*gib: float, host: float = 24) -> Machine:
    """As PyTorch tells the memory of cards that are sold as a little more."""
    return Machine(tuple(DeviceMemory(f"cuda:{i}", int(x * GIB)) for i, x in enumerate(gib)), int(host * GIB))


def shared(device: str, gib: float) -> Machine:
    return Machine((DeviceMemory(device, int(gib * GIB), shares_host=True),), int(gib * GIB))


# Of how many layers the experts are on devices, in the host's memory and in files, in bf16, fp8 and nvfp4. None
# doesn't fit. One layer more or less is no matter.
TABLE = {
    "8 GB": (cards(7.8), None, (0, 30, 0), (0, 30, 0)),
    "12 GB": (cards(11.6), (1, 16, 13), (6, 24, 0), (9, 21, 0)),
    "16 GB": (cards(15.6), (4, 16, 10), (11, 19, 0), (18, 12, 0)),
    "24 GB": (cards(23.5), (9, 16, 5), (23, 7, 0), (30, 0, 0)),
    "32 GB": (cards(31.3), (15, 15, 0), (30, 0, 0), (30, 0, 0)),
    "48 GB": (cards(47.4), (26, 4, 0), (30, 0, 0), (30, 0, 0)),
    "80 GB": (cards(79.1), (30, 0, 0), (30, 0, 0), (30, 0, 0)),
    "2 x 24 GB": (cards(23.5, 23.5), (23, 7, 0), (30, 0, 0), (30, 0, 0)),
    "2 x 80 GB": (cards(79.1, 79.1), (30, 0, 0), (30, 0, 0), (30, 0, 0)),
    "16 GB, little memory": (cards(15.6, host=3), (4, 2, 24), (11, 3, 16), (18, 7, 5)),
    "Mac 16 GB": (shared("mps", 10.7), (1, 0, 29), (6, 0, 24), (8, 0, 22)),
    "Mac 36 GB": (shared("mps", 27), (12, 0, 18), (30, 0, 0), (30, 0, 0)),
    "Mac 64 GB": (shared("mps", 48), (27, 0, 3), (30, 0, 0), (30, 0, 0)),
    "Mac 128 GB": (shared("mps", 96), (30, 0, 0), (30, 0, 0), (30, 0, 0)),
    "no GPU, 16 GB": (shared("cpu", 12), (2, 0, 28), (8, 0, 22), (12, 0, 18)),
    "no GPU, 64 GB": (shared("cpu", 56), (30, 0, 0), (30, 0, 0), (30, 0, 0)),
}


def placed(sizes: Sizes, machine: Machine) -> Placement | None:
    try:
        return place(sizes, machine)
    except DeviceMemoryError:
        return None


def homes(placement: Placement | None) -> tuple[int, int, int] | None:
    if placement is None:
        return None
    return placement.num_layers("device"), placement.num_layers("host"), placement.num_layers("files")


@pytest.mark.parametrize("name", TABLE)
def test_the_real_network(name: str) -> None:
    machine, *expected = TABLE[name]
    for representation, wanted in zip(FORMATS, expected, strict=True):
        found = homes(placed(real(representation), machine))
        assert (found is None) == (wanted is None)
        if found is None or wanted is None:
            continue
        assert (found[0] == 30) == (wanted[0] == 30)
        assert (found[2] == 0) == (wanted[2] == 0)
        assert found == pytest.approx(wanted, abs=1)


def test_one_device_is_better_than_two() -> None:
    placement = place(real("bf16"), cards(79.1, 79.1))
    assert placement.devices == ("cuda:0",)
    assert placement.is_resident
    assert placement.vision == "cuda:0"
    assert placement.context_tokens == 262_144


def test_two_devices_share_the_layers() -> None:
    """And the longest context that both have room for."""
    placement = place(real("fp8"), cards(23.5, 23.5))
    assert placement.devices == ("cuda:0", "cuda:1")
    assert placement.is_resident
    first = [home.device for home in placement.layers].index("cuda:1")
    assert [home.device for home in placement.layers] == ["cuda:0"] * first + ["cuda:1"] * (30 - first)
    assert placement.context_tokens == 262_144


def test_streamed_layers_stand_apart() -> None:
    """So that each has time to come while the ones between are computed."""
    placement = place(real("nvfp4"), cards(15.6))
    num_streamed = placement.num_layers("host")
    streamed = [i for i, home in enumerate(placement.layers) if home.experts == "host"]
    assert {after - before for before, after in pairwise(streamed)} == {2, 3}
    assert placement.step_bytes == num_streamed * real("nvfp4").experts_bytes
    assert placement.host_bytes == num_streamed * real("nvfp4").pinned_experts_bytes
    # There was no room for it.
    assert placement.vision == "cpu"


@pytest.mark.parametrize("spare", [0, 1, -1])
def test_the_host_holds_as_many_as_it_has_room_for(spare: int) -> None:
    """A layer too many for it leaves one in the files, not three."""
    sizes = real("nvfp4")
    num_streamed = place(sizes, cards(11.6)).num_layers("host")
    host_bytes = (num_streamed + spare) * sizes.pinned_experts_bytes
    placement = place(sizes, replace(cards(11.6), host_bytes=host_bytes))
    assert placement.num_layers("files") == max(0, -spare)


def test_a_cpu_computes_with_the_cores_that_it_has() -> None:
    sizes = real("nvfp4")
    placement = place(sizes, shared("cpu", 56))
    one, two, many = (step_seconds(sizes, placement, cores) for cores in (1, 2, 64))
    assert one == pytest.approx(2 * two)
    assert many > one / 64  # decoding waits for memory


def test_too_little_for_anything_is_told_in_numbers() -> None:
    with pytest.raises(
        DeviceMemoryError,
        match=r"nvfp4 the model takes 7\.\d GiB at the least, .*: 4\.5 GiB for all .* 0\.8 GiB .* 2\.\d GiB to "
        r"work in with 4,096 tokens of context\. There may be taken 5\.8 GiB of cuda:0\.$",
    ):
        place(real("nvfp4"), cards(5.8))


def test_a_short_context_is_better_than_none() -> None:
    placement = place(real("nvfp4"), cards(7.8))
    assert placement.context_tokens is not None
    assert LEAST_CONTEXT_TOKENS <= placement.context_tokens < PLANNED_CONTEXT_TOKENS


def test_everything_on_one_device_without_counting() -> None:
    placement = whole("fp8", 3, "cpu")
    assert placement.is_resident
    assert placement.devices == ("cpu",)
    assert len(placement.layers) == 3
    assert placement.context_tokens is None


def test_as_json() -> None:
    placement = place(real("nvfp4"), cards(15.6))
    assert placement.as_json() == {
        "devices": {"cuda:0": {"layers": 30, "expected_bytes": dict(placement.device_bytes)["cuda:0"]}},
        "vision": "cpu",
        "experts_streamed_from_memory": placement.num_layers("host"),
        "experts_streamed_from_files": 0,
        "pinned_bytes": placement.host_bytes,
        "step_bytes": placement.step_bytes,
        "context_tokens": placement.context_tokens,
    }


memories = st.lists(st.floats(2, 64), min_size=1, max_size=3)


@settings(max_examples=20, deadline=None)
@given(memories, st.floats(0, 64), st.sampled_from(sorted(FORMATS)))
def test_never_more_than_a_device_has(gib: list[float], host: float, representation: str) -> None:
    sizes, machine = real(representation), cards(*gib, host=host)
    placement = placed(sizes, machine)
    if placement is None:
        return
    for device, expected in placement.device_bytes:
        total = next(each.total_bytes for each in machine.devices if each.device == device)
        mine = [home for home in placement.layers if home.device == device]
        resident = sum(home.experts == "device" for home in mine)
        weights = resident * sizes.experts_bytes + len(mine) * min(sizes.dense_bytes.values())
        assert weights < expected <= total
    assert placement.host_bytes <= machine.host_bytes
    assert [home.device for home in placement.layers] == sorted(home.device for home in placement.layers)


@settings(max_examples=20, deadline=None)
@given(memories, st.floats(0, 64), st.floats(0, 16), st.integers(0, 3), st.sampled_from(sorted(FORMATS)))
def test_more_memory_never_streams_more(
    gib: list[float], host: float, more: float, where: int, representation: str
) -> None:
    """Nor does a place for it that is nearer make it less."""
    sizes = real(representation)
    larger = [x + more * (i == where) for i, x in enumerate(gib)]
    small = placed(sizes, cards(*gib, host=host))
    large = placed(sizes, cards(*larger, host=host + more * (where == 3)))
    if small is not None:
        assert large is not None
        assert large.step_bytes <= small.step_bytes
        assert large.num_layers("files") <= small.num_layers("files")


# --- a captured step ---------------------------------------------------------------------------------------


def test_a_captured_step_of_the_real_network_takes_a_quarter_of_a_gibibyte() -> None:
    for representation in FORMATS:
        assert 0.2 < real(representation).graph_bytes("cuda") / GIB < 0.4
        assert real(representation).graph_bytes("mps") == real(representation).graph_bytes("cpu") == 0


def test_a_step_is_captured_where_all_is_on_one_card_with_room_for_it() -> None:
    sizes = real("nvfp4")
    assert place(sizes, cards(23.5)).has_room_for_graph
    assert not place(sizes, cards(15.6)).has_room_for_graph  # streamed
    assert not place(sizes, cards(11.6, 11.6)).has_room_for_graph
    # From where it fits at all: first nothing but the network, then the graph, then the vision tower.
    stages = []
    for mib in range(19 * 1024, 21 * 1024, 128):
        placement = place(sizes, cards(mib / 1024))
        if placement.is_resident:
            expected = dict(placement.device_bytes)["cuda:0"]
            stages.append((placement.has_room_for_graph, placement.vision != "cpu"))
            assert expected <= mib * 2**20
    assert list(dict.fromkeys(stages)) == [(False, False), (True, False), (True, True)]
