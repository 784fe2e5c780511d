"""What kind a server is, and a turn in its words. What it can't do is refused by name before anything is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from ..chat.declarations import check_texts, declare
from ..chat.markers import without_markers
from ..chat.wire import to_plain_wire, to_wire, tools_to_wire
from ..errors import ServerError, UnsupportedByServerError
from ..options import DEFAULT_MAX_TOKENS
from ..view.records import Wants
from ..wording import listed, quoted
from .address import Address
from .protocol import EXTENSION, EXTENSION_OPTIONS, OWNER, VIEW_OPTIONS
from .turn import Turn

Kind = Literal["ours", "vllm", "other"]

VLLM_OWNER = "vllm"
MAX_LISTED = 20

# What servers that are not ours can be asked for besides `max_tokens`.
FOREIGN_OPTIONS: Mapping[Kind, frozenset[str]] = {
    "vllm": frozenset({"thinking", "max_denoising_steps"}),
    "other": frozenset({"thinking"}),
}


@dataclass(frozen=True)
class Served:
    """A server that has said what it is."""

    address: Address
    """With what it calls the model."""
    kind: Kind
    models: tuple[str, ...] = ()
    """All it has, as far as it said."""
    context_tokens: int | None = None
    """The longest that prompt and reply may be together, if it said."""
    watch: frozenset[str] = frozenset()
    """How much of a reply can be watched, in the words of `view.records.Wants`. An earlier version of ours says
    nothing of that."""

    @property
    def model(self) -> str:
        assert self.address.model is not None
        return self.address.model


def served_by_ours(address: Address) -> Served:
    """Of a server that is known to be ours, of this very version, and which model it has: it needn't be asked."""
    return Served(address, "ours", watch=frozenset(get_args(Wants)))


def read_models(listing: object, address: Address) -> Served:
    """What a server's list of models says. Raises `ServerError` if it is none, or has none that is meant."""
    data = listing.get("data") if isinstance(listing, Mapping) else None
    if not isinstance(data, list):
        raise ServerError(
            f"{quoted(address.name)} is no OpenAI-compatible server: what it says of its models is no list. Is "
            "the URL right? It ends in /v1 as a rule."
        )
    models = {
        model["id"]: model for model in data if isinstance(model, Mapping) and isinstance(model.get("id"), str)
    }
    owners = {str(model.get("owned_by")) for model in models.values()}
    kind: Kind = "ours" if owners == {OWNER} else "vllm" if owners == {VLLM_OWNER} else "other"
    name = address.model or _name(tuple(models), address, kind)
    model = models.get(name, {})
    longest, extension = model.get("max_model_len"), model.get(EXTENSION)
    watch = extension.get("watch") if isinstance(extension, Mapping) else None
    return Served(
        replace(address, model=name, is_ours=kind == "ours"),
        kind,
        tuple(models),
        longest if isinstance(longest, int) else None,
        frozenset(map(str, watch)) if isinstance(watch, list) else frozenset(),
    )


def unlisted(address: Address) -> Served:
    """A server that has no list of models, for a model that it is said to have."""
    return Served(address, "other")


def _name(models: tuple[str, ...], address: Address, kind: Kind) -> str:
    for name in address.wanted:
        if name in models:
            return name
    if len(models) == 1 and (address.takes_any or kind != "ours"):
        return models[0]
    raise no_model(address.wanted[0], models, address)


def no_model(name: str, models: tuple[str, ...], address: Address) -> ServerError:
    """Of a server whose list hasn't what it would be asked for."""
    shown = [quoted(model, 100) for model in models[:MAX_LISTED]]
    listed = ", ".join(shown) + (" …" if len(models) > MAX_LISTED else "") if models else "none"
    return ServerError(
        f"{quoted(address.name)} has no model {quoted(name, 100)}. It has: {listed}. {address.which_model}"
    )


# --- requests ------------------------------------------------------------------------------------------------


