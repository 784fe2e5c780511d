"""The pass over the vocabulary by kernels: against fp64, beside its twins, and a sampler's steps by both."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from llm_diffusiongemma.diffusion.kernels import launching, vocabulary
from llm_diffusiongemma.diffusion.operations import PLAIN_TORCH, Operations
from llm_diffusiongemma.diffusion.packed import PLAIN
from llm_diffusiongemma.diffusion.sampler import EntropyBoundSampler, GeneratorRandomness, SamplerSettings
from llm_diffusiongemma.diffusion.softmax import PART, Conclusion, Softmax
from llm_diffusiongemma.errors import NotANumberError

from ..small_network import CONFIG

# numpy's, in the interpreter, of what is infinite or no number.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")

SETTINGS = SamplerSettings(48, 0.1, 0.4, 0.8, 0.005, 1)
HIDDEN = 24


def kernels(device: torch.device) -> Operations:
    found, refused = vocabulary.usable(CONFIG, PLAIN, torch.float32, device)
    assert refused == {}
    return replace(PLAIN_TORCH, **found)


def random(*shape: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def uniforms(count: int) -> torch.Tensor:
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Pass:
    """All blocks of some raw logits `[n, V]`, and what they mix of `embeddings` `[V, H]`."""

    def __init__(
        self,
        operations: Operations,
        raw: torch.Tensor,
        *,
        softcap: float | None = 30.0,
        temperature: float = 0.6,
        parts: int = 2,
        dtype: torch.dtype = torch.float32,
        scale: float = 1.0,
        apart: bool = False,
    ) -> None:
        rows, size = raw.shape
        self.softmax = softmax = Softmax.empty(rows, size, rows * parts * PART * 4, raw.device)
        self.softmax.z[:] = 7.0  # nothing may rest on what stood there
        self.softmax.z.view(rows, -1)[:, size:] = torch.finfo(torch.float32).min
        self.weights = torch.empty(rows, softmax.z.shape[2] * PART, dtype=dtype, device=raw.device)
        self.soft = torch.full((rows, HIDDEN), math.nan, device=raw.device)
        self._operations = operations
        embeddings = random(size, HIDDEN).to(raw.device)
        # One of a table, as the sampler has it.
        t = torch.tensor([math.nan, temperature], device=raw.device)[1]
        for block, tokens in enumerate(softmax.blocks):
            its = raw[:, tokens].clone()
            if apart:
                operations.temper(its, softcap, t, softmax, block)
                operations.measure(softmax, block, self.weights, scale)
            else:
                operations.temper_and_measure(its, softcap, t, softmax, block, self.weights, scale)
            weights = self.weights[:, : tokens.stop - tokens.start].float() / scale
            operations.add_up(self.soft, weights @ embeddings[tokens], softmax, block)

    def conclude(self, numbers: torch.Tensor | None = None) -> Conclusion:
        numbers = uniforms(len(self.soft)) if numbers is None else numbers
        return self._operations.conclude(self.softmax, numbers.to(self.soft.device))


def assert_near(found: torch.Tensor, exact: torch.Tensor, rtol: float, atol: float) -> None:
    torch.testing.assert_close(found.double(), exact.double().to(found.device), rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("size", "parts", "softcap", "temperature", "dtype"),
    [
        (96, 1, 30.0, 0.4, torch.float32),
        (5 * PART + 3, 2, 30.0, 0.8, torch.float16),
        (3 * PART, 1, None, 0.6, torch.float32),
        (7 * PART - 1, 7, 30.0, 1e-3, torch.float16),
    ],
)
def test_against_fp64(
    device: torch.device, size: int, parts: int, softcap: float | None, temperature: float, dtype: torch.dtype
) -> None:
    raw = random(2, size, scale=9.0).to(dtype)
    done = Pass(
        kernels(device), raw.to(device), softcap=softcap, temperature=temperature, parts=parts, dtype=dtype
    )
    found = done.conclude()
    z = raw.double()
    if softcap is not None:
        z = torch.tanh(z / softcap) * softcap
    z /= torch.tensor(temperature)  # as an fp32 number
    largest = z.abs().max().item()
    assert_near(done.softmax.logits, z, 1e-6, 30 / temperature * 2**-21)
    p = z.softmax(-1)
    assert torch.equal(found.argmax.cpu(), raw.argmax(-1))
    # A rounding of a logit makes a share of so much.
    rtol = 4 * largest * 2**-21
    assert_near(found.entropy, -(p * p.clamp(min=1e-300).log()).sum(-1), rtol, 1e-5)
    mixed = done.soft / done.softmax.total[:, None]
    half = 2**-9 if dtype == torch.float16 else 0.0
    assert_near(mixed, p @ random(size, HIDDEN).double(), 0, 2 * (rtol + half))
    assert_near(
        done.softmax.total,
        (z - z.amax(-1, keepdim=True)).exp().sum(-1),
        rtol,
        0,
    )


@pytest.mark.parametrize("parts", [1, 3, 20])
def test_each_result_is_its_twins(device: torch.device, parts: int) -> None:
    raw = random(3, 10 * PART - 5, scale=9.0).to(device)
    ours, theirs = (Pass(each, raw, parts=parts) for each in (kernels(device), PLAIN_TORCH))
    found, twin = ours.conclude(), theirs.conclude()
    assert torch.equal(found.argmax, twin.argmax)
    assert torch.equal(found.drawn, twin.drawn)
    assert_near(found.entropy, twin.entropy, 1e-5, 1e-6)
    for name in ("z", "part_max", "maximum"):
        assert_near(getattr(ours.softmax, name), getattr(theirs.softmax, name), 1e-6, 2e-5)
    for name in ("part_sum", "deviation", "total"):
        assert_near(getattr(ours.softmax, name), getattr(theirs.softmax, name), 1e-4, 1e-6)
    tokens = ours.softmax.blocks[-1]
    width = tokens.stop - tokens.start
    assert_near(ours.weights[:, :width], theirs.weights[:, :width], 1e-4, 1e-7)
    assert_near(ours.soft, theirs.soft, 1e-4, 1e-4)


def test_written_and_taken_in_apart_it_is_the_same(device: torch.device) -> None:
    raw = random(2, 5 * PART + 7, scale=9.0).half().to(device)
    one, two = (Pass(kernels(device), raw, apart=apart) for apart in (False, True))
    for name in ("z", "part_max", "maximum"):
        assert torch.equal(getattr(one.softmax, name), getattr(two.softmax, name))
    # Compiled, they add up in another order.
    for name in ("part_sum", "deviation"):
        assert_near(getattr(one.softmax, name), getattr(two.softmax, name), 1e-6, 0)
    assert torch.equal(one.weights, two.weights)
    assert_near(one.soft, two.soft, 0, 1e-6)


def test_weights_of_fp16_have_their_headroom(device: torch.device) -> None:
    raw = random(2, 3 * PART).to(device)
    ours, theirs = (Pass(each, raw, dtype=torch.float16, scale=2.0**-7) for each in (kernels(device), PLAIN_TORCH))
    assert ours.weights.max() <= 2.0**-7
    assert_near(ours.weights, theirs.weights, 2**-10, 1e-6)


def test_a_block_of_the_real_width(device: torch.device) -> None:
    """64 parts, several times what a program has at once; and all 512 parts of the real vocabulary at the end."""
    raw = random(2, 64 * PART, scale=4.0).half().to(device)
    ours, theirs = (Pass(each, raw, parts=64, dtype=torch.float16) for each in (kernels(device), PLAIN_TORCH))
    assert len(ours.softmax.blocks) == 1
    assert_near(ours.softmax.part_sum, theirs.softmax.part_sum, 1e-4, 1e-6)
    assert_near(ours.soft, theirs.soft, 0, 1e-1)
    whole = Pass(PLAIN_TORCH, random(3, 512 * PART, scale=3.0).to(device), parts=64)
    twin = whole.conclude()
    whole.softmax.total.zero_()
    found = kernels(device).conclude(whole.softmax, uniforms(3).to(device))
    assert (whole.softmax.total >= 1).all()
    assert torch.equal(found.argmax, twin.argmax)
    assert torch.equal(found.drawn, twin.drawn)
    assert_near(found.entropy, twin.entropy, 1e-6, 1e-6)


def test_extreme_logits(device: torch.device) -> None:
    size = 3 * PART + 5
    raw = torch.full((6, size), 2.0)
    raw[1, 700] = 1e30
    raw[2] = -1e30
    raw[3, : 2 * PART] = -math.inf
    raw[4, -1] = 60000.0
    raw[5] = -1e30
    raw[5, 0] = -9e29
    done = Pass(kernels(device), raw.to(device), softcap=None)
    found = done.conclude()
    assert found.argmax.tolist() == [0, 700, 0, 2 * PART, size - 1, 0]
    logs = [math.log(size), 0, math.log(size), math.log(PART + 5), 0, 0]
    assert_near(found.entropy, torch.tensor(logs), 1e-6, 1e-20)
    assert (found.entropy >= 0).all()
    assert found.drawn[3] >= 2 * PART
    assert found.drawn[[1, 4, 5]].tolist() == [700, size - 1, 0]
    assert done.soft.isfinite().all()
    # Each end of the soft cap.
    capped = Pass(kernels(device), torch.tensor([[1e30, -1e30, 0.0]], device=device), temperature=1.0)
    assert capped.softmax.logits.tolist() == [[30.0, -30.0, 0.0]]


@pytest.mark.parametrize(
    ("where", "softcap"), [(slice(700, 701), 30.0), (slice(0, 3), None), (slice(None), 30.0), (slice(None), None)]
)
@pytest.mark.parametrize("served", [True, False])
def test_what_is_no_number_comes_out_as_the_entropy_and_as_tokens_that_there_are(
    device: torch.device, where: slice, softcap: float | None, served: bool
) -> None:
    """Others would be no embedding's, which ends a card's process. Behind the last token are parts of padding."""
    size = 4 * PART + 5
    raw = random(3, size)
    raw[0, where] = math.nan
    raw[2] = -math.inf
    operations = kernels(device) if served else PLAIN_TORCH
    found = Pass(operations, raw.to(device), softcap=softcap).conclude()
    assert found.entropy.isnan().tolist() == [True, False, False]
    for tokens in (found.argmax, found.drawn):
        assert ((tokens >= 0) & (tokens < size)).all()


def test_draws_at_the_ends_and_borders(device: torch.device) -> None:
    """No token without probability, and else the twin's: rows alike, each with a number of its own."""
    possible = {560: 0.3, 1100: 1e-30, 1101: 1e-7, 1600: 0.7}
    logits = torch.full((2000,), -1000.0)
    for token, share in possible.items():
        logits[token] = math.log(share)
    ends = [0.0, 2**-53, 1 - 2**-53, 0.3 - 2**-54, 0.3, 0.3 + 1e-12]
    numbers = torch.cat((torch.tensor(ends, dtype=torch.float64), uniforms(10)))
    raw = logits.repeat(len(numbers), 1).to(device)
    done = Pass(PLAIN_TORCH, raw, softcap=None, temperature=1.0, parts=1)
    twin = done.conclude(numbers)
    found = kernels(device).conclude(done.softmax, numbers.to(device))
    assert set(found.drawn.tolist()) <= {*possible}
    assert found.drawn[0] == 560
    assert found.drawn[2] == 1600
    sure = torch.arange(len(numbers)) > 5  # at a border a rounding decides
    assert torch.equal(found.drawn[sure], twin.drawn[sure])


