"""One denoising step: softcap, temperature, entropy, accept, draw, renoise, stop, soft embeddings.

The sampler knows formulas, a `Vocabulary` knows weights, and neither knows the other's: from the last hidden
states of one canvas the sampler makes the next canvas, and says whether this one has converged. Batch size is
1; `[256, V]` in a comment stands for `[canvas_length, vocab_size]`, H for the hidden size.

The vocabulary is worked on in blocks, each for all positions at once and while it is in the cache: its logits,
their statistics, and its part of the soft embeddings, which the next step wants. So the logits are written
once, and read again only where a token is picked.

The method is the entropy-bound sampler of arXiv 2505.24857 as transformers' `DiffusionGemmaGenerationMixin`
runs it. Given the same random numbers it makes the same tokens, but for what rounding decides;
tests/diffusion/test_parity.py holds that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
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

# So much of the logits is worked on at a time: blocks of the vocabulary, and rows for a constraint. On a CPU it
# has to stay in the cache between the passes over it; an accelerator wants enough work in a kernel to hide the
# launch. Two temporaries of this size are nearly all the memory a step takes beside the logits.
CHUNK_BYTES_CPU = 1 << 20
CHUNK_BYTES_ACCELERATOR = 32 << 20

# A draw finds its part of the vocabulary first, then its token in the part. A block is some parts.
PART = 512

LOG2_E = math.log2(math.e)
LARGEST_BELOW_ONE = math.nextafter(1.0, 0.0)
LOWEST = torch.finfo(torch.float32).min

# nats below the maximum. What is less probable is taken to be as probable as that, which changes no sum: on a
# CPU an exponential that underflows takes up to 30 times as long.
FLOOR = -80.0


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


@dataclass(frozen=True, eq=False)
class CanvasNumbers:
    """All random numbers of one canvas of at most N denoising steps, on the CPU."""

    tokens: torch.Tensor
    """int64 `[N + 1, 256]`, uniform over the vocabulary: the canvas it starts from, then each step's renoise."""
    uniforms: torch.Tensor
    """fp64 `[N, 256]` in [0, 1): what each step draws each position's token with."""


class Randomness(Protocol):
    """Where all randomness of a reply comes from."""

    def canvas(self, steps: int, canvas_length: int, vocab_size: int) -> CanvasNumbers:
        """The numbers of one canvas. Called once for each canvas, when it starts."""


