"""The user's own models, in `diffusiongemma/models.json` in llm's folder.

    {"models": {"my-model": {"repository": "owner/name", "revision": "v2", "device": "cuda:1"},
                "another": {"folder": "/path/to/checkpoint"},
                "dg-box": {"server": "http://host:8000/v1", "served_model": "its name there", "key": "box"}}}

Every `llm` command reads it, so whatever is wrong with it is a sentence for those who ask, and never an error.
What can be understood of it holds.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import llm
from pydantic import ConfigDict

from .catalog import HUB_SOURCES, ModelEntry, Server, Source, built_in, chosen_device
from .documents import Document, DocumentError, conform, parse_object
from .errors import DiffusionGemmaError, RegistryError
from .layout import is_folder
from .urls import parse_url
from .wording import quoted

FILE_NAME = "models.json"
FOLDER_NAME = "diffusiongemma"
# A model takes some hundred.
MAX_BYTES = 1 << 20
LOCK_SECONDS = 10.0

MODEL_ID = re.compile(r"[A-Za-z0-9][\w.:@+/-]{0,99}", re.ASCII)
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
# Not one of the Hub's own pages, which name a repository.
SERVER = re.compile(r"https?://(?!(www\.)?(hf|huggingface)\.co(/|$))", re.IGNORECASE)

Altered = TypeVar("Altered")


@dataclass(frozen=True)
class Registry:
    """What is understood of the file, and for what is not a sentence each."""

    entries: tuple[ModelEntry, ...]
    problems: tuple[str, ...]


class _Model(Document):
    """A model as the file has it. What it doesn't know is a slip: it would run other weights than were meant."""

    model_config = ConfigDict(extra="forbid")

    repository: str | None = None
    folder: str | None = None
    server: str | None = None
    revision: str | None = None
    device: str | None = None
    served_model: str | None = None
    key: str | None = None
    """Under which name `llm keys` has the server's."""

    def entry(self, model_id: str) -> ModelEntry:
        """Raises `DocumentError`."""
        if sum(where is not None for where in (self.repository, self.folder, self.server)) != 1:
            raise DocumentError('it needs one of "repository", "folder" and "server"')
        if self.server is None:
            if self.served_model is not None or self.key is not None:
                raise DocumentError('"served_model" and "key" are those of a "server"')
            return ModelEntry(model_id, (self._source(),), chosen_device() or self.device)
        if self.revision is not None or self.device is not None:
            raise DocumentError('a "server" has no "revision" and no "device" that could be chosen')
        try:
            url = parse_url(self.server)
        except RegistryError as error:
            raise DocumentError(str(error).removesuffix(".")) from error
        return ModelEntry(model_id, (), server=Server(url, self.served_model, self.key))

    def _source(self) -> Source:
        if self.repository is not None:
            if not REPOSITORY.fullmatch(self.repository):
                raise DocumentError(f"{quoted(repr(self.repository), 100)} is no repository, like owner/name")
            return _of_the_hub(self.repository, self.revision)
        if self.revision is not None:
            raise DocumentError("a folder has no revisions")
        folder = Path(str(self.folder))
        if not folder.is_absolute():
            raise DocumentError(f"{quoted(repr(self.folder), 100)} doesn't begin at the root")
        return Source(folder)


def path() -> Path:
    """Where the file is, there or not. Raises `OSError` where llm has no folder."""
    return Path(llm.user_dir()) / FOLDER_NAME / FILE_NAME  # type: ignore[no-untyped-call]


def read() -> Registry:
    """The user's models. Raises nothing."""
    try:
        models = _models(_read(path()))
    except OSError as error:  # llm has no folder
        return Registry((), (f"Models of your own are not known: {quoted(error)}.",))
    except RegistryError as error:
        return Registry((), (str(error),))
    known = {entry.model_id for entry in built_in()}
    entries, problems = [], []
    for model_id, model in models.items():
        try:
            entries.append(_entry(model_id, model, known))
        except DocumentError as error:
            # `remove` of a built-in's name would be of its weights.
            way_out = "Correct it there, or take it out with `llm diffusiongemma remove`."
            if model_id in known:
                way_out = "Give it another name there."
            problems.append(f"{quoted(repr(model_id), 100)} in {quoted(path())} is left out: {error}. {way_out}")
    return Registry(tuple(entries), tuple(problems))


