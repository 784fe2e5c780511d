"""SIGINT, SIGTERM and SIGHUP at random instants of a command's life, and what is left afterwards."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import llm.cli
from click.testing import CliRunner, Result
from PIL import Image

from llm_diffusiongemma.backends.engine import AUTOMATA_FOLDER
from llm_diffusiongemma.grammar.cache import SUFFIX

from .outcome import Outcome

TINY = "diffusiongemma-tiny"
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "LLM_LOAD_PLUGINS": "llm-diffusiongemma"}

# Until llm and its plugins are imported a signal is Python's own matter, and until it asks for a reply llm's.
IMPORTS, READS, REPLIES = PHASES = ("as llm is imported", "as llm reads its prompt", "from the reply on")

# Two canvases that never converge: long enough to be met by a signal.
SLOW = "-o seed 3 -o max_denoising_steps 60 -o confidence_threshold 1e-12 -o max_tokens 300".split()
COUNT = "Count from 1 to 400"
SCHEMA = "name, age int"
TOOL = """
def weather(city: str) -> str:
    "Weather in a city"
    import time
    time.sleep(0.3)
    return "sunny"
"""
KINDS = ("plain", "piped", "--async", "schema", "tools", "images", "in a terminal", "chat in a terminal")
# Most of what can go wrong is with the one that is handled.
SIGNALS = (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
REASONS = {"stop", "length", "tool_calls", "interrupted"}

# From the signal to the end, on a busy machine.
LIMIT_SECONDS = 20.0
DONE_ALREADY_SECONDS = 0.2


@dataclass(frozen=True)
class Ended:
    """How a command ended, and how far it had come when the signal was sent."""

    status: int | None
    """None: it had to be killed."""
    seconds: float
    """from its start, or from the signal if one was sent"""
    phase: str | None
    """None: it had ended."""
    output: str
    errors: str
    left_running: list[str]


def run(count: int, seed: int) -> Iterator[Outcome]:
    draw = random.Random(seed)
    with world() as folder:
        lives = {kind: command(kind, folder).seconds for kind in KINDS}
        for number in range(count):
            kind, sent = KINDS[number % len(KINDS)], draw.choice(SIGNALS)
            outcome = None
            while outcome is None:
                outcome = attack(kind, sent, draw.uniform(0, lives[kind]), folder)
            yield outcome


@contextlib.contextmanager
def world() -> Iterator[Path]:
    """A folder for what commands need, with llm's own in it: a log with one turn.

    Who uses llm for the first time has no log yet. A signal while llm makes one breaks it, whatever the model.
    """
    before = {name: os.environ.get(name) for name in (*ENVIRONMENT, "LLM_USER_PATH")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ.update(ENVIRONMENT, LLM_USER_PATH=str(folder / "llm"))
        (folder / "llm").mkdir()
        Image.new("RGB", (64, 48), (220, 25, 25)).save(folder / "red.png")
        try:
            assert (first := next_command()).exit_code == 0, first.output
            yield folder
        finally:
            for key, value in before.items():
                os.environ.pop(key) if value is None else os.environ.__setitem__(key, value)


def attack(kind: str, sent: signal.Signals, instant: float, folder: Path) -> Outcome | None:
    """One signal, so many seconds after a command's start. None if that had ended by then."""
    turns_before = len(turns(folder))
    ended = command(kind, folder, sent, instant)
    if ended.phase is None:
        return None
    result, is_allowed = judge(kind, sent, ended)
    reasons = [turn["response_json"]["finish_reason"] for turn in turns(folder)[turns_before:]]
    in_log = "no turn" if not reasons else "a whole turn" if {*reasons} & {"stop", "length"} else "a partial turn"
    faults = [*damage(folder, reasons), *ended.left_running]
    return Outcome(
        kind=f"{sent.name}, {kind}, {ended.phase}",
        result=", ".join([result, f"{in_log} in the log", *faults]),
        held=is_allowed and not faults,
        detail=f"{instant:.3f} s after the start, ended after {ended.seconds:.2f} s\n"
        f"{ended.output[-1000:]}\n{ended.errors[-3000:]}",
    )


def judge(kind: str, sent: signal.Signals, ended: Ended) -> tuple[str, bool]:
    """What came of the process itself, and whether that is allowed."""
    if ended.status is None:
        return f"still running after {LIMIT_SECONDS:.0f} s", False
    noise = [word for word in ("Traceback", "Exception ignored", "Fatal") if word in ended.errors]
    shown = f"{ended.status}{' with ' if noise else ''}{' and '.join(noise)}"
    if ended.status == -sent:
        return shown, not noise or ended.phase == IMPORTS
    if sent != signal.SIGINT:
        return shown, ended.status == 0 and ended.seconds < DONE_ALREADY_SECONDS
    if ended.status == 130:
        return shown, "Interrupted" in ended.errors
    if ended.phase != REPLIES or "Aborted!" in ended.errors:
        # click's own end, at the chat's prompt, too; or one that Python dropped.
        shown += ", Aborted!" if "Aborted!" in ended.errors else ", lost" if ended.status == 0 else ""
        return shown, ended.phase != REPLIES or kind.startswith("chat")
    if ended.status == 0 and kind.startswith("chat"):
        return f"{shown}, the chat went on", "Interrupted" in ended.errors or ended.seconds < DONE_ALREADY_SECONDS
    return f"{shown}, it was done already", ended.seconds < DONE_ALREADY_SECONDS and ended.status == 0