class GeneratorRandomness:
    """Draws from one `torch.Generator`, never from the global one.

    Whatever a canvas makes of its numbers, the next one gets the same: how many there are depends on the
    settings only. The generator is one of the CPU, so that a seed gives the same numbers on every device.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def canvas(self, steps: int, canvas_length: int, vocab_size: int) -> CanvasNumbers:
        """See `Randomness`."""
        source = self._generator
        return CanvasNumbers(
            tokens=torch.randint(vocab_size, (steps + 1, canvas_length), generator=source),
            uniforms=torch.rand(steps, canvas_length, dtype=torch.float64, generator=source),
        )


class Vocabulary(Protocol):
    """The weights that the sampler asks: the output head, and the embedding that soft embeddings are made of."""

    @property
    def size(self) -> int:
        """V"""

    @property
    def hidden_size(self) -> int:
        """H"""

    def logits(self, hidden: torch.Tensor, tokens: slice, out: torch.Tensor) -> None:
        """Write to `out` (fp32 `[256, len]`, rows apart) the raw logits of `tokens`; `hidden` is `[256, H]`."""

    def mix(self, weights: torch.Tensor, tokens: slice) -> torch.Tensor:
        """fp32 `[256, H]`: the embeddings of `tokens` added up by `weights`, fp32 `[256, len]`."""


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


class VocabularyBlock(NamedTuple):
    """Some tokens, worked on at once."""

    number: int
    tokens: slice
    columns: slice
    """Its tokens, and in the last block the padding behind them."""


class Likeliest(NamedTuple):
    """A few tokens of each position and their probabilities: int64 and fp32 `[256, n]`."""

    tokens: torch.Tensor
    probabilities: torch.Tensor


class Distributions:
    """What a network says of each position: softmax(z) of the tempered logits z, by blocks of the vocabulary.

    A step begins with `start`, writes each block's logits with `write`, and takes each block in with `add`;
    then the rest can be asked for. All blocks have the same shape, and all tensors stay where they are.
    """

    def __init__(
        self, vocabulary: Vocabulary, canvas_length: int, device: torch.device, softcap: float | None
    ) -> None:
        self._vocabulary = vocabulary
        self._softcap = softcap
        parts = -(-vocabulary.size // PART)
        most_parts = max(1, chunk_bytes(device) // (canvas_length * PART * 4))
        num_blocks = -(-parts // most_parts)
        parts = -(-parts // num_blocks)  # of a block, from here on
        width = parts * PART
        starts = range(0, num_blocks * width, width)
        self.blocks = [
            VocabularyBlock(i, slice(start, min(start + width, vocabulary.size)), slice(start, start + width))
            for i, start in enumerate(starts)
        ]

        def empty(*shape: int) -> torch.Tensor:
            # Not of the default dtype, which is the host program's.
            return torch.empty(canvas_length, *shape, dtype=torch.float32, device=device)

        self._columns = empty(num_blocks * width)
        self._columns[:, vocabulary.size :] = LOWEST
        self.logits = self._columns[:, : vocabulary.size]
        """`[256, V]`: z"""
        self._below, self._e = empty(width), empty(width)
        self._maximum = empty()
        """of what has been taken in so far"""
        # Of each block: its maximum; what the maximum was when it had been taken in, m; of each of its parts the
        # sum of e = exp(z - m), of all of them the sum of e (m - z).
        self._block_max, self._reference, self._deviation = empty(num_blocks), empty(num_blocks), empty(num_blocks)
        self._part_sum = empty(num_blocks, parts)
        self._soft = empty(vocabulary.hidden_size)

    def start(self) -> None:
        """Forget the step before."""
        self._maximum.fill_(LOWEST)
        self._soft.zero_()

    def write(self, block: VocabularyBlock, hidden: torch.Tensor, temperature: torch.Tensor) -> None:
        """Ask for the logits of a block, cap them, and divide them by `temperature`, an fp32 scalar tensor."""
        z = self._columns[:, block.tokens]
        self._vocabulary.logits(hidden, block.tokens, z)
        if self._softcap is not None:
            soft_cap_(z, self._softcap)
        z.div_(temperature)

    def add(self, block: VocabularyBlock) -> None:
        """Take in a block whose logits stand there."""
        z = self._columns[:, block.columns]  # [256, width]
        block_max = z.amax(-1)
        maximum = torch.maximum(self._maximum, block_max)
        below = torch.sub(z, maximum[:, None], out=self._below).clamp_(min=FLOOR)
        # On a CPU twice as fast as `exp`.
        e = torch.mul(below, LOG2_E, out=self._e).exp2_()
        self._block_max[:, block.number] = block_max
        self._reference[:, block.number] = maximum
        self._part_sum[:, block.number] = e.view(len(e), -1, PART).sum(-1)
        self._deviation[:, block.number] = below.mul_(e).sum(-1).neg_()
        # What has been added up before was relative to the maximum before.
        self._soft.mul_((self._maximum - maximum).exp_()[:, None])
        num_tokens = block.tokens.stop - block.tokens.start
        self._soft.add_(self._vocabulary.mix(e[:, :num_tokens], block.tokens))
        self._maximum.copy_(maximum)

    def argmax(self) -> torch.Tensor:
        """The most likely token of each position, of equal ones the first: int64 `[256]`.

        In two levels: a reduction that carries an index is many times slower on a CPU than one that does not.
        """
        block = self._block_max.argmax(-1)
        blocks = self._columns.view(len(self._columns), len(self.blocks), -1)  # [256, blocks, width]
        return block * blocks.shape[-1] + _pick(blocks, block).argmax(-1)

    def entropy(self) -> torch.Tensor:
        """fp32 `[256]`, nats.

        With m the maximum, e = exp(z - m) and S = sum e it is log S + sum e (m - z) / S. No term of it is
        negative, so it can't fall below zero however sure the model is.
        """
        gap = self._maximum[:, None] - self._reference  # [256, blocks]
        scale = (-gap).exp_()
        sums = self._part_sum.sum(-1)
        total = (scale * sums).sum(-1)
        # `gap` may be so large that it must meet a scale of zero first.
        deviation = (scale * self._deviation + scale * gap * sums).sum(-1)
        return total.log() + deviation / total

    def likeliest(self, most: int) -> Likeliest:
        """The `most` likeliest tokens of each position, the likeliest first, equal ones by their ids; where not
        all equal ones have room, some of them. Fewer if the vocabulary is smaller.

        They are in the blocks with the largest maxima.
        """
        best_blocks = self._block_max.topk(min(most, len(self.blocks))).indices  # [256, n]
        blocks = self._columns.view(len(self._columns), len(self.blocks), -1)  # [256, blocks, width]
        most, width = min(most, self.logits.shape[1]), blocks.shape[-1]
        rows_per_chunk = max(1, chunk_bytes(blocks.device) // (best_blocks.shape[1] * width * 4))
        z, tokens = [], []
        for start in range(0, len(blocks), rows_per_chunk):
            rows = slice(start, start + rows_per_chunk)
            best = best_blocks[rows]  # [rows, n]
            top = _pick(blocks[rows], best).flatten(1).topk(most)
            z.append(top.values)
            tokens.append(best.gather(1, top.indices // width) * width + top.indices % width)
        by_token = torch.cat(tokens).sort()
        by_z = torch.cat(z).gather(1, by_token.indices).sort(descending=True, stable=True)
        probabilities = (by_z.values - self._maximum[:, None]).exp_().div_(self._total()[:, None])
        return Likeliest(by_token.values.gather(1, by_z.indices), probabilities)

    def soft_embeddings(self) -> torch.Tensor:
        """softmax(z) @ embedding, without the embedding's factor: fp32 `[256, H]`, valid until `start`."""
        return self._soft.div_(self._total()[:, None])

    def _total(self) -> torch.Tensor:
        """The sum of exp(z - maximum) over the vocabulary: fp32 `[256]`."""
        scale = (self._reference - self._maximum[:, None]).exp_()
        return (scale * self._part_sum.sum(-1)).sum(-1)

    def draw(self, uniforms: torch.Tensor) -> torch.Tensor:
        """A token for each position, int64 `[256]`: where its cumulative distribution passes its uniform number.

        `uniforms` fp64 `[256]` in [0, 1), on the device that `exact_device` says. A token of probability zero
        is never drawn.

        Two levels, first which part of the vocabulary, then which token of it: a cumulative sum over a whole
        row in fp32 would lose the small probabilities, and in fp64 it would cost more than all the rest.
        """
        device, exact = self._columns.device, uniforms.device
        scale = (self._reference - self._maximum[:, None]).to(exact).double().exp_()  # [256, blocks]
        part_cdf = (self._part_sum.to(exact).double() * scale[..., None]).flatten(1).cumsum(-1)  # [256, parts]
        # A number stands for an interval of 2^-53, and none of these is below what `FLOOR` adds up to.
        target = uniforms.clamp(min=2.0**-54)[:, None] * part_cdf[:, -1:]
        part = _first_above(part_cdf, target)  # [256, 1]
        # How far into the part the uniform number lies. Rounding must not push it over an end: there a token of
        # probability zero might wait.
        below = torch.where(part > 0, part_cdf.gather(-1, (part - 1).clamp_(min=0)), 0.0)
        inside = ((target - below) / (part_cdf.gather(-1, part) - below)).clamp_(0, LARGEST_BELOW_ONE)

        z = _pick(self._columns.view(len(self._columns), -1, PART), part[:, 0].to(device))  # [256, PART]
        cdf = (z.to(exact).double() - self._maximum.to(exact)[:, None]).exp_().cumsum_(-1)
        token = _first_above(cdf, inside * cdf[:, -1:])
        return (part * PART + token)[:, 0].to(device)


