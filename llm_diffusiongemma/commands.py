"""`llm diffusiongemma …`: which models there are, their weights, and what a prompt would do.

Thin: each command imports what it needs when it runs, so that `llm` starts no later for them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click
import llm

from .backends.settings import Settings, settings_options
from .catalog import SERVER_VARIABLE, Representation
from .errors import (
    CheckpointNotFoundError,
    DeviceError,
    DiffusionGemmaError,
    OptionError,
    RegistryError,
    RemovalError,
    ServerAccessError,
    ServerBusyError,
    ServerError,
    ServerUnreachableError,
)
from .interrupts import FAILED_STATUS, INTERRUPTED, INTERRUPTED_STATUS, Interrupts, current_command
from .wording import printable, quoted, tell

if TYPE_CHECKING:
    from .backends.choice import Choice
    from .backends.running import Running
    from .catalog import ModelEntry, Source


@click.group()
def diffusiongemma() -> None:
    """DiffusionGemma's models: what is on this machine of their weights, and what a prompt would do."""
    current_command()  # so that a Ctrl-C ends these as it ends a prompt


@diffusiongemma.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON")
@click.option("--updates", is_flag=True, help="Ask the Hugging Face Hub whether it has newer weights")
def status(as_json: bool, updates: bool) -> None:
    """Show devices, weights on disk, and what a prompt would do.

    For each model: which weights it takes, where they go, how much it downloads before, and what memory it needs.
    Without --updates no network is asked.
    """
    from .view.progress import indicate

    entries = _entries()
    with indicate("Looking at devices and weights"):
        from .status import gather, has_failed, lines

        found = gather(entries, _problems(entries), updates)
    _print(json.dumps(found, indent=2) if as_json else printable("\n".join(lines(found))))
    if has_failed(found):
        raise click.exceptions.Exit(FAILED_STATUS)


@diffusiongemma.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON, without the prompt and anything else of your own")
def last(as_json: bool) -> None:
    """Show how the last reply went.

    Its canvases and steps, tokens, time, memory and seed, by llm's log of the last reply of a DiffusionGemma.
    With --json nothing is shown of what was asked and answered, so you can attach it where you report a problem.
    """
    from .last import gather, lines, public

    found = gather()
    _print(json.dumps(public(found), indent=2) if as_json else printable("\n".join(lines(found))))


@diffusiongemma.command()
@click.argument("model_id", metavar="[MODEL]", default="diffusiongemma")
@click.option("--update", is_flag=True, help="Ask the Hugging Face Hub for newer weights")
def download(model_id: str, update: bool) -> None:
    """Download a model's weights, so that a prompt need not.

    Without MODEL those that `diffusiongemma` takes on this machine. Says first what comes and where it goes. A
    download that was cut goes on where it was. Weights that are here already are left as they are, unless --update
    asks for newer ones.
    """
    from . import hub
    from .hub.failures import size

    entry = _entry(model_id)
    if entry.server is not None:
        url = quoted(entry.server.url)
        _print(printable(f"{model_id} is answered by the server {url}: there is nothing to download."))
        return
    source = entry.sources[0] if len(entry.sources) == 1 else _chosen(entry)
    if isinstance(source.where, Path):
        _print(printable(f"{model_id} is in the folder {quoted(source.where)}: there is nothing to download."))
        return
    with Interrupts(current_command()) as stop:
        checkpoint = hub.download(source, update, stop.check)
    here = hub.on_disk(source)
    num_bytes = f" ({size(here.num_bytes)})" if here is not None else ""
    what = f"{checkpoint.resolved_model} is here{num_bytes}"
    refusal = _refusal(entry)
    if refusal is not None:
        _print(printable(f"{what}. This machine doesn't run it as it is: {refusal}"))
    else:
        _print(printable(f"{what}: `llm -m {model_id}` runs it."))


