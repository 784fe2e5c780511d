"""Checkpoints of a stranger: small files mutated in one or two places, or the weights; then a short reply.

Of plain weights, and of those packed in each layout of the Hub's. Each case ends in one of this plugin's errors,
with a sentence that a terminal can show, or in a whole reply; within bounds of time and memory. Weights that are
not all there, or not as they should be, are never replied with. What a flipped bit does to a number nobody can
tell: then either will do.
A child process takes the cases: if one breaks it, the next one goes on.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT

from .outcome import Outcome

SECONDS_A_CASE = 40
BYTES_BESIDE = 3 << 30

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
    INDEX,
    WEIGHTS,
)
SHARD = "model-00001-of-00002.safetensors"
OTHER_SHARD = "model-00002-of-00002.safetensors"

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    2**31,
    2**63,
    10**30,
    0.5,
    -0.0,
    1e-45,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "x",
    "../../etc/passwd",
    "/etc/passwd",
    "\x1b[2J\x1b]52;c;eA==\x07",
    "a\u202eb\x00c",
    "\ud800",
    "x" * 100_000,
    [],
    {},
    [None],
    [[]],
    {"": None},
    {"__class__": "x"},
)
KEYS = (
    "auto_map",
    "quantization_config",
    "_attn_implementation",
    "transformers_weights",
    "trust_remote_code",
    "custom_generate",
    "fusion_config",
    "dtype",
    "per_layer_config",
    "tokenizer_file",
    "fast_tokenizer_files",
    "extra_special_tokens",
    "init_inputs",
    "backend",
    "size",
    "",
    "\x1b[31m",
)
TEMPLATES = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'x' * 10**10 }}",
    "{{ messages[0].content.__class__ }}",
    "{{ raise_exception('\x1b[2J') }}",
    "{{ '\ud800'.upper() }}",
    "{% include '/etc/passwd' %}",
    "{{ bos_token }}" * 5000,
)


# Kinds of cases.
TEXT_WEIGHTS = f"{WEIGHTS}, text"
TOWER_WEIGHTS = f"{WEIGHTS}, tower"
SOUND_WEIGHTS = f"{WEIGHTS}, sound"
FLIPPED_WEIGHTS = f"{WEIGHTS} with flipped bits"

# What of a packed checkpoint no weight-only network reads.
UNREAD = ("input_scale", "input_global_scale")


def is_right(kind: str, result: str, *, with_image: bool) -> bool:
    """Whether spoiled weights were refused, and sound ones not. A tower matters only to who is shown an image."""
    if not kind.startswith(WEIGHTS + ","):
        return True
    is_spoiled = kind == TEXT_WEIGHTS or (kind == TOWER_WEIGHTS and with_image)
    return (result == "CheckpointError") if is_spoiled else (result == "reply")


def mutate(folder: Path, random_: random.Random) -> tuple[str, str]:
    """Spoil a folder in one or two places. What kind of case it is, and what was done."""
    file = folder / random_.choice(FILES)
    if file.name == WEIGHTS:
        return _mutate_weights(folder, random_)
    if file.name == INDEX:
        _shard(folder)
    content = file.read_bytes()
    how = "bytes" if file.suffix == ".jinja" or random_.random() < 0.15 else "values"
    done: list[str] = []
    for _ in range(random_.choice((1, 1, 2))):
        if how == "bytes":
            content = _mutate_bytes(content, file, random_, done)
        else:
            content = _mutate_values(content, random_, done)
    file.unlink()
    file.write_bytes(content)
    return f"{file.name}, {how}", "; ".join(done)


def _mutate_weights(folder: Path, random_: random.Random) -> tuple[str, str]:
    """What kind of case it is, and what was done to which tensor."""
    import torch
    from safetensors.torch import load_file, save_file

    if random_.random() < 0.3:
        return FLIPPED_WEIGHTS, _flip_bits(folder / WEIGHTS, random_)
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    name = random_.choice(sorted(name for name in tensors if not name.endswith(UNREAD)))
    tensor = tensors[name]
    is_packed = tensor.dtype in (torch.uint8, torch.float8_e4m3fn)
    is_shared = "model.decoder." in name and not name.endswith("layer_scalar") and "conditioning" not in name
    other = "lm_head.weight" if "embed" in name else name.replace("model.decoder", "model.encoder.language_model")
    what = random_.choice(("missing", "shape", "dtype", "twice", "per expert", "cut", "wider", "shared", "stray"))
    kind = TOWER_WEIGHTS if "vision" in name else TEXT_WEIGHTS
    if what == "missing":
        del tensors[name]
    elif what == "shape":
        # A scalar may have an axis.
        has_axis_before = tensor.ndim > 0 and random_.random() < 0.5
        tensors[name] = tensor[None] if has_axis_before else torch.cat((tensor.view(-1), tensor.view(-1)))
    elif what == "dtype":
        others = {torch.int8, torch.bool, torch.float8_e4m3fn, torch.int64} - {tensor.dtype}
        tensors[name] = tensor.to(random_.choice(sorted(others, key=str)))
    elif what == "per expert":
        kind = TEXT_WEIGHTS
        tensors["model.decoder.layers.0.experts.0.down_proj.weight"] = torch.zeros(3)
    elif what == "twice":
        kind = TEXT_WEIGHTS
    elif what == "wider":
        kind = kind if is_packed else SOUND_WEIGHTS
        tensors[name] = tensor.to(random_.choice((torch.float32, torch.float64)))
    elif what == "shared" and is_shared:
        how = random_.choice(("renamed", "doubled", "changed"))
        what += f", {how}"
        kind = TEXT_WEIGHTS if how == "changed" else SOUND_WEIGHTS
        tensors[other] = tensor.clone()
        if how == "changed":
            tensors[other].view(-1).view(torch.uint8)[0] ^= 1
        if how == "renamed":
            del tensors[name]
    elif what != "cut":
        kind, what = SOUND_WEIGHTS, "stray"
        tensors["somebody.elses"] = torch.zeros(3, dtype=torch.int64)
    save_file(tensors, folder / WEIGHTS)
    if what == "twice":
        _shard(folder)
        save_file({name: tensor}, folder / OTHER_SHARD)
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"]["x"] = OTHER_SHARD
        (folder / INDEX).write_text(json.dumps(index))
    if what == "cut":
        kind = TEXT_WEIGHTS
        os.truncate(folder / WEIGHTS, random_.randrange((folder / WEIGHTS).stat().st_size))
    return kind, f"{what}: {name}"


def _flip_bits(file: Path, random_: random.Random) -> str:
    """In the header or behind it."""
    content = bytearray(file.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    first, last = (0, header) if random_.random() < 0.5 else (header, len(content))
    places = [random_.randrange(8 * first, 8 * last) for _ in range(random_.choice((1, 1, 3)))]
    for place in places:
        content[place // 8] ^= 1 << place % 8
    file.unlink()
    file.write_bytes(content)
    return f"flipped: bits {places}"


def _shard(folder: Path) -> None:
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, framework="pt") as tensors:
        names = list(tensors.keys())
    (folder / WEIGHTS).rename(folder / SHARD)
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, SHARD)}
    (folder / INDEX).write_text(json.dumps(index))


def _mutate_values(content: bytes, random_: random.Random, done: list[str]) -> bytes:
    try:
        document = json.loads(content)
    except ValueError:
        return content
    places = list(_places(document))
    # Of the tokenizer's thousands of tokens not all the time.
    shallow = [place for place in places if len(place) <= 2] or places
    place = random_.choice(places if random_.random() < 0.5 else shallow)
    parent = document
    for step in place[:-1]:
        parent = parent[step]
    key = place[-1]
    what = random_.choice(("value", "value", "value", "number", "remove", "add", "double"))
    if what == "remove":
        del parent[key]
    elif what == "add" and isinstance(parent, dict):
        key = random_.choice(KEYS)
        parent[key] = copy.copy(random_.choice(VALUES))
    elif what == "double" and isinstance(parent, list):
        parent.append(copy.copy(parent[key]))
    elif what == "number" and isinstance(parent[key], (int, float)) and not isinstance(parent[key], bool):
        parent[key] = random_.choice(
            (parent[key] + 1, parent[key] - 1, parent[key] * 2, -parent[key], parent[key] * 10**6)
        )
    else:
        parent[key] = copy.copy(random_.choice(VALUES))
    done.append(
        f"{what} {'.'.join(map(str, place))[:80]!a} {repr(parent[key] if what != 'remove' else '')[:60]!a}"
    )
    return json.dumps(document).encode()


def _places(value: Any) -> Iterator[list[Any]]:
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield [key]
        for place in _places(item):
            yield [key, *place]


def _mutate_bytes(content: bytes, file: Path, random_: random.Random, done: list[str]) -> bytes:
    place = random_.randrange(len(content) + 1)
    what = random_.choice(("flip", "cut", "drop", "insert", "nest", "template"))
    done.append(f"{what} at {place}")
    if what == "template" and file.suffix == ".jinja":
        template = random_.choice(TEMPLATES)
        done.append(ascii(template[:60]))
        return template.encode("utf-8", "surrogatepass") + random_.choice((b"", content))
    if what == "cut":
        return content[:place]
    if what == "drop":
        return content[:place] + content[place + random_.randrange(1, 40) :]
    if what == "insert":
        return (
            content[:place]
            + random_.choice((b"\x00", b"\xff", b"{", b"]", b"1e400", b"{{ x.y.z }}"))
            + content[place:]
        )
    if what == "nest":
        return content[:place] + b"[" * 20_000 + b"]" * 20_000 + content[place:]
    place = min(place, len(content) - 1)
    return content[:place] + bytes([content[place] ^ 1 << random_.randrange(8)]) + content[place + 1 :]


def make_folder(place: Path, source: Path = EMBEDDED_CHECKPOINT) -> Path:
    """A copy of the embedded checkpoint, in one of its layouts, with its weights linked."""
    folder = place / "checkpoint"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(WEIGHTS))
    (folder / WEIGHTS).symlink_to(source / WEIGHTS)
    return folder


def reply_from(folder: Path, image: Path | None) -> tuple[str, bool]:
    """What came of a short reply, and whether that is allowed."""
    import llm

    from llm_diffusiongemma.backends import engine
    from llm_diffusiongemma.catalog import ModelEntry, Source
    from llm_diffusiongemma.errors import DiffusionGemmaError
    from llm_diffusiongemma.models import DiffusionGemma
    from llm_diffusiongemma.wording import printable

    engine._engines.clear()
    model = DiffusionGemma(ModelEntry("diffusiongemma", (Source(folder),), "cpu"))
    attachments = [llm.Attachment(path=str(image), type="image/png")] if image else []
    try:
        response = model.prompt(
            "What colour is this image?" if image else "What is a canvas?",
            attachments=attachments,
            stream=False,
            max_tokens=8,
            max_denoising_steps=2,
            seed=1,
        )
        response.text()
    except DiffusionGemmaError as error:
        text = str(error)
        is_clean = printable(text) == text and len(text) < 3000 and text.strip() and "Traceback" not in text
        return type(error).__name__, bool(is_clean)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"raw {type(error).__name__}: {ascii(str(error))[:200]}", False
    return "reply", True


def _work(connection: Connection) -> None:
    """A child process: takes folders, gives back what came of them."""
    import resource
    import sys

    import torch

    from llm_diffusiongemma.backends import engine

    torch.set_num_threads(1)
    engine._import_libraries(False)
    engine.import_vision(False)
    # What the libraries of a test command say at the terminal is no part of an outcome.
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES_BESIDE, used + BYTES_BESIDE))
    while True:
        try:
            folder, image = connection.recv()
        except EOFError:
            return
        connection.send(reply_from(folder, image))


class _Child:
    def __init__(self, target: Callable[[Connection], None]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=target, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, folder: Path, image: Path | None) -> tuple[str, bool]:
        try:
            self.connection.send((folder, image))
        except OSError:
            return self._ended()
        if not self.connection.poll(SECONDS_A_CASE):
            self.close()
            return f"longer than {SECONDS_A_CASE} s", False
        try:
            answer: tuple[str, bool] = self.connection.recv()
        except (EOFError, OSError):
            return self._ended()
        return answer

    def _ended(self) -> tuple[str, bool]:
        self.process.join()
        code = self.process.exitcode or 0
        return f"the process ended: {signal.Signals(-code).name if code < 0 else code}", False

    def close(self) -> None:
        self.process.kill()
        self.process.join()


def run(count: int, seed: int) -> Iterator[Outcome]:
    from PIL import Image

    from ..layouts.writer import REPOSITORIES, write

    child: _Child | None = None
    try:
        with tempfile.TemporaryDirectory() as directory:
            image = Path(directory) / "image.png"
            Image.new("RGB", (64, 48), (220, 25, 25)).save(image)
            sources = [write(EMBEDDED_CHECKPOINT, Path(directory) / each, each) for each in REPOSITORIES]
            for case in range(count):
                random_ = random.Random(f"{seed}-{case}")
                source = random_.choice(sources)
                folder = make_folder(Path(directory) / str(case), source)
                kind, done = mutate(folder, random_)
                child = child or _Child(_work)
                with_image = kind.startswith("preprocessor") or random_.random() < 0.2
                result, held = child.ask(folder, image if with_image else None)
                held = held and is_right(kind, result, with_image=with_image)
                if not child.process.is_alive():
                    child = None
                yield Outcome(kind, result, held, f"seed {seed}, case {case}, {source.name}: {done}")
                shutil.rmtree(folder.parent)
    finally:
        if child is not None:
            child.connection.close()
            child.process.join()
