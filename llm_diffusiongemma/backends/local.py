"""Answers a turn in this process: joins chat/, diffusion/ and grammar/."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import llm
from llm.parts import AttachmentPart, Message, StreamEvent, ToolResultPart

from ..catalog import ModelEntry
from ..chat.declarations import declare
from ..chat.drafts import CanvasReader
from ..chat.images import VIDEO_TYPES
from ..chat.messages import Conversation, read_conversation
from ..chat.output import THOUGHT_CLOSES, ReplyReader
from ..diffusion.request import ConstrainedText, Part, Prompt, Request, Text, Thought, length_of_canvas
from ..options import DEFAULT_MAX_TOKENS, DEFAULT_NOISE, Options
from ..view.progress import indicate
from ..view.records import Reading, Watch
from .deciding import Decision
from .engine import Engine, ReentrantLock, get_engine, import_vision, telling_how_to_mend
from .forks import importing
from .form import Form, Question, read_form, read_question
from .isolation import isolated, isolated_numbers
from .telling import CANDIDATES, Teller
from .turn import BlockReport, ChoicesReport, FinishReason, Report, Stop, Turn, WeightsReport

if TYPE_CHECKING:
    from ..chat.images import Picture
    from ..diffusion.drafting import DraftedText
    from ..diffusion.pipeline import Block
    from ..diffusion.vision import Patches

# A frame of a video gets the fewest soft tokens there are: there may be sixty of them.
FRAME_SOFT_TOKENS = 70


@dataclass(frozen=True)
class _Asked:
    """What all attempts at a reply have in common."""

    source: str | Path
    engine: Engine
    options: Options
    seed: int
    stop: Stop
    watch: Watch | None

    def drafted(self) -> DraftedText | None:
        """What the text of an attempt begins as, if that is not all noise. Raises what a draft can't be."""
        draft, noise = self.options.draft, self.options.noise
        if draft is None or noise == 1:
            return None
        return self.engine.drafted(draft, DEFAULT_NOISE if noise is None else noise)

    def teller(self, attempt: int, *, in_thought: bool, has_calls: bool) -> Teller | None:
        """For an attempt whose prompt may have opened a thought, and which may call tools."""
        if self.watch is None:
            return None
        engine = self.engine
        reader = CanvasReader(engine.spelling, engine.control_tokens, in_thought=in_thought, has_calls=has_calls)
        return Teller(self.watch, reader, attempt)


