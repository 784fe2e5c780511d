"""What `llm diffusiongemma status` says: the devices, what is on disk of which weights, what a prompt would do.

Gathered as plain values, which `--json` prints, and made a table of for people. What goes wrong with one model is
said in its place and hides no other. The network is asked only for `updates`.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from . import hub
from .backends import launch, running
from .backends.address import LOCAL_SERVER, address_of
from .backends.choice import choose
from .backends.engine import telling_how_to_mend
from .backends.running import Running
from .backends.settings import duration_text
from .catalog import GRAPH_VARIABLE, MEMORY_VARIABLE, SERVER_VARIABLE, ModelEntry, Source
from .diffusion import devices
from .diffusion.loading import describe
from .diffusion.proving import none_because
from .errors import DeviceError, DiffusionGemmaError, HubConnectionError, ServerError
from .hub.failures import size
from .installation import system, versions
from .printing import aligned, filled, kernels_told
from .switches import switch
from .wording import gib, quoted

COMMIT_CHARACTERS = 12
# A number with what it counts; not one in a name.
AMOUNT = re.compile(r"(?<![\w.,/\\-])\d+(?:[.,]\d+)*(?: [A-Za-z]+)?(?![\w/\\-])")


def gather(entries: Sequence[ModelEntry], problems: Sequence[str], updates: bool) -> dict[str, Any]:
    """Everything, in the form of JSON. `problems` are those of the file that has the user's own models."""
    sources = list(dict.fromkeys(source for entry in entries for source in entry.sources))
    weights = [_weights(source) for source in sources]
    if updates:
        _ask_for_updates(weights, sources, entries)
    models, server = [_model(entry) for entry in entries], _server(entries)
    for model, entry in zip(models, entries, strict=True):
        if entry.server is None:
            model.update(_answered_elsewhere(entry, server))
    return {
        "versions": versions(),
        "system": system(),
        "cache": _cache(),
        "devices": [_device(name) for name in devices.available_devices()],
        "kernels": _kernels(),
        "graph": _graph(),
        "memory_limit_bytes": _memory_limit(),
        "weights": weights,
        "models": models,
        "server": server,
        "problems": list(problems),
    }


def _cache() -> str | None:
    try:
        return str(hub.settings.cache_folder())
    except DiffusionGemmaError:  # said of each model that needs it
        return None


def _memory_limit() -> int | None:
    try:
        return devices.memory_limit()
    except DiffusionGemmaError:  # said of each model
        return None


def _device(name: str) -> dict[str, Any]:
    device = torch.device(name)
    kind = total_bytes = None
    with suppress(
        DeviceError, RuntimeError, AssertionError
    ):  # a card that PyTorch counts, and that doesn't answer
        total_bytes = devices.total_memory(device)
        kind = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"device": name, "name": kind, "total_bytes": total_bytes, "free_bytes": _free_memory(device)}


def _kernels() -> dict[str, Any] | None:
    """Whether kernels of ours are tried when a model is loaded, and if not, why; None if that can't be told. To
    try them takes long, the first time, so that is left to the reply."""
    device = torch.device(devices.available_devices()[0])
    because: str | None = "they need an NVIDIA or AMD GPU"
    if device.type == "cuda":
        try:
            because = none_because(device)
        except (DiffusionGemmaError, RuntimeError, AssertionError):  # said of each model
            return None
    return {"are_tried": because is None, "because": because}


def _graph() -> str | None:
    """Of which models on a card a denoising step is captured as a CUDA graph; None if there is no card, or that
    can't be told."""
    if torch.device(devices.available_devices()[0]).type != "cuda":
        return None
    try:
        is_off = switch(GRAPH_VARIABLE) is False
    except DiffusionGemmaError:  # said of each model
        return None
    return f"off ({GRAPH_VARIABLE})" if is_off else "captured where all of a model is on one card"


def _free_memory(device: torch.device) -> int | None:
    """None if nobody knows."""
    try:
        if device.type == "cuda":
            return int(torch.cuda.mem_get_info(device)[0])
        if device.type == "cpu":
            for line in Path("/proc/meminfo").read_text().splitlines():
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, RuntimeError):  # no Linux; a card that somebody else has to himself
        pass
    return None