def damage(folder: Path, reasons: list[str]) -> list[str]:
    """What is broken in llm's folder, and whether the next command works.

    `reasons` are why the turns ended that have come into the log.
    """
    faults = []
    with contextlib.closing(sqlite3.connect(folder / "llm" / "logs.db")) as log:
        if log.execute("pragma integrity_check").fetchone() != ("ok",):
            faults.append("the log is broken")
    for file in (folder / "llm" / AUTOMATA_FOLDER).glob(f"*{SUFFIX}"):
        content = file.read_bytes()
        if hashlib.sha256(bytes.fromhex(file.stem) + content[32:]).digest() != content[:32]:
            faults.append("a form's file is broken")
    # A reply that calls a tool is a turn of its own.
    if len(reasons) > 2 or not REASONS.issuperset(reasons):
        faults.append(f"turns that ended by {' and '.join(reasons)}")
    if (result := next_command()).exit_code != 0:
        faults.append(f"the next command fails: {result.output}")
    return faults


def turns(folder: Path) -> list[dict]:
    result = CliRunner().invoke(llm.cli.cli, ["logs", "list", "-n", "0", "--json"], catch_exceptions=False)
    return json.loads(result.stdout)


def next_command() -> Result:
    """With a schema: it reads the file that the last one may have been writing."""
    return CliRunner().invoke(llm.cli.cli, ["-m", TINY, "--schema", SCHEMA, "name Ada, age 36"])


def arguments(kind: str, folder: Path) -> list[str]:
    """Of a command, after `llm`."""
    return {
        "plain": ["-m", TINY, COUNT, *SLOW],
        "piped": ["-m", TINY, "Continue", *SLOW],
        "--async": ["-m", TINY, "--async", COUNT, *SLOW],
        "schema": ["-m", TINY, "--schema", SCHEMA, "name Ada, age 36", *SLOW],
        "tools": ["-m", TINY, "--functions", TOOL, "What is the weather in Rome?"],
        "in a terminal": ["-m", TINY, COUNT, *SLOW],
        "images": ["-m", TINY, "What colour is this image?", "-a", str(folder / "red.png"), *SLOW],
        "chat in a terminal": ["chat", "-m", TINY, *SLOW],
    }[kind]


def command(kind: str, folder: Path, sent: signal.Signals | None = None, instant: float = 0) -> Ended:
    """Run a command in a session of its own, and send it a signal if one is given."""
    marks, marking = os.pipe()
    os.set_blocking(marks, False)
    in_terminal = kind.endswith("in a terminal")
    if in_terminal:
        terminal, slave = os.openpty()
        os.write(terminal, f"{COUNT}\nexit\n".encode())
        readers, stdin, stdout, stderr = [Reader(terminal)], slave, slave, slave
    else:
        (said, stdout), (complained, stderr), (stdin, piped) = os.pipe(), os.pipe(), os.pipe()
        readers = [Reader(said), Reader(complained)]
        os.write(piped, b"1 2 3 4" if kind == "piped" else b"")
        os.close(piped)
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.attacks.marked", str(marking), *arguments(kind, folder)],
        preexec_fn=begin_terminal_session if in_terminal else begin_session,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=(marking,),
        cwd=Path(__file__).parents[2],
    )
    for descriptor in {marking, stdin, stdout, stderr}:
        os.close(descriptor)
    phase: str | None = IMPORTS
    if sent is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(instant)
            phase = None
        started = time.monotonic()
        if phase is not None:
            with contextlib.suppress(BlockingIOError):
                phase = PHASES[len(os.read(marks, 2))]
            os.killpg(process.pid, sent)  # as a terminal does: to all of the foreground
    try:
        status: int | None = process.wait(LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        status = None
    seconds = time.monotonic() - started
    left_running = [f"still running: {name}" for name in session_of(process.pid)]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    os.close(marks)
    texts = [reader.text() for reader in readers]
    return Ended(status, seconds, phase, texts[0], texts[-1], left_running if status is not None else [])


def begin_session() -> None:
    """In the child, before the command."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_DFL)  # who runs this in the background may have them ignored
    os.setsid()


def begin_terminal_session() -> None:
    """With the terminal that standard input already is as the one that controls it."""
    begin_session()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Reader:
    """What comes out of a pipe or terminal, read by a thread so that nothing has to wait for it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._content = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # a terminal's other end has been closed
            while content := os.read(self._descriptor, 4096):
                self._content += content

    def text(self) -> str:
        self._thread.join(5)
        os.close(self._descriptor)
        return self._content.decode(errors="replace")


def session_of(pid: int) -> list[str]:
    """The processes of the session that a process has begun, but for those that have ended."""
    names = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
            state, _, _, session = rest.split()[:4]
            if int(session) == pid and state != "Z":
                names.append(name)
    return names
