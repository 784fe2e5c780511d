from __future__ import annotations

import math
import warnings
from itertools import pairwise
from typing import Any

import pytest
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

from llm_diffusiongemma.diffusion import sampler as sampler_module
from llm_diffusiongemma.diffusion.operations import PLAIN_TORCH
from llm_diffusiongemma.diffusion.sampler import (
    CHUNK_BYTES_CPU,
    CanvasNumbers,
    Distributions,
    EntropyBoundSampler,
    GeneratorRandomness,
    SamplerSettings,
    accept_by_entropy_bound,
)
from llm_diffusiongemma.diffusion.softmax import PART, soft_cap_
from llm_diffusiongemma.errors import NotANumberError, OptionError

from .plain_vocabulary import PlainVocabulary, concluded, distributions_of, step_of

CPU, META = torch.device("cpu"), torch.device("meta")
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
    softcap: float | None = None,
    randomness: Any = None,
    device: torch.device = CPU,
    candidates: int = 0,
) -> EntropyBoundSampler:
    return EntropyBoundSampler(
        settings,
        vocabulary=PlainVocabulary(vocab_size),
        canvas_length=canvas_length,
        device=device,
        softcap=softcap,
        randomness=randomness or GeneratorRandomness(generator()),
        candidates=candidates,
    )


# --- settings ------------------------------------------------------------------------------------------


