"""The network of the real sizes with random weights, placed on this machine as the real ones would be."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..backends.choice import FORMATS, choose
from ..backends.engine import TRYING_KERNELS
from ..backends.turn import WeightsReport
from ..catalog import DEVICE_VARIABLE, HUB_SOURCES, built_in
from ..diffusion.config_file import ConfigFile
from ..diffusion.devices import is_out_of_memory, peak_memory
from ..diffusion.proving import Verdict, import_kernels, is_to_be_tried, prove_all
from ..errors import DeviceMemoryError, NoGpuError
from ..view.progress import indicate
from ..wording import listed, tell
from .networks import REAL, random_network
from .replies import CANVASES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..backends.choice import Choice
    from ..backends.turn import Stop
    from ..catalog import Representation
    from ..diffusion.network import Network
    from ..diffusion.placement import Placement


@dataclass(frozen=True, eq=False)
class RandomWeights:
    """A network that was made."""

    network: Network
    config: ConfigFile
    placement: Placement
    verdict: Verdict
    """What it computes with."""
    seconds: float
    """that it took to make it"""

    def room_for(self, lengths: Sequence[int]) -> list[int]:
        """Those prompts that leave room for the reply."""
        config, possible = self.network.config, self.placement.context_tokens
        most = config.context_length if possible is None else min(possible, config.context_length)
        return [length for length in lengths if length + CANVASES * config.canvas_length <= most]

    def report(self) -> WeightsReport:
        return WeightsReport(
            representation=self.placement.representation,
            repository="random weights",
            revision=None,
            placement=self.placement.as_json(),
            peak_memory_bytes=peak_memory(self.placement.devices),
            device=str(self.network.device),
            dtype=str(self.network.dtype).removeprefix("torch."),
            kernels=self.verdict.as_json(),
        )


def place(representation: Representation, *, against: bool = False) -> Placement:
    """Where a prompt would have the real weights of that representation. `against` transformers, too?

    Raises `DeviceMemoryError` or `NoGpuError` if it would have none, and `DeviceMemoryError` if it would read some
    from the weight files again and again.
    """
    choice = _choice(representation)
    placement = choice.placement
    if isinstance(choice.refusal, NoGpuError):
        has_room = placement is not None and not placement.num_layers("files")
        way_out = f"Set {DEVICE_VARIABLE}=cpu to measure it there all the same, or another model" * has_room
        raise NoGpuError(f"{choice.reason} {way_out or 'What runs anywhere'}: {tiny(against)}")
    if choice.refusal is not None:
        raise type(choice.refusal)(f"{choice.reason}\n{_what_fits(against)}")
    assert placement is not None  # of a known size
    if count := placement.num_layers("files"):
        raise DeviceMemoryError(
            f"Of random {representation} weights the experts of {count} layers have no room in memory, and there "
            f"are no weight files that they could be read from at each step.\n{_what_fits(against)}"
        )
    return placement


def make(placement: Placement, stop: Stop) -> RandomWeights:
    """Try kernels, and draw the weights where they are placed. Raises `DeviceMemoryError`, what trying kernels
    raises, and what `stop` raises."""
    started = time.perf_counter()
    config, device = ConfigFile.model_validate(REAL), torch.device(placement.devices[0])
    sizes, formats = config.network(), FORMATS[placement.representation]
    weight_bytes = next(s.weight_bytes or 0 for s in HUB_SOURCES if s.representation == placement.representation)
    if is_to_be_tried(device, weight_bytes):
        # What is wrong with it the trial says.
        with indicate("Importing Triton"), stop.importing(), suppress(Exception):
            import_kernels()
    try:
        # First, as it is for weights that are loaded: it takes memory.
        verdict = prove_all(
            sizes,
            formats,
            torch.bfloat16,
            [torch.device(each) for each in placement.devices],
            weight_bytes,
            lambda: indicate(TRYING_KERNELS),
            stop.check,
        )
        network = random_network(sizes, device, formats, placement.layers)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceMemoryError(
            f"{' and '.join(placement.devices)} ran out of memory while the weights were drawn. Free memory that "
            "other programs hold there."
        ) from error
    if verdict.warning is not None:
        tell(verdict.warning)
    network.operations = verdict.operations
    return RandomWeights(network, config, placement, verdict, time.perf_counter() - started)


def _choice(representation: Representation) -> Choice:
    """What a prompt to the real weights would take, whatever folder the environment names."""
    model_id = f"diffusiongemma-{representation}"
    return choose(next(entry for entry in built_in() if entry.model_id == model_id))


def fitting_here() -> list[Representation]:
    """The representations that have room here, the most exact first."""
    every = [source.representation for source in HUB_SOURCES if source.representation is not None]
    return [each for each in every if _fits(_choice(each))]


def tiny(against: bool) -> str:
    """What can be measured anywhere."""
    return "llm diffusiongemma bench diffusiongemma-tiny" + " --against transformers" * against


def _what_fits(against: bool) -> str:
    """Where bf16 doesn't, which is all that transformers has."""
    if against:
        return f"--against needs bf16 weights. Those of another model fit here: {tiny(against)}"
    if not (fitting := fitting_here()):
        return f"No representation fits here. What runs anywhere: {tiny(against)}"
    return f"Here would fit: {listed([f'--random-weights {each}' for each in fitting])}."


def _fits(choice: Choice) -> bool:
    placement = choice.placement
    return choice.refusal is None and placement is not None and not placement.num_layers("files")
