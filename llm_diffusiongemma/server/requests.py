"""From the body of a request to the turn that it asks for.

Nothing is passed over in silence: what is known and has no meaning for this model is named in a warning, and what
isn't known is refused. Nothing is fetched, and no picture is decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from ..backends.protocol import EXTENSION, EXTENSION_OPTIONS, NO_OPTION
from ..backends.turn import Turn
from ..documents import DocumentError, conform, parse_object, refuse_unless
from ..options import Options
from ..view.records import Wants
from ..wording import quoted
from .messages import from_wire, tools_from_wire
from .objects import Object, check_depth, check_number

#: Fields of OpenAI's format, and of engines that extend it, which mean nothing to a model that denoises or to a
#: server of one's own.
IGNORED = frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p", "top_a", "typical_p", "tfs_z"),
        *("frequency_penalty", "presence_penalty", "repetition_penalty", "length_penalty"),
        *("no_repeat_ngram_size", "logit_bias", "best_of", "use_beam_search", "early_stopping"),
        *("mirostat", "mirostat_tau", "mirostat_eta"),
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "verbosity", "prediction"),
    }
)
# In one warning.
MAX_NAMED = 20

#: How much a model is to think. This one does or doesn't.
EFFORTS = {"none": False, "minimal": False, "low": True, "medium": True, "high": True, "xhigh": True}

NO_PROBABILITIES = (
    "the tokens of a canvas are denoised together, and none has a probability of its own; whole choices have one, "
    f"with {EXTENSION}.choices and {EXTENSION}.probabilities"
)

_OBJECT_SCHEMA = {"type": "object"}


class RequestError(Exception):
    """A request that can't be answered."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        """of HTTP"""
        self.message = message
        self.param = param
        """The field that isn't as it has to be, if it is one."""


@dataclass(frozen=True)
class Asked:
    """A request, read."""

    turn: Turn
    stream: bool
    include_usage: bool
    """in a chunk of its own"""
    progress: bool
    """Whether it is to be told how the reply goes."""
    watch: Wants | None
    """How much of it somebody wants to see, who watches it."""
    warnings: list[str]


def _only(*values: object, because: str) -> AfterValidator:
    """Of a field that can be left out just as well as it can have one of these values."""

    def check(value: Any) -> Any:
        refuse_unless(value in values, because)
        return value

    return AfterValidator(check)


class _StreamOptions(Object):
    include_usage: bool = False
    include_obfuscation: bool = False


class _JsonSchema(Object):
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    # Replies are held to it exactly, whatever this says.
    strict: bool | None = None


class _ResponseFormat(Object):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _JsonSchema | None = None

    @model_validator(mode="after")
    def _has_a_schema(self) -> _ResponseFormat:
        has_schema = self.json_schema is not None
        refuse_unless(has_schema == (self.type == "json_schema"), "json_schema belongs to the type json_schema")
        return self

    @property
    def schema_of_reply(self) -> dict[str, Any] | None:
        if self.json_schema is not None:
            return self.json_schema.schema_
        return _OBJECT_SCHEMA if self.type == "json_object" else None


class _TemplateVariables(Object):
    enable_thinking: bool | None = None


class _Telling(Object):
    """What of the extension is no option: what else than the reply is to be told."""

    progress: bool = False
    watch: Wants | None = None


class _Request(Object):
    model: str
    messages: list[Any]
    stream: bool = False
    stream_options: _StreamOptions | None = None
    tools: list[Any] = Field(default_factory=list)
    tool_choice: Annotated[
        Any, _only("auto", "none", because="no call can be forced, only auto and none asked for")
    ] = "auto"
    parallel_tool_calls: bool = True
    response_format: _ResponseFormat | None = None
    seed: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    chat_template_kwargs: _TemplateVariables = _TemplateVariables()
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    diffusiongemma: dict[str, Any] = Field(default_factory=dict)

    n: Annotated[Any, _only(1, because="there is one reply to a request")] = 1
    stop: Annotated[Any, _only([], because="a reply ends by itself or by max_tokens, not by a text in it")] = None
    logprobs: Annotated[Any, _only(False, because=NO_PROBABILITIES)] = None
    top_logprobs: Annotated[Any, _only(0, because=NO_PROBABILITIES)] = None
    modalities: Annotated[Any, _only(["text"], because="replies are texts")] = None