class LocalReply:
    """One turn being answered: iterate `steps`, then read `report`.

    Tools come before a form: what calls one is no answer yet. So a reply that may do either is written without
    the form first, which nobody sees unless it calls a tool, and then again if it does not.
    """

    has_begun = True

    def __init__(self, entry: ModelEntry, turn: Turn, stop: Stop) -> None:
        """Loads the model if need be.

        Raises what loading raises, what a prompt or a form that can't be answered raises, and what `stop`
        raises.
        """
        options = turn.options
        # Before the model is loaded: these need none of it.
        with indicate("Reading the form"), stop.importing(), importing("forms"), isolated_numbers():
            self._form: Form | Question | None
            if options.probabilities and options.choices is not None:
                self._form = read_question(turn.schema, options.regex, options.choices, options.fill)
            else:
                self._form = read_form(turn.schema, options.regex, options.choices, options.fill)
            _import_video_reader(turn.messages)
        with indicate("Reading the attachments"), isolated_numbers():
            conversation = read_conversation(turn.messages)
        stop.check()
        self._ready = get_engine(entry, stop)
        # Before pictures are cut and a form is made an automaton of.
        length_of_canvas(options.canvas_length, self._ready.engine.pipeline.canvas_length)
        self._seed = options.seed if options.seed is not None else secrets.randbits(32)
        asked = _Asked(self._ready.source.where, self._ready.engine, options, self._seed, stop, turn.watch)
        with isolated():
            prompts = _PromptReader(asked, conversation, turn)
            # What can't be guaranteed is refused before anything is written.
            has_tools = bool(turn.tools)
            self._formed: _Attempt | Decision | None = None
            if isinstance(self._form, Question):
                self._formed = _decided(asked, prompts, self._form, int(has_tools))
            elif self._form is not None:
                self._formed = _formed(asked, prompts, self._form, int(has_tools))
            self._free = _free(asked, prompts, turn) if self._form is None or has_tools else None
        self._blanks: dict[str, str] | None = None
        self._only_blanks = bool(options.fill_json)
        # The one at work, or whose outcome counts, is the last.
        attempts = [attempt for attempt in (self._free, self._formed) if attempt is not None]
        self._tried: list[_Attempt | Decision] = attempts[:1]

    def steps(self) -> Generator[list[StreamEvent], None, None]:
        """The events of each converged block. Closing it ends the reply."""
        free, formed, form = self._free, self._formed, self._form
        if formed is None or form is None:
            assert free is not None
            yield from free.events()
            return
        if free is not None:
            unseen = list(free.events())
            if free.tool_calls:
                yield from unseen
                return
            if free.finish_reason == "interrupted":
                return
            self._tried.append(formed)
        for events in formed.events(seconds_before=0.0 if free is None else free.seconds):
            if self._only_blanks:
                events = _without_text(events)
            if formed.finish_reason != "interrupted" and isinstance(form, Form):
                form.check(formed.text)
                if form.blanks is not None:
                    self._blanks = form.blanks.read(formed.text)
                if self._only_blanks:
                    events.append(StreamEvent("text", json.dumps(self._blanks, ensure_ascii=False)))
            yield events

    def cut_short(self) -> list[StreamEvent]:
        """Ends the reply. What was held back of it."""
        attempt = self._tried[-1]
        attempt.close()
        if attempt.finish_reason == "tool_calls":
            attempt.finish_reason = "interrupted"  # nobody will run them
        if attempt is self._free and self._formed:
            return []
        held_back = attempt.held_back()
        return _without_text(held_back) if self._only_blanks else held_back

    @property
    def report(self) -> Report:
        """What has happened so far."""
        attempt, loaded = self._tried[-1], self._ready.engine.loaded
        return Report(
            finish_reason=attempt.finish_reason,
            resolved_model=self._ready.resolved_model,
            input_tokens=attempt.input_tokens,
            output_tokens=sum(block.tokens for block in attempt.blocks),
            cached_tokens=attempt.cached_tokens,
            seed=self._seed,
            load_seconds=self._ready.load_seconds,
            generate_seconds=sum(attempt.seconds for attempt in self._tried),
            blocks=tuple(attempt.blocks),
            weights=WeightsReport(
                representation=loaded.placement.representation,
                repository=self._ready.repository,
                revision=self._ready.revision,
                placement=loaded.placement.as_json(),
                peak_memory_bytes=self._ready.engine.peak_memory_bytes(),
                device=str(loaded.device),
                dtype=str(loaded.dtype).removeprefix("torch."),
                kernels=loaded.verdict.as_json(),
                graph=self._ready.engine.pipeline.graph_state,
                streaming=loaded.network.streaming_report(),
            ),
            lowered=self._form.lowered if isinstance(self._form, Form) and attempt is self._formed else (),
            choices=attempt.choices,
            blanks=self._blanks,
        )

    @property
    def has_text(self) -> bool:
        """Whether anything but blanks and thoughts has been written."""
        if self._only_blanks and self._tried[-1] is self._formed:
            return self._blanks is not None
        return bool(self._tried[-1].text.strip())

    @property
    def tool_calls(self) -> Sequence[llm.ToolCall]:
        """What the model wants to have run, with the ids that the events have."""
        return self._tried[-1].tool_calls

    @property
    def lock(self) -> ReentrantLock:
        """Hold it to keep other replies of the same engine waiting."""
        return self._ready.engine.lock


def _without_text(events: Sequence[StreamEvent]) -> list[StreamEvent]:
    return [event for event in events if event.type != "text"]


def _import_video_reader(messages: Sequence[Message]) -> None:
    """PyAV, if a message has a video: an import that was cut leaves it without some of its parts."""
    parts = [part for message in messages for part in message.parts]
    attachments = [part.attachment for part in parts if isinstance(part, AttachmentPart)]
    for part in parts:
        attachments += part.attachments if isinstance(part, ToolResultPart) else []
    if any(attachment is not None and attachment.type in VIDEO_TYPES for attachment in attachments):
        with indicate("Importing PyAV"), suppress(ImportError):  # who reads the video says what to install
            import av  # noqa: F401


