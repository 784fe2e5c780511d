"""Formats of stored weights against tables made from their definitions, and against compressed-tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llm_diffusiongemma.diffusion import packed
from llm_diffusiongemma.diffusion.packed import (
    CompressedTensorsNvfp4,
    Fp8,
    Matrices,
    ModelOptNvfp4,
    Plain,
    Scratch,
)

from ..layouts import writer

if TYPE_CHECKING:
    from collections.abc import Callable

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BYTES = torch.arange(256, dtype=torch.uint8)


def e4m3(byte: int) -> float:
    """OCP 8-bit floating point, E4M3: no infinities, one NaN of each sign."""
    sign, exponent, mantissa = -1 if byte >> 7 else 1, byte >> 3 & 15, byte & 7
    if (exponent, mantissa) == (15, 7):
        return float("nan")
    return sign * (mantissa / 8 * 2**-6 if exponent == 0 else (1 + mantissa / 8) * 2 ** (exponent - 7))


E4M3 = torch.tensor([e4m3(byte) for byte in range(256)], dtype=torch.float64)
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float64)


def by_definition(values: dict[str, torch.Tensor]) -> torch.Tensor:
    """The numbers of a matrix, fp32, of its tensors in a checkpoint: each product or quotient rounded to fp32."""
    if "weight_packed" in values or "weight_scale_2" in values:
        bytes_ = values.get("weight_packed", values.get("weight")).int()  # type: ignore[union-attr]
        numbers = torch.stack((E2M1[bytes_ & 15], E2M1[bytes_ >> 4]), -1).flatten(1)
        scale = E4M3[values["weight_scale"].view(torch.uint8).int()]
        if "weight_scale_2" in values:
            scale = scale * values["weight_scale_2"].double()
        else:
            scale = scale / values["weight_global_scale"].double()
        scale = scale.float().double().repeat_interleave(16, 1)
    else:
        numbers = E4M3[values["weight"].view(torch.uint8).int()]
        scale = values["weight_scale"].double()
    return (numbers * scale).float()


def filled(matrices: Matrices, which: int, part: int, values: dict[str, torch.Tensor]) -> None:
    """As loading does it: by name, in the dtype of the file or in what it becomes."""
    places = dict(matrices.tensors(which, part))
    assert places.keys() == values.keys() - {"input_scale", "input_global_scale"}
    for name, place in places.items():
        value = values[name].view(place.shape)
        assert place.dtype in (value.dtype, torch.float32)
        place.copy_(value)


def numbers_of(
    matrices: Matrices,
    which: slice = slice(None),
    rows: slice = slice(None),
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    k, n = len(range(matrices.stack)[which]), len(range(matrices.outputs)[rows])
    return matrices.dequantise(which, rows, torch.full((k, n, matrices.inputs), torch.nan, dtype=dtype))


def assert_equal(numbers: torch.Tensor, expected: torch.Tensor) -> None:
    """Bit for bit but for the sign of nothing, NaN where it should be."""
    torch.testing.assert_close(numbers, expected, rtol=0, atol=0, equal_nan=True)


def every_fp8_byte(parts: tuple[int, ...]) -> dict[tuple[int, int], dict[str, torch.Tensor]]:
    """For two matrices: each row has all bytes, each row a scale of its own, nothing and tiny ones among them."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.randn(2, sum(parts), 1, generator=generator).exp().bfloat16() * 2.0**-7
    scales[:, :3] = torch.tensor([0.0, 1.0, 2.0**-100]).view(3, 1)
    values = {}
    for which, scale in enumerate(scales):
        for part, rows in enumerate(scale.split(parts)):
            weight = torch.stack([BYTES.roll(7 * row + which) for row in range(len(rows))])
            values[which, part] = {"weight": weight.view(torch.float8_e4m3fn), "weight_scale": rows}
    return values


