from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    DiffusionGemmaGenerationConfig,
    EntropyBoundSamplerConfig,
    LinearTemperatureScheduleLogitsProcessor,
    StableAndConfidentStoppingCriteria,
)
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    EntropyBoundSampler as UpstreamSampler,
)

from llm_diffusiongemma.diffusion.sampler import (
    CHUNK_BYTES_CPU,
    EntropyBoundSampler,
    GeneratorRandomness,
    SamplerSettings,
    accept_by_entropy_bound,
    invert_cdf,
    temper_and_measure,
)
from llm_diffusiongemma.errors import OptionError

CPU = torch.device("cpu")
SETTINGS = SamplerSettings(
    max_denoising_steps=48,
    entropy_bound=0.1,
    t_min=0.4,
    t_max=0.8,
    confidence_threshold=0.005,
    stability_threshold=1,
)


def with_settings(**changes: Any) -> SamplerSettings:
    return SamplerSettings(**{**vars(SETTINGS), **changes})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_logits(rows: int, vocab_size: int, scale: float, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab_size, generator=generator(seed)) * scale


def sure_logits(tokens: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Logits at the soft cap's two ends, as sure of `tokens` as the model can be."""
    return torch.full((len(tokens), vocab_size), -30.0).scatter(1, tokens[:, None], 30.0)


def sampler(
    settings: SamplerSettings = SETTINGS,
    *,
    canvas_length: int = 16,
    vocab_size: int = 96,
    dtype: torch.dtype = torch.float32,
    softcap: float | None = None,
    randomness: Any = None,
) -> EntropyBoundSampler:
    return EntropyBoundSampler(
        settings,
        canvas_length=canvas_length,
        vocab_size=vocab_size,
        device=CPU,
        softcap=softcap,
        self_conditioning_dtype=dtype,
        randomness=randomness or GeneratorRandomness(generator()),
    )


# --- settings ------------------------------------------------------------------------------------------


def test_settings_without_a_checkpoint_are_those_of_transformers() -> None:
    upstream = DiffusionGemmaGenerationConfig._get_default_generation_params()
    settings = SamplerSettings.from_generation_config(DiffusionGemmaGenerationConfig())
    assert settings == SamplerSettings(
        entropy_bound=upstream["sampler_config"].entropy_bound,
        **{name: upstream[name] for name in vars(settings) if name != "entropy_bound"},
    )


def test_settings_are_the_checkpoints_unless_overridden() -> None:
    config = DiffusionGemmaGenerationConfig(
        max_denoising_steps=9,
        sampler_config=EntropyBoundSamplerConfig(entropy_bound=0.7),
        t_min=0.1,
        t_max=0.2,
        stability_threshold=0,
        confidence_threshold=0.3,
    )
    assert SamplerSettings.from_generation_config(config) == SamplerSettings(9, 0.7, 0.1, 0.2, 0.3, 0)
    overridden = SamplerSettings.from_generation_config(
        config,
        max_denoising_steps=1,
        entropy_bound=0.2,
        t_min=0.0,
        t_max=0.5,
        confidence_threshold=0.4,
        stability_threshold=2,
    )
    assert overridden == SamplerSettings(1, 0.2, 0.0, 0.5, 0.4, 2)


def test_an_override_that_contradicts_the_checkpoint_is_refused_with_both_values() -> None:
    config = DiffusionGemmaGenerationConfig(t_min=0.4, t_max=0.8)
    with pytest.raises(OptionError, match=r"t_min is 0\.4 and t_max is 0\.3"):
        SamplerSettings.from_generation_config(config, t_max=0.3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_denoising_steps": 0}, "max_denoising_steps must be at least 1, but it is 0"),
        ({"entropy_bound": 0.0}, "entropy_bound must be above 0, but it is 0.0"),
        ({"entropy_bound": math.nan}, "entropy_bound must be above 0, but it is nan"),
        ({"confidence_threshold": -1.0}, "confidence_threshold must be above 0, but it is -1.0"),
        ({"stability_threshold": -1}, "stability_threshold can't be negative, but it is -1"),
        ({"t_min": 0.8}, "t_min is 0.8 and t_max is 0.8"),
        ({"t_min": -0.1}, "t_min is -0.1 and t_max is 0.8"),
        ({"t_max": math.nan}, "t_min is 0.4 and t_max is nan"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        with_settings(**changes)


# --- one pass over the logits --------------------------------------------------------------------------


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 40),
    vocab_size=st.sampled_from([2, 7, 96, 512, 1000, 1024, 2816]),
    scale=st.sampled_from([0.01, 1.0, 5.0, 30.0, 1e4]),
    rows_per_chunk=st.integers(1, 45),
    entropy_bound=st.sampled_from([1e-6, 0.1, 2.0, 1e6]),
    softcap=st.sampled_from([None, 30.0, 3.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_measures_as_categorical_does_and_accepts_as_upstream_does(
    rows: int,
    vocab_size: int,
    scale: float,
    rows_per_chunk: int,
    entropy_bound: float,
    softcap: float | None,
    seed: int,
) -> None:
    logits = random_logits(rows, vocab_size, scale, seed)
    capped = logits if softcap is None else torch.tanh(logits / softcap) * softcap
    processed = capped / torch.tensor(0.6)

    argmax, entropy, log_normaliser = temper_and_measure(logits, softcap, torch.tensor(0.6), None, rows_per_chunk)

    assert torch.equal(logits, processed)  # capped and scaled in place, to the bit
    assert torch.equal(argmax, processed.argmax(-1))
    exact = Categorical(logits=processed.double())
    torch.testing.assert_close(entropy.double(), exact.entropy(), rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(entropy, Categorical(logits=processed).entropy(), rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(log_normaliser, processed.logsumexp(-1), rtol=1e-6, atol=1e-6)
    assert (entropy >= 0).all()

    accepted = accept_by_entropy_bound(entropy, entropy_bound)
    upstream = UpstreamSampler(EntropyBoundSamplerConfig(entropy_bound), rows, vocab_size, 48)
    upstream.accept_canvas(argmax[None], argmax[None], processed[None], 1)
    if scale > 0.01:
        assert torch.equal(accepted, upstream.accepted_token_mask[0])
    else:  # all rows are equally unsure, so which of them is surest is down to rounding
        assert accepted.sum() == upstream.accepted_token_mask.sum()


@pytest.mark.parametrize("vocab_size", [96, 97, 1024, 4096])
def test_equal_logits_have_the_entropy_of_the_uniform_distribution(vocab_size: int) -> None:
    argmax, entropy, log_normaliser = temper_and_measure(
        torch.full((5, vocab_size), 29.5), None, torch.tensor(1.0), None, 2
    )
    assert argmax.tolist() == [0] * 5
    torch.testing.assert_close(entropy, torch.full((5,), math.log(vocab_size)))
    torch.testing.assert_close(log_normaliser, torch.full((5,), 29.5 + math.log(vocab_size)))


@pytest.mark.parametrize("temperature", [1.0, 0.4, 1e-3, 1e-30])
def test_a_sure_row_has_no_entropy_and_no_nan(temperature: float) -> None:
    tokens = torch.arange(0, 96, 7)
    argmax, entropy, _ = temper_and_measure(sure_logits(tokens, 96), None, torch.tensor(temperature), None, 4)
    assert argmax.tolist() == tokens.tolist()
    # 95 tokens at e^-60 are all that is left at temperature 1.
    assert (entropy >= 0).all()
    assert (entropy < 1e-20).all()


def test_of_equal_logits_the_first_wins_as_in_torch() -> None:
    for vocab_size in (96, 97, 1024, 1536):
        logits = torch.randint(0, 3, (64, vocab_size), generator=generator()).float()
        expected = [row.index(max(row)) for row in logits.tolist()]
        assert temper_and_measure(logits, None, torch.tensor(1.0), None, 10).argmax.tolist() == expected


def test_self_conditioning_is_the_scaled_logits_in_the_embeddings_dtype() -> None:
    logits = random_logits(16, 96, 10.0)
    expected = (logits / torch.tensor(0.7)).to(torch.bfloat16)
    buffer = torch.empty(16, 96, dtype=torch.bfloat16)
    temper_and_measure(logits, None, torch.tensor(0.7), buffer, 5)
    assert torch.equal(buffer, expected)


@pytest.mark.parametrize("max_steps", [1, 3, 7, 20, 48, 100])
@pytest.mark.parametrize(("t_min", "t_max"), [(0.4, 0.8), (0.0, 1.3), (0.37, 0.91)])
def test_temperatures_are_upstreams_to_the_bit(max_steps: int, t_min: float, t_max: float) -> None:
    upstream = LinearTemperatureScheduleLogitsProcessor(t_min, t_max, max_steps)
    ours = sampler(with_settings(max_denoising_steps=max_steps, t_min=t_min, t_max=t_max), canvas_length=4)
    ours.start_canvas()
    for step in range(max_steps, 0, -1):
        logits = random_logits(4, 96, 10.0, seed=step)
        expected = upstream(None, logits, torch.tensor(step, dtype=torch.int32))
        assert torch.equal(ours.step(logits, step).self_conditioning_logits, expected)


# --- draw ----------------------------------------------------------------------------------------------


def test_draws_follow_the_distribution() -> None:
    vocab_size, draws = 4096, 400_000
    logits = random_logits(1, vocab_size, 2.0)
    probabilities = logits.softmax(-1)
    source, counts = generator(), torch.zeros(vocab_size, dtype=torch.int64)
    for _ in range(draws // 4000):
        uniforms = torch.rand(4000, dtype=torch.float64, generator=source)
        counts += invert_cdf(probabilities.expand(4000, -1), uniforms).bincount(minlength=vocab_size)

    expected = logits.double().softmax(-1)[0] * draws
    frequent = expected >= 5  # the chi-square approximation wants no rarer ones; those go into one bin
    observed = [*counts[frequent].tolist(), counts[~frequent].sum().item()]
    wanted = [*expected[frequent].tolist(), expected[~frequent].sum().item()]
    assert len(wanted) > 1000
    assert scipy.stats.chisquare(observed, wanted).pvalue > 0.01


def test_draws_reach_all_of_a_large_vocabulary() -> None:
    """In fp32 a cumulative sum of 262,144 equal shares would be too coarse to tell them apart."""
    vocab_size, draws = 262_144, 256
    logits = torch.zeros(1, vocab_size).expand(draws, -1)
    tokens = GeneratorRandomness(generator()).draw_tokens(
        logits, torch.full((draws,), math.log(vocab_size)), torch.arange(draws)
    )
    assert len(tokens.unique()) > draws * 0.99
    assert scipy.stats.kstest(tokens / vocab_size, "uniform").pvalue > 0.01
    assert scipy.stats.kstest((tokens % 512) / 512, "uniform").pvalue > 0.01


@pytest.mark.parametrize("vocab_size", [96, 97, 1024, 4096])
def test_a_token_without_probability_is_never_drawn(vocab_size: int) -> None:
    """Nor at the ends of the range of uniform numbers, nor where a block of the vocabulary is all zero."""
    probabilities = torch.zeros(vocab_size)
    possible = torch.tensor([1, vocab_size // 3, vocab_size // 3 + 1, vocab_size - 2])
    probabilities[possible] = torch.tensor([0.3, 1e-38, 1e-7, 0.7])
    ends = torch.tensor([0.0, 2**-53, 1 - 2**-53, 0.3, 0.3 - 2**-54, 0.3 + 1e-12], dtype=torch.float64)
    uniforms = torch.cat((ends, torch.rand(5000, dtype=torch.float64, generator=generator())))
    # Where blocks meet is where rounding could step over: 0.3 of the total, and its neighbours.
    shares = probabilities.double().cumsum(0)[possible] / probabilities.double().sum()
    shares = shares.clamp(max=1 - 2**-53)
    uniforms = torch.cat((uniforms, shares, shares.nextafter(torch.zeros_like(shares))))
    drawn = invert_cdf(probabilities.expand(len(uniforms), -1), uniforms)
    assert torch.isin(drawn, possible).all()
    assert drawn[0] == 1
    assert drawn[2] == vocab_size - 2


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    vocab_size=st.sampled_from([2, 33, 96, 1024, 1537]),
    uniform=st.floats(0, 1, exclude_max=True),
    zeros=st.floats(0, 0.99),
    scale=st.sampled_from([1e-30, 1e-6, 1.0, 1e20]),
    seed=st.integers(0, 2**32 - 1),
)
def test_two_levels_find_the_token_that_one_finds(
    vocab_size: int, uniform: float, zeros: float, scale: float, seed: int
) -> None:
    source = generator(seed)
    probabilities = torch.rand(1, vocab_size, generator=source)
    probabilities *= torch.rand(1, vocab_size, generator=source) >= zeros
    probabilities[0, seed % vocab_size] = 1.0
    probabilities *= scale

    token = invert_cdf(probabilities, torch.tensor([uniform], dtype=torch.float64)).item()

    cdf = probabilities[0].double().cumsum(0)
    assert probabilities[0, token] > 0
    # Block sums are fp32: the uniform number may land a rounding error away from the one-level share.
    before, after = cdf[token] - probabilities[0, token].double(), cdf[token]
    tolerance = 1e-6 * cdf[-1]
    assert before - tolerance <= uniform * cdf[-1] <= after + tolerance


def test_rounding_does_not_step_into_a_block_that_begins_with_an_impossible_token() -> None:
    """The first block's sum is lost in the second's, so the uniform number seems to lie before the second."""
    probabilities = torch.zeros(1, 1024)
    probabilities[0, 0] = 1.9 * 2**-53 * (1 - 1e-6)
    probabilities[0, 513] = 1.9
    assert invert_cdf(probabilities, torch.tensor([2.0**-53], dtype=torch.float64)).item() == 513


def test_blocks_of_a_large_vocabulary_are_told_apart_exactly() -> None:
    """Where blocks meet, a cumulative sum in fp32 is off by 3e-8 and more; a token's share may be 1e-10."""
    probabilities = random_logits(1, 262_144, 2.0).softmax(-1)
    cdf = probabilities[0].double().cumsum(0)
    uniforms = cdf[511:-1:512] / cdf[-1]
    drawn = invert_cdf(probabilities.expand(len(uniforms), -1), uniforms)
    before = cdf[drawn] - probabilities[0, drawn].double()
    off_by = torch.maximum(before - uniforms * cdf[-1], uniforms * cdf[-1] - cdf[drawn])
    assert off_by.max() < 5e-9


def test_draw_touches_accepted_rows_only() -> None:
    logits = random_logits(40, 1024, 3.0)
    log_normaliser = logits.logsumexp(-1)
    positions = torch.tensor([0, 3, 4, 17, 39, 20, 21, 22, 23, 24, 25]).sort().values
    expected = GeneratorRandomness(generator()).draw_tokens(logits, log_normaliser, positions)

    rejected = torch.ones(40, dtype=torch.bool).index_fill(0, positions, False)
    logits[rejected] = math.nan
    log_normaliser[rejected] = math.nan
    before = logits.clone()
    source = generator()
    drawn = GeneratorRandomness(source).draw_tokens(logits, log_normaliser, positions)

    assert torch.equal(drawn, expected)
    assert torch.equal(logits.nan_to_num(), before.nan_to_num())
    reference = generator()
    torch.rand(len(positions), dtype=torch.float64, generator=reference)
    assert torch.equal(source.get_state(), reference.get_state())  # one uniform number a row


def test_uniform_tokens_are_uniform_over_the_whole_vocabulary() -> None:
    tokens = GeneratorRandomness(generator()).uniform_tokens(20_000, 100, CPU)
    counts = tokens.bincount(minlength=100)
    assert len(counts) == 100
    assert scipy.stats.chisquare(counts.tolist()).pvalue > 0.01


# --- a step --------------------------------------------------------------------------------------------


class RecordingRandomness(GeneratorRandomness):
    """Writes down what it is asked for and what it answers."""

    def __init__(self) -> None:
        super().__init__(generator())
        self.calls: list[tuple[str, torch.Tensor]] = []

    def uniform_tokens(self, canvas_length: int, vocab_size: int, device: torch.device) -> torch.Tensor:
        tokens = super().uniform_tokens(canvas_length, vocab_size, device)
        self.calls.append(("uniform", tokens.clone()))
        return tokens

    def draw_tokens(
        self, logits: torch.Tensor, log_normaliser: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        tokens = super().draw_tokens(logits, log_normaliser, positions)
        self.calls.append(("draw", tokens.clone()))
        return tokens


def test_next_canvas_is_drawn_where_accepted_and_noise_elsewhere() -> None:
    randomness = RecordingRandomness()
    ours = sampler(with_settings(entropy_bound=1.0), randomness=randomness)
    start = ours.start_canvas()
    logits = sure_logits(torch.arange(16), 96)
    logits[5:] = random_logits(11, 96, 1.0)
    step = ours.step(logits, 48)

    (first, noise_at_start), (second, drawn), (third, noise) = randomness.calls
    assert [first, second, third] == ["uniform", "draw", "uniform"]
    assert torch.equal(start, noise_at_start)
    assert step.accepted[:5].all()
    assert step.accepted.sum() < 16
    assert torch.equal(step.canvas[step.accepted], drawn)
    assert torch.equal(step.canvas[~step.accepted], noise[~step.accepted])
    assert step.canvas[:5].tolist() == [0, 1, 2, 3, 4]


def test_the_surest_position_is_accepted_however_unsure_it_is() -> None:
    entropy = torch.tensor([9.0, 7.0, 8.0])
    assert accept_by_entropy_bound(entropy, 0.1).tolist() == [False, True, False]


def test_acceptance_bounds_the_joint_entropy_but_for_the_last() -> None:
    entropy = torch.tensor([0.5, 0.25, 4.0, 0.125, 5.0])  # ascending: 0.125, 0.25, 0.5, 4.0, 5.0
    # Before the 4.0 stand 0.875 nats: it is the first one in that exceeds what it may not exceed itself.
    assert accept_by_entropy_bound(entropy, 0.875).tolist() == [True, True, True, True, False]
    assert accept_by_entropy_bound(entropy, 0.87).tolist() == [True, True, False, True, False]


@pytest.mark.parametrize("threshold", [0, 1, 2, 3])
def test_stops_after_as_many_stable_steps_as_asked_for(threshold: int) -> None:
    ours = sampler(with_settings(stability_threshold=threshold))
    settled, other = torch.arange(16), torch.arange(16).flip(0)
    # Settle, stir once, settle for good; on a second canvas nothing of the first one may count.
    sequence = [settled] * threshold + [other] + [settled] * (threshold + 1)
    for _ in range(2):
        ours.start_canvas()
        upstream = StableAndConfidentStoppingCriteria(threshold, SETTINGS.confidence_threshold)
        converged = []
        for step, tokens in zip(range(48, 0, -1), sequence, strict=False):
            logits = sure_logits(tokens, 96)
            expected = upstream(tokens[None], logits[None])
            converged.append(ours.step(logits, step).converged)
            assert converged[-1] == expected.item()
        if threshold > 0:
            assert converged == [False] * (len(sequence) - 1) + [True]
        else:
            assert all(converged)


def test_does_not_stop_while_unsure() -> None:
    ours = sampler()
    ours.start_canvas()
    logits = random_logits(16, 96, 3.0)
    assert not any(ours.step(logits.clone(), step).converged for step in (3, 2, 1))


def test_mean_entropy_is_what_must_be_below_the_threshold() -> None:
    logits = sure_logits(torch.arange(16), 96)
    logits[0] = 0.0  # one position has no idea: log 96 / 16 = 0.285 nats on average
    for confidence_threshold, expected in ((0.29, True), (0.28, False)):
        ours = sampler(with_settings(confidence_threshold=confidence_threshold))
        ours.start_canvas()
        assert [ours.step(logits.clone(), step).converged for step in (2, 1)] == [False, expected]


def test_self_conditioning_buffer_is_one_for_all_steps_and_only_if_needed() -> None:
    half = sampler(dtype=torch.bfloat16)
    half.start_canvas()
    logits = [random_logits(16, 96, 3.0, seed) for seed in range(3)]
    buffers = {half.step(tensor, 1).self_conditioning_logits.data_ptr() for tensor in logits}
    assert len(buffers) == 1
    full = sampler()
    full.start_canvas()
    assert full.step(logits[0], 1).self_conditioning_logits is logits[0]


class LargestAllocation(TorchDispatchMode):
    """Notes the size of the largest tensor that is made, not merely viewed or overwritten."""

    max_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {leaf.untyped_storage().data_ptr() for leaf in tensors((args, kwargs))}
        for made in tensors(result):
            storage = made.untyped_storage()
            if storage.data_ptr() not in known:
                self.max_bytes = max(self.max_bytes, storage.nbytes())
        return result


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_makes_no_temporary_of_the_logits_size(dtype: torch.dtype) -> None:
    canvas_length, vocab_size = 256, 65_536
    ours = sampler(
        with_settings(entropy_bound=1e9), canvas_length=canvas_length, vocab_size=vocab_size, dtype=dtype
    )
    ours.start_canvas()
    logits = random_logits(canvas_length, vocab_size, 3.0)
    with LargestAllocation() as allocations:
        step = ours.step(logits, 1)
    assert step.accepted.all()  # every row was drawn from, so the draw is measured, too
    assert 0 < allocations.max_bytes <= CHUNK_BYTES_CPU


def test_the_peak_of_a_step_is_a_fraction_of_the_logits() -> None:
    """What the operating system saw, so that temporaries inside an operation count, and all together."""
    canvas_length, vocab_size = 256, 65_536
    ours = sampler(with_settings(entropy_bound=1e9), canvas_length=canvas_length, vocab_size=vocab_size)
    logits = random_logits(canvas_length, vocab_size, 3.0)
    peaks = []
    for _ in range(4):  # the first one pages code in, and any one may be disturbed
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # puts the high-water mark back
        except OSError:
            pytest.skip("this system keeps no high-water mark that can be put back")
        before = _status_bytes("VmRSS")
        ours.step(logits, 1)
        peaks.append(_status_bytes("VmHWM") - before)
    assert min(peaks) <= logits.nbytes / 8


def _status_bytes(name: str) -> int:
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines[name].split()[0]) * 1024


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_waits_for_the_gpu_once(recwarn: pytest.WarningsRecorder) -> None:
    device = torch.device("cuda", 0)
    ours = EntropyBoundSampler(
        SETTINGS,
        canvas_length=256,
        vocab_size=4096,
        device=device,
        softcap=30.0,
        self_conditioning_dtype=torch.bfloat16,
        randomness=GeneratorRandomness(generator()),
    )
    canvas = ours.start_canvas()
    steps = [ours.step(random_logits(256, 4096, 3.0).to(device), step) for step in (48, 47)]
    logits = random_logits(256, 4096, 3.0).to(device)
    torch.cuda.synchronize()
    recwarn.clear()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        steps.append(ours.step(logits, 46))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([warning for warning in recwarn if "synchroniz" in str(warning.message)]) == 1
    assert canvas.device == device
    assert all(before.canvas.ne(after.canvas).any() for before, after in pairwise(steps))