@diffusiongemma.command()
@click.argument("model_id", metavar="MODEL")
@click.option("-y", "--yes", is_flag=True, help="Don't ask")
def remove(model_id: str, yes: bool) -> None:
    """Delete a model's weights, and forget a model of your own.

    Says what goes and how much that frees, and asks. Of `diffusiongemma`, which takes one of several repositories,
    all go that are here: to delete those of one name it, as in `diffusiongemma-nvfp4`. Folders of your own stay,
    and so do weights that a model of your own shares with another one.
    """
    from . import hub, registry
    from .catalog import built_in
    from .hub.failures import size

    is_own = registry.holds(model_id)
    if is_own and model_id in {entry.model_id for entry in built_in()}:
        raise RemovalError(
            f"{model_id} is a built-in model, whose weights would go, and {quoted(registry.path())} has a model "
            "of that name. Give that one another name there, and run the command again with the one that you mean."
        )
    entries = _entries()
    # Of what isn't understood in the file there are no weights, but it can be taken out.
    entry = None if is_own and model_id not in {each.model_id for each in entries} else _entry(model_id)
    removals, deleted, staying = [], [], []
    for source in entry.sources if entry is not None else ():
        shown = quoted(source)
        sharers = " and ".join(each.model_id for each in entries if each != entry and _shares(each, source))
        if isinstance(source.where, Path):
            staying.append(f"The folder {shown} stays as it is.")
        elif is_own and sharers:
            staying.append(f"The weights of {shown} stay: they are those of {sharers}, too.")
        else:
            try:
                removals.append(hub.removal(source))
            except RemovalError as error:  # mostly because nothing of it is here
                staying.append(str(error))
                continue
            too = f" (the weights of {sharers}, too)" if sharers else ""
            deleted.append(f"  {shown}: {size(removals[-1].num_bytes)}{too}")
    if not is_own and not removals:
        raise RemovalError("\n".join(staying))
    num_bytes = sum(removal.num_bytes for removal in removals)
    lines = [*staying, *(["These weights will be deleted:", *deleted] if deleted else [])]
    if is_own:
        lines.append(f"llm will not know {model_id!r} any more.")
    _print(printable("\n".join(lines)))
    if not yes:
        click.confirm(f"Delete {size(num_bytes)}?" if removals else "Go on?", abort=True)
    for removal in removals:
        hub.remove(removal)
    if is_own:
        registry.take_out(model_id)
    _print(f"Done: {size(num_bytes)} are free again." if num_bytes else "Done.")


def _shares(entry: ModelEntry, source: Source) -> bool:
    """Whether a model may run what is here of a source. One that names no revision may run any."""
    same = (each.revision for each in entry.sources if each.where == source.where)
    return any(source.revision is None or revision in (None, source.revision) for revision in same)


@diffusiongemma.command()
@click.argument("model_id", metavar="ID")
@click.argument("source")
@click.option("--revision", help="A branch, tag or commit of a repository. Default: its main branch")
@click.option("--device", help="Where it runs, such as cuda:1. Default: the best there is")
@click.option("--key", "key_name", metavar="NAME", help="Under which name `llm keys` has the key of a server")
@click.option("--served-model", metavar="NAME", help="What a server calls the model, if it has several")
def add(
    model_id: str,
    source: str,
    revision: str | None,
    device: str | None,
    key_name: str | None,
    served_model: str | None,
) -> None:
    """Make a model of your own known to llm, as `llm -m ID`.

    SOURCE is a folder with a DiffusionGemma checkpoint, such as a fine-tune, or a repository (owner/name) of the
    Hugging Face Hub. A repository's weights come with the first prompt, or with `llm diffusiongemma download ID`.

    Or it is the URL of an OpenAI-compatible server that has such a model, like http://host:8000/v1: one of vLLM's,
    or what `llm diffusiongemma serve` runs on another machine. The same ID and URL again change its --key and
    --served-model.
    """
    from . import hub, registry
    from .view.progress import indicate

    entry = registry.new_entry(model_id, source, revision, device, served_model, key_name)
    is_again = any(each.model_id == model_id and each.asks_the_same(entry) for each in _entries())
    if not is_again and model_id in _names():
        is_own = registry.holds(model_id)
        way_out = f", or take that one out first: llm diffusiongemma remove {model_id}" if is_own else "."
        raise RegistryError(
            f"There is a model {model_id!r} already: `llm models` has it. Choose another name{way_out}"
        )
    if entry.server is not None:
        found_there = _ask_server(entry)
        done, how = "Added", ""
        if registry.add(entry):
            key_name = entry.server.key_name
            done = "Changed"
            how = f" with the key that `llm keys` has as {quoted(key_name)}" if key_name else " without a key"
        _print(printable(f"{done}: `llm -m {model_id}` asks {quoted(entry.server.url)}{how}. {found_there}"))
        return
    (found,) = entry.sources
    with indicate("Looking at it"):
        if device is not None:
            from .diffusion.devices import resolve_device

            resolve_device(device)
        if isinstance(found.where, Path):
            from .diffusion.loading import describe

            describe(found.where)
        else:
            hub.on_disk(found)  # it refuses what can be no revision
    registry.add(entry)
    _print(printable(f"Added: `llm -m {model_id}` runs {quoted(found)}."))