def test_settings_without_a_checkpoint_are_those_of_transformers() -> None:
    upstream = DiffusionGemmaGenerationConfig._get_default_generation_params()
    settings = SamplerSettings.from_generation_config(DiffusionGemmaGenerationConfig())
    assert settings == SamplerSettings(
        entropy_bound=upstream["sampler_config"].entropy_bound,
        **{name: upstream[name] for name in vars(settings) if name not in ("entropy_bound", "stop_at_end")},
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


# --- one pass over the vocabulary ----------------------------------------------------------------------


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of the fewest tokens there may be, so that even a small vocabulary has several."""
    monkeypatch.setattr(sampler_module, "CHUNK_BYTES_CPU", 1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 40),
    vocab_size=st.sampled_from([2, 7, 96, 512, 513, 1000, 1024, 2816]),
    scale=st.sampled_from([0.01, 1.0, 5.0, 30.0, 1e4]),
    chunk_bytes=st.sampled_from([1, CHUNK_BYTES_CPU // 64, CHUNK_BYTES_CPU]),
    entropy_bound=st.sampled_from([1e-6, 0.1, 2.0, 1e6]),
    seed=st.integers(0, 2**32 - 1),
)
def test_measures_as_categorical_does_and_accepts_as_upstream_does(
    rows: int, vocab_size: int, scale: float, chunk_bytes: int, entropy_bound: float, seed: int
) -> None:
    logits = random_logits(rows, vocab_size, scale, seed)
    processed = logits / torch.tensor(0.6)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sampler_module, "CHUNK_BYTES_CPU", chunk_bytes)
        measured = distributions_of(logits, temperature=0.6)
    found = concluded(measured)
    entropy = found.entropy

    assert torch.equal(measured.logits, processed)  # to the bit
    assert torch.equal(found.argmax, processed.argmax(-1))
    exact = Categorical(logits=processed.double())
    torch.testing.assert_close(entropy.double(), exact.entropy(), rtol=2e-6, atol=2e-6)
    if scale <= 30:  # beyond, transformers' own is off by more
        torch.testing.assert_close(entropy, Categorical(logits=processed).entropy(), rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(measured.soft_embeddings().double(), exact.probs, rtol=1e-5, atol=1e-8)
    assert (entropy >= 0).all()

    accepted = accept_by_entropy_bound(entropy, entropy_bound)
    upstream = UpstreamSampler(EntropyBoundSamplerConfig(entropy_bound), rows, vocab_size, 48)
    upstream.accept_canvas(exact.probs.argmax(-1)[None], exact.probs.argmax(-1)[None], processed[None], 1)
    if 0.01 < scale <= 30:
        assert torch.equal(accepted, upstream.accepted_token_mask[0])
    elif scale == 0.01:  # all rows are equally unsure, so which of them is surest is down to rounding
        assert accepted.sum() == upstream.accepted_token_mask.sum()


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("cap", [3.0, 30.0])
def test_the_soft_cap_is_a_hyperbolic_tangent(scale: float, cap: float) -> None:
    logits = random_logits(1, 10_000, scale)
    logits[0, :3] = torch.tensor([1e30, -1e30, 0.0])
    expected = torch.tanh(logits.double() / cap) * cap
    soft_cap_(logits, cap)
    assert (logits - expected).abs().max() <= cap / 2**22
    assert logits[0, :3].tolist() == [cap, -cap, 0.0]


def test_the_cap_comes_before_the_temperature() -> None:
    logits = random_logits(4, 96, 30.0)
    expected = torch.tanh(logits / 30) * 30 / 0.5
    assert torch.allclose(distributions_of(logits, softcap=30.0, temperature=0.5).logits, expected, atol=1e-4)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("descending", [False, True])
def test_the_maximum_may_move_with_every_block(descending: bool) -> None:
    """What was added up before a block is relative to another maximum than what comes after."""
    steps = torch.arange(5.0).repeat_interleave(PART) * 3
    logits = random_logits(8, 5 * PART, 1.0) + (steps.flip(0) if descending else steps)
    measured = distributions_of(logits)
    assert len(measured._softmax.blocks) == 5
    exact = Categorical(logits=logits.double())
    torch.testing.assert_close(concluded(measured).entropy.double(), exact.entropy(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(measured.soft_embeddings().double(), exact.probs, rtol=1e-5, atol=1e-9)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("vocab_size", [96, 97, 1024, 4096])
def test_equal_logits_have_the_entropy_of_the_uniform_distribution(vocab_size: int) -> None:
    measured = distributions_of(torch.full((5, vocab_size), 29.5))
    found = concluded(measured)
    assert found.argmax.tolist() == [0] * 5
    torch.testing.assert_close(found.entropy, torch.full((5,), math.log(vocab_size)))
    torch.testing.assert_close(measured.soft_embeddings(), torch.full((5, vocab_size), 1 / vocab_size))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("temperature", [1.0, 0.4, 1e-3, 1e-30])
def test_a_sure_row_has_no_entropy_and_no_nan(temperature: float) -> None:
    tokens = torch.arange(0, 1500, 70)
    measured = distributions_of(sure_logits(tokens, 1500), temperature=temperature)
    found = concluded(measured)
    assert found.argmax.tolist() == tokens.tolist()
    # 1,499 tokens at e^-60 are all that is left at temperature 1.
    assert (found.entropy >= 0).all()
    assert (found.entropy < 1e-20).all()
    assert torch.isfinite(measured.soft_embeddings()).all()


@pytest.mark.usefixtures("small_blocks")
def test_of_equal_logits_the_first_wins_as_in_torch() -> None:
    for vocab_size in (96, 97, 1024, 1536):
        logits = torch.randint(0, 3, (64, vocab_size), generator=generator()).float()
        expected = [row.index(max(row)) for row in logits.tolist()]
        assert concluded(distributions_of(logits)).argmax.tolist() == expected


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("vocab_size", "most"), [(96, 3), (4 * PART + 3, 5), (20 * PART, 4), (3, 5)])
@pytest.mark.parametrize("scale", [0.3, 30.0])
def test_the_likeliest_tokens_are_those_of_a_softmax(vocab_size: int, most: int, scale: float) -> None:
    logits = random_logits(16, vocab_size, scale)
    logits[0] = 0.0
    measured = distributions_of(logits)
    found = concluded(measured)
    likeliest = measured.likeliest(most)
    expected = logits.softmax(-1).topk(min(most, vocab_size))
    assert torch.equal(likeliest.tokens[1:], expected.indices[1:])
    torch.testing.assert_close(likeliest.probabilities, expected.values)
    assert likeliest.tokens[0].tolist() == sorted(likeliest.tokens[0].tolist())
    assert torch.equal(likeliest.tokens[1:, 0], found.argmax[1:])


def test_of_equally_likely_tokens_the_first_is_named_first() -> None:
    logits = torch.zeros(2, 96)
    logits[:, [70, 4, 33]] = 2.0
    logits[1, 80] = 3.0
    measured = distributions_of(logits)
    concluded(measured)
    assert measured.likeliest(4).tokens[:, :3].tolist() == [[4, 33, 70], [80, 4, 33]]


def test_nothing_of_the_step_before_is_left() -> None:
    ours = sampler(vocab_size=1024)
    ours.start_canvas()
    surer, vaguer = random_logits(16, 1024, 9.0), random_logits(16, 1024, 1.0, seed=1)
    step_of(ours, surer, 2)
    after = step_of(ours, vaguer, 1)
    fresh = sampler(vocab_size=1024)
    fresh.start_canvas()
    alone = step_of(fresh, vaguer, 1)
    for name in ("canvas", "argmax", "entropy", "soft_embeddings"):
        assert torch.equal(getattr(after, name), getattr(alone, name))


@pytest.mark.parametrize("max_steps", [1, 3, 7, 20, 48, 100])
@pytest.mark.parametrize(("t_min", "t_max"), [(0.4, 0.8), (0.0, 1.3), (0.37, 0.91)])
def test_temperatures_are_upstreams_to_the_bit(max_steps: int, t_min: float, t_max: float) -> None:
    upstream = LinearTemperatureScheduleLogitsProcessor(t_min, t_max, max_steps)
    ours = sampler(with_settings(max_denoising_steps=max_steps, t_min=t_min, t_max=t_max), canvas_length=4)
    ours.start_canvas()
    for step in range(max_steps, 0, -1):
        logits = random_logits(4, 96, 10.0, seed=step)
        expected = upstream(None, logits, torch.tensor(step, dtype=torch.int32))
        step_of(ours, logits, step)
        assert torch.equal(ours._distributions.logits, expected)


# --- draw ----------------------------------------------------------------------------------------------


def draw(logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """One row of logits `[V]`, drawn from with each of the uniform numbers."""
    return distributions_of(logits.expand(len(uniforms), -1), hidden_size=1).conclude(uniforms).drawn


def test_draws_follow_the_distribution() -> None:
    from scipy import stats

    vocab_size, draws = 2048, 100_000
    logits = random_logits(1, vocab_size, 2.0)
    measured = distributions_of(logits.expand(4000, -1), hidden_size=1)
    source, counts = generator(), torch.zeros(vocab_size, dtype=torch.int64)
    for _ in range(draws // 4000):
        uniforms = torch.rand(4000, dtype=torch.float64, generator=source)
        counts += measured.conclude(uniforms).drawn.bincount(minlength=vocab_size)

    expected = logits.double().softmax(-1)[0] * draws
    frequent = expected >= 5  # the chi-square approximation wants no rarer ones; those go into one bin
    observed = [*counts[frequent].tolist(), counts[~frequent].sum().item()]
    wanted = [*expected[frequent].tolist(), expected[~frequent].sum().item()]
    assert len(wanted) > 500
    assert stats.chisquare(observed, wanted).pvalue > 0.01


def test_draws_reach_all_of_a_large_vocabulary() -> None:
    """In fp32 a cumulative sum of 262,144 equal shares would be too coarse to tell them apart."""
    from scipy import stats

    vocab_size, draws = 262_144, 256
    uniforms = torch.rand(draws, dtype=torch.float64, generator=generator())
    measured = distributions_of(torch.zeros(1, vocab_size), hidden_size=1)
    tokens = torch.cat([measured.conclude(uniform[None]).drawn for uniform in uniforms])
    assert len(tokens.unique()) > draws * 0.99
    assert stats.kstest(tokens / vocab_size, "uniform").pvalue > 0.01
    assert stats.kstest((tokens % 512) / 512, "uniform").pvalue > 0.01


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 40])
@pytest.mark.parametrize("vocab_size", [96, 97, 1024, 4096])
def test_a_token_without_probability_is_never_drawn(
    vocab_size: int, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor at the ends of the range of uniform numbers, nor where a part of the vocabulary has none at all."""
    monkeypatch.setattr(sampler_module, "CHUNK_BYTES_CPU", chunk_bytes)
    shares = torch.zeros(vocab_size, dtype=torch.float64)
    possible = torch.tensor([vocab_size // 8, vocab_size // 3, vocab_size // 3 + 1, vocab_size - 2])
    shares[possible] = torch.tensor([0.3, 1e-30, 1e-7, 0.7], dtype=torch.float64)
    logits = shares.log().float().clamp(min=-1000)
    ends = torch.tensor([0.0, 2**-53, 1 - 2**-53, 0.3, 0.3 - 2**-54, 0.3 + 1e-12], dtype=torch.float64)
    uniforms = torch.cat((ends, torch.rand(1000, dtype=torch.float64, generator=generator())))
    # Where tokens meet is where rounding could step over: 0.3 of the total, and its neighbours.
    borders = (logits.double().exp().cumsum(0)[possible] / logits.double().exp().sum()).clamp(max=1 - 2**-53)
    uniforms = torch.cat((uniforms, borders, borders.nextafter(torch.zeros_like(borders))))
    drawn = draw(logits, uniforms)
    assert torch.isin(drawn, possible).all()
    assert drawn[0] == possible[0]
    assert drawn[2] == vocab_size - 2


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    vocab_size=st.sampled_from([2, 33, 96, 1024, 1537]),
    uniform=st.floats(0, 1, exclude_max=True),
    impossible=st.floats(0, 0.99),
    offset=st.sampled_from([-1e4, 0.0, 75.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_two_levels_find_the_token_that_one_finds(
    vocab_size: int, uniform: float, impossible: float, offset: float, seed: int
) -> None:
    source = generator(seed)
    logits = torch.randn(vocab_size, generator=source) * 5 + offset
    logits[torch.rand(vocab_size, generator=source) < impossible] = offset - 1000
    logits[seed % vocab_size] = offset

    token = draw(logits, torch.tensor([uniform], dtype=torch.float64)).item()

    shares = (logits.double() - logits.max().double()).exp()
    cdf = shares.cumsum(0)
    assert shares[token] > 0
    # Sums of parts are fp32: the uniform number may land a rounding error away from the one-level share.
    tolerance = 1e-6 * cdf[-1]
    assert cdf[token] - shares[token] - tolerance <= uniform * cdf[-1] <= cdf[token] + tolerance


def test_rounding_does_not_step_into_a_part_that_begins_with_an_impossible_token() -> None:
    """The first part's sum is lost in the second's, so the uniform number seems to lie before the second."""
    logits = torch.full((1024,), -1000.0)
    logits[0] = math.log(2**-53 * (1 - 1e-6))
    logits[513] = 0.0
    assert draw(logits, torch.tensor([2.0**-53], dtype=torch.float64)).item() == 513


def test_parts_of_a_large_vocabulary_are_told_apart_exactly() -> None:
    """Where parts meet, a cumulative sum in fp32 is off by 3e-8 and more; a token's share may be 1e-10."""
    logits = random_logits(1, 262_144, 2.0)[0]
    shares = logits.double().softmax(-1)
    cdf = shares.cumsum(0)
    uniforms = cdf[PART - 1 : -1 : PART] / cdf[-1]
    measured = distributions_of(logits[None], hidden_size=1)
    drawn = torch.cat([measured.conclude(uniform[None]).drawn for uniform in uniforms])
    off_by = torch.maximum(cdf[drawn] - shares[drawn] - uniforms, uniforms - cdf[drawn])
    assert off_by.max() < 5e-9


# --- random numbers ------------------------------------------------------------------------------------


def test_the_numbers_of_a_canvas_are_drawn_at_once_and_depend_on_the_settings_only() -> None:
    source = generator(7)
    numbers = GeneratorRandomness(source).canvas(5, 16, 96)
    assert (numbers.tokens.shape, numbers.tokens.dtype) == ((6, 16), torch.int64)
    assert (numbers.uniforms.shape, numbers.uniforms.dtype) == ((5, 16), torch.float64)
    again = GeneratorRandomness(generator(7)).canvas(5, 16, 96)
    assert torch.equal(numbers.tokens, again.tokens)
    assert torch.equal(numbers.uniforms, again.uniforms)

    before = source.get_state()
    ours = sampler(with_settings(max_denoising_steps=5), randomness=GeneratorRandomness(source))
    ours.start_canvas()
    after = source.get_state()
    assert not torch.equal(before, after)
    step_of(ours, random_logits(16, 96, 3.0), 5)
    assert torch.equal(source.get_state(), after)


def test_numbers_of_a_canvas_are_uniform_over_the_whole_range() -> None:
    from scipy import stats

    numbers = GeneratorRandomness(generator()).canvas(500, 40, 100)
    counts = numbers.tokens.flatten().bincount(minlength=100)
    assert len(counts) == 100
    assert stats.chisquare(counts.tolist()).pvalue > 0.01
    assert stats.kstest(numbers.uniforms.flatten(), "uniform").pvalue > 0.01
    assert numbers.uniforms.max() < 1


# --- a step --------------------------------------------------------------------------------------------


class GivenNumbers:
    """The same numbers for every canvas."""

    def __init__(self, numbers: CanvasNumbers) -> None:
        self.numbers = numbers

    def canvas(self, steps: int, canvas_length: int, vocab_size: int) -> CanvasNumbers:
        return self.numbers


def test_next_canvas_is_drawn_where_accepted_and_noise_elsewhere() -> None:
    numbers = GeneratorRandomness(generator()).canvas(48, 16, 96)
    ours = sampler(with_settings(entropy_bound=1.0), randomness=GivenNumbers(numbers))
    ours.start_canvas()
    assert torch.equal(ours.canvas, numbers.tokens[0])
    logits = sure_logits(torch.arange(16), 96)
    logits[5:] = random_logits(11, 96, 1.0)
    for done in (0, 1, 47):
        step = step_of(ours, logits, 48 - done)
        temperature = 0.4 + 0.4 * (48 - done) / 48
        drawn = distributions_of(logits, temperature=temperature).conclude(numbers.uniforms[done]).drawn
        assert step.accepted[:5].all()
        assert step.accepted.sum() < 16
        assert torch.equal(step.canvas[step.accepted], drawn[step.accepted])
        assert torch.equal(step.canvas[~step.accepted], numbers.tokens[done + 1][~step.accepted])
        assert step.canvas[:5].tolist() == [0, 1, 2, 3, 4]


def test_each_canvas_has_numbers_of_its_own() -> None:
    ours = sampler()
    ours.start_canvas()
    first, uniforms = ours.canvas.clone(), ours._uniforms.clone()
    ours.start_canvas()
    assert not torch.equal(ours.canvas, first)
    assert not torch.equal(ours._uniforms, uniforms)


def test_what_goes_from_step_to_step_stays_where_it_is() -> None:
    """So that a step that was captured serves those behind it, of the next canvas, too."""
    ours = sampler(vocab_size=1024, randomness=GeneratorRandomness(generator()))
    places = []
    for _ in range(2):
        ours.start_canvas()
        for _ in range(2):
            step_of(ours, random_logits(16, 1024, 3.0))
            places.append([tensor.data_ptr() for tensor in (*ours.carried, *ours.measured)])
    assert len(places[0]) == 7
    assert places == [places[0]] * 4


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
            converged.append(step_of(ours, logits, step).converged)
            assert converged[-1] == expected.item()
        if threshold > 0:
            assert converged == [False] * (len(sequence) - 1) + [True]
        else:
            assert all(converged)


def test_does_not_stop_while_unsure() -> None:
    ours = sampler()
    ours.start_canvas()
    logits = random_logits(16, 96, 3.0)
    assert not any(step_of(ours, logits.clone(), step).converged for step in (3, 2, 1))


def test_mean_entropy_is_what_must_be_below_the_threshold() -> None:
    logits = sure_logits(torch.arange(16), 96)
    logits[0] = 0.0  # one position has no idea: log 96 / 16 = 0.285 nats on average
    for confidence_threshold, expected in ((0.29, True), (0.28, False)):
        ours = sampler(with_settings(confidence_threshold=confidence_threshold))
        ours.start_canvas()
        assert [step_of(ours, logits.clone(), step).converged for step in (2, 1)] == [False, expected]


def test_soft_embeddings_are_the_embeddings_by_their_probabilities() -> None:
    class Embeddings:
        size, hidden_size, canvas_length = 1200, 24, 16
        product_dtype, operations = torch.float32, PLAIN_TORCH
        weight = random_logits(1200, 24, 1.0)

        def logits(self, hidden: torch.Tensor, tokens: slice) -> torch.Tensor:
            return hidden @ self.weight[tokens].T

        def mix(self, weights: torch.Tensor, tokens: slice) -> torch.Tensor:
            return weights @ self.weight[tokens]

    vocabulary, hidden = Embeddings(), random_logits(16, 24, 2.0, seed=1)
    ours = EntropyBoundSampler(
        SETTINGS,
        vocabulary=vocabulary,
        canvas_length=16,
        device=CPU,
        softcap=30.0,
        randomness=GeneratorRandomness(generator()),
    )
    ours.start_canvas()
    logits = torch.tanh(hidden.double() @ vocabulary.weight.double().T / 30) * 30
    expected = (logits / 0.8).softmax(-1) @ vocabulary.weight.double()
    soft_embeddings = step_of(ours, hidden, 48).soft_embeddings
    assert (soft_embeddings.shape, soft_embeddings.dtype) == ((16, 24), torch.float32)
    torch.testing.assert_close(soft_embeddings.double(), expected, rtol=1e-4, atol=1e-5)


def test_blocks_of_the_vocabulary_are_those_of_the_longest_canvas() -> None:
    """For a shorter one there would be other kernels, and more tokens in a block than fp16 has headroom for."""
    samplers = [sampler(canvas_length=length, vocab_size=4096) for length in (16, 48, 256)]
    assert {its._distributions._softmax.z.shape[1:] for its in samplers} == {(4, 2, PART)}


def test_in_fp16_sums_over_a_vague_block_of_the_vocabulary_do_not_overflow() -> None:
    class Embeddings:
        size, hidden_size, canvas_length = 2816, 8, 3
        product_dtype, operations = torch.float16, PLAIN_TORCH
        weight = torch.full((2816, 8), 100.0, dtype=torch.float16)

        def logits(self, hidden: torch.Tensor, tokens: slice) -> torch.Tensor:
            return torch.zeros(len(hidden), tokens.stop - tokens.start, dtype=torch.float16)

        def mix(self, weights: torch.Tensor, tokens: slice) -> torch.Tensor:
            return weights @ self.weight[tokens]

    measured = Distributions(Embeddings(), 3, CPU, None)
    measured.measure(torch.zeros(3, 8), torch.tensor(0.4))
    concluded(measured)
    assert torch.equal(measured.soft_embeddings(), torch.full((3, 8), 100.0))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_output_that_is_no_number_is_refused(value: float, softcap: float | None) -> None:
    ours = sampler(softcap=softcap, vocab_size=1024)
    ours.start_canvas()
    logits = random_logits(16, 1024, 3.0)
    logits[3, 700] = value
    with pytest.raises(NotANumberError):
        step_of(ours, logits, 48)
    with pytest.raises(NotANumberError):
        step_of(ours, torch.full_like(logits, value), 48)


class Operators(TorchDispatchMode):
    """Notes each operator and the shapes that it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, list[torch.Size]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen.append((str(func), [tensor.shape for tensor in tensors(result)]))
        return result


def test_a_step_does_the_same_whatever_it_sees_and_reads_its_flags_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So a CUDA graph of it would stay right, and a device is waited for once."""
    reads = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: reads.append(tensor.shape) or tolist(tensor))
    ours = sampler(vocab_size=1500, candidates=3)
    ours.start_canvas()
    seen, accepted = [], []
    for logits in (random_logits(16, 1500, 0.1), sure_logits(torch.arange(16), 1500)):
        with Operators() as operators:
            ours.measure(logits)
            assert reads == []
            told = ours.conclude()
            assert reads == [(3,)]
        seen.append(operators.seen)
        accepted.append(sum(told.accepted))
        reads.clear()
    assert accepted == [1, 16]
    assert seen[0] == seen[1]
    # What makes the host wait for a value: `item`, `bool`, a mask as an index.
    waits = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal")
    assert not [name for name, _ in seen[0] if name.split(".")[1] in waits]


def test_a_step_can_be_taken_where_no_value_can_be_read() -> None:
    ours = sampler(vocab_size=1500, device=META, candidates=3)
    ours.start_canvas()
    ours.measure(torch.empty(16, 1500, device=META))
    with pytest.raises(NotImplementedError):
        ours.conclude()


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


class HeadOfOnes:
    """A large vocabulary whose weights take no memory worth mentioning."""

    hidden_size, canvas_length = 8, 256
    product_dtype, operations = torch.float32, PLAIN_TORCH

    def __init__(self, size: int) -> None:
        self.size = size

    def logits(self, hidden: torch.Tensor, tokens: slice) -> torch.Tensor:
        return hidden[:, :1].repeat(1, tokens.stop - tokens.start)

    def mix(self, weights: torch.Tensor, tokens: slice) -> torch.Tensor:
        return weights.sum(-1, keepdim=True).expand(-1, self.hidden_size)


def large_sampler() -> EntropyBoundSampler:
    ours = EntropyBoundSampler(
        with_settings(entropy_bound=1e9),
        vocabulary=HeadOfOnes(65_536),
        canvas_length=256,
        device=CPU,
        softcap=30.0,
        randomness=GeneratorRandomness(generator()),
    )
    ours.start_canvas()
    return ours


def test_a_step_makes_no_temporary_of_the_logits_size() -> None:
    ours = large_sampler()
    with LargestAllocation() as allocations:
        step = step_of(ours, torch.ones(256, 8), 1)
    assert step.accepted.all()
    assert 0 < allocations.max_bytes <= CHUNK_BYTES_CPU


def test_the_peak_of_a_step_is_a_fraction_of_the_logits() -> None:
    """What the operating system saw, so that temporaries inside an operation count, and all together."""
    ours, hidden = large_sampler(), torch.ones(256, 8)
    peaks = []
    for _ in range(4):  # the first one pages code and the logits in, and any one may be disturbed
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # puts the high-water mark back
        except OSError:
            pytest.skip("this system keeps no high-water mark that can be put back")
        before = _status_bytes("VmRSS")
        step_of(ours, hidden, 1)
        peaks.append(_status_bytes("VmHWM") - before)
    assert min(peaks) <= 8 << 20


def _status_bytes(name: str) -> int:
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines[name].split()[0]) * 1024


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_waits_for_the_gpu_once_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    ours = sampler(canvas_length=256, vocab_size=4096, softcap=30.0, device=device, candidates=3)
    logits = random_logits(256, 4096, 3.0).to(device)
    ours.start_canvas()
    canvases = [step_of(ours, logits).canvas for _ in range(2)]
    torch.cuda.synchronize()
    waits, synchronize = [], torch.cuda.Event.synchronize
    monkeypatch.setattr(torch.cuda.Event, "synchronize", lambda event: waits.append(event) or synchronize(event))
    # "always": of warnings from the same line the default would show the first only.
    with warnings.catch_warnings(record=True, action="always") as caught:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            ours.start_canvas()
            ours.measure(logits)
            assert waits == []
            told = ours.conclude()
            assert told.tokens == logits.argmax(-1).tolist()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    # Switching it on warns, too, once a process: that the mode does not find everything. What the test reads
    # itself is the last one.
    found = [warning for warning in caught if str(warning.message).startswith("called a synchronizing")]
    assert len(found) <= 1
    assert len(waits) == 1
    assert ours.canvas.device == device
    assert all(before.ne(after).any() for before, after in pairwise([*canvases, ours.canvas]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_makes_the_same_step_of_the_same_numbers() -> None:
    logits = random_logits(256, 4096, 3.0)
    results = []
    for device in (CPU, torch.device("cuda", 0)):
        settings = with_settings(entropy_bound=1e9)
        ours = sampler(settings, canvas_length=256, vocab_size=4096, softcap=30.0, device=device)
        ours.start_canvas()
        results.append(step_of(ours, logits.to(device), 48))
    ours_on_cpu, ours_on_gpu = results
    assert torch.equal(ours_on_cpu.argmax, ours_on_gpu.argmax.cpu())
    assert torch.allclose(ours_on_cpu.entropy, ours_on_gpu.entropy.cpu(), atol=1e-5)
    # A draw within a rounding error of two tokens' border may fall on either.
    assert (ours_on_cpu.canvas != ours_on_gpu.canvas.cpu()).sum() <= 2