def every_nvfp4_byte(
    parts: tuple[int, ...], format_: type[Matrices]
) -> dict[tuple[int, int], dict[str, torch.Tensor]]:
    """For two matrices: 256 rows with all bytes, each with one of the blocks' scales; each part has a scale."""
    values = {}
    for which in range(2):
        for part, scales in enumerate(BYTES.roll(which).split(parts)):
            weight = torch.stack([BYTES.roll(11 * int(scale) + which) for scale in scales])
            scale = scales[:, None].expand(-1, 32).contiguous().view(torch.float8_e4m3fn)
            values[which, part] = {"weight": weight, "weight_scale": scale}
            if format_ is ModelOptNvfp4:
                values[which, part]["weight_scale_2"] = torch.tensor(0.0007 * (1 + which + 2 * part))
            else:
                values[which, part]["weight_packed"] = values[which, part].pop("weight")
                values[which, part]["weight_global_scale"] = torch.tensor([1300.0 * (1 + which + 2 * part)])
    return values


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("format_", [Fp8, ModelOptNvfp4, CompressedTensorsNvfp4])
def test_every_byte_with_every_scale(format_: type[Matrices], dtype: torch.dtype) -> None:
    """And any slice of the matrices and of their rows, whatever parts it cuts."""
    parts, inputs = ((5, 7, 2), 256) if format_ is Fp8 else ((100, 60, 96), 512)
    matrices = format_(2, parts, inputs, torch.bfloat16, CPU)
    values = every_fp8_byte(parts) if format_ is Fp8 else every_nvfp4_byte(parts, format_)
    for (which, part), tensors in values.items():
        filled(matrices, which, part, tensors)
    expected = torch.stack(
        [torch.cat([by_definition(values[which, part]) for part in range(len(parts))]) for which in range(2)]
    ).to(dtype)
    assert expected.isnan().any()
    assert_equal(numbers_of(matrices, dtype=dtype), expected)
    for which, rows in ((slice(1), slice(4, 6)), (slice(1, 2), slice(3, 13)), (slice(2), slice(11, 12))):
        assert_equal(numbers_of(matrices, which, rows, dtype), expected[which, rows])


def test_the_tables_are_those_of_torch() -> None:
    assert_equal(E4M3.float(), BYTES.view(torch.float8_e4m3fn).float())


def test_rows_that_are_no_whole_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="each 16 input channels, and 40 are no multiple"):
        ModelOptNvfp4(1, (8,), 40, torch.bfloat16, CPU)


PACK: dict[type[Matrices], Callable[[torch.Tensor], dict[str, torch.Tensor]]] = {
    Plain: lambda matrix: {"weight": matrix},
    Fp8: writer.fp8,
    ModelOptNvfp4: writer.modelopt_nvfp4,
    CompressedTensorsNvfp4: writer.redhat_nvfp4,
}


@pytest.fixture(params=["fast", "slow"])
def _processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that multiplies bf16, and one that doesn't, whatever this one is."""
    is_fast = request.param == "fast"
    monkeypatch.setattr(packed, "is_multiplied_fast", lambda dtype: is_fast or dtype == torch.float32)


@pytest.mark.usefixtures("_processor")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("format_", PACK)
def test_a_linear_layer_in_pieces(format_: type[Matrices], dtype: torch.dtype) -> None:
    """Of 3 rows of 48, the last shorter."""
    torch.manual_seed(0)
    matrices = format_(1, (12, 8), 64, dtype, CPU)
    for part, rows in enumerate(matrices.parts):
        filled(matrices, 0, part, PACK[format_](torch.randn(rows, 64).to(dtype)))
    scratch = Scratch(dtype, CPU)
    scratch.piece_bytes = 3 * 64 * scratch.dtype.itemsize + 1
    x = torch.randn(5, 64).to(dtype)
    result = matrices.times(x, scratch)
    assert result.dtype == dtype
    expected = x.double() @ numbers_of(matrices)[0].double().T
    error = 1e-6 if dtype == torch.float32 else 5e-3
    assert float((result - expected).norm() / expected.norm()) < error


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that anything made."""

    num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.num_bytes = max(self.num_bytes, result.nbytes)
        return result


def test_plain_numbers_become_fp32_where_the_processor_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece at a time; where it isn't they are multiplied as they lie."""
    matrices = Plain(1, (96,), 64, torch.bfloat16, CPU)
    matrices.weight.normal_(generator=torch.Generator().manual_seed(0))
    for is_fast in (False, True):
        monkeypatch.setattr(packed, "is_multiplied_fast", lambda dtype, is_fast=is_fast: is_fast)
        scratch = Scratch(torch.bfloat16, CPU)
        scratch.piece_bytes = 7 * 64 * 4
        pieces = list(matrices.pieces(scratch))
        numbers = matrices.numbers(*pieces[0], scratch)
        assert numbers.dtype == (torch.bfloat16 if is_fast else torch.float32)
        assert len(pieces) == (1 if is_fast else 14)
        assert torch.equal(numbers[0].bfloat16(), matrices.weight[0, pieces[0][1]])


