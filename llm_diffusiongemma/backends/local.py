"""Answers a turn in this process: joins chat/, diffusion/ and grammar/."""

from __future__ import annotations

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
from ..chat.images import VIDEO_TYPES
from ..chat.messages import Conversation, read_conversation
from ..chat.output import THOUGHT_CLOSES, ReplyReader
from ..diffusion.request import ConstrainedText, Part, Prompt, Request, Text, Thought
from ..options import DEFAULT_MAX_TOKENS, Options
from .engine import Engine, ReentrantLock, get_engine, import_vision, telling_how_to_mend
from .forks import importing
from .form import Form, read_form
from .isolation import isolated, isolated_numbers
from .turn import BlockReport, FinishReason, Report, Stop, Turn, WeightsReport

if TYPE_CHECKING:
    from ..chat.images import Picture
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


class LocalReply:
    """One turn being answered: iterate `steps`, then read `report`.

    Tools come before a form: what calls one is no answer yet. So a reply that may do either is written without
    the form first, which nobody sees unless it calls a tool, and then again if it does not.
    """

    def __init__(self, entry: ModelEntry, turn: Turn, stop: Stop) -> None:
        """Loads the model if need be.

        Raises what loading raises, what a prompt or a form that can't be answered raises, and what `stop`
        raises.
        """
        options = turn.options
        # Before the model is loaded: these need none of it.
        with stop.importing(), importing("forms"), isolated_numbers():
            self._form = read_form(turn.schema, options.regex, options.choices)
            _import_video_reader(turn.messages)
        with isolated_numbers():
            conversation = read_conversation(turn.messages)
        stop.check()
        self._ready = get_engine(entry, stop)
        self._seed = options.seed if options.seed is not None else secrets.randbits(32)
        asked = _Asked(self._ready.source.where, self._ready.engine, options, self._seed, stop)
        with isolated():
            prompts = _PromptReader(asked, conversation, turn)
            # What can't be guaranteed is refused before anything is written.
            self._formed = None if self._form is None else _formed(asked, prompts, self._form)
            self._free = _free(asked, prompts, turn) if self._form is None or turn.tools else None
        # The one at work, or whose outcome counts, is the last.
        self._tried = [attempt for attempt in (self._free, self._formed) if attempt is not None][:1]

    def steps(self) -> Generator[list[StreamEvent], None, None]:
        """The events of each converged block. Closing it ends the reply."""
        free, formed, form = self._free, self._formed, self._form
        if formed is None or form is None:
            assert free is not None
            yield from free.events()
            return
        if free is not None:
            unseen = list(free.events())
            if free.reader.tool_calls:
                yield from unseen
                return
            if free.finish_reason == "interrupted":
                return
            self._tried.append(formed)
        for events in formed.events():
            if formed.finish_reason != "interrupted":
                form.check(formed.text)
            yield events

    def cut_short(self) -> list[StreamEvent]:
        """Ends the reply. What was held back of it."""
        attempt = self._tried[-1]
        attempt.close()
        if attempt.finish_reason == "tool_calls":
            attempt.finish_reason = "interrupted"  # nobody will run them
        return [] if attempt is self._free and self._formed else attempt.reader.finalize()

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
            ),
            lowered=self._form.lowered if self._form is not None and attempt is self._formed else (),
        )

    @property
    def has_text(self) -> bool:
        """Whether anything but blanks and thoughts has been written."""
        return bool(self._tried[-1].text.strip())

    @property
    def tool_calls(self) -> list[llm.ToolCall]:
        """What the model wants to have run, with the ids that the events have."""
        return self._tried[-1].reader.tool_calls

    @property
    def lock(self) -> ReentrantLock:
        """Hold it to keep other replies of the same engine waiting."""
        return self._ready.engine.lock


def _import_video_reader(messages: Sequence[Message]) -> None:
    """PyAV, if a message has a video: an import that was cut leaves it without some of its parts."""
    parts = [part for message in messages for part in message.parts]
    attachments = [part.attachment for part in parts if isinstance(part, AttachmentPart)]
    for part in parts:
        attachments += part.attachments if isinstance(part, ToolResultPart) else []
    if any(attachment is not None and attachment.type in VIDEO_TYPES for attachment in attachments):
        with suppress(ImportError):  # who reads the video says what to install
            import av  # noqa: F401