def _weights(source: Source) -> dict[str, Any]:
    result: dict[str, Any] = {
        "repository": source.where if isinstance(source.where, str) else None,
        "folder": str(source.where) if isinstance(source.where, Path) else None,
        "representation": source.representation,
        "revision": source.revision,
        "commit": None,
        "bytes": 0,
        "missing_bytes": source.weight_bytes,
        "is_whole": False,
    }
    try:
        here = hub.on_disk(source)
        if here is not None:
            result |= {
                "folder": str(here.folder),
                "commit": here.commit,
                "bytes": here.num_bytes,
                "missing_bytes": here.missing_bytes,
                "is_whole": here.is_whole,
            }
        elif isinstance(source.where, Path):
            result |= {"error": f"{quoted(source.where)} is not there, or no checkpoint."}
    except DiffusionGemmaError as error:
        return result | {"error": str(error)}
    return result


def _ask_for_updates(
    weights: Sequence[dict[str, Any]], sources: Sequence[Source], entries: Sequence[ModelEntry]
) -> None:
    """Add to the weights that are here which commit is newer. A Hub that doesn't answer is asked once."""
    silence = None
    for result, source in zip(weights, sources, strict=True):
        if result["commit"] is None:
            continue
        if silence is not None:
            result["update_error"] = silence
            continue
        try:
            newest = hub.newest(source)
        except HubConnectionError as error:
            silence = result["update_error"] = str(error)
        except DiffusionGemmaError as error:
            result["update_error"] = str(error)
        else:
            result["newer_commit"] = newest if newest != result["commit"] else None
            # One that has no other weights.
            owner = min((each for each in entries if source in each.sources), key=lambda each: len(each.sources))
            result["model"] = owner.model_id


def _model(entry: ModelEntry) -> dict[str, Any]:
    result: dict[str, Any] = {
        "model": entry.model_id,
        "sources": [str(source) for source in entry.sources],
        "device": entry.device,
    }
    if entry.server is not None:
        return result | {"server": asdict(entry.server)}
    try:
        choice = choose(entry)
        if choice.on_disk is None and isinstance(choice.source.where, Path):
            _check_folder(entry.model_id, choice.source)
        placement = choice.placement
        result["prompt"] = {
            "source": str(choice.source),
            "representation": placement.representation if placement is not None else choice.source.representation,
            "download_bytes": choice.download_bytes,
            "placement": placement.as_json() if placement is not None else None,
            "is_refused": choice.refusal is not None,
            "sentence": choice.sentence(),
        }
    except DiffusionGemmaError as error:
        result["error"] = str(error)
    except (RuntimeError, AssertionError) as error:  # a card that PyTorch counts, and that doesn't answer
        result["error"] = f"the device can't be used: {quoted(error)}"
    return result


def _check_folder(model_id: str, source: Source) -> None:
    """Raises what a prompt would say of a folder in which no checkpoint is."""
    checkpoint = hub.locate(source, model_id, lambda weight_bytes: None)
    with telling_how_to_mend(source.where, checkpoint.folder):
        describe(checkpoint.folder)


def _server(entries: Sequence[ModelEntry]) -> dict[str, Any]:
    """The one that is running, if any, and what it says of itself."""
    variable = os.environ.get(SERVER_VARIABLE, "").strip()
    result: dict[str, Any] = {"is_warm": launch.is_warm(), "variable": variable or None, "running": None}
    try:
        launch.check_installed()
    except ServerError as error:
        result["not_installed"] = str(error)
    try:
        found = running.recorded()
        if found is None:
            if (running.folder() / running.LOCK_FILE).exists() and running.is_locked():
                result["problem"] = "A server is starting, or ending, or is one of another version."
            return result
        if not running.answers(found):
            result["problem"] = (
                f"The server for {quoted(found.identity.model_id)} (process {found.pid}) has left a record and is "
                "not there any more. The next one takes that away."
            )
            return result
        result["running"] = {
            "model": found.identity.model_id,
            "version": found.identity.version,
            "process": found.pid,
            "started": found.started,
            "url": found.url,
            "socket": found.socket,
            "token_file": str(running.folder() / running.TOKEN_FILE),
            "url_of_others": found.url_of_others,
            "key_name": found.key_name,
            "keep_alive_seconds": found.keep_alive_seconds,
            "ends_when_idle": found.ends_when_idle,
            "difference": _difference(found, entries),
        }
        result["running"]["state"] = launch.ask(found, "GET", "/diffusiongemma/status")
    except (DiffusionGemmaError, OSError) as error:  # llm has no folder; a hung one
        result["problem"] = str(error)
    return result