@pytest.mark.usefixtures("_processor")
@pytest.mark.parametrize("format_", [Fp8, ModelOptNvfp4])
def test_no_more_than_a_piece_is_numbers_at_a_time(format_: type[Matrices]) -> None:
    """At the real width: the intermediates, too."""
    matrices = format_(1, (4096, 1024), 2816, torch.bfloat16, CPU)
    for tensor in matrices.held():
        tensor.zero_()
    scratch = Scratch(torch.bfloat16, CPU)
    x = torch.zeros(1, 2816, dtype=torch.bfloat16)
    with Largest() as largest:
        matrices.times(x, scratch)
    assert largest.num_bytes <= scratch.piece_bytes == packed.CPU_PIECE_BYTES


@pytest.mark.parametrize(
    ("format_", "share"), [(Fp8, 0.515), (ModelOptNvfp4, 0.29), (CompressedTensorsNvfp4, 0.29)]
)
def test_bytes_held(format_: type[Matrices], share: float) -> None:
    """Against those of bf16, at the real sizes."""

    def num_bytes(format_: type[Matrices]) -> int:
        return sum(
            format_(128, parts, inputs, torch.bfloat16, torch.device("meta")).num_bytes
            for parts, inputs in (((704, 704), 2816), ((2816,), 704))
        )

    assert num_bytes(format_) <= share * num_bytes(Plain)


@pytest.fixture
def witness() -> Any:
    """The package that wrote two of the repositories; with the `benchmark` extra."""
    return pytest.importorskip("compressed_tensors")


def scheme_of(layout: writer.Layout) -> Any:
    """As the package understands what a config says of the weights."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    config = writer.QUANTIZATION[layout]
    assert config is not None
    weights = config["config_groups"]["group_0"]["weights"]
    return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))


def packed_by_the_witness(matrix: torch.Tensor, layout: writer.Layout) -> dict[str, torch.Tensor]:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    scheme, config = scheme_of(layout), writer.QUANTIZATION[layout]
    assert config is not None
    tensors = {"weight": matrix}
    blocks = matrix
    if layout == "redhat nvfp4":
        tensors["weight_global_scale"] = generate_gparam(matrix.amin(), matrix.amax())
        blocks = matrix.view(len(matrix), -1, packed.NVFP4_BLOCK)
    lowest, highest = (extreme.view(len(matrix), -1) for extreme in (blocks.amin(-1), blocks.amax(-1)))
    tensors["weight_scale"], _ = calculate_qparams(
        lowest, highest, scheme.weights, tensors.get("weight_global_scale")
    )
    return dict(BaseCompressor.load_from_registry(config["format"]).compress(tensors, scheme))


def unpacked_by_the_witness(tensors: dict[str, torch.Tensor], layout: writer.Layout) -> torch.Tensor:
    from compressed_tensors.compressors import BaseCompressor

    config = writer.QUANTIZATION[layout]
    assert config is not None
    result = BaseCompressor.load_from_registry(config["format"]).decompress(tensors, scheme_of(layout))["weight"]
    assert isinstance(result, torch.Tensor)
    return result


@pytest.mark.parametrize(("layout", "format_"), [("redhat fp8", Fp8), ("redhat nvfp4", CompressedTensorsNvfp4)])
@pytest.mark.usefixtures("witness")
def test_what_compressed_tensors_packs_and_unpacks(layout: writer.Layout, format_: type[Matrices]) -> None:
    """What it packs are our numbers, what the tests pack are its numbers, and both are near what was packed."""
    torch.manual_seed(0)
    matrix = torch.randn(24, 128).bfloat16()
    for tensors in (packed_by_the_witness(matrix, layout), PACK[format_](matrix.float())):
        matrices = format_(1, (24,), 128, torch.bfloat16, CPU)
        filled(matrices, 0, 0, tensors)
        ours = numbers_of(matrices, dtype=torch.bfloat16)[0]
        assert_equal(ours, unpacked_by_the_witness(tensors, layout))
        assert float((ours.float() - matrix).norm() / matrix.norm()) < 0.1


@pytest.mark.usefixtures("witness")
def test_how_compressed_tensors_reads_modelopt() -> None:
    from compressed_tensors.entrypoints.convert.converters import ModelOptNvfp4Converter

    torch.manual_seed(0)
    values = writer.modelopt_nvfp4(torch.randn(24, 128))
    matrices = ModelOptNvfp4(1, (24,), 128, torch.bfloat16, CPU)
    filled(matrices, 0, 0, values)
    converted = ModelOptNvfp4Converter(targets=["w"]).process({f"w.{name}": each for name, each in values.items()})
    theirs = unpacked_by_the_witness(
        {name.removeprefix("w."): each for name, each in converted.items()}, "redhat nvfp4"
    )
    # In bf16, to which it rounds the scales, too.
    torch.testing.assert_close(theirs.float(), numbers_of(matrices)[0], rtol=2**-7, atol=0)
