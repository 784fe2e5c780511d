"""A decision: not a text that the model writes, but how probable each of several texts is.

Each read is a single denoising step over a short canvas of pure noise. What several of them say is averaged.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llm.parts import StreamEvent

from ..chat.output import THOUGHT_CLOSES
from ..errors import ConstraintError
from ..options import CANVAS_PIECE, Options
from ..view.progress import indicate
from ..view.records import Reading
from .engine import Engine, telling_how_to_mend
from .form import Question
from .turn import BlockReport, ChoicesReport, FinishReason, Stop

if TYPE_CHECKING:
    import llm

    from ..diffusion.pipeline import Read
    from ..diffusion.request import Prompt
    from .telling import Teller

# Of a probability in the reply. The report has all of its digits.
DECIMALS = 6


class Decision:
    """A prompt whose choices are being weighed, and what has come of it so far."""

    def __init__(
        self,
        engine: Engine,
        source: str | Path,
        prompt: Prompt,
        question: Question,
        options: Options,
        seed: int,
        stop: Stop,
        teller: Teller | None,
    ) -> None:
        """Nothing is computed yet. Raises what a prompt or choices can't be."""
        import torch

        from ..diffusion.request import Reads
        from ..diffusion.sampler import GeneratorRandomness

        self.finish_reason: FinishReason = "interrupted"
        """Until the last read says otherwise."""
        self.blocks: list[BlockReport] = []
        """One a read: a canvas of one step that no text came of."""
        self.seconds = 0.0
        """See `Report.generate_seconds`."""
        self.text = ""
        self.cached_tokens = 0
        self.choices: ChoicesReport | None = None
        """When all has been read."""
        self.tool_calls: Sequence[llm.ToolCall] = ()
        self._engine, self._source, self._teller = engine, source, teller
        self._choices = question.choices
        with indicate("Spelling the choices in tokens"):
            self._texts = engine.choice_texts(question.choices)
        prompt = behind_a_thought(engine, prompt)
        self.input_tokens = len(prompt.token_ids)
        length = _canvas_length(options.canvas_length, self._texts.fewest_positions, engine.pipeline.canvas_length)
        self._records = engine.pipeline.read(
            Reads(prompt, self._texts.tokens.tolist(), length, options.reads or 1),
            randomness=GeneratorRandomness(torch.Generator().manual_seed(seed)),
            readings=teller is not None,
            should_stop=stop.is_set,
        )
        self._num_reads = options.reads or 1
        # Of each read the log-probabilities of the choices, nats.
        self._read: list[list[float]] = []

    def events(self, seconds_before: float = 0.0) -> Generator[list[StreamEvent], None, None]:
        """The whole reply, once all has been read. Closing it ends the attempt."""
        try:
            with self._engine.at_work(), telling_how_to_mend(self._source, self._engine.folder):
                started = time.perf_counter()
                try:
                    self._read_all()
                finally:
                    self.seconds += time.perf_counter() - started
            if len(self._read) == self._num_reads:
                yield self._conclude()
        finally:
            self.close()

    def close(self) -> None:
        self._records.close()

    def held_back(self) -> list[StreamEvent]:
        """Nothing: half of a decision is none."""
        return []

    def _read_all(self) -> None:
        for record in self._records:
            if isinstance(record, Reading):
                assert self._teller is not None
                self._teller.read(record)
            else:
                self._take(record)

    def _take(self, read: Read) -> None:
        if not self.blocks:
            self.cached_tokens = max(0, self.input_tokens - read.encoded_tokens)
        self._read.append(self._texts.log_probabilities(read.log_probabilities.numpy()).tolist())
        self.blocks.append(
            BlockReport(
                tokens=0,
                denoising_steps=1,
                converged=False,
                encoded_tokens=read.encoded_tokens,
                seconds=read.seconds,
                constraint=None,
            )
        )

    def _conclude(self) -> list[StreamEvent]:
        self.choices = ChoicesReport.of_reads(self._choices, self._read)
        self.text = as_text(self.choices.probabilities)
        self.finish_reason = "stop"
        return [StreamEvent("text", self.text)]


def behind_a_thought(engine: Engine, prompt: Prompt) -> Prompt:
    """Where the checkpoint's format has thoughts, a prompt whose model's turn begins with one that is empty.

    A model that may think begins its replies so, and a canvas of a choice alone would leave no room for it.
    """
    encoder = engine.prompt_encoder
    closes = encoder.control_id(THOUGHT_CLOSES)
    if closes is None or not encoder.opening_of_thought or engine.has_thought(prompt.token_ids):
        return prompt
    return replace(prompt, token_ids=[*engine.with_thought_open(prompt.token_ids), closes])


def _canvas_length(asked: int | None, positions: int, checkpoints: int) -> int:
    """The shortest that holds so many positions, or what is asked for. Raises `ConstraintError` if none does."""
    if positions > checkpoints:
        raise ConstraintError(
            f"The longest of the choices takes {positions:,} tokens with its end, but has to fit into one canvas, "
            f"and this checkpoint's have {checkpoints:,}. Use shorter choices."
        )
    shortest = min(math.ceil(positions / CANVAS_PIECE) * CANVAS_PIECE, checkpoints)
    if asked is None:
        return shortest
    if asked < positions:
        raise ConstraintError(
            f"The longest of the choices takes {positions:,} tokens with its end, but canvas_length is {asked:,}. "
            f"Set it to {shortest:,} or more, or leave it out."
        )
    return asked


def as_text(probabilities: dict[str, float]) -> str:
    """The reply: a JSON object, with digits that people can read and that add up to 1.

    The probabilities come with the largest first. Each is rounded down or up, up those that lose most.
    """
    units = 10**DECIMALS
    exact = [probability * units for probability in probabilities.values()]
    whole = [math.floor(each) for each in exact]
    by_rest = sorted(range(len(exact)), key=lambda i: whole[i] - exact[i])
    for i in by_rest[: units - sum(whole)]:
        whole[i] += 1
    shown = dict(zip(probabilities, (each / units for each in whole), strict=True))
    return json.dumps(shown, ensure_ascii=False)