def _ask_server(entry: ModelEntry) -> str:
    """What a server says it is, or why it doesn't yet. Raises what is wrong with it if it answers."""
    from .backends.address import address_of
    from .backends.dialects import no_model
    from .backends.remote import ask_what_it_is
    from .view.progress import indicate

    try:
        address = address_of(entry)
        assert address is not None
        with indicate(f"Waiting for {quoted(address.name, 60)}"):
            served = ask_what_it_is(address)
    except (ServerUnreachableError, ServerAccessError, ServerBusyError) as error:
        return f"It can't be asked now: {error}"
    kinds = {"ours": "llm-diffusiongemma", "vllm": "vLLM", "other": "an OpenAI-compatible server"}
    if served.models and served.model not in served.models:
        refusal = no_model(served.model, served.models, address)
        if served.kind != "other":
            raise refusal
        # mlx-vlm's list is of what is in the Hub's cache, and it serves folders, too.
        return f"That is {kinds[served.kind]}, and its list hasn't that model, which may be right: {refusal}"
    return f"That is {kinds[served.kind]}, which has the model as {quoted(served.model)}."


@diffusiongemma.command()
@click.argument("model_id", metavar="[MODEL]", default="diffusiongemma")
@settings_options
@click.option("--detach", is_flag=True, help="Put it into the background once it is loaded")
def serve(model_id: str, settings: Settings, detach: bool) -> None:
    """Keep a model loaded, for llm and for OpenAI's clients.

    `llm -m MODEL` finds it by itself. Others need its address and its token, which this says when the model is
    loaded. Only this machine can ask it, unless --host says more.
    """
    from .backends import launch

    launch.check_installed()
    entry = _entry(model_id)
    if entry.server is not None:
        raise ServerError(f"{model_id} is answered by the server {quoted(entry.server.url)} already.")
    if not settings.is_local:
        tell(
            f"What goes between {quoted(settings.host)} and other machines is not encrypted: who is in between "
            "can read prompts, replies and the key. An SSH tunnel, or a proxy with TLS, keeps them private."
        )
    variable = os.environ.get(SERVER_VARIABLE, "").strip()
    if detach:
        _say_served(launch.start(entry, settings), variable, "`llm diffusiongemma stop` ends it.")
        return
    from .server.process import serve as run

    status = run(entry, settings, when_ready=lambda server: _say_served(server, variable, "Ctrl-C ends it."))
    # Behind the terminal's ^C.
    click.echo(("\n" if status == INTERRUPTED_STATUS else "") + "The server is stopped.", err=True)
    raise click.exceptions.Exit(status)


def _say_served(server: Running, variable: str, end: str) -> None:
    """`variable` is what the environment says of servers for prompts."""
    import shlex

    from .backends import running
    from .backends.settings import duration_text

    model_id, token = server.identity.model_id, running.folder() / running.TOKEN_FILE
    body = {"model": model_id, "messages": [{"role": "user", "content": "What is a canvas?"}]}
    curl = f'curl {server.url}/chat/completions -H "Authorization: Bearer $(cat {shlex.quote(str(token))})"'
    lines = [
        f"{curl} -H 'Content-Type: application/json' -d '{json.dumps(body)}'",
        "",
        f"{model_id} is served at {server.url} in OpenAI's format"
        + ("." if variable else f"; `llm -m {model_id}` finds it by itself."),
    ]
    if variable:
        lines.append(f"Prompts from here don't ask it: {SERVER_VARIABLE} is {quoted(repr(variable))}.")
    lines.append(f"The token that programs need is in {quoted(token)}.")
    if server.url_of_others is not None:
        key = shlex.quote(str(server.key_name))
        lines += [
            f"Other machines, with the key {key} in their `llm keys`, know it by:",
            f"  llm diffusiongemma add NAME {shlex.quote(server.url_of_others)} --key {key}",
        ]
    if server.keep_alive_seconds is None:
        lines.append("The weights stay until it ends.")
    elif server.keep_alive_seconds == 0:
        lines.append("The weights go after each reply that nobody waits behind, and come with the next prompt.")
    else:
        after = duration_text(server.keep_alive_seconds)
        lines.append(f"The weights go after {after} without a prompt, and come with the next.")
    click.echo(printable("\n".join([*lines, end])))


