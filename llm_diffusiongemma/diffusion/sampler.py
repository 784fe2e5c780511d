"""One denoising step: softcap, temperature, entropy, accept, draw, renoise, stop.

The sampler knows no model: it takes what the output head says of one canvas and says what the next canvas
is and whether this one has converged. Batch size is 1; `[256, V]` in a comment stands for
`[canvas_length, vocab_size]`.

The method is the entropy-bound sampler of arXiv 2505.24857 as transformers' `DiffusionGemmaGenerationMixin`
runs it. Given the same random numbers it makes the same tokens; tests/diffusion/test_parity.py holds that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch

from ..errors import NotANumberError, OptionError

# What transformers documents for a checkpoint whose generation_config leaves a value out.
DEFAULT_MAX_DENOISING_STEPS = 48
DEFAULT_ENTROPY_BOUND = 0.1
DEFAULT_T_MIN = 0.4
DEFAULT_T_MAX = 0.8
DEFAULT_CONFIDENCE_THRESHOLD = 0.005
DEFAULT_STABILITY_THRESHOLD = 1

# The logits are worked on in chunks of rows; a row of Gemma's is 1 MiB. On a CPU a chunk has to stay in the
# cache between the passes over it (of 1 to 16 MiB the smallest was the fastest); an accelerator wants enough
# work in a kernel to hide the launch. Two temporaries of this size is all the memory a step takes beside its
# input.
CHUNK_BYTES_CPU = 1 << 20
CHUNK_BYTES_ACCELERATOR = 32 << 20

# Searches along a row of the vocabulary go in two levels, over blocks of at most this many tokens.
VOCABULARY_BLOCK = 512

LARGEST_BELOW_ONE = math.nextafter(1.0, 0.0)


@dataclass(frozen=True)
class SamplerSettings:
    """How a canvas is denoised.

    - `max_denoising_steps`: a canvas that has not converged after so many steps is committed as it is.
      The temperature schedule is stretched over them.
    - `entropy_bound` (nats, > 0): how much joint uncertainty the positions accepted in one step may have.
    - `t_min`, `t_max` (0 <= t_min < t_max): temperature at the end and at the start of the schedule.
    - `confidence_threshold` (nats, > 0): a canvas may stop when its mean entropy is below this.
    - `stability_threshold` (>= 0): ... and its argmax has been the same for so many steps before.

    Raises `OptionError` for values that are out of range or contradict each other.
    """

    max_denoising_steps: int
    entropy_bound: float
    t_min: float
    t_max: float
    confidence_threshold: float
    stability_threshold: int

    def __post_init__(self) -> None:
        if self.max_denoising_steps < 1:
            raise OptionError(f"max_denoising_steps must be at least 1, but it is {self.max_denoising_steps}.")
        if self.stability_threshold < 0:
            raise OptionError(f"stability_threshold can't be negative, but it is {self.stability_threshold}.")
        # Written so that NaN fails, too.
        for name in ("entropy_bound", "confidence_threshold"):
            if not getattr(self, name) > 0:
                raise OptionError(f"{name} must be above 0, but it is {getattr(self, name)}.")
        if not 0 <= self.t_min < self.t_max:
            raise OptionError(
                f"The temperature falls from t_max to t_min, so t_min must be below t_max and not negative, "
                f"but t_min is {self.t_min} and t_max is {self.t_max}. The one you don't set is the "
                "checkpoint's."
            )

    @classmethod
    def from_generation_config(
        cls,
        generation_config: Any,
        *,
        max_denoising_steps: int | None = None,
        entropy_bound: float | None = None,
        t_min: float | None = None,
        t_max: float | None = None,
        confidence_threshold: float | None = None,
        stability_threshold: int | None = None,
    ) -> SamplerSettings:
        """The checkpoint's settings, with what is not None put over them.

        What neither sets takes the default that transformers documents. Raises `OptionError`.
        """

        def pick(override: Any, checkpoint: Any, default: Any) -> Any:
            if override is not None:
                return override
            return default if checkpoint is None else checkpoint

        config = generation_config
        sampler_config = config.sampler_config
        return cls(
            max_denoising_steps=pick(max_denoising_steps, config.max_denoising_steps, DEFAULT_MAX_DENOISING_STEPS),
            entropy_bound=pick(
                entropy_bound, sampler_config and sampler_config.entropy_bound, DEFAULT_ENTROPY_BOUND
            ),
            t_min=pick(t_min, config.t_min, DEFAULT_T_MIN),
            t_max=pick(t_max, config.t_max, DEFAULT_T_MAX),
            confidence_threshold=pick(
                confidence_threshold, config.confidence_threshold, DEFAULT_CONFIDENCE_THRESHOLD
            ),
            stability_threshold=pick(stability_threshold, config.stability_threshold, DEFAULT_STABILITY_THRESHOLD),
        )


class Randomness(Protocol):
    """Where all randomness of a reply comes from.

    **Invariant**: `uniform_tokens` once when a canvas starts; then every denoising step, the last one too,
    calls `draw_tokens` once and after it `uniform_tokens` once, for the renoise.
    """

    def uniform_tokens(self, canvas_length: int, vocab_size: int, device: torch.device) -> torch.Tensor:
        """Tokens drawn uniformly from the whole vocabulary: int64 `[256]`, on `device`."""

    def draw_tokens(
        self, logits: torch.Tensor, log_normaliser: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """One token for each of the accepted `positions` (int64 `[k]`, ascending): int64 `[k]`.

        `logits` are temperature-scaled, `[256, V]`, and must not be changed. Token `v` at position `i` has
        the probability `exp(logits[i, v] - log_normaliser[i])`.
        """


class GeneratorRandomness:
    """Draws from one `torch.Generator`, never from the global one.

    The generator may live on another device than the model. With one on the CPU a seed gives the same
    random numbers whatever the model runs on.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def uniform_tokens(self, canvas_length: int, vocab_size: int, device: torch.device) -> torch.Tensor:
        """See `Randomness`."""
        source = self._generator
        tokens = torch.randint(vocab_size, (canvas_length,), generator=source, device=source.device)
        # A plain copy would wait for the GPU.
        return tokens.to(device, non_blocking=device.type == "cuda")

    def draw_tokens(
        self, logits: torch.Tensor, log_normaliser: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """See `Randomness`. One uniform number a row, inverted through the row's distribution."""
        source = self._generator
        uniforms = torch.rand(len(positions), dtype=torch.float64, generator=source, device=source.device)
        tokens = torch.empty_like(positions)
        rows_per_chunk = _rows_per_chunk(logits)
        for start in range(0, len(positions), rows_per_chunk):
            chunk = slice(start, start + rows_per_chunk)
            rows = positions[chunk]
            probabilities = logits[rows].sub_(log_normaliser[rows, None]).exp_()  # [rows, V]
            tokens[chunk] = invert_cdf(probabilities, uniforms[chunk])
        return tokens


def invert_cdf(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The token at which each row's cumulative distribution passes its uniform number.

    `probabilities` fp32 `[rows, V]`, need not add up to 1; `uniforms` fp64 `[rows]` in [0, 1). Returns
    int64 `[rows]` on the device of `probabilities`. A token of probability zero is never returned.

    Two levels, first which block of the vocabulary, then which token of it: a cumulative sum over a whole
    row in fp32 would lose the small probabilities, and in fp64 it would cost more than the softmax.
    """
    device = probabilities.device
    # MPS knows no fp64; what is left by then is one number a block, small enough to go to the host.
    exact_device = torch.device("cpu") if device.type == "mps" else device
    blocks = _in_blocks(probabilities)  # [rows, V / block, block]
    uniforms = uniforms.to(exact_device, non_blocking=True)[:, None]  # [rows, 1]

    block_sums = blocks.sum(-1).to(exact_device).double()  # [rows, V / block]
    block_cdf = block_sums.cumsum(-1)
    block = _first_above(block_cdf, uniforms)  # [rows, 1]
    # How far into the chosen block the uniform number lies. Rounding must not push it over an end: there
    # a token of probability zero might wait.
    block_sum = block_sums.gather(-1, block)
    below = block_cdf.gather(-1, block) - block_sum
    inside = ((uniforms * block_cdf[:, -1:] - below) / block_sum).clamp(0, LARGEST_BELOW_ONE)

    chosen = _pick_block(blocks, block[:, 0].to(device)).to(exact_device).double()  # [rows, block]
    token = _first_above(chosen.cumsum(-1), inside)
    return (block * blocks.shape[-1] + token)[:, 0].to(device)


def _first_above(cdf: torch.Tensor, fraction: torch.Tensor) -> torch.Tensor:
    """The first index whose cumulative sum is above `fraction` of the total. `[rows, n]`, `[rows, 1]`.

    With `fraction` below 1 the product stays below the total in fp64, so there always is one, and the sum
    has grown at it, so its own share is not zero.
    """
    return torch.searchsorted(cdf, fraction * cdf[:, -1:], right=True)


def _in_blocks(rows: torch.Tensor) -> torch.Tensor:
    """A view `[rows, V / block, block]` of `[rows, V]`. The greatest common divisor makes any V fit."""
    return rows.view(len(rows), -1, math.gcd(rows.shape[-1], VOCABULARY_BLOCK))


def _pick_block(blocks: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """One block of each row: `[rows, n, block]` and `[rows]` to `[rows, block]`."""
    return blocks[torch.arange(len(index), device=index.device), index]


class Measurement(NamedTuple):
    """What one pass over the logits finds out about each position. All `[256]`."""

    argmax: torch.Tensor
    """int64"""
    entropy: torch.Tensor
    """fp32, nats, never negative"""
    log_normaliser: torch.Tensor
    """fp32, log-sum-exp of the temperature-scaled logits"""


class Constraint(Protocol):
    """What a canvas is held to, whatever the network says of it.

    Each denoising step calls `observe` for all rows, chunk by chunk, then `decide`, then `reweigh` for all
    rows. `logits` and their chunks are temperature-scaled, fp32 `[256, V]` and `[rows, V]`.
    """

    def observe(self, rows: slice, chunk: torch.Tensor) -> None:
        """Take in some rows, and leave them as they are."""

    def decide(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is to be committed if this step is the last, int64 `[256]`, and entropies, fp32 `[256]`."""

    def reweigh(self, rows: slice, chunk: torch.Tensor) -> None:
        """Replace some rows **in place** by log-probabilities under the constraint, all of them finite."""


def temper_and_measure(
    logits: torch.Tensor,
    softcap: float | None,
    temperature: torch.Tensor,
    self_conditioning: torch.Tensor | None,
    rows_per_chunk: int,
) -> Measurement:
    """Cap `logits` and divide them by `temperature` **in place**; measure every row. One pass of row chunks.

    `logits` fp32 `[256, V]`, as the output head gave them; `softcap` c makes z of them c tanh(z / c), None
    leaves them; `temperature` fp32, a scalar tensor on the same device;
    `self_conditioning` `[256, V]` receives the result in its own dtype, unless it is None.

    With m = max z, e = exp(z - m) and S = sum e, the entropy of softmax(z) is log S + sum e (m - z) / S.
    No term of it is negative, so it can't fall below zero however sure the model is.
    """
    canvas_length, device = logits.shape[0], logits.device
    argmax = torch.empty(canvas_length, dtype=torch.int64, device=device)
    # Not of the default dtype, which is the host program's.
    entropy = logits.new_empty(canvas_length)
    log_normaliser = logits.new_empty(canvas_length)
    for rows, chunk in _temper(logits, softcap, temperature, rows_per_chunk):
        if self_conditioning is not None:
            self_conditioning[rows] = chunk

        # argmax in two levels: a reduction that carries an index over the whole row is several times
        # slower on a CPU than one that does not. Of equal values both levels take the first.
        blocks = _in_blocks(chunk)
        block_max = blocks.amax(-1)  # [rows, V / block]
        block = block_max.argmax(-1)
        argmax[rows] = block * blocks.shape[-1] + _pick_block(blocks, block).argmax(-1)
        maximum = block_max.amax(-1)

        below_max = chunk - maximum[:, None]  # [rows, V]
        e = below_max.exp()  # [rows, V]
        sum_e = e.sum(-1)
        log_sum_e = sum_e.log()
        log_normaliser[rows] = maximum + log_sum_e
        entropy[rows] = log_sum_e - below_max.mul_(e).sum(-1) / sum_e
    return Measurement(argmax, entropy, log_normaliser)


def temper_and_constrain(
    constraint: Constraint,
    logits: torch.Tensor,
    softcap: float | None,
    temperature: torch.Tensor,
    self_conditioning: torch.Tensor | None,
    rows_per_chunk: int,
) -> Measurement:
    """What `temper_and_measure` does, for a canvas that is held to `constraint`.

    What it measures, what it leaves in `logits` and what `self_conditioning` receives is the constraint's
    view. Two passes, since what is allowed at one position depends on all the others.
    """
    for rows, chunk in _temper(logits, softcap, temperature, rows_per_chunk):
        constraint.observe(rows, chunk)
    argmax, entropy = constraint.decide(logits)
    for rows in _row_chunks(logits, rows_per_chunk):
        chunk = logits[rows]
        constraint.reweigh(rows, chunk)
        if self_conditioning is not None:
            self_conditioning[rows] = chunk
    return Measurement(argmax, entropy, log_normaliser=torch.zeros_like(entropy))


def _temper(
    logits: torch.Tensor, softcap: float | None, temperature: torch.Tensor, rows_per_chunk: int
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Cap `logits` and divide them by `temperature` **in place**, chunk by chunk: the rows, and a view of them."""
    for rows in _row_chunks(logits, rows_per_chunk):
        chunk = logits[rows]  # [rows, V], a view: written through to `logits`
        if softcap is not None:
            chunk.div_(softcap).tanh_().mul_(softcap)
        yield rows, chunk.div_(temperature)


def _row_chunks(logits: torch.Tensor, rows_per_chunk: int) -> Iterator[slice]:
    return (slice(start, start + rows_per_chunk) for start in range(0, len(logits), rows_per_chunk))


def accept_by_entropy_bound(entropy: torch.Tensor, entropy_bound: float) -> torch.Tensor:
    """Which positions to accept: bool `[256]` from entropies `[256]` in nats.

    The k positions of lowest entropy for which sum_i H_i - max_i H_i <= entropy_bound (arXiv 2505.24857):
    the left side bounds the mutual information of the accepted tokens, so that they may be drawn
    independently. The surest position is always accepted.
    """
    ascending, order = entropy.sort()
    within_bound = ascending.cumsum(0) - ascending <= entropy_bound
    return torch.zeros_like(within_bound).scatter(0, order, within_bound)


@dataclass(frozen=True, eq=False)
class DenoisingStep:
    """What one denoising step decided. Tensors are `[256]` and stay on the model's device."""

    canvas: torch.Tensor
    """The next canvas: drawn tokens where accepted, fresh uniform ones elsewhere."""
    argmax: torch.Tensor
    """The most likely token of every position, or the most likely canvas that a constraint allows; what is
    committed if this step is the last."""
    accepted: torch.Tensor
    """bool"""
    entropy: torch.Tensor
    """nats"""
    converged: bool
    """Whether the canvas is stable and sure enough to be committed."""
    self_conditioning_logits: torch.Tensor
    """`[256, V]` in the embedding's dtype. Valid until the next `step`, which overwrites it."""


class EntropyBoundSampler:
    """Denoises the canvases of one reply, one after the other.

    `softcap` is the checkpoint's `final_logit_softcapping`, which the model's own forward would apply in three
    passes over all of the logits. `self_conditioning_dtype` is the embedding's: the denoiser wants its previous
    logits in it.
    """

    def __init__(
        self,
        settings: SamplerSettings,
        *,
        canvas_length: int,
        vocab_size: int,
        device: torch.device,
        softcap: float | None,
        self_conditioning_dtype: torch.dtype,
        randomness: Randomness,
    ) -> None:
        self._settings = settings
        self._softcap = softcap
        self._canvas_length = canvas_length
        self._vocab_size = vocab_size
        self._device = device
        self._randomness = randomness
        # fp32 logits are handed on as they are; anything else needs one buffer, the same for all steps.
        self._self_conditioning = (
            None
            if self_conditioning_dtype == torch.float32
            else torch.empty(canvas_length, vocab_size, dtype=self_conditioning_dtype, device=device)
        )
        # [N + 1]. transformers divides an int32 step, a tensor of the model's device, by N. That gives
        # fp32 as a rule, and so does every operation here: computed in Python floats the last bit would differ.
        # One table also spares a copy to the device every step.
        steps = torch.arange(settings.max_denoising_steps + 1, dtype=torch.float32, device=device)
        fraction_left = steps / settings.max_denoising_steps
        self._temperatures = settings.t_min + (settings.t_max - settings.t_min) * fraction_left
        self._argmax_history = self._empty_history()
        self._constraint: Constraint | None = None

    def start_canvas(self, constraint: Constraint | None = None) -> torch.Tensor:
        """A canvas of pure noise, int64 `[256]`, held to `constraint`; forgets the canvas before."""
        self._argmax_history = self._empty_history()
        self._constraint = constraint
        return self._uniform_tokens()

    def step(self, logits: torch.Tensor, step: int) -> DenoisingStep:
        """Sample one step from the output head's `logits` (fp32 `[256, V]`), **which it overwrites**.

        `step` counts down: `max_denoising_steps` for a canvas's first step, 1 for its last.

        Raises `NotANumberError` if the logits are no numbers.
        """
        measure = (
            temper_and_measure if self._constraint is None else partial(temper_and_constrain, self._constraint)
        )
        argmax, entropy, log_normaliser = measure(
            logits, self._softcap, self._temperatures[step], self._self_conditioning, _rows_per_chunk(logits)
        )
        accepted = accept_by_entropy_bound(entropy, self._settings.entropy_bound)
        stop = self._is_stable(argmax) & (entropy.mean() < self._settings.confidence_threshold)

        # Without a constraint the step's only wait for the device: everything before and after is queued
        # without the host knowing a value.
        is_sane = entropy.isfinite().all().long()
        num_accepted, converged, sane = torch.stack((accepted.sum(), stop.long(), is_sane)).tolist()
        if not sane:
            raise NotANumberError()

        # A stable sort brings the accepted positions to the front, in order; indexing with the mask
        # itself would wait for the device once more.
        positions = accepted.byte().argsort(descending=True, stable=True)[:num_accepted]
        drawn = self._randomness.draw_tokens(logits, log_normaliser, positions)
        canvas = self._uniform_tokens().index_copy(0, positions, drawn)
        return DenoisingStep(
            canvas=canvas,
            argmax=argmax,
            accepted=accepted,
            entropy=entropy,
            converged=bool(converged),
            self_conditioning_logits=logits if self._self_conditioning is None else self._self_conditioning,
        )

    def _uniform_tokens(self) -> torch.Tensor:
        return self._randomness.uniform_tokens(self._canvas_length, self._vocab_size, self._device)

    def _empty_history(self) -> torch.Tensor:
        # [stability_threshold, 256]. No token is -1, so a canvas can't be stable before the history is
        # full; and with a threshold of 0 there is nothing to differ from, so it always is.
        return torch.full((self._settings.stability_threshold, self._canvas_length), -1, device=self._device)

    def _is_stable(self, argmax: torch.Tensor) -> torch.Tensor:
        """Whether `argmax` is that of each of the last `stability_threshold` steps: bool scalar tensor."""
        stable = (self._argmax_history == argmax).all()
        self._argmax_history = torch.cat((self._argmax_history, argmax[None]))[1:]
        return stable


def _rows_per_chunk(logits: torch.Tensor) -> int:
    chunk_bytes = CHUNK_BYTES_CPU if logits.device.type == "cpu" else CHUNK_BYTES_ACCELERATOR
    return max(1, chunk_bytes // (logits.shape[-1] * logits.element_size()))