class _PromptReader:
    """Makes prompts of a turn, with its pictures cut once."""

    def __init__(self, asked: _Asked, conversation: Conversation, turn: Turn) -> None:
        self._asked = asked
        self._tools = declare(turn.tools)
        self._conversation = conversation
        if conversation.pictures:
            with indicate("Importing transformers"), asked.stop.importing():
                import_vision(asked.stop.owns_process)
        with indicate("Cutting the images"):
            self._pictures = [self._cut(picture) for picture in conversation.pictures]

    def _cut(self, picture: Picture) -> Patches:
        engine, options = self._asked.engine, self._asked.options
        soft_tokens = options.image_tokens or (FRAME_SOFT_TOKENS if picture.timestamp else None)
        with telling_how_to_mend(self._asked.source, engine.folder):
            return engine.image_reader.cut(picture.image, soft_tokens)

    def read(self, form: Form | Question | None = None) -> Prompt:
        """The prompt of a free reply, or of one that is held to a form, or a decision."""
        engine = self._asked.engine
        conversation = self._conversation if form is None else self._conversation.with_request(form.request)
        encoder = engine.prompt_encoder
        ids = encoder.encode(conversation.messages, tools=self._tools, thinking=bool(self._asked.options.thinking))
        ids, images = engine.image_reader.place(ids, self._pictures)
        return Prompt(ids, images, encoder.stable_length(ids, with_request=form is not None))


def _free(asked: _Asked, prompts: _PromptReader, turn: Turn) -> _Attempt:
    """A reply that may be anything."""
    engine = asked.engine
    prompt = prompts.read()
    draft = asked.drafted()
    thought: tuple[Part, ...] = ()
    if draft is not None and (asked.options.thinking or engine.opens_thought(prompt.token_ids)):
        # A part of its own: the draft is of the text behind it.
        prompt, thought = _with_thought(engine, prompt)
    in_thought = engine.opens_thought(prompt.token_ids)
    tools = {tool.name: tool.input_schema or {} for tool in turn.tools}

    def reader() -> ReplyReader:
        return ReplyReader(engine.decode, engine.control_tokens, in_thought=in_thought, tools=tools)

    def says_nothing(tokens: Sequence[int]) -> bool:
        whole = reader()
        events = whole.consume(tokens) + whole.finalize(is_whole=True)
        return not any(event.chunk.strip() for event in events)

    teller = asked.teller(0, in_thought=in_thought, has_calls=bool(turn.tools))
    return _Attempt(asked, prompt, reader(), (*thought, Text(draft, says_nothing)), teller)


def _formed(asked: _Asked, prompts: _PromptReader, form: Form, attempt: int) -> _Attempt:
    """A reply held to a form, its thought excepted. `attempt` counts those before. Raises `ConstraintError`."""
    engine = asked.engine
    thinking = bool(asked.options.thinking)
    prompt = prompts.read(form)
    # What is free has to be a thought.
    prompt, thought = _with_thought(engine, prompt) if thinking else (prompt, ())
    reader = ReplyReader(engine.decode_bytes, engine.control_tokens, in_thought=thinking, verbatim=True)
    teller = asked.teller(attempt, in_thought=thinking, has_calls=False)
    text = ConstrainedText(engine.hold_to(form), asked.drafted())
    return _Attempt(asked, prompt, reader, (*thought, text), teller, form.choices)


def _with_thought(engine: Engine, prompt: Prompt) -> tuple[Prompt, tuple[Part, ...]]:
    """A prompt that has opened a thought, and the parts of a reply that begins with one."""
    prompt = replace(prompt, token_ids=engine.with_thought_open(prompt.token_ids))
    closes = engine.prompt_encoder.control_id(THOUGHT_CLOSES)
    return prompt, () if closes is None else (Thought(closes),)


def _decided(asked: _Asked, prompts: _PromptReader, question: Question, attempt: int) -> Decision:
    """The probabilities of choices. `attempt` as `_formed` has it. Raises `ConstraintError`."""
    teller = asked.teller(attempt, in_thought=False, has_calls=False)
    prompt = prompts.read(question)
    return Decision(asked.engine, asked.source, prompt, question, asked.options, asked.seed, asked.stop, teller)


