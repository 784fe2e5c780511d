"""What is in the weight files: counted, and a few matrices of two representations of one network compared.

Read by a few lines of its own, so that what they find wrong is not what the loader believes, too.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import torch

from ..diffusion.network import DECODER
from ..layout import unreadable
from .report import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..catalog import Representation
    from ..diffusion.loading import Described
    from ..diffusion.packed import Matrices
    from ..diffusion.weights import StoredTensor, Weights

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "U8": torch.uint8,
}

# What a format costs is 0.026 of a matrix for fp8 and 0.095 for nvfp4. With nibbles or experts exchanged, or
# scales the wrong way round, it is 1 or more.
LARGEST_DIFFERENCE: dict[Representation, float] = {"bf16": 0.01, "fp8": 0.06, "nvfp4": 0.2}
DIFFERENCES_SHOWN = 3


def headers(described: Described) -> Finding:
    """A summary of a checkpoint that has passed every check of names, shapes, dtypes and counts."""
    weights, config = described.weights, described.config.network()
    dtypes = Counter(tensor.dtype for tensor in weights.tensors.values())
    used = {stored.name for each in described.found.values() for stored in each}
    surplus = Counter(_kind(name) for name in weights.tensors.keys() - used)
    return Finding(
        "files",
        "passed",
        f"{len(used):,} tensors of the text network, all of the names, shapes and types that {len(config.layers)} "
        f"layers with {config.num_experts} experts each have in {described.formats.representation}.",
        [
            f"files: {len({tensor.file for tensor in weights.tensors.values()})}, {weights.num_bytes:,} bytes",
            "types: " + ", ".join(f"{count:,} {dtype}" for dtype, count in sorted(dtypes.items())),
            "stored as: "
            + ", ".join(
                f"{what} {matrices.__name__}"
                for what, matrices in (
                    ("experts", described.formats.experts),
                    ("attention", described.formats.attention),
                    ("mlp", described.formats.mlp),
                )
            ),
            "besides: " + (", ".join(f"{count:,} {kind}" for kind, count in sorted(surplus.items())) or "nothing"),
        ],
    )


def compare(one: Described, other: Described) -> Finding:
    """Some matrices of each layer, the same ones in both: not all, so one wrong expert may be missed."""
    names = [described.formats.representation for described in (one, other)]
    if one.config.network() != other.config.network():
        return Finding("values", "skipped", f"What is here in {names[1]} is another network.")
    limit = max(LARGEST_DIFFERENCE[name] for name in names)
    differences = {
        name: _relative_error(matrix, theirs)
        for (name, matrix), (_, theirs) in zip(_matrices(one), _matrices(other), strict=True)
    }
    wrong = [name for name, difference in differences.items() if not difference <= limit]
    ordered = sorted(differences.values())
    shown = sorted(differences, key=lambda name: differences[name], reverse=True)[:DIFFERENCES_SHOWN]
    return Finding(
        "values",
        "failed" if wrong else "passed",
        f"{len(wrong)} of {len(differences)} matrices differ more between {names[0]} and {names[1]} than a format "
        "costs: one of the two is read wrong, or they are of different networks."
        if wrong
        else f"{len(differences)} matrices are the same in {names[0]} and {names[1]} but for what a format costs.",
        [
            f"relative error: median {ordered[len(ordered) // 2]:.4f}, largest {ordered[-1]:.4f}, at most {limit}",
            "largest: " + ", ".join(f"{name} {differences[name]:.4f}" for name in shown),
        ],
    )


def stored_numbers(stored: StoredTensor, first: int = 0, count: int | None = None) -> torch.Tensor:
    """A tensor of a file as it is stored, or `count` from `first` on along its first axis.

    Raises `FileAccessError`.
    """
    rows, *rest = stored.shape or (1,)
    count = rows if count is None else count
    dtype = DTYPES[stored.dtype]
    row_bytes = math.prod(rest) * dtype.itemsize
    try:
        with stored.file.open("rb") as stream:
            stream.seek(stored.start + first * row_bytes)
            content = bytearray(stream.read(count * row_bytes))
    except OSError as error:
        raise unreadable(stored.file, error) from error
    return torch.frombuffer(content, dtype=dtype).view((count, *rest) if stored.shape else ())


def _matrices(described: Described) -> Iterator[tuple[str, torch.Tensor]]:
    """Some matrices by a name of no format, as fp32 `[out, in]`."""
    config, formats, weights = described.config.network(), described.formats, described.weights
    width, experts = config.moe_intermediate_size, config.num_experts
    for layer, attention in enumerate(config.layers):
        prefix = f"{DECODER}layers.{layer}."
        for expert in sorted({layer % experts, experts - 1 - layer % experts}):
            for name, shape in (
                ("gate_proj", (width, config.hidden_size)),
                ("up_proj", (width, config.hidden_size)),
                ("down_proj", (config.hidden_size, width)),
            ):
                title = f"layers.{layer}.experts.{expert}.{name}"
                stack = f"{prefix}experts.{'down_proj' if name == 'down_proj' else 'gate_up_proj'}"
                if stack in weights.tensors:
                    matrix = stored_numbers(weights.tensors[stack], expert, 1)[0].float()
                    yield title, matrix[-width:] if name == "up_proj" else matrix[: shape[0]]
                else:
                    yield title, _dequantised(weights, f"{prefix}experts.{expert}.{name}", formats.experts, shape)
        queries = config.num_attention_heads * attention.head_dim
        keys = attention.num_key_value_heads * attention.head_dim
        for name, kind, shape in (
            ("self_attn.q_proj", formats.attention, (queries, config.hidden_size)),
            ("self_attn.k_proj", formats.attention, (keys, config.hidden_size)),
            ("self_attn.o_proj", formats.attention, (config.hidden_size, queries)),
            ("mlp.gate_proj", formats.mlp, (config.intermediate_size, config.hidden_size)),
            ("mlp.down_proj", formats.mlp, (config.hidden_size, config.intermediate_size)),
        ):
            yield f"layers.{layer}.{name}", _dequantised(weights, f"{prefix}{name}", kind, shape)


def _dequantised(weights: Weights, name: str, kind: type[Matrices], shape: tuple[int, int]) -> torch.Tensor:
    """A matrix `[out, in]` that has tensors of its own."""
    matrices = kind(1, (shape[0],), shape[1], torch.float32, torch.device("cpu"))
    for end, place in matrices.tensors(0, 0):
        place.copy_(stored_numbers(weights.tensors[f"{name}.{end}"]).view(place.shape))
    return matrices.dequantise(slice(1), slice(shape[0]), torch.empty(1, *shape))[0]


def _relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _kind(name: str) -> str:
    """What a surplus tensor belongs to."""
    for part in ("vision_tower", "embed_vision", "input_scale", "input_global_scale"):
        if part in name:
            return part
    return "other"