@diffusiongemma.command()
def stop() -> None:
    """End the server, at the latest within some seconds.

    The reply that is being written may end if it soon does.
    """
    from .backends import launch
    from .view.progress import indicate

    with indicate("Waiting for the server's end"):
        ended = launch.stop()
    _print(f"The server for {ended.identity.model_id} is stopped." if ended else "No server is running.")


@diffusiongemma.command()
@click.argument("state", type=click.Choice(["on", "off"]), required=False)
def warm(state: str | None) -> None:
    """Have prompts start a server, so that the next ones are quick.

    It runs in the background, and goes by itself after ten minutes without a prompt. Without on or off this says
    which it is.
    """
    from .backends import launch, running

    if state == "on":
        launch.check_background()
    if state is not None:
        launch.set_warm(state == "on")
    if launch.is_warm():
        _print("on: a prompt that finds no server starts one, which goes after ten minutes without a prompt.")
        return
    _print("off: each prompt loads the model anew, unless a server is running.")
    found = running.recorded()
    if found is not None and running.answers(found):
        model_id = quoted(found.identity.model_id)
        _print(f"One for {model_id} is running: `llm diffusiongemma stop` ends it.")


def _print(text: str, nl: bool = True) -> None:
    """What a command has found. Raises `DiffusionGemmaError` if it can't be written, as to a full disk."""
    try:
        click.echo(text, nl=nl)
    except BrokenPipeError:  # nobody reads any more, and click ends in silence
        raise
    except OSError as error:
        command = current_command()
        if command is not None and command.owns_process:
            # Or Python, which still has it, tries again at its end, and says so in words of its own.
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise DiffusionGemmaError(
            f"What this command says can't be written: {quoted(error.strerror or error)}. Have it go where there "
            "is room, or to the terminal."
        ) from error


def _entries() -> list[ModelEntry]:
    """This plugin's models, as llm knows them."""
    from .models import DiffusionGemma

    models = [known.model for known in llm.get_models_with_aliases()]
    return [model.entry for model in models if isinstance(model, DiffusionGemma)]


def _choice(entry: ModelEntry) -> Choice:
    from .view.progress import indicate

    with indicate("Looking at devices and weights"):
        from .backends.choice import choose

        return choose(entry)


def _refusal(entry: ModelEntry) -> DiffusionGemmaError | None:
    """Why a prompt wouldn't be answered here."""
    try:
        return _choice(entry).refusal
    except DiffusionGemmaError as error:  # of a setting that means nothing
        return error


def _chosen(entry: ModelEntry) -> Source:
    """Which of several sources this machine takes. Raises what keeps it from taking any."""
    choice = _choice(entry)
    if choice.refusal is not None:
        names = [f"{entry.model_id}-{source.representation}" for source in entry.sources]
        raise DeviceError(f"{choice.refusal}\nTo download all the same name the weights: {' or '.join(names)}")
    return choice.source


