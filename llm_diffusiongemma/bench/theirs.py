"""transformers' own `generate` of the weights that a network of ours has, in the same memory."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ..diffusion.devices import is_out_of_memory
from ..errors import DeviceMemoryError, OptionError
from .clock import Sample

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ..catalog import Representation
    from ..diffusion.config_file import ConfigFile
    from ..diffusion.network import Network
    from ..diffusion.placement import Placement
    from ..diffusion.sampler import SamplerSettings


class Theirs:
    """Replies of transformers, to the prompts and by the settings that ours are made by."""

    def __init__(
        self,
        network: Network,
        config: ConfigFile,
        settings: SamplerSettings,
        max_tokens: int,
        prompts: Mapping[str, Sequence[int]],
        *,
        eos_token_ids: Sequence[int] = (),
    ) -> None:
        """`prompts` by the names of the kinds of replies. Without `eos_token_ids` nothing ends a reply.

        Raises `OptionError` if this transformers has no DiffusionGemma.
        """
        self._model = transformers_of(network, config)
        # A token that there is none of: without any transformers asks for one.
        self._eos_token_ids = list(eos_token_ids) or [network.size]
        self._settings, self._max_tokens, self.prompts = settings, max_tokens, prompts
        self._device = network.device

    def reply(self, name: str, seed: int) -> Sample:
        """Raises `DeviceMemoryError`."""
        from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig

        prompt, settings = self.prompts[name], self._settings
        cuda = [self._device] if self._device.type == "cuda" else []
        # It draws from the process's generators.
        with torch.random.fork_rng(devices=cuda), torch.no_grad():
            torch.manual_seed(seed)
            started = time.perf_counter()
            try:
                result = self._model.generate(
                    torch.tensor([prompt], device=self._device),
                    max_new_tokens=self._max_tokens,
                    eos_token_id=self._eos_token_ids,
                    pad_token_id=0,
                    max_denoising_steps=settings.max_denoising_steps,
                    t_min=settings.t_min,
                    t_max=settings.t_max,
                    confidence_threshold=settings.confidence_threshold,
                    sampler_config=EntropyBoundSamplerConfig(entropy_bound=settings.entropy_bound),
                    stability_threshold=settings.stability_threshold,
                )
                written = getattr(result, "sequences", result)[0, len(prompt) :].tolist()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                raise DeviceMemoryError(
                    f"transformers ran out of memory of {self._device} at a prompt of {len(prompt):,} tokens: "
                    "beside the weights it takes more than the plugin. A device with more memory has room for it."
                ) from error
            seconds = time.perf_counter() - started
        end = next((i for i, token in enumerate(written) if token in self._eos_token_ids), len(written))
        return Sample(len(prompt), min(end, self._max_tokens), seconds)


def check_representation(representation: Representation) -> None:
    """Raises `OptionError` if it is none of transformers'."""
    if representation != "bf16":
        raise OptionError(
            f"transformers' own class computes with bf16 weights, and these are {representation}: --against needs "
            "the bf16 ones."
        )


def check(placement: Placement) -> None:
    """Raises `OptionError` if transformers can't compute with weights that are placed so."""
    check_representation(placement.representation)
    if len(placement.devices) > 1 or not placement.is_resident:
        raise OptionError(
            "transformers would compute with the very weights that are loaded here, which it can where all are on "
            "one device. Here they are not: leave --against out."
        )


def classes() -> tuple[Any, Any]:
    """transformers' classes of a configuration and of a model. Raises `OptionError` if it has none."""
    try:
        from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion
    except ImportError as error:
        raise OptionError("transformers has DiffusionGemma from 5.23 on: pip install -U transformers") from error
    return DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion


def transformers_of(network: Network, config: ConfigFile) -> Any:
    """transformers' model of the same weights, in the same memory. Its vision tower has none.

    Raises `OptionError` if this transformers has none.
    """
    config_class, model_class = classes()
    default = torch.get_default_dtype()
    torch.set_default_dtype(network.dtype)  # as from_pretrained does it: rotary frequencies stay fp32
    try:
        with _parameters_without_memory():
            model = model_class(config_class(**as_read(config))).eval()
    finally:
        torch.set_default_dtype(default)
    left_out = model.load_state_dict(dict(network.tensors()), strict=False, assign=True)
    assert not left_out.unexpected_keys, left_out.unexpected_keys
    model.tie_weights()
    for name, buffer in list(model.named_buffers()):
        owner, _, last = name.rpartition(".")
        model.get_submodule(owner)._buffers[last] = buffer.to(network.device)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


@contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """What is built meanwhile has its parameters on the meta device, and its buffers as they are."""
    register = torch.nn.Module.register_parameter

    def register_empty(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        register(module, name, None if parameter is None else torch.nn.Parameter(parameter.to("meta")))

    torch.nn.Module.register_parameter = register_empty  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


def as_read(config: ConfigFile) -> dict[str, Any]:
    """What of a config.json was understood, for a class that has the same defaults."""
    return config.model_dump(exclude_unset=True, exclude={"text_config": {"model_type"}})