class _Attempt:
    """A prompt being answered, and what has come of it so far."""

    def __init__(
        self,
        asked: _Asked,
        prompt: Prompt,
        reader: ReplyReader,
        parts: tuple[Part, ...],
        teller: Teller | None,
        among: Sequence[str] = (),
    ) -> None:
        """Nothing is computed yet. `among` are the choices of a reply that is one of several. Raises what a prompt
        or constraint can't be."""
        import torch

        from ..diffusion.sampler import GeneratorRandomness, SamplerSettings

        self.reader = reader
        self.input_tokens = len(prompt.token_ids)
        self.cached_tokens = 0
        self.finish_reason: FinishReason = "interrupted"
        """Until the last block says otherwise."""
        self.blocks: list[BlockReport] = []
        self.seconds = 0.0
        """See `Report.generate_seconds`."""
        self.text = ""
        self.choices: ChoicesReport | None = None
        self._among = among
        self._engine, self._source, self._teller = asked.engine, asked.source, teller
        options = asked.options
        settings = SamplerSettings.from_generation_config(
            asked.engine.loaded.generation,
            max_denoising_steps=options.max_denoising_steps,
            entropy_bound=options.entropy_bound,
            t_min=options.t_min,
            t_max=options.t_max,
            confidence_threshold=options.confidence_threshold,
            stability_threshold=options.stability_threshold,
            stop_at_end=bool(options.stop_at_end),
        )
        self._records = asked.engine.pipeline.generate(
            Request(prompt, settings, options.max_tokens or DEFAULT_MAX_TOKENS, parts, options.canvas_length),
            # On the CPU whatever the model runs on: a seed then draws the same numbers everywhere.
            randomness=GeneratorRandomness(torch.Generator().manual_seed(asked.seed)),
            readings=teller is not None,
            drafts=asked.watch is not None and asked.watch.wants != "readings",
            candidates=CANDIDATES if asked.watch is not None and asked.watch.wants == "candidates" else 0,
            should_stop=asked.stop.is_set,
        )

    def events(self, seconds_before: float = 0.0) -> Generator[list[StreamEvent], None, None]:
        """The events of each converged block. Closing it ends the attempt, which has been begun so long after the
        reply was, of computing."""
        try:
            while True:
                # An image may be what first asks for the vision tower.
                with self._engine.at_work(), telling_how_to_mend(self._source, self._engine.folder):
                    started = time.perf_counter()
                    try:
                        block = self._next_block(started - self.seconds - seconds_before)
                    finally:
                        self.seconds += time.perf_counter() - started
                    if block is None:
                        break
                    events = self._take(block)
                yield events
        finally:
            self.close()

    def close(self) -> None:
        self._records.close()

    def held_back(self) -> list[StreamEvent]:
        """What has not been told of what is written, when nothing follows."""
        return self.reader.finalize()

    @property
    def tool_calls(self) -> list[llm.ToolCall]:
        return self.reader.tool_calls

    def _next_block(self, began: float) -> Block | None:
        """The next one, if there is one. Who watches is told how it comes to be: the time is counted from when the
        clock said `began`."""
        from ..diffusion.pipeline import Block

        for record in self._records:
            if isinstance(record, Block):
                return record
            assert self._teller is not None
            if isinstance(record, Reading):
                self._teller.read(record)
            else:
                self._teller.drafted(record, time.perf_counter() - began)
        return None

    def _take(self, block: Block) -> list[StreamEvent]:
        if not self.blocks:
            self.cached_tokens = max(0, self.input_tokens - block.encoded_tokens)
        self.blocks.append(
            BlockReport(
                tokens=len(block.tokens),
                denoising_steps=block.denoising_steps,
                converged=block.converged,
                encoded_tokens=block.encoded_tokens,
                seconds=block.seconds,
                constraint=block.constraint,
                redrawn=block.redrawn,
            )
        )
        if block.choices is not None:
            self.choices = ChoicesReport.of_last_step(self._among, block.choices)
        if self._teller is not None:
            self._teller.committed(block)
        events = self.reader.consume(block.tokens)
        if block.finish_reason is not None:
            events += self.reader.finalize(is_whole=block.finish_reason == "stop")
            called = block.finish_reason == "stop" and self.reader.tool_calls
            self.finish_reason = "tool_calls" if called else block.finish_reason
        self.text += "".join(event.chunk for event in events if event.type == "text")
        return events