def exact_device(device: torch.device) -> torch.device:
    """Where fp64 is: MPS has none, and what the draw needs of it is small enough to go to the host."""
    return torch.device("cpu") if device.type == "mps" else device


def soft_cap_(logits: torch.Tensor, cap: float) -> None:
    """cap tanh(z / cap) **in place**, by way of an exponential: on a CPU 2.5 times as fast as torch's tanh.

    It is 2 cap (1/2 - 1 / (1 + exp(2 z / cap))), here within cap / 2^22 of it.
    """
    logits.mul_(2 * LOG2_E / cap).exp2_().add_(1).reciprocal_().sub_(0.5).mul_(-2 * cap)


def _first_above(cdf: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The first index whose cumulative sum is above `target`: `[rows, n]`, `[rows, 1]` to `[rows, 1]`.

    A fraction below 1 of the total stays below it in fp64, so there always is one, and the sum has grown at it,
    so its own share is not zero. Where the sums are no numbers it is the last: a number, at least.
    """
    return torch.searchsorted(cdf, target, right=True).clamp_(max=cdf.shape[-1] - 1)


def _pick(items: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """One item of each row: `[rows, n, width]` and `[rows]` to `[rows, width]`. Or k: `[rows, k]` to
    `[rows, k, width]`."""
    rows = torch.arange(len(index), device=index.device)
    return items[rows.view(-1, *[1] * (index.dim() - 1)), index]


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
    soft_embeddings: torch.Tensor
    """fp32 `[256, H]`: what the next step conditions itself on, each position's embeddings weighted by their
    probabilities, without the embedding's factor. Valid until the next `step`, which overwrites it."""


class EntropyBoundSampler:
    """Denoises the canvases of one reply, one after the other.

    `softcap` is the checkpoint's `final_logit_softcapping`: c makes c tanh(z / c) of the logits, None leaves them.
    """

    def __init__(
        self,
        settings: SamplerSettings,
        *,
        vocabulary: Vocabulary,
        canvas_length: int,
        device: torch.device,
        softcap: float | None,
        randomness: Randomness,
    ) -> None:
        self._settings = settings
        self._vocab_size = vocabulary.size
        self._canvas_length = canvas_length
        self._randomness = randomness
        self._distributions = Distributions(vocabulary, canvas_length, device, softcap)
        self._rows_per_chunk = max(1, chunk_bytes(device) // (vocabulary.size * 4))
        num_steps = settings.max_denoising_steps
        # [N + 1]. transformers divides an int32 step, a tensor of the model's device, by N. That gives
        # fp32 as a rule, and so does every operation here: computed in Python floats the last bit would differ.
        # One table also spares a copy to the device every step.
        steps = torch.arange(num_steps + 1, dtype=torch.float32, device=device)
        self._temperatures = settings.t_min + (settings.t_max - settings.t_min) * (steps / num_steps)
        # See `CanvasNumbers`.
        self._tokens = torch.empty(num_steps + 1, canvas_length, dtype=torch.int64, device=device)
        self._uniforms = torch.empty(num_steps, canvas_length, dtype=torch.float64, device=exact_device(device))
        # [stability_threshold, 256]
        self._argmax_history = torch.empty(
            settings.stability_threshold, canvas_length, dtype=torch.int64, device=device
        )
        self._constraint: Constraint | None = None

    def start_canvas(self, constraint: Constraint | None = None) -> torch.Tensor:
        """A canvas of pure noise, int64 `[256]`, held to `constraint`; forgets the canvas before."""
        numbers = self._randomness.canvas(
            self._settings.max_denoising_steps, self._canvas_length, self._vocab_size
        )
        _send(numbers.tokens, self._tokens)
        _send(numbers.uniforms, self._uniforms)
        # No token is -1, so a canvas can't be stable before the history is full; and with a threshold of 0 there
        # is nothing to differ from, so it always is.
        self._argmax_history.fill_(-1)
        self._constraint = constraint
        return self._tokens[0].clone()

    def step(self, hidden: torch.Tensor, step: int) -> DenoisingStep:
        """One step from the network's last hidden states, `[256, H]`.

        `step` counts down: `max_denoising_steps` for a canvas's first step, 1 for its last.

        Raises `NotANumberError` if the hidden states or the logits are no numbers.
        """
        distributions, temperature = self._distributions, self._temperatures[step]
        distributions.start()
        if self._constraint is None:
            for block in distributions.blocks:
                distributions.write(block, hidden, temperature)
                distributions.add(block)
            argmax, entropy = distributions.argmax(), distributions.entropy()
        else:
            # What is allowed at one position depends on all the others, so it takes a second pass.
            for block in distributions.blocks:
                distributions.write(block, hidden, temperature)
            argmax, entropy = self._constrain(self._constraint, distributions.logits)
            for block in distributions.blocks:
                distributions.add(block)
        accepted = accept_by_entropy_bound(entropy, self._settings.entropy_bound)
        steps_done = self._settings.max_denoising_steps - step
        drawn = distributions.draw(self._uniforms[steps_done])
        canvas = torch.where(accepted, drawn, self._tokens[steps_done + 1])
        soft_embeddings = distributions.soft_embeddings()
        stop = self._is_stable(argmax) & (entropy.mean() < self._settings.confidence_threshold)
        sane = hidden.isfinite().all() & entropy.isfinite().all()

        # Without a constraint the step's only wait for the device: everything before is queued without the host
        # knowing a value.
        converged, is_sane = torch.stack((stop, sane)).tolist()
        if not is_sane:
            raise NotANumberError()
        return DenoisingStep(canvas, argmax, accepted, entropy, converged, soft_embeddings)

    def likeliest(self, most: int) -> Likeliest:
        """Of what the last `step` has drawn from, for who watches: see `Distributions.likeliest`."""
        return self._distributions.likeliest(most)

    def _constrain(self, constraint: Constraint, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Make the constraint's view of the logits, **in place**: see `Constraint.decide` for what it returns."""
        starts = range(0, self._canvas_length, self._rows_per_chunk)
        chunks = [slice(start, start + self._rows_per_chunk) for start in starts]
        for rows in chunks:
            constraint.observe(rows, logits[rows])
        argmax, entropy = constraint.decide(logits)
        for rows in chunks:
            constraint.reweigh(rows, logits[rows])
        return argmax, entropy

    def _is_stable(self, argmax: torch.Tensor) -> torch.Tensor:
        """Whether `argmax` is that of each of the last `stability_threshold` steps: bool scalar tensor."""
        stable = (self._argmax_history == argmax).all()
        self._argmax_history.copy_(torch.cat((self._argmax_history, argmax[None]))[1:])
        return stable


def _send(numbers: torch.Tensor, to: torch.Tensor) -> None:
    """Copy to the device without waiting for it, which CUDA does from pinned memory only."""
    is_cuda = to.device.type == "cuda"
    to.copy_(numbers.pin_memory() if is_cuda else numbers, non_blocking=is_cuda)


def chunk_bytes(device: torch.device) -> int:
    """How much of the logits is worked on at a time."""
    return CHUNK_BYTES_CPU if device.type == "cpu" else CHUNK_BYTES_ACCELERATOR
