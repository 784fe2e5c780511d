from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llm_diffusiongemma.errors import ConstraintError, NotANumberError
from llm_diffusiongemma.grammar import constraint as constraint_module
from llm_diffusiongemma.grammar import lattice as lattice_module
from llm_diffusiongemma.grammar.automaton import UNREACHABLE, TokenAutomaton, build
from llm_diffusiongemma.grammar.choices import ChoiceTexts
from llm_diffusiongemma.grammar.constraint import TAIL_WEIGHT, TextConstraint
from llm_diffusiongemma.grammar.lattice import FEW_ARCS
from llm_diffusiongemma.grammar.pattern import choices_language, regex_language
from tests.diffusion.plain_vocabulary import concluded, distributions_of
from tests.diffusion.pretended import PretendedCard

from .languages import BYTE_TOKENS, EOS, OTHER_EOS, PAD, random_dfa, random_tokens, vocabulary_of

CPU = torch.device("cpu")


@dataclass
class Exact:
    """The answers, by looking at every canvas there is."""

    log_total: float
    best_text: tuple[int, ...]
    margin: float
    """By how many nats the best text is better than the second."""
    marginals: np.ndarray
    entropies: np.ndarray


def brute_force(automaton: TokenAutomaton, logits: torch.Tensor, state: int, tokens_left: int) -> Exact:
    length, vocab_size = logits.shape
    log_p = logits.double().log_softmax(-1).numpy()
    tail_tokens = [*automaton.eos_token_ids, *([] if automaton.pad_token_id is None else [automaton.pad_token_id])]
    log_tail = np.logaddexp.reduce(log_p[:, tail_tokens], axis=1)
    tail_weight = np.maximum(log_tail, -TAIL_WEIGHT)

    canvases: list[tuple[int, ...]] = []
    weights: list[float] = []
    texts: dict[tuple[int, ...], float] = {}

    def extend(canvas: tuple[int, ...], weight: float, state: int, text: int) -> None:
        i = len(canvas)
        if automaton.distance[state] > max(tokens_left - i, 0):
            return
        if i == length:
            canvases.append(canvas)
            weights.append(weight)
            texts[canvas[:text]] = np.logaddexp(texts.get(canvas[:text], -np.inf), weight)
            return
        if state == automaton.end:
            for token in tail_tokens:
                extend((*canvas, token), weight + tail_weight[i] + log_p[i, token] - log_tail[i], state, text)
        else:
            for token in range(vocab_size):
                extend((*canvas, token), weight + log_p[i, token], automaton.advance(state, [token]), i + 1)

    extend((), 0.0, state, 0)
    weight = np.array(weights)
    log_total = float(np.logaddexp.reduce(weight))
    share = np.exp(weight - log_total)
    marginals = np.zeros((length, vocab_size))
    for i in range(length):
        np.add.at(marginals[i], np.array(canvases)[:, i], share)
    entropies = -(marginals * np.log(np.where(marginals > 0, marginals, 1))).sum(1)
    ranked = sorted(texts.items(), key=lambda item: -item[1])
    margin = ranked[0][1] - ranked[1][1] if len(ranked) > 1 else np.inf
    return Exact(log_total, ranked[0][0], margin, marginals, entropies)


def step(constraint: TextConstraint, logits: torch.Tensor, rows_per_chunk: int = 1) -> tuple[Any, Any]:
    """One denoising step's calls, on a copy: the canvas and log-probabilities."""
    logits = logits.clone()
    chunks = [slice(i, i + rows_per_chunk) for i in range(0, len(logits), rows_per_chunk)]
    for rows in chunks:
        constraint.observe(rows, logits[rows])
    canvas = constraint.decide(logits)
    for rows in chunks:
        constraint.reweigh(rows, logits[rows])
    return canvas, logits


def entropies_of(log_q: torch.Tensor) -> torch.Tensor:
    """What the sampler makes of them."""
    return concluded(distributions_of(log_q)).entropy


