"""Until requests.py is here: the least of a request. Goes with it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from llm import assistant, system, user
from llm.parts import Message

from ..backends.turn import Turn
from ..options import Options


class RequestError(Exception):
    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param


@dataclass(frozen=True)
class Asked:
    turn: Turn
    stream: bool = False
    include_usage: bool = False
    progress: bool = False
    warnings: list[str] = field(default_factory=list)


def read_request(body: bytes, served: str) -> Asked:
    try:
        request = json.loads(body)
    except ValueError as error:
        raise RequestError(400, "The request is no JSON.") from error
    if request.get("model") != served:
        raise RequestError(404, f"There is no such model here, only {served}.", "model")
    roles = {"user": user, "system": system, "assistant": assistant}
    messages: list[Message] = [roles[each["role"]](each["content"]) for each in request["messages"]]
    extension = dict(request.get("diffusiongemma") or {})
    progress = extension.pop("progress", False)
    options = Options(max_tokens=request.get("max_tokens"), seed=request.get("seed"), **extension)
    include_usage = (request.get("stream_options") or {}).get("include_usage", False)
    return Asked(Turn(messages, options), request.get("stream", False), include_usage, progress)