class Embeddings:
    """A head and embedding of random numbers."""

    size, hidden_size = 2000, HIDDEN
    product_dtype = torch.float32
    canvas_length = 6

    def __init__(self, operations: Operations, device: torch.device) -> None:
        self.operations = operations
        self._weight = random(self.size, HIDDEN).to(device)

    def logits(self, hidden: torch.Tensor, tokens: slice) -> torch.Tensor:
        return hidden @ self._weight[tokens].T

    def mix(self, weights: torch.Tensor, tokens: slice) -> torch.Tensor:
        return weights @ self._weight[tokens]


def sampler(
    vocabulary: Embeddings, canvas_length: int, device: torch.device, candidates: int = 0
) -> EntropyBoundSampler:
    return EntropyBoundSampler(
        SETTINGS,
        vocabulary=vocabulary,
        canvas_length=canvas_length,
        device=device,
        softcap=30.0,
        randomness=GeneratorRandomness(torch.Generator().manual_seed(0)),
        candidates=candidates,
    )


class OnlyEven:
    """Holds a canvas to tokens of even numbers."""

    def observe(self, rows: slice, chunk: torch.Tensor) -> None:
        assert chunk.isfinite().all()

    def decide(self, logits: torch.Tensor) -> torch.Tensor:
        return logits[:, ::2].argmax(-1) * 2

    def reweigh(self, rows: slice, chunk: torch.Tensor) -> None:
        chunk[:, 1::2] = -1000.0