def random_cases(count: int) -> Iterator[tuple[np.random.Generator, TokenAutomaton, int]]:
    """Automata over vocabularies of nine to twelve tokens that can be written."""
    seeds = itertools.count()
    while count:
        rng = np.random.default_rng(next(seeds))
        size = int(rng.integers(9, 13))
        tokens = random_tokens(rng, b"ab", size)
        eos = (EOS, OTHER_EOS) if rng.random() < 0.5 else (EOS,)
        try:
            automaton = build(random_dfa(rng, b"ab", int(rng.integers(1, 6))), vocabulary_of(tokens, eos))
        except ConstraintError:
            continue
        yield rng, automaton, size
        count -= 1


@pytest.mark.parametrize("scale", [1.0, 6.0, 60.0])
@pytest.mark.parametrize(("block", "common", "few_arcs"), [(1, 2.0, FEW_ARCS), (2, 0.0, 0), (512, 2.0, FEW_ARCS)])
def test_it_is_exact(
    scale: float, block: int, common: float, few_arcs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Best text, log of the sum, marginals and entropies, over automata, start states and budgets.

    At a scale of 60 what is allowed is e^-100 against what is not, as it is for a sharp network at a low
    temperature: nothing may underflow. Small blocks make classes consist of several. Many arcs are
    worked on in another way than few, and so is a class that is most of the vocabulary.
    """
    monkeypatch.setattr(constraint_module, "COMMON_SHARE", common)
    monkeypatch.setattr(constraint_module, "BLOCK", block)
    monkeypatch.setattr(lattice_module, "FEW_ARCS", few_arcs)
    compared = 0
    for rng, automaton, size in random_cases(6):
        length = int(rng.integers(1, 5))
        logits = torch.from_numpy(rng.normal(size=(length, size)) * scale).float()
        for state in range(automaton.num_states):
            fewest = int(automaton.distance[state])
            for tokens_left in {fewest, length, length + 1, length + 100}:
                if fewest >= UNREACHABLE or not fewest <= tokens_left:
                    continue
                exact = brute_force(automaton, logits, state, tokens_left)
                constraint = TextConstraint(automaton, CPU)
                constraint._state = state
                constraint.start_canvas(length, tokens_left)
                canvas, log_q = step(constraint, logits, int(rng.integers(1, length + 1)))
                if exact.margin > 1e-4 * scale:
                    assert tuple(canvas.tolist())[: len(exact.best_text)] == exact.best_text
                behind = set(canvas.tolist()[len(exact.best_text) :])
                assert behind <= {automaton.pad_token_id if automaton.pad_token_id is not None else EOS}
                probabilities = log_q.double().exp().numpy()
                # fp32 has 24 bits for logits of up to 4 times the scale.
                tolerance = 1e-5 + scale * 2e-6
                np.testing.assert_allclose(probabilities, exact.marginals, rtol=tolerance, atol=1e-6)
                np.testing.assert_allclose(entropies_of(log_q).numpy(), exact.entropies, rtol=1e-4, atol=1e-5)
                assert constraint.commit(canvas.tolist()).log_probability == pytest.approx(
                    exact.log_total, rel=1e-5, abs=1e-4
                )
                assert torch.isfinite(log_q).all()
                compared += 1
    assert compared > 50


def test_what_is_impossible_is_never_drawn_whatever_the_format() -> None:
    automaton = build(regex_language("[ab]{2}"), vocabulary_of(BYTE_TOKENS))
    constraint = TextConstraint(automaton, CPU)
    constraint.start_canvas(4, 10)
    _, log_q = step(constraint, torch.randn(4, len(BYTE_TOKENS), generator=torch.Generator().manual_seed(0)) * 40)
    allowed = torch.zeros_like(log_q, dtype=torch.bool)
    allowed[:2, [4 + ord("a"), 4 + ord("b")]] = True
    allowed[2, [EOS, OTHER_EOS]] = True
    allowed[3, [PAD, EOS, OTHER_EOS]] = True
    assert torch.isfinite(log_q).all()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        cast = log_q.to(dtype)
        assert (cast.softmax(-1).float()[~allowed] < 1e-36).all()
        assert (cast.float().exp()[~allowed] < 1e-36).all()
    assert torch.allclose(log_q.exp().sum(-1), torch.ones(4), atol=1e-4)


def test_ties_are_broken_the_same_way_each_time() -> None:
    automaton = build(regex_language("[ab]{2}|c"), vocabulary_of(BYTE_TOKENS))
    canvases = set()
    for rows_per_chunk in (1, 3, 6):
        constraint = TextConstraint(automaton, CPU)
        constraint.start_canvas(6, 10)
        canvases.add(tuple(step(constraint, torch.zeros(6, len(BYTE_TOKENS)), rows_per_chunk)[0].tolist()))
    assert len(canvases) == 1


def test_large_classes_are_exact_too() -> None:
    """A class of thousands of tokens, of which a few weigh nearly everything."""
    size = 3000
    tokens = [None, None, None, None, *(b"a" if i % 7 else b"b" for i in range(size - 4))]
    automaton = build(regex_language("a{3}"), vocabulary_of(tokens))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, size, generator=generator) * 12
    logits[2, [30, 100]] = -torch.inf
    constraint = TextConstraint(automaton, CPU)
    constraint.start_canvas(4, 4)
    canvas, log_q = step(constraint, logits)
    is_a = torch.tensor([token == b"a" for token in tokens])
    expected = logits.double().masked_fill(~is_a, -torch.inf)[:3]
    assert canvas[:3].tolist() == expected.argmax(-1).tolist()
    assert torch.allclose(log_q[:3].double().exp(), expected.softmax(-1), atol=1e-6, rtol=1e-4)
    assert torch.allclose(
        entropies_of(log_q)[:3].double(),
        torch.distributions.Categorical(logits=expected).entropy(),
        atol=1e-5,
        rtol=1e-4,
    )


# --- over several canvases ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_any_budget_that_suffices_ends_the_text_inside_it(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lattice_module, "FEW_ARCS", FEW_ARCS if seed < 10 else 0)
    rng = np.random.default_rng(seed)
    pattern = ["[ab]*", "(ab){5,}", "a{7}|b{3}", r'\["a"(, "b")*\]', "(a|bb)+c"][seed % 5]
    dfa = regex_language(pattern)
    automaton = build(dfa, vocabulary_of(BYTE_TOKENS))
    length = int(rng.integers(1, 6))
    constraint = TextConstraint(automaton, CPU)
    tokens_left = constraint.fewest_tokens + int(rng.integers(0, 8))
    text = b""
    while constraint.fewest_tokens:
        assert constraint.fewest_tokens <= tokens_left
        constraint.start_canvas(length, tokens_left)
        logits = torch.from_numpy(rng.normal(size=(length, len(BYTE_TOKENS)))).float() * 20
        canvas = step(constraint, logits)[0].tolist()
        constraint.commit(canvas)
        for token in canvas:
            if token in (EOS, OTHER_EOS):
                break
            text += BYTE_TOKENS[token] or b"\xff"
        tokens_left -= length
    assert dfa.accepts(text)


def test_the_tail_weight_keeps_a_vague_network_from_the_shortest_text() -> None:
    """At nothing an empty position costs what the network says of it, which before it knows is a lot."""
    size = len(BYTE_TOKENS)
    automaton = build(regex_language("[a-z]*"), vocabulary_of(BYTE_TOKENS))
    vague = torch.zeros(32, size)
    lengths = []
    for tail_weight in (0.0, TAIL_WEIGHT, 100.0):
        constraint = TextConstraint(automaton, CPU, tail_weight)
        constraint.start_canvas(32, 33)
        log_q = step(constraint, vague)[1]
        lengths.append(float(1 - log_q.exp()[:, [PAD, EOS, OTHER_EOS]].sum(1).mean()))
    assert lengths == sorted(lengths)
    assert lengths[0] < 0.1 < 0.5 < lengths[1]


def test_the_report_says_what_the_constraint_changed() -> None:
    automaton = build(regex_language("aa"), vocabulary_of(BYTE_TOKENS))
    logits = torch.zeros(5, len(BYTE_TOKENS))
    logits[range(5), [4 + ord("a"), 4 + ord("z"), EOS, PAD, PAD]] = 30.0
    constraint = TextConstraint(automaton, CPU)
    constraint.start_canvas(5, 100)
    canvas, _ = step(constraint, logits)
    report = constraint.commit(canvas.tolist())
    assert canvas.tolist() == [4 + ord("a"), 4 + ord("a"), EOS, PAD, PAD]
    assert report.changed_positions == 1
    assert report.log_probability == pytest.approx(-30, abs=1e-3)


def held_to_choices(choices: list[str], device: torch.device = CPU) -> tuple[TextConstraint, ChoiceTexts]:
    texts = ChoiceTexts(choices, BYTE_TOKENS, eos_token_ids=(EOS, OTHER_EOS), pad_token_id=PAD)
    automaton = build(choices_language(choices), vocabulary_of(BYTE_TOKENS))
    return TextConstraint(automaton, device, choices=texts), texts


def test_it_tells_how_probable_each_choice_was_in_the_last_step() -> None:
    """By what the network says, and not by what the constraint makes of it."""
    constraint, texts = held_to_choices(["true", "tru", "false", "日"])
    assert texts.fewest_positions == 4
    for canvas_length, tokens_left in ((8, 100), (4, 100), (8, 4)):
        constraint.start_canvas(canvas_length, tokens_left)
        assert constraint.choices() is None
        for seed in range(2):
            generator = torch.Generator().manual_seed(seed)
            logits = torch.randn(canvas_length, len(BYTE_TOKENS), generator=generator) * 9
            step(constraint, logits, rows_per_chunk=3)
        log_p = logits.double().log_softmax(-1).numpy()[:, texts.tokens]
        np.testing.assert_allclose(
            constraint.choices() or (), texts.log_probabilities(log_p), rtol=1e-6, atol=1e-5
        )


def test_of_a_canvas_that_is_no_choice_it_tells_nothing() -> None:
    """One that has no room for all of them, be it for want of tokens, and the second one of a text."""
    constraint, _ = held_to_choices(["null", "日日"])
    logits = torch.zeros(6, len(BYTE_TOKENS))
    logits[range(6), [4 + byte for byte in "日日".encode()]] = 20.0
    for canvas_length, tokens_left in ((6, 12), (12, 6)):
        constraint.start_canvas(canvas_length, tokens_left)
        step(constraint, torch.zeros(canvas_length, len(BYTE_TOKENS)))
        assert constraint.choices() is None
    constraint.start_canvas(6, 12)
    constraint.commit(step(constraint, logits)[0].tolist())
    constraint.start_canvas(12, 12)
    step(constraint, torch.zeros(12, len(BYTE_TOKENS)))
    assert constraint.choices() is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_output_that_is_no_number_is_refused(value: float) -> None:
    constraint = TextConstraint(build(regex_language("a+"), vocabulary_of(BYTE_TOKENS)), CPU)
    constraint.start_canvas(3, 100)
    logits = torch.zeros(3, len(BYTE_TOKENS))
    logits[1, 100] = value
    with pytest.raises(NotANumberError):
        step(constraint, logits)


# --- draws -------------------------------------------------------------------------------------------------


def test_drawn_tokens_follow_the_constrained_marginals() -> None:
    from scipy import stats

    draws, length = 4000, 4
    for rng, automaton, size in random_cases(3):
        logits = torch.from_numpy(rng.normal(size=(length, size))).float()
        exact = brute_force(automaton, logits, 0, 100)
        constraint = TextConstraint(automaton, CPU)
        constraint.start_canvas(length, 100)
        log_q = step(constraint, logits)[1]
        source = torch.Generator().manual_seed(0)
        for i in range(length):
            uniforms = torch.rand(draws, dtype=torch.float64, generator=source)
            drawn = distributions_of(log_q[i].expand(draws, -1)).conclude(uniforms).drawn
            counts = np.bincount(drawn.numpy(), minlength=size)
            possible = exact.marginals[i] > 0
            assert counts[~possible].sum() == 0
            if possible.sum() > 1:
                expected = exact.marginals[i, possible] / exact.marginals[i].sum() * draws
                often = expected >= 5  # what the test asks for; the rest is one bin
                observed = np.append(counts[possible][often], counts[possible][~often].sum())
                expected = np.append(expected[often], expected[~often].sum() + 1e-9)
                assert stats.chisquare(observed, expected, sum_check=False).pvalue > 1e-4


# --- on a card ---------------------------------------------------------------------------------------------


def many_tokens(size: int) -> list[bytes | None]:
    """Of all kinds, a byte to three long."""
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b'ab1-" {}:,', np.uint8)
    texts = [letters[rng.integers(0, len(letters), rng.integers(1, 4))].tobytes() for _ in range(size - 4)]
    return [None, None, None, None, *texts]


class Launches(TorchDispatchMode):
    """How many operators run that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aliases = [result.alias_info for result in func._schema.returns]
        self.count += not any(alias is not None and not alias.is_write for alias in aliases)
        return func(*args, **(kwargs or {}))


def test_a_step_on_a_card_takes_one_copy_each_way_and_few_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host waits for the first of the two only, and each launch takes it some 5 µs.

    A vocabulary of 262,144 comes in eight chunks there.
    """
    monkeypatch.setattr(constraint_module, "COMMON_SHARE", 2.0)  # which is not for a card
    automaton = build(regex_language(r'\{"a": (-?1+|"[ab]*"), "b": (a|b)*\}'), vocabulary_of(many_tokens(3000)))
    generator = torch.Generator().manual_seed(0)
    steps = [torch.randn(64, 3000, generator=generator) * 8 for _ in range(2)]
    expected = []
    for logits in steps:
        constraint = TextConstraint(automaton, CPU)
        constraint.start_canvas(64, 100)
        expected.append(step(constraint, logits, 8))

    with PretendedCard(monkeypatch) as card:
        constraint = TextConstraint(automaton, card.device)
        constraint.start_canvas(64, 100)
        there = [logits.to(card.device) for logits in steps]
        card.crossings.clear()
        results = []
        for logits in there:
            with Launches() as launches:
                results.append(step(constraint, logits, 8))
    assert card.crossings == [("cuda:0", "cpu"), ("cpu", "cuda:0")] * 2
    assert card.waits == 2
    assert launches.count <= 135
    for ours, theirs in zip(results, expected, strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_what_choices_take_stays_on_the_device_until_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    choices = ["true", "tru", "false"]
    logits = torch.randn(8, len(BYTE_TOKENS), generator=torch.Generator().manual_seed(0))
    with PretendedCard(monkeypatch) as card:
        constraint, _ = held_to_choices(choices, card.device)
        constraint.start_canvas(8, 100)
        there = logits.to(card.device)
        card.crossings.clear()
        for _ in range(2):
            step(constraint, there)
        assert card.crossings == [("cuda:0", "cpu"), ("cpu", "cuda:0")] * 2
        assert card.waits == 2
        found = constraint.choices()
        assert card.crossings == [("cuda:0", "cpu"), ("cpu", "cuda:0")] * 2 + [("cuda:0", "cpu")]
        assert card.waits == 3
    on_host, _ = held_to_choices(choices)
    on_host.start_canvas(8, 100)
    step(on_host, logits)
    assert found is not None
    assert found == on_host.choices()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_makes_the_same_step_and_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    automaton = build(regex_language(r'\{"a": (-?1+|"[ab]*"), "b": (a|b)*\}'), vocabulary_of(many_tokens(3000)))
    generator = torch.Generator().manual_seed(0)
    steps = [torch.randn(64, 3000, generator=generator) * 8 for _ in range(3)]
    waits, synchronize = [], torch.cuda.Event.synchronize
    monkeypatch.setattr(torch.cuda.Event, "synchronize", lambda event: waits.append(event) or synchronize(event))
    results = []
    for device in (CPU, torch.device("cuda", 0)):
        constraint = TextConstraint(automaton, device)
        constraint.start_canvas(64, 100)
        there = [logits.to(device) for logits in steps]
        # "always": of warnings from the same line the default would show the first only.
        with warnings.catch_warnings(record=True, action="always") as caught:
            torch.cuda.set_sync_debug_mode("warn")
            try:
                results.append([step(constraint, logits, 8) for logits in there])
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert not [each for each in caught if str(each.message).startswith("called a synchronizing")]
    assert len(waits) == len(steps)
    for (canvas, log_q), on_gpu in zip(*results, strict=True):
        assert torch.equal(canvas, on_gpu[0].cpu())
        assert torch.allclose(log_q.exp(), on_gpu[1].cpu().exp(), atol=1e-4)