def _difference(found: Running, entries: Sequence[ModelEntry]) -> str | None:
    """Why prompts from here for its model don't use a server, as the rest of a sentence; None if they do."""
    for entry in entries:
        if entry.model_id == found.identity.model_id:
            return found.identity.difference(running.identity_of(entry))
    return "has a model that isn't known here"


def _answered_elsewhere(entry: ModelEntry, server: dict[str, Any]) -> dict[str, str]:
    """`answered_by`, if that isn't this process, or the `error` of the variable that names a server."""
    try:
        if (named := address_of(entry)) is not None:
            return {"answered_by": named.name}
    except DiffusionGemmaError as error:
        return {"error": str(error)}
    found = server["running"]
    is_off = (server["variable"] or "").lower() == "off"
    if is_off or found is None or found["model"] != entry.model_id or found["difference"] is not None:
        return {}
    return {"answered_by": LOCAL_SERVER}


def has_failed(found: dict[str, Any]) -> bool:
    """Whether the Hub was to be asked, and couldn't."""
    return any("update_error" in weights for weights in found["weights"])


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The same for people."""
    yield "Devices"
    yield from aligned([_device_cells(device) for device in found["devices"]])
    if found["memory_limit_bytes"] is not None:
        yield f"  Of each at most {gib(found['memory_limit_bytes'])} may be taken ({MEMORY_VARIABLE})."
    if (kernels := found["kernels"]) is not None:
        yield filled(f"Kernels: {_kernels_sentence(kernels['because'])}.")
    if found["graph"] is not None:
        yield filled(f"A denoising step as one CUDA graph: {found['graph']}.")
    yield ""
    yield f"Weights (of the Hub in {quoted(found['cache'])})" if found["cache"] else "Weights"
    yield from aligned([_weights_cells(weights) for weights in found["weights"]])
    yield ""
    yield "What a prompt would do"
    yield from map(filled, _prompts(found["models"]))
    yield ""
    yield "Server"
    yield from map(filled, _server_lines(found["server"]))
    yield ""
    yield "Versions"
    yield filled(", ".join(f"{name} {number}" for name, number in found["versions"].items()) + ".")
    yield filled(f"{found['system']}.")
    reasons = (weights["update_error"] for weights in found["weights"] if "update_error" in weights)
    problems = [*found["problems"], *dict.fromkeys(reasons)]
    if problems:
        yield ""
        yield "Problems"
        yield from map(filled, problems)


def _kernels_sentence(because: str | None) -> str:
    if because is not None:
        return f"none: {because}"
    return (
        "tried when a model is loaded; behind a reply `llm diffusiongemma last` says how many are used, and `llm "
        "logs --json` has their names"
    )


def _server_lines(server: dict[str, Any]) -> Iterator[str]:
    if (found := server["running"]) is not None:
        where = found["url"] or quoted(found["socket"])
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(found["started"]))
        yield f"{quoted(found['model'])} (process {found['process']}) at {where} since {since}."
        yield f"Programs show it the token in {quoted(found['token_file'])}."
        if found["url"] is None:
            yield f"With curl: --unix-socket {quoted(found['socket'])} http://localhost/v1/chat/completions"
        if found["url_of_others"] is not None:
            key = f"the key that `llm keys` has here as {quoted(found['key_name'])}"
            yield f"Other machines ask it at {quoted(found['url_of_others'])}, with {key}."
        if "state" in found:
            yield _server_state(found["state"], found["keep_alive_seconds"], found["ends_when_idle"])
        if found["difference"] is not None:
            yield f"Prompts from here don't use it: it {found['difference']}."
    elif "problem" not in server:
        if "not_installed" in server:
            yield f"None is running. {server['not_installed']}"
        else:
            yield "None is running: `llm diffusiongemma serve` starts one."
    if "problem" in server:
        yield server["problem"]
    if server["is_warm"]:
        yield "Prompts that find none start one (`llm diffusiongemma warm on`)."
    if (server["variable"] or "").lower() == "off":
        yield f"{SERVER_VARIABLE} is off: prompts from here ask none."


def _server_state(state: dict[str, Any], keep_alive_seconds: float | None, ends_when_idle: bool) -> str:
    loaded = state.get("loaded")
    text = "Its weights are not loaded."
    if loaded is not None:
        text = f"Its weights ({loaded['representation']}) are loaded on {loaded['device']}."
        # One of another version may not tell.
        if (told := kernels_told(loaded.get("kernels"))) is not None:
            text += f" Kernels: {told}."
        if isinstance(graph := loaded.get("graph"), str):
            text += f" A denoising step as one CUDA graph: {quoted(graph)}."
    text += f" Replies so far: {state['replies']}."
    if state["running_since"] is not None:
        waiting = {0: "", 1: ", and 1 waits"}.get(state["waiting"], f", and {state['waiting']} wait")
        return f"{text} It is writing one{waiting}."
    text += f" It has had nothing to do for {_about(time.time() - (state['last_used'] or state['started']))}"
    if keep_alive_seconds is None or (loaded is None and not ends_when_idle):
        return f"{text}."
    return f"{text}; after {duration_text(keep_alive_seconds)} {'it ends' if ends_when_idle else 'they go'}."


def _about(seconds: float) -> str:
    """A time for people, who need no seconds of hours."""
    size = next((size for size in (3600, 60) if seconds >= size), 1)
    return duration_text(int(seconds) // size * size)


def _device_cells(device: dict[str, Any]) -> list[str]:
    total, free = device["total_bytes"], device["free_bytes"]
    memory = [gib(total)] if total is not None else []
    memory += [f"{gib(free)} free"] if free is not None else []
    return [device["device"], device["name"] or "", ", ".join(memory) or "memory not known"]


def _weights_cells(weights: dict[str, Any]) -> list[str]:
    name = quoted(weights["repository"] or weights["folder"])
    if weights["revision"] is not None:
        name += f" ({quoted(weights['revision'])})"
    # What is in a folder is known once its headers have been read.
    kind = weights["representation"] or ("folder" if weights["folder"] else "")
    return [kind, name, _on_disk(weights)]


def _on_disk(weights: dict[str, Any]) -> str:
    if "error" in weights:
        return str(weights["error"])
    missing = "size not known" if weights["missing_bytes"] is None else size(weights["missing_bytes"])
    if not weights["bytes"]:
        return f"not here ({missing})"
    text = size(weights["bytes"])
    if weights["commit"] is not None:
        text += f", commit {weights['commit'][:COMMIT_CHARACTERS]}"
    if not weights["is_whole"]:
        text += f", to come: {missing}"
    if "update_error" in weights:
        text += "; newer: not known"
    elif weights.get("newer_commit") is not None:
        command = f"llm diffusiongemma download {weights['model']} --update"
        text += f"; newer: {weights['newer_commit'][:COMMIT_CHARACTERS]} (`{command}`)"
    elif "newer_commit" in weights:
        text += ", the newest"
    return text


def _prompts(models: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What several have in common once: of those whose sentences differ in numbers only the numbers."""
    alike: dict[str, dict[str, list[str]]] = {}
    for model in models:
        text = _prompt(model)
        alike.setdefault(AMOUNT.sub("\0", text), {}).setdefault(text, []).append(model["model"])
    for names_of in alike.values():
        first, *others = names_of
        yield f"{', '.join(names_of[first])}: {first}"
        for text in others:
            pairs = zip(AMOUNT.findall(first), AMOUNT.findall(text), strict=True)
            amounts = ", ".join(amount for before, amount in pairs if amount != before)
            yield f"{', '.join(names_of[text])}: the same, but {amounts}."


