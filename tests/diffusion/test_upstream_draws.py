"""Given the same random numbers the sampler does what transformers' formulas do, but for what rounding decides."""

from __future__ import annotations

import pytest
import torch
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    EntropyBoundSampler as UpstreamSampler,
)
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    EntropyBoundSamplerConfig,
    LinearTemperatureScheduleLogitsProcessor,
    StableAndConfidentStoppingCriteria,
)

from llm_diffusiongemma.diffusion.sampler import EntropyBoundSampler, GeneratorRandomness, SamplerSettings

from .plain_vocabulary import PlainVocabulary
from .upstream_draws import CLOSE, UpstreamDraws

SETTINGS = SamplerSettings(12, 0.1, 0.4, 0.8, 0.005, 1)
CPU = torch.device("cpu")
LENGTH, VOCAB_SIZE, SOFTCAP = 16, 1100, 30.0


def numbers(seed: int) -> GeneratorRandomness:
    return GeneratorRandomness(torch.Generator().manual_seed(seed))


def network(canvas: torch.Tensor, step: int) -> torch.Tensor:
    """Raw logits `[16, V]` that depend on all of the canvas and grow surer of one answer step by step."""
    generator = torch.Generator().manual_seed(int(canvas.sum()) % 1000)
    noise = torch.randn(LENGTH, VOCAB_SIZE, generator=generator)
    answer = torch.arange(LENGTH)[:, None] * 60
    sureness = (1 + torch.rand(LENGTH, 1, generator=generator)) * (14 - step)
    return noise.scatter_add(1, answer, sureness)


def by_upstream(seed: int) -> tuple[list[list[int]], UpstreamDraws]:
    """Each step's canvas and argmax, with transformers' sampler, temperature and stop."""
    draws = UpstreamDraws(SETTINGS, numbers(seed))
    sampler = UpstreamSampler(
        EntropyBoundSamplerConfig(SETTINGS.entropy_bound), LENGTH, VOCAB_SIZE, SETTINGS.max_denoising_steps
    )
    temperature = LinearTemperatureScheduleLogitsProcessor(
        SETTINGS.t_min, SETTINGS.t_max, SETTINGS.max_denoising_steps
    )

    def canvases() -> list[list[int]]:
        seen = []
        for _ in range(2):
            stop = StableAndConfidentStoppingCriteria(SETTINGS.stability_threshold, SETTINGS.confidence_threshold)
            canvas = sampler.initialize_canvas(1, CPU)
            for step in range(SETTINGS.max_denoising_steps, 0, -1):
                logits = torch.tanh(network(canvas[0], step) / SOFTCAP)[None] * SOFTCAP
                logits = temperature(None, logits, torch.tensor(step, dtype=torch.int32))
                drawn = torch.multinomial(logits[0].softmax(-1), num_samples=1)[:, 0][None]
                canvas = sampler.renoise_canvas(sampler.accept_canvas(canvas, drawn, logits, step), step)
                seen += [canvas[0].tolist(), logits[0].argmax(-1).tolist()]
                if stop(logits.argmax(-1), logits):
                    break
        return seen

    return draws.run(canvases), draws


def by_us(seed: int) -> tuple[list[list[int]], list[int]]:
    sampler = EntropyBoundSampler(
        SETTINGS,
        vocabulary=PlainVocabulary(VOCAB_SIZE),
        canvas_length=LENGTH,
        device=CPU,
        softcap=SOFTCAP,
        randomness=numbers(seed),
    )
    seen, steps = [], []
    for _ in range(2):
        canvas = sampler.start_canvas()
        for step in range(SETTINGS.max_denoising_steps, 0, -1):
            result = sampler.step(network(canvas, step), step)
            canvas = result.canvas
            seen += [canvas.tolist(), result.argmax.tolist()]
            if result.converged:
                break
        steps.append(SETTINGS.max_denoising_steps - step + 1)
    return seen, steps


def test_the_same_numbers_make_the_same_steps() -> None:
    clear, lengths = 0, set()
    for seed in range(25):
        theirs, draws = by_upstream(seed)
        if draws.closest <= CLOSE:
            continue
        ours, steps = by_us(seed)
        assert ours == theirs
        assert [len(canvas) for canvas in draws.steps] == steps
        clear += 1
        lengths.update(steps)
    assert clear >= 15  # of 25
    assert len(lengths) > 1
    assert min(lengths) < SETTINGS.max_denoising_steps


@pytest.mark.parametrize("uniform", [0.3 + 1e-6, 0.35])
def test_a_draw_near_the_border_of_two_tokens_is_close(uniform: float) -> None:
    draws = UpstreamDraws(SETTINGS, numbers(0))
    shares = torch.tensor([[0.3, 0.7]]).double()

    def action() -> torch.Tensor:
        torch.randint(low=0, high=2, size=(1, 1), device=CPU)
        assert draws._numbers is not None
        draws._numbers.uniforms[0] = uniform
        return torch.multinomial(shares, num_samples=1)

    assert draws.run(action).tolist() == [[1]]
    assert draws.steps[0][0].draw == pytest.approx(uniform - 0.3, abs=1e-7)
    assert (draws.closest <= CLOSE) == (uniform < 0.31)


@pytest.mark.parametrize(
    ("bound", "close"),
    [
        (0.6109 + 1e-3, False),
        # The entropy of the surest position is what the next one must not exceed.
        (0.6108643020548935, True),
    ],
)
def test_a_sum_of_entropies_near_the_bound_is_close(bound: float, close: bool) -> None:
    settings = SamplerSettings(12, bound, 0.4, 0.8, 0.005, 1)
    draws = UpstreamDraws(settings, numbers(0))
    shares = torch.tensor([[0.3, 0.7], [0.4, 0.6]]).double()

    def action() -> None:
        torch.randint(low=0, high=2, size=(1, 2), device=CPU)
        torch.multinomial(shares, num_samples=1)

    draws.run(action)
    assert (draws.steps[0][0].acceptance <= CLOSE) == close
