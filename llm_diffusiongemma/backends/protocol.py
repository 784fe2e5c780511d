"""What our server and who asks it have agreed on beyond OpenAI's format. No torch.

All of it stands in one field, `diffusiongemma`:

- of a request: whatever of `Options` OpenAI's format has no field for; `progress`, true if it is to be told how
  the reply goes; and `watch`, if it is streamed and somebody watches it: how much of it is wanted, in the words
  of `view.records.Wants`;
- of an image in a message: `timestamp`, `mm:ss`, if it is a frame of a video; `name`, where it is from, for what
  is said of it;
- of a chunk, or of a reply that is not streamed: `report`, with `progress` at each chunk, the first of them empty
  and there before the prompt is read, else at the last; and
  `state` in chunks without choices while there is nothing to be read yet, with `progress` only. With `watch` there
  are chunks without choices for `reading` and `snapshot`, each a record of `view.records` with the names it has
  there. Who takes them slowly doesn't get all of them;
- of a model in the list of models: `watch`, what of it can be asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from .. import errors
from ..chat.texts import is_text
from ..chat.wire import EXTENSION as EXTENSION
from ..errors import DiffusionGemmaError, ServerError
from ..options import Options
from ..wording import quoted
from .turn import Report

#: Who owns the models of a server of ours.
OWNER = "llm-diffusiongemma"

#: What OpenAI's format has fields of its own for.
STANDARD_OPTIONS = frozenset({"max_tokens", "seed"})
#: What is the client's alone: what somebody sees of a reply.
VIEW_OPTIONS = frozenset({"watch", "replay"})
EXTENSION_OPTIONS = frozenset(Options.model_fields) - STANDARD_OPTIONS - VIEW_OPTIONS
#: What a server of any version says of an option that it doesn't know, and names it as the field that is wrong.
NO_OPTION = "is none of the options"

# One more than the largest that llm's log can hold.
MAX_NUMBER = 2**63

#: What a reply waits for: its turn, the weights, or its first canvas.
State = Literal["queued", "loading", "reading"]


def report_to_wire(report: Report) -> dict[str, Any]:
    return asdict(report)


def report_from_wire(value: object) -> Report:
    """Raises `ServerError` if it is none."""
    try:
        report = _reports().validate_python(value)
    except ValidationError as error:
        raise _not_understood(error) from error
    if not _can_be_kept(value):
        raise _not_understood("It holds what can't be kept in a log.")
    return report


def _not_understood(why: object) -> ServerError:
    return ServerError(
        "The server's report of the reply can't be understood: it may be of another version of "
        f"llm-diffusiongemma. {quoted(why)}"
    )


def _can_be_kept(value: object) -> bool:
    """Whether it is JSON and SQLite has room for each number."""
    if isinstance(value, (dict, list, tuple)):
        items = (*value, *value.values()) if isinstance(value, dict) else value
        return all(map(_can_be_kept, items))
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return -MAX_NUMBER <= value < MAX_NUMBER
    return not isinstance(value, str) or is_text(value)


def error_to_wire(error: DiffusionGemmaError, status: int) -> dict[str, Any]:
    """As OpenAI has errors; `code` says which of ours it is."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"message": str(error), "type": kind, "param": None, "code": type(error).__name__}


def error_from_wire(error: Mapping[str, Any]) -> DiffusionGemmaError | None:
    """The same error; None if it is none of ours."""
    kind = getattr(errors, str(error.get("code")), None)
    if not (isinstance(kind, type) and issubclass(kind, DiffusionGemmaError)):
        return None
    message = str(error.get("message"))
    if kind.__init__ is DiffusionGemmaError.__init__:
        return kind(message)
    made = kind.__new__(kind)  # some are made of other things than their sentence
    DiffusionGemmaError.__init__(made, message)
    return made


@cache
def _reports() -> TypeAdapter[Report]:
    return TypeAdapter(Report)