def _prompt(model: dict[str, Any]) -> str:
    if "error" in model:
        return str(model["error"])
    if "answered_by" in model:
        if model["answered_by"] == LOCAL_SERVER:
            return "the local server answers."
        return f"the server {quoted(model['answered_by'])} is asked ({SERVER_VARIABLE})."
    if "server" in model:
        server = model["server"]
        named = f" for its model {quoted(server['served_model'])}" if server["served_model"] else ""
        with_key = (
            f", with the key that `llm keys` has as {quoted(server['key_name'])}" if server["key_name"] else ""
        )
        return f"the server {quoted(server['url'])} is asked{named}{with_key}."
    prompt = model["prompt"]
    text = str(prompt["sentence"]).removeprefix(f"{model['model']}: ")
    if prompt["is_refused"]:
        return text
    if prompt["download_bytes"] is None:
        text += " It downloads the weights first."
    elif prompt["download_bytes"]:
        text += f" It downloads {size(prompt['download_bytes'])} first."
    placement = prompt["placement"]
    if placement is not None and placement["context_tokens"] is not None:
        taken = [f"{gib(of['expected_bytes'])} of {name}" for name, of in placement["devices"].items()]
        taken += [f"{gib(placement['pinned_bytes'])} of the host's memory"] if placement["pinned_bytes"] else []
        text += f" Expected: {', '.join(taken)}; the context may be {placement['context_tokens']:,} tokens long."
    return text
