"""Files of the cache of forms, damaged in every way: what comes out is what a build makes, at once.

python -m tests.attacks forms --count 1000
"""

from __future__ import annotations

import os
import random
import resource
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from llm_diffusiongemma.grammar.automaton import TokenAutomaton, build
from llm_diffusiongemma.grammar.cache import load_or_build
from llm_diffusiongemma.grammar.pattern import regex_language

from ..grammar.languages import BYTE_TOKENS, tables_of, vocabulary_of
from .outcome import Outcome

PATTERNS = (
    "ab",
    "ac",
    "(yes|no)",
    r"\d{4}-\d{2}-\d{2}",
    r'\{"name": "[^"\\\x00-\x1f]*", "age": (0|[1-9][0-9]{0,2})\}',
)
# Many times what the slowest of them takes.
PATIENCE_SECONDS = 20
ALLOWED_MEMORY_GROWTH = 64 << 20


def _flip_bit(dice: random.Random, content: bytes, others: list[bytes]) -> bytes:
    place = dice.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << dice.randrange(8))]) + content[place + 1 :]


def _change_run(dice: random.Random, content: bytes, others: list[bytes]) -> bytes:
    place, length = dice.randrange(len(content)), dice.randint(1, 64)
    return (content[:place] + dice.randbytes(length) + content[place + length :])[: len(content)]


def _cut(dice: random.Random, content: bytes, others: list[bytes]) -> bytes:
    return content[: dice.randrange(len(content))]


def _lengthen(dice: random.Random, content: bytes, others: list[bytes]) -> bytes:
    return content + dice.randbytes(dice.randint(1, 1000))


def _swap(dice: random.Random, content: bytes, others: list[bytes]) -> bytes:
    return dice.choice(others)


def _splice(dice: random.Random, content: bytes, others: list[bytes]) -> bytes:
    place = dice.randrange(len(content))
    return content[:place] + dice.choice(others)[place:]


DAMAGES = {
    "a bit flipped": _flip_bit,
    "a run of bytes replaced": _change_run,
    "cut": _cut,
    "longer": _lengthen,
    "another form's file": _swap,
    "half another form's file": _splice,
}
SPECIAL: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a file of a terabyte": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
}


def run(count: int, seed: int) -> Iterator[Outcome]:
    dice = random.Random(seed)
    vocabulary = vocabulary_of(BYTE_TOKENS)
    forms = [regex_language(pattern) for pattern in PATTERNS]
    built = [build(form, vocabulary) for form in forms]
    contents: list[bytes] = []
    names: list[str] = []
    for form in forms:
        with tempfile.TemporaryDirectory() as folder:
            load_or_build(form, vocabulary, Path(folder))
            (path,) = Path(folder).iterdir()
            names.append(path.name)
            contents.append(path.read_bytes())
    for _ in range(count):
        which = dice.randrange(len(forms))
        kind = dice.choice([*DAMAGES, *SPECIAL])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / names[which]
            if kind in SPECIAL:
                SPECIAL[kind](path)
            else:
                others = [content for content in contents if content != contents[which]]
                path.write_bytes(DAMAGES[kind](dice, contents[which], others))
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            result = _answer(partial(load_or_build, forms[which], vocabulary, Path(folder)), built[which])
            grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
            if grown > ALLOWED_MEMORY_GROWTH:
                result = f"took {grown >> 20} MiB"
        yield Outcome(kind, result, result == "built again", f"form {PATTERNS[which]}, seed {seed}")


def _answer(load: Callable[[], TokenAutomaton], expected: TokenAutomaton) -> str:
    """What came of it; "built again" if that is what a build makes, in time."""
    found: list[TokenAutomaton | BaseException] = []

    def work() -> None:
        try:
            found.append(load())
        except BaseException as error:
            found.append(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(PATIENCE_SECONDS)
    if not found:
        return "hangs"
    if isinstance(found[0], BaseException):
        return f"raises {type(found[0]).__name__}"
    equal = all(map(np.array_equal, tables_of(found[0]), tables_of(expected)))
    return "built again" if equal else "believed"