def body_of(turn: Turn, served: Served) -> dict[str, Any]:
    """The body of the request for a reply, streamed.

    Raises what a conversation that can't be read raises, and `UnsupportedByServerError`.
    """
    body: dict[str, Any] = {
        "model": served.model,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    body |= _for_ours(turn, served) if served.kind == "ours" else _for_others(turn, served)
    return body


def to_json(body: Mapping[str, Any]) -> bytes:
    """In ASCII, by which also half of a surrogate pair gets there."""
    return json.dumps(body).encode()


def _for_ours(turn: Turn, served: Served) -> dict[str, Any]:
    watch = {} if turn.watch is None or turn.watch.wants not in served.watch else {"watch": turn.watch.wants}
    if turn.options.replay is not None and not watch:
        raise of_an_earlier_version(served.address, "replay")
    given = turn.options.model_dump(exclude_none=True, exclude=set(VIEW_OPTIONS))
    extension = {name: value for name, value in given.items() if name in EXTENSION_OPTIONS}
    body: dict[str, Any] = {
        "messages": to_wire(turn.messages),
        **{name: value for name, value in given.items() if name not in EXTENSION_OPTIONS},
        EXTENSION: {**extension, "progress": True, **watch},
    }
    if turn.tools:
        body["tools"] = tools_to_wire(turn.tools)
    if turn.schema is not None:
        _check_schema(turn.schema)
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "reply", "schema": turn.schema},
        }
    return body


def of_an_earlier_version(address: Address, option: str) -> UnsupportedByServerError:
    """Of a server of ours that can't be asked for an option which it doesn't have yet."""
    return UnsupportedByServerError(
        f"{quoted(address.name)} can't be asked for the option {option}: it is of an earlier version of "
        "llm-diffusiongemma. Leave it out, install this version there, or ask a model that runs here."
    )


def _check_schema(schema: dict[str, Any]) -> None:
    """Raises for one that is no JSON what a reply of this process raises."""
    try:
        json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        from .form import read_form

        read_form(schema, None, None)


def _for_others(turn: Turn, served: Served) -> dict[str, Any]:
    _refuse_what_it_cannot(turn, served)
    options = turn.options
    body: dict[str, Any] = {"messages": without_markers(to_plain_wire(turn.messages))}
    if turn.tools:
        declarations = declare(turn.tools)  # what its chat template would garble is said otherwise there
        check_texts(declarations)
        body["tools"] = without_markers(declarations)
    max_tokens = options.max_tokens
    # Where that is more than fits, the server's own limit, what is left of the context, is the better one.
    if max_tokens is None and (served.context_tokens is None or served.context_tokens >= 2 * DEFAULT_MAX_TOKENS):
        max_tokens = DEFAULT_MAX_TOKENS
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    if options.thinking is not None:
        body["chat_template_kwargs"] = {"enable_thinking": options.thinking}
        if served.kind == "other":
            body["enable_thinking"] = options.thinking  # mlx-vlm's name for it
    if options.max_denoising_steps is not None:
        body["vllm_xargs"] = {"diffusion_max_steps": options.max_denoising_steps}
    return body


def _refuse_what_it_cannot(turn: Turn, served: Served) -> None:
    """Raises `UnsupportedByServerError`: what it would ignore, or refuse in words of its own."""
    given = turn.options.model_dump(exclude_none=True, exclude={"watch"})
    able = FOREIGN_OPTIONS[served.kind] | {"max_tokens"}
    refused = [f"the option {name}" for name in given if name not in able]
    if turn.schema is not None:
        refused.insert(0, "a schema")
    if not refused:
        return
    server = "vLLM" if served.kind == "vllm" else "a server that is not one of llm-diffusiongemma"
    raise UnsupportedByServerError(
        f"{quoted(served.address.name)} can't be asked for {listed(refused)}: {server} doesn't have that for "
        f"this model. Leave {'them' if len(refused) > 1 else 'it'} out, or ask a model that runs here or on `llm "
        "diffusiongemma serve`."
    )