def _writable(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """A file that can be written, which nothing has been done to: a check takes its time, and may not end."""
    if value == "-":
        return None
    if value is not None and not os.path.exists(value) and not os.access(Path(value).absolute().parent, os.W_OK):
        raise click.BadParameter(f"{quoted(value)} can't be written.")
    return value


@diffusiongemma.command()
@click.argument("model_id", metavar="[MODEL]", default="diffusiongemma")
@click.option("--quick", is_flag=True, help="Leave out what takes minutes")
@click.option(
    "--out", type=click.Path(dir_okay=False, writable=True), callback=_writable, help="A file for the report"
)
@click.pass_context
def check(context: click.Context, model_id: str, quick: bool, out: str | None) -> None:
    """Check that weights are read and computed right on this machine.

    It compares headers, logits that were recorded elsewhere, layers with those of transformers, and replies with
    what they should say, and writes a report of a page. Nothing in that tells whose machine it is, so you can
    attach it where you report a problem. The exit status is 1 if something is wrong.
    """
    from . import check as checks

    entry = _entry(model_id)
    if entry.server is not None:
        raise CheckpointNotFoundError(
            f"{model_id} is answered by the server {quoted(entry.server.url)}: what there is to check is on that "
            "machine."
        )
    report = checks.run(entry, is_quick=quick)
    if out is None:
        _print(report.markdown(), nl=False)
    else:
        try:
            Path(out).write_text(report.markdown(), encoding="utf-8")
        except OSError as error:
            _print(report.markdown(), nl=False)  # it may have taken an hour
            raise click.FileError(out, error.strerror) from error
    if report.failed:
        context.exit(1)


@diffusiongemma.command()
@click.argument("model_id", metavar="[MODEL]", required=False)
@click.option("--repeats", type=click.IntRange(1, 1000), default=3, show_default=True, help="Replies of each kind")
@click.option(
    "--seed", type=click.IntRange(0, 2**62), default=1, show_default=True, help="Seed of the first round"
)
@click.option(
    "--random-weights",
    type=click.Choice(get_args(Representation)),
    help="In place of a model: a network of the full size, drawn here. No download",
)
@click.option(
    "--steps", type=click.IntRange(1, 1000), help="Denoising steps a canvas, of random weights. Default: 15"
)
@click.option("--against", type=click.Choice(["transformers"]), help="By turns with its generate, same weights")
@click.option("--json", "as_json", is_flag=True, help="As JSON")
@click.pass_context
def bench(
    context: click.Context,
    model_id: str | None,
    repeats: int,
    seed: int,
    random_weights: Representation | None,
    steps: int | None,
    against: str | None,
    as_json: bool,
) -> None:
    """Measure how fast a model is on this machine.

    It makes replies of several kinds, each of them a few times, and says how many tokens a second of the whole
    reply come of it, when the first block is there, and what a denoising step takes. They are made in this process
    and not logged. Ctrl-C ends it with what has been measured so far.

    Without MODEL it is `diffusiongemma`. Its weights have to be here: `llm diffusiongemma download` brings them.
    Those of `diffusiongemma-tiny` always are.
    """
    from . import bench as measuring
    from .bench.table import lines

    if random_weights is not None and model_id is not None:
        raise OptionError(f"Random weights are no model's: leave {quoted(model_id)} or --random-weights out.")
    if random_weights is None and steps is not None:
        raise OptionError(
            "--steps is for --random-weights, which never converge. A model takes as many as its reply needs, at "
            "most what its checkpoint says. What `llm models options` has does not count: figures are to be "
            "comparable."
        )
    model_id = model_id or "diffusiongemma"
    command = current_command()
    if command is not None:
        command.last_words = "Interrupted. Nothing has been measured yet."
    with Interrupts(command) as stop:
        if random_weights is not None:
            found = measuring.of_random_weights(
                random_weights, stop, repeats, seed, steps, against=against is not None
            )
        else:
            entry = _entry(model_id)
            if entry.server is not None:
                raise ServerError(
                    f"{model_id} is answered by the server {quoted(entry.server.url)}: run this on that machine, "
                    "or measure another model."
                )
            found = measuring.of_model(entry, stop, repeats, seed, against=against is not None)
    if command is not None:
        command.last_words = INTERRUPTED
    _print(json.dumps(found, indent=2) if as_json else printable("\n".join(lines(found))))
    if found["is_interrupted"]:
        if as_json or sys.stdout is None or not sys.stdout.isatty():  # else it stands there
            click.echo(f"\n{INTERRUPTED}", err=True)
        context.exit(INTERRUPTED_STATUS)
    if found["problems"]:
        context.exit(FAILED_STATUS)


def _names() -> set[str]:
    """All that `llm -m` understands."""
    known = llm.get_models_with_aliases()
    ids = {each.model_id for both in known for each in (both.model, both.async_model) if each is not None}
    return ids | {alias for both in known for alias in both.aliases}


def _entry(model_id: str) -> ModelEntry:
    """Raises `RegistryError` if there is no such model."""
    import difflib

    entries = _entries()
    for entry in entries:
        if entry.model_id == model_id:
            return entry
    problems = "".join(f"\n{problem}" for problem in _problems(entries))
    ids = [entry.model_id for entry in entries]
    close = "".join(f" Did you mean {each}?" for each in difflib.get_close_matches(model_id, ids, 1))
    raise RegistryError(
        f"There is no DiffusionGemma {quoted(repr(model_id), 100)}.{close} Here are: {', '.join(ids)}.{problems}"
    )


def _problems(entries: Collection[ModelEntry]) -> list[str]:
    """What is wrong with the file of the user's own models."""
    from . import registry

    found = registry.read()
    known = {entry.model_id for entry in entries}
    hidden = [entry.model_id for entry in found.entries if entry.model_id not in known]
    return [
        *found.problems,
        *(
            f"{model_id} in {quoted(registry.path())} is left out: another plugin has a model of that name. Give "
            "it another name there."
            for model_id in hidden
        ),
    ]