@pytest.mark.parametrize("constraint", [None, OnlyEven()])
def test_a_sampler_takes_the_same_steps(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, constraint: Any
) -> None:
    for name in ("CHUNK_BYTES_CPU", "CHUNK_BYTES_ACCELERATOR"):
        monkeypatch.setattr(f"llm_diffusiongemma.diffusion.sampler.{name}", 6 * 2 * PART * 4)
    launches: list[str] = []
    launch = launching.launch
    monkeypatch.setattr(
        launching, "launch", lambda kernel, *a, **b: launches.append(kernel.__name__) or launch(kernel, *a, **b)
    )
    hidden = random(6, HIDDEN, scale=2.0).to(device)
    samplers, steps = [], []
    for operations in (kernels(device), PLAIN_TORCH):
        its = sampler(Embeddings(operations, device), 6, device, candidates=3)
        its.start_canvas(constraint)
        samplers.append(its)
    for scale in (1, 4):
        for its in samplers:
            its.measure(hidden * scale)
            steps.append(its.conclude())
        ours, theirs = steps[-2:]
        assert ours.tokens == theirs.tokens
        assert ours.accepted == theirs.accepted
        torch.testing.assert_close(ours.entropies, theirs.entropies, rtol=1e-4, atol=1e-6)
        for each, other in zip(ours.candidates, theirs.candidates, strict=True):
            assert [token for token, _ in each] == [token for token, _ in other]
            torch.testing.assert_close([p for _, p in each], [p for _, p in other], rtol=1e-4, atol=1e-6)
        assert torch.equal(*(its.canvas for its in samplers))
        assert_near(samplers[0].soft_embeddings, samplers[1].soft_embeddings, 0, 1e-4)
    # Of each of two blocks one, one for what it is mixed to, and by a constraint one more; then one.
    each = 2 if constraint is None else 3
    assert len(launches) == 2 * (2 * each + 1)


def test_a_step_that_is_no_number_is_refused(device: torch.device) -> None:
    class Broken(Embeddings):
        def logits(self, hidden: torch.Tensor, tokens: slice) -> torch.Tensor:
            return super().logits(hidden, tokens).index_fill_(1, torch.tensor([5], device=hidden.device), math.nan)

    ours = sampler(Broken(kernels(device), device), 2, device)
    ours.start_canvas()
    ours.measure(random(2, HIDDEN).to(device))
    with pytest.raises(NotANumberError):
        ours.conclude()
