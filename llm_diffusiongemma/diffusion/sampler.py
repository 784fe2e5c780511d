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

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from ..errors import NotANumberError, OptionError
from ..grammar.exchange import Exchange
from .softmax import PART, Softmax, log_total, pick

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from .operations import Operations
    from .softmax import Conclusion

# What transformers documents for a checkpoint whose generation_config leaves a value out.
DEFAULT_MAX_DENOISING_STEPS = 48
DEFAULT_ENTROPY_BOUND = 0.1
DEFAULT_T_MIN = 0.4
DEFAULT_T_MAX = 0.8
DEFAULT_CONFIDENCE_THRESHOLD = 0.005
DEFAULT_STABILITY_THRESHOLD = 1

# A canvas that begins as a text has at least this share of the schedule's steps left, however little of it is
# noise: what is wrong in it is noise, too, and in fewer steps much of that is committed before it is mended. A
# text that stays as it is takes as few as ever.
LEAST_DRAFTED_SHARE = 0.5

# So much of the logits is worked on at a time: blocks of the vocabulary, and rows for a constraint. On a CPU it
# has to stay in the cache between the passes over it; an accelerator wants enough work in a kernel to hide the
# launch. Three tensors of this size are nearly all the memory a step takes beside the logits.
CHUNK_BYTES_CPU = 1 << 20
CHUNK_BYTES_ACCELERATOR = 32 << 20

# What stands for one where there is none.
NO_TOKEN = -1

# fp16 ends at 65,504, and a block of the vocabulary may have 32,768 tokens of weight 1.
FP16_HEADROOM = 2.0**-7


@dataclass(frozen=True)
class SamplerSettings:
    """How a canvas is denoised.

    - `max_denoising_steps`: a canvas that has not converged after so many steps is committed as it is.
      The temperature schedule is stretched over them.
    - `entropy_bound` (nats, > 0): how much joint uncertainty the positions accepted in one step may have.
    - `t_min`, `t_max` (0 <= t_min < t_max): temperature at the end and at the start of the schedule.
    - `confidence_threshold` (nats, > 0): a canvas may stop when its mean entropy is below this.
    - `stability_threshold` (>= 0): ... and its argmax has been the same for so many steps before.
    - `stop_at_end`: it may also stop when both hold of what stands up to the first token of the argmax that ends
      the text, that token included.

    Raises `OptionError` for values that are out of range or contradict each other.
    """

    max_denoising_steps: int
    entropy_bound: float
    t_min: float
    t_max: float
    confidence_threshold: float
    stability_threshold: int
    stop_at_end: bool = False

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
        stop_at_end: bool = False,
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
            stop_at_end=stop_at_end,
        )


@dataclass(frozen=True, eq=False)
class CanvasNumbers:
    """All random numbers of one canvas of at most N denoising steps, on the CPU."""

    tokens: torch.Tensor
    """int64 `[N + 1, 256]`, uniform over the vocabulary: the canvas it starts from, then each step's renoise."""
    uniforms: torch.Tensor
    """fp64 `[N, 256]` in [0, 1): what each step draws each position's token with."""


@dataclass(frozen=True)
class Start:
    """What a canvas begins as where that is not pure noise."""

    tokens: Sequence[int]
    """of its first positions; those behind are noise"""
    noise: float
    """0 to 1: the share of these tokens that is noise all the same"""


class Randomness(Protocol):
    """Where all randomness of a reply comes from."""

    def canvas(self, steps: int, canvas_length: int, vocab_size: int) -> CanvasNumbers:
        """The numbers of one canvas. Called once for each canvas, when it starts."""

    def noise(self, share: float, num_tokens: int) -> torch.Tensor:
        """Which tokens of a draft are noise, each with the probability `share`: bool `[num_tokens]`, on the CPU.
        Called for each canvas that begins as one, right behind `canvas`."""