def read_request(body: bytes, served: str) -> Asked:
    """What is asked for, in JSON, of the model that is served under that name. Raises `RequestError`."""
    try:
        return _read(body, served)
    except DocumentError as error:
        raise RequestError(400, f"The request can't be answered: {error}.", error.where) from error


def _read(body: bytes, served: str) -> Asked:
    check_number(body)
    document = parse_object(body, strict=True)
    check_depth(document)
    ignored = [name for name, value in document.items() if name in IGNORED and value is not None]
    request = conform(_Request, {name: value for name, value in document.items() if name not in IGNORED})
    if request.model != served:
        raise RequestError(404, f"There is no model {quoted(request.model)} here, only {served}.", "model")
    if request.stream_options is not None and not request.stream:
        raise DocumentError("stream_options are for replies that are streamed", "stream_options")
    extension = {name: value for name, value in request.diffusiongemma.items() if value is not None}
    telling = conform(_Telling, {name: extension.pop(name, None) for name in _Telling.model_fields}, EXTENSION)
    if telling.watch is not None and not request.stream:
        raise DocumentError(f"{EXTENSION}.watch is for replies that are streamed", f"{EXTENSION}.watch")
    options = _options(request, extension)
    response_format = request.response_format
    tools = tools_from_wire(request.tools, ignored.append)
    turn = Turn(
        from_wire(request.messages, ignored.append),
        options,
        tools if request.tool_choice == "auto" else [],
        None if response_format is None else response_format.schema_of_reply,
    )
    ignored += _without_effect(request)
    include_usage = request.stream_options is not None and request.stream_options.include_usage
    warnings = [_warning(ignored)] if ignored else []
    return Asked(turn, request.stream, include_usage, telling.progress, telling.watch, warnings)


def _options(request: _Request, extension: dict[str, Any]) -> Options:
    """`extension` is what that has of options."""
    if unknown := next((name for name in extension if name not in EXTENSION_OPTIONS), None):
        where = quoted(f"{EXTENSION}.{unknown}")
        raise DocumentError(f"{where} {NO_OPTION} {', '.join(sorted(EXTENSION_OPTIONS))}", where)
    longest = _agreed({"max_tokens": request.max_tokens, "max_completion_tokens": request.max_completion_tokens})
    standard = conform(Options, {"max_tokens": longest, "seed": request.seed})
    own = conform(Options, extension, EXTENSION)
    effort = request.reasoning_effort
    thinking = _agreed(
        {
            f"{EXTENSION}.thinking": own.thinking,
            "chat_template_kwargs.enable_thinking": request.chat_template_kwargs.enable_thinking,
            "reasoning_effort": None if effort is None else EFFORTS[effort],
        }
    )
    options = {**own.model_dump(), "max_tokens": standard.max_tokens, "seed": standard.seed, "thinking": thinking}
    return conform(Options, options, EXTENSION)


def _agreed(said: dict[str, Any]) -> Any:
    """What fields say that mean the same; None if none says anything."""
    said = {name: value for name, value in said.items() if value is not None}
    if len(set(said.values())) > 1:
        names = list(said)
        raise DocumentError(f"{' and '.join(names)} contradict each other: keep one", names[-1])
    return next(iter(said.values()), None)


def _without_effect(request: _Request) -> list[str]:
    """Fields that nothing can be made of."""
    names = []
    if not request.parallel_tool_calls:
        names.append("parallel_tool_calls")
    if request.stream_options is not None and request.stream_options.include_obfuscation:
        names.append("stream_options.include_obfuscation")
    schema = None if request.response_format is None else request.response_format.json_schema
    if schema is not None and schema.description:
        names.append("response_format.json_schema.description")
    return names


def _warning(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"Without meaning for this model, and ignored: {', '.join(names[:MAX_NAMED])}{more}."
