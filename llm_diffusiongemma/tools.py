"""What other models can ask of this one: a decision, with the probability of each of its choices."""

import inspect
import os
import sys
import threading
from collections.abc import Awaitable
from contextlib import aclosing

import llm
from llm.parts import Message, TextPart
from pydantic import ValidationError

from .backends.answering import answer, answer_async
from .backends.finding import find
from .backends.threads import StartThread, in_thread
from .backends.turn import Outcome, Stop, Turn
from .catalog import DECIDES_VARIABLE, ModelEntry
from .errors import CheckpointNotFoundError, OptionError
from .interrupts import Interrupts, current_command, giving_way
from .models import DiffusionGemma
from .options import Options
from .wording import quoted

# Who asks the same again is told the same.
SEED = 0

# For the model that calls: llm would show it the docstring as it is indented here.
DESCRIPTION = (
    "Ask another model which of several choices answers a question. Returns a JSON object with the probability of "
    "each choice, the most probable first; they add up to 1. The other model sees nothing but the question: put "
    "everything in it that the decision rests on, such as the text to be classified."
)


def decide_tool() -> llm.Tool:
    """`diffusiongemma_decide`, for llm's hook."""
    tool: llm.Tool = llm.Tool.function(diffusiongemma_decide, description=DESCRIPTION)  # type: ignore[no-untyped-call]
    return tool


def diffusiongemma_decide(question: str, choices: list[str]) -> str | Awaitable[str]:
    """Which of several choices answers a question: a JSON object with the probability of each, as text.

    For a coroutine it is something to be awaited: under asyncio llm calls tools from one, and as long as a plain
    function takes nothing else of the loop is done. A sync chain may be run where there is a loop, too, as in a
    notebook, and awaits nothing; so it is the caller that says which of both it is.

    Raises `DiffusionGemmaError`, whose sentence llm shows to the calling model.
    """
    turn = _turn(question, choices)
    awaits = sys._getframe(1).f_code.co_flags & inspect.CO_COROUTINE
    return _decide_async(turn) if awaits else _decide(turn)


# For `llm tools list`, which shows what an async function gives as what is awaited of it.
diffusiongemma_decide.__annotations__["return"] = str


def _turn(question: object, choices: object) -> Turn:
    """What llm hands over is what the calling model has written, whatever that is."""
    if not isinstance(question, str) or not question.strip():
        raise OptionError("The question has to be a text, and not an empty one.")
    try:
        # A list as JSON; some models write a,b,c.
        options = Options(choices=choices, probabilities=True, seed=SEED)  # type: ignore[arg-type]
    except ValidationError as error:
        raise OptionError('The choices have to be a list of texts, such as ["yes", "no"].') from error
    return Turn([Message(role="user", parts=[TextPart(text=question)])], options)


def _decide(turn: Turn) -> str:
    with Interrupts(current_command()) as interrupts:
        entry = _entry()
        _check_is_here(entry, interrupts)
        reply = answer(entry, turn, interrupts)
        text = "".join(event.chunk for events in reply.steps() for event in events if event.type == "text")
        interrupts.check()
    return _told(text, reply)


async def _decide_async(turn: Turn) -> str:
    command = current_command()
    owns_process = command is not None and command.owns_process
    start_thread: StartThread = threading.Thread.start if command is None else command.employ
    entry = _entry()
    with giving_way(owns_process):
        await in_thread(start_thread, lambda: _check_is_here(entry, _Owner(owns_process)))
        reply, text = answer_async(entry, turn, owns_process, start_thread), ""
        async with aclosing(reply.steps()) as steps:
            async for events in steps:
                text += "".join(event.chunk for event in events if event.type == "text")
    return _told(text, reply)


class _Owner(Stop):
    def __init__(self, owns_process: bool) -> None:
        self.owns_process = owns_process


def _entry() -> ModelEntry:
    """The model that decides. Raises `OptionError`."""
    name = os.environ.get(DECIDES_VARIABLE, "").strip() or "diffusiongemma"
    try:
        model = llm.get_model(name)
    except llm.UnknownModelError:
        model = None
    if not isinstance(model, DiffusionGemma):
        raise OptionError(
            f"{DECIDES_VARIABLE} is {quoted(repr(name), 100)}, which is no DiffusionGemma. Set it to one of those "
            "that `llm diffusiongemma status` names."
        )
    return model.entry


def _check_is_here(entry: ModelEntry, stop: Stop) -> None:
    """A user who has a question waits for 19 GB if need be, but not one whose model has called a tool. Raises
    `CheckpointNotFoundError`."""
    if find(entry, may_start=False) is not None:
        return
    with stop.importing():
        from .backends.engine import is_here
    if not is_here(entry, stop):
        raise CheckpointNotFoundError(
            f"The weights of {entry.model_id} are not on this machine, and a tool downloads none. Run `llm "
            f"diffusiongemma download {entry.model_id}`, or have {DECIDES_VARIABLE} name a model that is here."
        )


def _told(text: str, reply: Outcome) -> str:
    """Both for the calling model: what was found, and what it is worth."""
    from .backends.form import mass_note

    choices = reply.report.choices
    note = None if choices is None else mass_note(choices)
    return text if note is None else f"{text}\n{note}"