class GeneratorRandomness:
    """Draws from one `torch.Generator`, never from the global one.

    Whatever a canvas makes of its numbers, the next one gets the same: how many there are depends on the
    settings, and on whether it is drafted. The generator is one of the CPU, so that a seed gives the same numbers
    on every device.
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

    def noise(self, share: float, num_tokens: int) -> torch.Tensor:
        """See `Randomness`."""
        return torch.rand(num_tokens, dtype=torch.float64, generator=self._generator) < share


class Vocabulary(Protocol):
    """The weights that the sampler asks: the output head, and the embedding that soft embeddings are made of."""

    @property
    def size(self) -> int:
        """V"""

    @property
    def hidden_size(self) -> int:
        """H"""

    @property
    def canvas_length(self) -> int:
        """Of the longest canvas that it is asked about."""

    @property
    def product_dtype(self) -> torch.dtype:
        """What it multiplies in."""

    @property
    def operations(self) -> Operations:
        """How to compute what stands between its products."""

    def logits(self, hidden: torch.Tensor, tokens: slice) -> torch.Tensor:
        """The raw logits of `tokens`, `[256, len]` for the caller to overwrite; `hidden` is `[256, H]`."""

    def mix(self, weights: torch.Tensor, tokens: slice) -> torch.Tensor:
        """`[256, H]`: the embeddings of `tokens` added up by `weights`, `[256, len]` of its dtype."""


class Constraint(Protocol):
    """What a canvas is held to, whatever the network says of it.

    Each denoising step calls `observe` for all rows, chunk by chunk, then `decide`, then `reweigh` for all
    rows. `logits` and their chunks are temperature-scaled, fp32 `[256, V]` and `[rows, V]`.
    """

    def observe(self, rows: slice, chunk: torch.Tensor) -> None:
        """Take in some rows, and leave them as they are."""

    def decide(self, logits: torch.Tensor) -> torch.Tensor:
        """What is to be committed if this step is the last, int64 `[256]`."""

    def reweigh(self, rows: slice, chunk: torch.Tensor) -> None:
        """Replace some rows **in place** by log-probabilities under the constraint, all of them finite."""


class Likeliest(NamedTuple):
    """A few tokens of each position and their probabilities: int64 and fp32 `[256, n]`."""

    tokens: torch.Tensor
    probabilities: torch.Tensor


class Distributions:
    """What a network says of each position: softmax(z) of the tempered logits z, by blocks of the vocabulary.

    A step begins with `measure`, or with `write`, whatever is then done to the logits, and `add`; then the rest
    can be asked for. All tensors stay where they are.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        canvas_length: int,
        device: torch.device,
        softcap: float | None,
        *,
        mixes: bool = True,
    ) -> None:
        """Without `mixes` there are no soft embeddings, and nothing is computed for them."""
        self._vocabulary = vocabulary
        self._mixes = mixes
        self._operations = vocabulary.operations
        self._softcap = softcap
        # Those of the longest canvas, however long this one is: kernels were tried, and are compiled, for them.
        block_bytes = chunk_bytes(device) * canvas_length // vocabulary.canvas_length
        self._softmax = Softmax.empty(canvas_length, vocabulary.size, block_bytes, device)
        self.logits = self._softmax.logits
        """`[256, V]`: z"""
        _, _, parts, _ = self._softmax.z.shape
        dtype = vocabulary.product_dtype
        # What tokens of a block are mixed by.
        self._weights = torch.empty(canvas_length, parts * PART, dtype=dtype, device=device)
        self._weight_scale = FP16_HEADROOM if dtype == torch.float16 else 1.0
        self.soft = torch.empty(canvas_length, vocabulary.hidden_size, dtype=torch.float32, device=device)
        """Where `soft_embeddings` are made."""

    def measure(self, hidden: torch.Tensor, temperature: torch.Tensor) -> None:
        """`write` and `add`, while a block is in the cache."""
        for block, tokens in enumerate(self._softmax.blocks):
            self._operations.temper_and_measure(
                self._vocabulary.logits(hidden, tokens),
                self._softcap,
                temperature,
                self._softmax,
                block,
                self._weights,
                self._weight_scale,
            )
            self._mix(block, tokens)

    def write(self, hidden: torch.Tensor, temperature: torch.Tensor) -> None:
        """Ask for the logits, cap them, and divide them by `temperature`, an fp32 scalar tensor."""
        for block, tokens in enumerate(self._softmax.blocks):
            raw = self._vocabulary.logits(hidden, tokens)
            self._operations.temper(raw, self._softcap, temperature, self._softmax, block)

    def add(self) -> None:
        """Take in the logits that stand there."""
        for block, tokens in enumerate(self._softmax.blocks):
            self._operations.measure(self._softmax, block, self._weights, self._weight_scale)
            self._mix(block, tokens)

    def _mix(self, block: int, tokens: slice) -> None:
        if not self._mixes:
            return
        weights = self._weights[:, : tokens.stop - tokens.start]
        self._operations.add_up(self.soft, self._vocabulary.mix(weights, tokens), self._softmax, block)

    def conclude(self, uniforms: torch.Tensor) -> Conclusion:
        """What follows, and a token drawn for each position.

        `uniforms` are fp64 `[256]` in [0, 1), on the device that `exact_device` says.
        """
        return self._operations.conclude(self._softmax, uniforms)

    def soft_embeddings(self) -> torch.Tensor:
        """softmax(z) @ embedding, without the embedding's factor: fp32 `[256, H]`, valid until the next step.

        Once, after `conclude`.
        """
        return self.soft.div_((self._softmax.total * self._weight_scale)[:, None])

    def log_probabilities(self, tokens: torch.Tensor) -> torch.Tensor:
        """Those of some tokens, int64 `[U]`, at each position: fp32 `[256, U]`, nats."""
        return self.logits[:, tokens] - log_total(self._softmax)[:, None]

    def likeliest(self, most: int) -> Likeliest:
        """The `most` likeliest tokens of each position, the likeliest first, equal ones by their ids; where not
        all equal ones have room, some of them. Fewer if the vocabulary is smaller. After `conclude`.

        They are in the parts with the largest maxima.
        """
        softmax = self._softmax
        part_max, parts = softmax.part_max.flatten(1), softmax.z.flatten(1, 2)  # [256, n], [256, n, PART]
        best = part_max.topk(min(most, part_max.shape[1])).indices
        top = pick(parts, best).flatten(1).topk(min(most, softmax.size))
        by_token = (best.gather(1, top.indices // PART) * PART + top.indices % PART).sort()
        by_z = top.values.gather(1, by_token.indices).sort(descending=True, stable=True)
        probabilities = (by_z.values - softmax.maximum[:, -1:]).exp_().div_(softmax.total[:, None])
        return Likeliest(by_token.values.gather(1, by_z.indices), probabilities)


def exact_device(device: torch.device) -> torch.device:
    """Where fp64 is: MPS has none, and what the draw needs of it is small enough to go to the host."""
    return torch.device("cpu") if device.type == "mps" else device


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
    """What the host is told of one denoising step, in one copy. Valid until the next step's copy goes over it."""

    converged: bool
    """Whether the canvas is stable and sure enough to be committed."""
    mean_entropy: float
    """nats"""
    _positions: torch.Tensor
    """fp32 `[3, 256]`: see `EntropyBoundSampler`."""
    _likeliest: torch.Tensor
    """fp32 `[2, 256, n]`"""

    @property
    def tokens(self) -> list[int]:
        """The most likely token of every position, or the most likely canvas that a constraint allows; what is
        committed if this step is the last."""
        return [int(token) for token in self._positions[0].tolist()]

    @property
    def accepted(self) -> list[bool]:
        return [bool(accepted) for accepted in self._positions[1].tolist()]

    @property
    def entropies(self) -> list[float]:
        """nats"""
        entropies: list[float] = self._positions[2].tolist()
        return entropies

    @property
    def candidates(self) -> list[list[tuple[int, float]]]:
        """Of every position the likeliest tokens with their probabilities: see `Distributions.likeliest`."""
        tokens, probabilities = self._likeliest.tolist()
        return [
            [(int(token), share) for token, share in zip(ids, shares, strict=True)]
            for ids, shares in zip(tokens, probabilities, strict=True)
        ]


class EntropyBoundSampler:
    """Denoises the canvases of one reply, one after the other.

    A canvas begins with `start_canvas`. A denoising step is `measure`, which waits for nothing, then `conclude`,
    which waits for the device once. `measure` knows the number of the step by a counter on the device only, and
    all that goes from step to step stays where it is: so it can be captured at one step of a canvas, with the
    forward before it, and replayed at the later ones.

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
        candidates: int = 0,
        eos_token_ids: Collection[int] = (),
    ) -> None:
        """So many `candidates` are told of each position. `eos_token_ids` are what `stop_at_end` stops at."""
        self._settings = settings
        self._vocab_size = vocabulary.size
        self._canvas_length = canvas_length
        self._randomness = randomness
        self._candidates = min(candidates, vocabulary.size)
        self._distributions = Distributions(vocabulary, canvas_length, device, softcap)
        self._rows_per_chunk = max(1, chunk_bytes(device) // (vocabulary.size * 4))
        num_steps = settings.max_denoising_steps

        def integers(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        # [N], by the steps done. transformers divides an int32 step that counts down, a tensor of the model's
        # device, by N. That gives fp32 as a rule, and so does every operation here: computed in Python floats the
        # last bit would differ.
        steps = torch.arange(num_steps, 0, -1, dtype=torch.float32, device=device)
        self._temperatures = settings.t_min + (settings.t_max - settings.t_min) * (steps / num_steps)
        # See `CanvasNumbers`.
        self._tokens = integers(num_steps + 1, canvas_length)
        self._uniforms = torch.empty(num_steps, canvas_length, dtype=torch.float64, device=exact_device(device))
        self._steps_done = integers(1)
        # The last one is where the uniform numbers are: a second one on MPS only.
        exact = self._steps_done.to(self._uniforms.device)
        self._counters = [self._steps_done] if exact is self._steps_done else [self._steps_done, exact]
        self._argmax_history = integers(settings.stability_threshold, canvas_length)
        self._ends: torch.Tensor | None = None
        """`[n, 1]`: the tokens that end a text, the last one a canvas's own; None if a canvas stops as a whole."""
        if settings.stop_at_end:
            self._ends = torch.tensor([*sorted(eos_token_ids), NO_TOKEN], device=device)[:, None]
        self._constraint: Constraint | None = None
        self.max_steps = num_steps
        """The most denoising steps that this canvas may have."""
        self._is_sane = torch.zeros((), dtype=torch.bool, device=device)
        self.canvas = integers(canvas_length)
        """`[256]`: what the next step denoises. Drawn tokens where accepted, fresh uniform ones elsewhere."""
        # What the host is told: whether the canvas has converged, whether all are numbers, the mean entropy; of
        # each position its token, whether that was accepted, its entropy; tokens and probabilities of the
        # candidates. As fp32, which holds every token below 2^24 exactly.
        told = 3 + (3 + 2 * self._candidates) * canvas_length
        self._told = Exchange((told,), device)

    @property
    def soft_embeddings(self) -> torch.Tensor:
        """fp32 `[256, H]`: what the next step conditions itself on, each position's embeddings weighted by their
        probabilities, without the embedding's factor. Of a canvas's first step nothing that it could use."""
        return self._distributions.soft

    @property
    def carried(self) -> list[torch.Tensor]:
        """What one step leaves to the next, where `measure` or `conclude` change it."""
        return [self.canvas, self.soft_embeddings, self._argmax_history, *self._counters]

    @property
    def measured(self) -> list[torch.Tensor]:
        """What `measure` leaves to `conclude`."""
        told = [self._told.on_device] if self._constraint is None else []
        return [self._distributions.logits, self._is_sane, *told]

    def start_canvas(
        self, constraint: Constraint | None = None, start: Start | None = None, *, closes: int | None = None
    ) -> None:
        """Begin with a canvas of pure noise, or with what `start` says, held to `constraint`; forgets the canvas
        before.

        `closes` is a token that ends this one as an end of sequence does.
        """
        num_steps, canvas_length = self._settings.max_denoising_steps, self._canvas_length
        numbers = self._randomness.canvas(num_steps, canvas_length, self._vocab_size)
        self.max_steps = num_steps
        if start is not None:
            drafted = numbers.tokens[0, : len(start.tokens)]
            is_noise = self._randomness.noise(start.noise, len(drafted))
            drafted.copy_(torch.where(is_noise, drafted, torch.tensor(start.tokens)))
            self.max_steps = self._steps_from(1 - (1 - start.noise) * len(drafted) / canvas_length)
        send(numbers.tokens, self._tokens)
        send(numbers.uniforms, self._uniforms)
        for counter in self._counters:
            counter.fill_(num_steps - self.max_steps)
        # So a canvas can't be stable before the history is full; and with a threshold of 0 there is nothing to
        # differ from, so it always is.
        self._argmax_history.fill_(NO_TOKEN)
        if self._ends is not None:
            self._ends[-1:].fill_(NO_TOKEN if closes is None else closes)
        self._constraint = constraint
        self.canvas.copy_(self._tokens[0])

    def _steps_from(self, noise: float) -> int:
        """How many steps of the schedule are left where so large a share of a canvas is noise.

        In uniform-state diffusion that share is the time that is left, which the schedule falls with: it is 1 at
        a canvas's first step.
        """
        num_steps = self._settings.max_denoising_steps
        steps = round(num_steps * max(noise, LEAST_DRAFTED_SHARE))
        return min(max(steps, self._settings.stability_threshold + 1), num_steps)

    def measure(self, hidden: torch.Tensor) -> None:
        """Take in the network's last hidden states, `[256, H]`. Without a constraint that is all but telling the
        host."""
        distributions = self._distributions
        temperature = self._temperatures.index_select(0, self._steps_done)[0]
        self._is_sane.copy_(hidden.isfinite().all())
        if self._constraint is None:
            distributions.measure(hidden, temperature)
            self._decide()
        else:
            distributions.write(hidden, temperature)

    def conclude(self) -> DenoisingStep:
        """The rest of a step: what a constraint makes of it, and what the host is told.

        Raises `NotANumberError` if the hidden states or the logits were no numbers.
        """
        if self._constraint is not None:
            # What is allowed at one position depends on all the others, so it takes a second pass.
            argmax = self._constrain(self._constraint, self._distributions.logits)
            self._distributions.add()
            self._decide(argmax)
        # The step's only wait for the device but for that of a constraint: everything before is queued without the
        # host knowing a value. The next forward isn't queued before it is known whether there is one: that would
        # hide the 50 to 100 µs of waking up and launching, one part in a hundred or less of a step, and be thrown
        # away at the end of each canvas, one step in some fifteen.
        told = self._told.fetch()
        converged, is_sane, mean_entropy = told[:3].tolist()
        if not is_sane:
            raise NotANumberError()
        rows = told[3:].view(-1, self._canvas_length)
        likeliest = rows[3:].view(2, self._canvas_length, self._candidates)
        return DenoisingStep(bool(converged), mean_entropy, rows[:3], likeliest)

    def _decide(self, argmax: torch.Tensor | None = None) -> None:
        """From the distributions to the next canvas. `argmax` is a constraint's, if it has one."""
        distributions = self._distributions
        found = distributions.conclude(self._uniforms.index_select(0, self._counters[-1])[0])
        argmax, entropy = found.argmax if argmax is None else argmax, found.entropy
        for counter in self._counters:
            counter.add_(1)
        accepted = accept_by_entropy_bound(entropy, self._settings.entropy_bound)
        fresh = self._tokens.index_select(0, self._steps_done)[0]
        torch.where(accepted, found.drawn, fresh, out=self.canvas)
        distributions.soft_embeddings()
        kept = self._kept(argmax)
        mean_entropy = entropy.mean()
        stop = kept.all() & (mean_entropy < self._settings.confidence_threshold)
        if self._ends is not None:
            # Beside that: sure positions behind a text would make up for the doubt in it.
            text = _up_to_end(argmax, self._ends)
            doubt = (entropy * text).sum() / text.sum()
            stop |= (kept | ~text).all() & (doubt < self._settings.confidence_threshold)
        sane = self._is_sane & entropy.isfinite().all()
        told = [torch.stack((stop.float(), sane.float(), mean_entropy)), argmax.float(), accepted.float(), entropy]
        if self._candidates:
            likeliest = distributions.likeliest(self._candidates)
            told += [likeliest.tokens.float().flatten(), likeliest.probabilities.flatten()]
        torch.cat(told, out=self._told.on_device)

    def _constrain(self, constraint: Constraint, logits: torch.Tensor) -> torch.Tensor:
        """Make the constraint's view of the logits, **in place**: see `Constraint.decide` for what it returns."""
        starts = range(0, self._canvas_length, self._rows_per_chunk)
        chunks = [slice(start, start + self._rows_per_chunk) for start in starts]
        for rows in chunks:
            constraint.observe(rows, logits[rows])
        argmax = constraint.decide(logits)
        for rows in chunks:
            constraint.reweigh(rows, logits[rows])
        return argmax

    def _kept(self, argmax: torch.Tensor) -> torch.Tensor:
        """Where `argmax` is that of the last `stability_threshold` steps, of each: bool `[len, 256]`."""
        kept = self._argmax_history == argmax
        self._argmax_history.copy_(torch.cat((self._argmax_history, argmax[None]))[1:])
        return kept


def _up_to_end(argmax: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """The positions up to the first token that is one of `ends`, `[n, 1]`, or all if none is: bool `[256]`."""
    is_end = (argmax == ends).any(0).int()
    return is_end.cumsum(0) == is_end


def send(numbers: torch.Tensor, to: torch.Tensor) -> None:
    """Copy to the device without waiting for it, which CUDA does from pinned memory only."""
    is_cuda = to.device.type == "cuda"
    to.copy_(numbers.pin_memory() if is_cuda else numbers, non_blocking=is_cuda)


def chunk_bytes(device: torch.device) -> int:
    """How much of the logits is worked on at a time."""
    return CHUNK_BYTES_CPU if device.type == "cpu" else CHUNK_BYTES_ACCELERATOR
