"""transformers' own model of the weights that a network of ours has, in the same memory."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..diffusion.config_file import ConfigFile
    from ..diffusion.network import Network


def transformers_of(network: Network, config: ConfigFile) -> Any:
    """transformers' model of the same weights, in the same memory. Its vision tower has none."""
    from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

    default = torch.get_default_dtype()
    torch.set_default_dtype(network.dtype)  # as from_pretrained does it: rotary frequencies stay fp32
    try:
        with _parameters_without_memory():
            model = DiffusionGemmaForBlockDiffusion(DiffusionGemmaConfig(**as_read(config))).eval()
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