class _PromptReader:
    """Makes prompts of a turn, with its pictures cut once."""

    def __init__(self, asked: _Asked, conversation: Conversation, turn: Turn) -> None:
        self._asked = asked
        self._tools = declare(turn.tools)
        self._conversation = conversation
        if conversation.pictures:
            with asked.stop.importing():
                import_vision(asked.stop.owns_process)
        self._pictures = [self._cut(picture) for picture in conversation.pictures]

    def _cut(self, picture: Picture) -> Patches:
        engine, options = self._asked.engine, self._asked.options
        soft_tokens = options.image_tokens or (FRAME_SOFT_TOKENS if picture.timestamp else None)
        with telling_how_to_mend(self._asked.source, engine.folder):
            return engine.image_reader.cut(picture.image, soft_tokens)

    def read(self, form: Form | None = None) -> Prompt:
        """The prompt of a free reply, or of one that is held to a form."""
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
    reader = ReplyReader(
        engine.decode,
        engine.control_tokens,
        in_thought=engine.opens_thought(prompt.token_ids),
        tools={tool.name: tool.input_schema or {} for tool in turn.tools},
    )
    return _Attempt(asked, prompt, reader, (Text(),))


def _formed(asked: _Asked, prompts: _PromptReader, form: Form) -> _Attempt:
    """A reply held to a form, its thought excepted. Raises `ConstraintError`."""
    engine = asked.engine
    prompt = prompts.read(form)
    thinking = bool(asked.options.thinking)
    # Opened for it: what is free has to be a thought.
    if thinking and not engine.opens_thought(prompt.token_ids):
        prompt = replace(prompt, token_ids=[*prompt.token_ids, *engine.prompt_encoder.opening_of_thought])
    reader = ReplyReader(engine.decode_bytes, engine.control_tokens, in_thought=thinking, verbatim=True)
    thought_closes = engine.prompt_encoder.control_id(THOUGHT_CLOSES) if thinking else None
    thought = () if thought_closes is None else (Thought(thought_closes),)
    return _Attempt(asked, prompt, reader, (*thought, ConstrainedText(engine.hold_to(form))))


class _Attempt:
    """A prompt being answered, and what has come of it so far."""

    def __init__(self, asked: _Asked, prompt: Prompt, reader: ReplyReader, parts: tuple[Part, ...]) -> None:
        """Nothing is computed yet. Raises what a prompt or constraint can't be."""
        import torch

        from ..diffusion.sampler import GeneratorRandomness, SamplerSettings

        self.reader = reader
        self.input_tokens = len(prompt.token_ids)
        self.cached_tokens = 0
        self.finish_reason: FinishReason = "interrupted"
        """Until the last block says otherwise."""
        self.blocks: list[BlockReport] = []
        self.seconds = 0.0
        self.text = ""
        self._engine, self._source = asked.engine, asked.source
        options = asked.options
        settings = SamplerSettings.from_generation_config(
            asked.engine.loaded.generation,
            max_denoising_steps=options.max_denoising_steps,
            entropy_bound=options.entropy_bound,
            t_min=options.t_min,
            t_max=options.t_max,
            confidence_threshold=options.confidence_threshold,
            stability_threshold=options.stability_threshold,
        )
        self._records = asked.engine.pipeline.generate(
            Request(prompt, settings, options.max_tokens or DEFAULT_MAX_TOKENS, parts),
            # On the CPU whatever the model runs on: a seed then draws the same numbers everywhere.
            randomness=GeneratorRandomness(torch.Generator().manual_seed(asked.seed)),
            should_stop=asked.stop.is_set,
        )

    def events(self) -> Generator[list[StreamEvent], None, None]:
        """The events of each converged block. Closing it ends the attempt."""
        from ..diffusion.pipeline import Block

        try:
            while True:
                # An image may be what first asks for the vision tower.
                with self._engine.at_work(), telling_how_to_mend(self._source, self._engine.folder):
                    started = time.perf_counter()
                    try:
                        record = next(self._records, None)
                    finally:
                        self.seconds += time.perf_counter() - started
                    if record is None:
                        break
                    assert isinstance(record, Block)  # no drafts were asked for
                    events = self._take(record)
                yield events
        finally:
            self.close()

    def close(self) -> None:
        self._records.close()

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
            )
        )
        events = self.reader.consume(block.tokens)
        if block.finish_reason is not None:
            events += self.reader.finalize(is_whole=block.finish_reason == "stop")
            called = block.finish_reason == "stop" and self.reader.tool_calls
            self.finish_reason = "tool_calls" if called else block.finish_reason
        self.text += "".join(event.chunk for event in events if event.type == "text")
        return events