def new_entry(
    model_id: str,
    source: str,
    revision: str | None = None,
    device: str | None = None,
    served_model: str | None = None,
    key_name: str | None = None,
) -> ModelEntry:
    """A model to be added. A folder goes before a repository, whose name looks the same.

    Raises `RegistryError` for what can't be one, and `FileAccessError`.
    """
    if not MODEL_ID.fullmatch(model_id):
        raise RegistryError(
            f"{quoted(repr(model_id), 100)} can't be the name of a model: that is made of up to 100 letters "
            "(a to z), digits and the signs . _ - : @ + / and begins with a letter or a digit."
        )
    if SERVER.match(source):
        if revision is not None or device is not None:
            raise RegistryError(
                f"{quoted(repr(source), 200)} is a server, which has its weights and devices itself: leave "
                "--revision and --device out."
            )
        return ModelEntry(model_id, (), server=Server(parse_url(source), served_model or None, key_name or None))
    if served_model is not None or key_name is not None:
        raise RegistryError(
            "--served-model and --key are for a server, which is named by its URL, like http://host:8000/v1."
        )
    folder = Path(os.path.expanduser(source))
    if source and is_folder(folder):
        if revision is not None:
            raise RegistryError(f"{quoted(folder)} is a folder, which has no revisions: leave --revision out.")
        return ModelEntry(model_id, (Source(folder.absolute()),), device)
    if not REPOSITORY.fullmatch(source):
        raise RegistryError(
            f"{quoted(repr(source), 100)} is no folder that is here, and can't be a repository of the Hugging "
            "Face Hub either: that is written as owner/name, with its revision behind --revision. Nor is it the "
            "URL of a server, like http://host:8000/v1."
        )
    return ModelEntry(model_id, (_of_the_hub(source, revision),), device)


def add(entry: ModelEntry) -> bool:
    """Write a model down; whether one of that id that asks the same server has gone for it.

    Raises `RegistryError` if its id is taken there otherwise, or the file can't be used.
    """
    model: dict[str, str | None]
    if entry.server is not None:
        server = entry.server
        model = {"server": server.url, "served_model": server.served_model, "key": server.key_name}
    else:
        (source,) = entry.sources
        kind = "repository" if isinstance(source.where, str) else "folder"
        model = {kind: str(source.where), "revision": source.revision, "device": entry.device}

    def put(models: dict[str, Any]) -> bool:
        is_there = entry.model_id in models
        if is_there and not _asks_the_same(models[entry.model_id], entry):
            raise RegistryError(
                f"There is a model {entry.model_id!r} in {quoted(path())} already. Choose another name, or take "
                f"that one out first: llm diffusiongemma remove {entry.model_id}"
            )
        models[entry.model_id] = {key: value for key, value in model.items() if value is not None}
        return is_there

    return _change(put)


def _asks_the_same(model: Any, entry: ModelEntry) -> bool:
    try:
        return entry.asks_the_same(_entry(entry.model_id, model, ()))
    except DocumentError:
        return False


def take_out(model_id: str) -> None:
    """Forget a model, also one that isn't understood. Raises `RegistryError`."""
    _change(lambda models: models.pop(model_id, None))


def holds(model_id: str) -> bool:
    """Whether the file has a model of that name, understood or not. Raises `RegistryError`."""
    with _in_a_sentence():
        return model_id in _models(_read(path()))


def _of_the_hub(repository: str, revision: str | None) -> Source:
    """With what is known of a repository, so that this machine can be judged before anything comes."""
    known = {source.where: source for source in HUB_SOURCES}
    return replace(known.get(repository, Source(repository)), revision=revision)


def _entry(model_id: str, model: Any, known: Collection[str]) -> ModelEntry:
    """Raises `DocumentError`."""
    if not MODEL_ID.fullmatch(model_id):
        raise DocumentError("this can't be the name of a model")
    if model_id in known:
        raise DocumentError("there is a built-in model of that name")
    if not isinstance(model, dict):
        raise DocumentError("it is no JSON object")
    return conform(_Model, model).entry(model_id)


def _models(document: dict[str, Any]) -> dict[str, Any]:
    models = document.get("models", {})
    if not isinstance(models, dict):
        raise _unusable('its "models" are no JSON object')
    return models


def _read(file: Path) -> dict[str, Any]:
    """The file's object, empty if there is no file. Raises `RegistryError`."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # nobody waits at a pipe
            raise _unusable("it is no regular file")
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise _unusable(f"it has more than {MAX_BYTES:,} bytes")
        return parse_object(content)
    except DocumentError as error:
        raise _unusable(str(error)) from error
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return {}
        raise _unusable(quoted(error.strerror or error)) from error


def _unusable(reason: str) -> RegistryError:
    return RegistryError(
        f"{quoted(path())} can't be used, so the models of your own in it are left out: {reason}. Correct it, or "
        "delete it and add them again with `llm diffusiongemma add`."
    )


def _change(alter: Callable[[dict[str, Any]], Altered]) -> Altered:
    """Read the file, alter its models and write it whole, while nobody else does. What `alter` returns.

    Raises `RegistryError`.
    """
    from huggingface_hub.utils import WeakFileLock

    from .hub.disk import write_whole

    with _in_a_sentence():
        file = path()
        file.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(file.with_name(f".{FILE_NAME}.lock"), timeout=LOCK_SECONDS):
            document = _read(file)
            document.setdefault("models", {})
            altered = alter(_models(document))
            # It may be a link to where somebody keeps all such files.
            write_whole(file.resolve(), json.dumps(document, indent=2) + "\n")
    return altered


@contextmanager
def _in_a_sentence() -> Iterator[None]:
    try:
        yield
    except DiffusionGemmaError:
        raise
    except TimeoutError as error:
        raise RegistryError(
            f"Another process has been changing {quoted(path())} for {LOCK_SECONDS:.0f} s. Run the command again."
        ) from error
    except OSError as error:
        raise RegistryError(
            f"The models of your own can't be written down: {quoted(error)}. Check the rights of llm's folder and "
            "the disk that it is on."
        ) from error
