"""llm's face: the sync and the async model. What both need stands once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, ClassVar

import click
import llm
from llm.parts import Message, StreamEvent, TextPart

from .backends.answering import answer, answer_async
from .backends.turn import Outcome, Reply, Report, Turn
from .catalog import ModelEntry
from .chat.images import ATTACHMENT_TYPES
from .errors import DiffusionGemmaError, ReplayError
from .interrupts import FAILED_STATUS, INTERRUPTED_STATUS, Command, Interrupts, current_command, giving_way
from .options import DEFAULT_MAX_TOKENS, Options
from .view.screen import on_terminal
from .view.watching import Watching

if TYPE_CHECKING:
    from .view.replay.recorder import Recorder

# What holds a thought and an answer, as a rule.
LEAST_ADVISED_TOKENS = 512


class _DiffusionGemma:
    """What llm wants to know of the model, sync or async."""

    can_stream = True
    supports_tools = True
    supports_schema = True
    attachment_types: ClassVar[frozenset[str]] = ATTACHMENT_TYPES
    # mypy takes the nested class of llm's base for a different type; llm documents this very assignment.
    Options = Options

    def __init__(self, entry: ModelEntry) -> None:
        self.entry = entry
        self.model_id = entry.model_id

    def __str__(self) -> str:
        return str(self.entry)

    def _turn(self, prompt: llm.Prompt, watching: Watching) -> Turn:
        from .chat.messages import settle_results

        options = _options(prompt)
        # llm has refused a server's own tools already: this model claims none.
        tools = [tool for tool in prompt.tools if isinstance(tool, llm.Tool)]
        # llm has made a dict of a Pydantic model by now.
        schema = prompt.schema if isinstance(prompt.schema, dict) else None
        settle_results(prompt.messages, prompt.tool_results)
        return Turn(_with_system(prompt), options, tools, schema, watching.watch)


def _options(prompt: llm.Prompt) -> Options:
    assert isinstance(prompt.options, Options)
    return prompt.options


def _with_system(prompt: llm.Prompt) -> list[Message]:
    """A turn's messages. A later turn's own system prompt, which llm leaves out of them, replaces the first."""
    messages = list(prompt.messages)
    if not prompt.system:
        return messages
    if messages and messages[0].role == "system":
        del messages[0]
    return [Message(role="system", parts=[TextPart(text=prompt.system)]), *messages]


class DiffusionGemma(_DiffusionGemma, llm.Model):  # type: ignore[misc]
    """`llm -m diffusiongemma`: each converged block is one text event."""

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.Response,
        conversation: llm.Conversation | None,
    ) -> Iterator[StreamEvent]:
        command = current_command()
        goes_on = command is not None and command.goes_on
        reply: Reply | None = None
        interrupts = Interrupts(command)
        watching = Watching(prompt, _options(prompt), command is not None, conversation)
        try:
            with interrupts, watching:
                turn = self._turn(prompt, watching)
                reply = answer(self.entry, turn, interrupts)
                watching.follow(turn, reply)
                for events in reply.steps():
                    with interrupts.printing(), watching.printing(events):
                        yield from events
                interrupts.check()
        except KeyboardInterrupt:
            if reply is None and not goes_on:
                raise  # there is nothing to keep
            # llm would drop the turn, and `llm chat` would take the loaded weights down with it. The
            # blocks that are done are worth keeping; the report says that the reply is not whole.
            if reply is not None:
                events = reply.cut_short()
                with watching.printing(events):
                    yield from events
            click.echo("\nInterrupted: the reply ends here.", err=True)
            if command is not None:
                command.end_with(INTERRUPTED_STATUS)
        except DiffusionGemmaError as error:
            if not goes_on:
                raise
            # It would end the chat, and with it the loaded model.
            click.echo(f"Error: {error}", err=True)
            response.response_json = {"finish_reason": "error", "error": str(error)}
            yield _no_answer()
            return
        if watching.recorder is not None:
            _write_replay(watching.recorder, command)
        yield from _end(response, reply, command, prompt)


class AsyncDiffusionGemma(_DiffusionGemma, llm.AsyncModel):  # type: ignore[misc]
    """The same in a worker thread. Cancelling stops the denoising within one step."""

    async def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.AsyncResponse,
        conversation: llm.AsyncConversation | None,
    ) -> AsyncGenerator[StreamEvent, None]:
        command = current_command()
        owns_process = command is not None and command.owns_process
        start_thread = threading.Thread.start if command is None else command.employ
        watching = Watching(prompt, _options(prompt), command is not None, conversation)
        with giving_way(owns_process), watching:
            turn = self._turn(prompt, watching)
            reply = answer_async(self.entry, turn, owns_process, start_thread)
            watching.follow(turn, reply)
            async with aclosing(reply.steps()) as steps:
                async for events in steps:
                    with watching.printing(events):
                        for event in events:
                            yield event
        if watching.recorder is not None:
            await asyncio.to_thread(_write_replay, watching.recorder, command)
        for event in _end(response, reply, command, prompt):
            yield event


def _write_replay(recorder: Recorder, command: Command | None) -> None:
    """What becomes of it is no reason to lose the reply."""
    try:
        recorder.end()
    except ReplayError as error:
        click.echo(f"\nError: {error}", err=True)
        if command is not None:
            command.end_with(FAILED_STATUS)
    except KeyboardInterrupt:
        if command is None:
            raise
        click.echo("\nInterrupted: there is no replay.", err=True)
        command.end_with(INTERRUPTED_STATUS)


def _end(
    response: Any, reply: Outcome | None, command: Command | None, prompt: llm.Prompt
) -> Iterator[StreamEvent]:
    """Put a reply's report where llm keeps it, hand its tool calls over, and say what is wrong with it.

    Without a reply it was interrupted before that could begin.
    """
    if reply is None:
        response.response_json = {"finish_reason": "interrupted"}
        yield _no_answer()
        return
    report = reply.report
    details = report.usage_details or None
    response.set_usage(input=report.input_tokens, output=report.output_tokens, details=details)
    response.set_resolved_model(report.resolved_model)
    response.response_json = report.as_json()
    lowered = [each for each in report.lowered if each.by_size]
    if lowered and on_terminal():
        from .backends.form import lowered_note

        click.echo(f"\n{lowered_note(lowered)}", err=True)
    if report.choices is not None and on_terminal():
        from .backends.form import mass_note

        if note := mass_note(report.choices):
            click.echo(f"\n{note}", err=True)
    if command is not None and on_terminal():
        from .backends.hints import on_loading

        if hint := on_loading(report):
            click.echo(f"\n{hint}", err=True)
    # Who stops a reply wants none of its tools run.
    tool_calls = () if report.finish_reason == "interrupted" else reply.tool_calls
    for call in tool_calls:
        response.add_tool_call(call)
    has_answer = reply.has_text or bool(tool_calls)
    if not has_answer:
        yield _no_answer()
    if report.finish_reason == "interrupted":
        return
    if report.finish_reason == "length":
        cause = _cause_of_length(report, prompt)
        if not has_answer:
            click.echo(f"\nThere is no answer: {cause}", err=True)
            if command is not None:
                command.end_with(FAILED_STATUS)
        elif on_terminal():
            click.echo(f"\nThe reply was cut: {cause}", err=True)
    elif not has_answer:
        other = 2 if report.seed == 1 else 1
        click.echo(
            f"The model's reply is empty. Ask for a whole sentence, or try another seed: -o seed {other}", err=True
        )


def _no_answer() -> StreamEvent:
    """By this the next turn knows that the question was never answered: of nothing llm would keep nothing."""
    return StreamEvent("reasoning", "", provider_metadata={"diffusiongemma": {"answered": False}})


def _cause_of_length(report: Report, prompt: llm.Prompt) -> str:
    limit = getattr(prompt.options, "max_tokens", None) or DEFAULT_MAX_TOKENS
    # A server that counts none will have stopped at what it was told.
    if report.output_tokens is None or report.output_tokens >= limit:
        advised = max(2 * limit, LEAST_ADVISED_TOKENS)
        return f"max_tokens ({limit:,}) is used up. Set it higher with -o max_tokens {advised}"
    return "the model's context is full. Shorten the prompt, or start a new conversation."
