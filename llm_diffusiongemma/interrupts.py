"""Ctrl-C while a reply is made, and how the `llm` command ends that it was made for.

What is done to the process as a whole is done only where it runs `llm` and nothing else. SIGTERM and SIGHUP keep
their own meaning, the end at once: whatever is being written to disk then is harmless half-written.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Literal, NoReturn

import click
from click.globals import pop_context

from .backends.turn import Stop
from .view import screen

#: What shells call a command that was ended by SIGINT.
INTERRUPTED_STATUS = 130
FAILED_STATUS = 1
#: What is said then.
INTERRUPTED = "Interrupted."

# How long printing may take in which an interrupt has to wait, before nobody is there to read it.
READER_SECONDS = 1.0
# A denoising step of a model that fits its machine; importing and loading take longer, and can't be stopped.
WORKER_SECONDS = 0.3

_META_KEY = __name__


class Command:
    """The command of `llm` itself that wants a reply."""

    def __init__(self, context: click.Context) -> None:
        self.last_words = INTERRUPTED
        """What it says when it is interrupted."""
        self._context = context
        self._status = 0
        self._workers: list[threading.Thread] = []
        self._has_ended = False
        self._insists = False
        context.call_on_close(self._end)

    @property
    def goes_on(self) -> bool:
        """Whether more prompts come, whatever happens to this one."""
        return self._context.info_name == "chat"

    def end_with(self, status: int) -> None:
        """Have the command end with a status, after it has printed and logged what there is."""
        self._status = self._status or status

    def employ(self, worker: threading.Thread) -> None:
        """Start a thread that the process waits for at its end, unless it is interrupted.

        To be called under asyncio, whose Ctrl-C cancels what comes next in the loop. A tool, or printing that
        nobody reads, may keep that from coming: then it is pressed once more.
        """
        handle = signal.getsignal(signal.SIGINT)
        if self.owns_process and callable(handle) and not self._insists:
            self._insists = True

            def handle_and_insist(number: int, frame: FrameType | None) -> None:
                _insist(lambda: not self._has_ended)
                handle(number, frame)

            signal.signal(signal.SIGINT, handle_and_insist)
        self._workers.append(worker)
        worker.start()

    @property
    def owns_process(self) -> bool:
        """Whether the process was started for this command: not where a program calls llm's commands."""
        main = getattr(sys.modules.get("__main__"), "cli", None)
        return main is self._context.find_root().command and _in_main_thread()

    def end_at_once(self) -> NoReturn:
        """Interrupted, in a signal's handler, while nothing is written to llm's log."""
        self._is_heard()
        os._exit(INTERRUPTED_STATUS)

    def _end(self) -> None:
        raised = sys.exc_info()[1]
        # While llm printed, logged or ran a tool, or under asyncio, which cancels first.
        is_interrupted = isinstance(raised, KeyboardInterrupt)
        owns_process = self.owns_process
        # Who starts a command in the background may have it ignore SIGINT.
        handles = owns_process and signal.getsignal(signal.SIGINT) != signal.SIG_IGN
        if handles:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # it can't end sooner than it does now
        self._has_ended = True
        # Of one that was raised in code made from a text, as dataclasses are, Python believes under `python -m`
        # that nobody caught it, and ends by the signal instead of the status; until the next text is evaluated.
        eval("None")
        if is_interrupted:
            self._status = INTERRUPTED_STATUS
            if not owns_process:
                _say_last(self.last_words)
            elif not (self._is_heard() and self._are_workers_done()):
                # Python would wait for who should read it, or for a thread that imports or loads and can't be
                # stopped at that. llm's log is not open to that thread: nothing is being written there.
                os._exit(INTERRUPTED_STATUS)
        if handles:
            # All is said and logged. From here on Python takes itself apart, and exceptions are only noise.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        # Other errors have a message and a status of their own.
        if is_interrupted or (self._status and raised is None and not self.goes_on):
            # What is raised here keeps click from doing it.
            pop_context()
            raise SystemExit(self._status)

    def _is_heard(self) -> bool:
        """Say the last words. Whether they, and all that was printed before, have got out."""
        is_unheard = _thread.allocate_lock()
        is_unheard.acquire()

        def say() -> None:
            with suppress(OSError):  # nobody is there any more
                _say_last(self.last_words)
                is_unheard.release()

        # In a thread: where nobody reads, writing doesn't end. Not by `threading`: see `_insist`.
        _thread.start_new_thread(say, ())
        return is_unheard.acquire(timeout=READER_SECONDS)

    def _are_workers_done(self) -> bool:
        for worker in self._workers:
            worker.join(WORKER_SECONDS)  # all but the last are done long since
        return not any(worker.is_alive() for worker in self._workers)


def _say_last(words: str = INTERRUPTED) -> None:
    screen.dismiss()  # of a thread that can't be stopped
    click.echo(f"\n{words}", err=True)
    click.echo(nl=False)  # flushes


# Ctrl-Z; there is none on Windows.
_STOPS = getattr(signal, "SIGTSTP", None)


def _give_way(number: int, frame: FrameType | None) -> None:
    """Stop as ever, but first give the shell a terminal that nothing of ours lies on."""
    with screen.given_away():
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)  # comes back when the process goes on
        signal.signal(number, _give_way)


@contextmanager
def giving_way(owns_process: bool) -> Iterator[None]:
    """While a command that owns its process may show something: so does its Ctrl-Z."""
    if not owns_process or _STOPS is None or signal.getsignal(_STOPS) is not signal.SIG_DFL:
        yield
        return
    signal.signal(_STOPS, _give_way)
    try:
        yield
    finally:
        if signal.getsignal(_STOPS) is _give_way:
            signal.signal(_STOPS, signal.SIG_DFL)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _insist(is_unheard: Callable[[], bool]) -> None:
    """Interrupt the main thread again if it has not heard in a while."""

    def again() -> None:
        time.sleep(READER_SECONDS)
        if not is_unheard():
            return
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        else:
            _thread.interrupt_main()

    # Not by `threading`: what was interrupted may hold one of its locks.
    _thread.start_new_thread(again, ())


def current_command() -> Command | None:
    """None where a program uses llm from Python, though it may be a click command of its own."""
    context = click.get_current_context(silent=True)
    cli = getattr(sys.modules.get("llm.cli"), "cli", None)
    if context is None or cli is None or context.find_root().command is not cli:
        return None
    command = context.meta.get(_META_KEY)
    if not isinstance(command, Command):
        command = context.meta[_META_KEY] = Command(context)
    return command


class Interrupts(Stop):
    """A Ctrl-C raises `KeyboardInterrupt`, as ever, and stays known if that gets lost.

    Python drops what is raised in a destructor or in a callback of C code, and there are libraries that catch
    everything. So whoever works asks `is_set` between two steps. Others make an error of their own of it
    (pydantic, modules written in C++): any error behind a Ctrl-C leaves this as `KeyboardInterrupt`.

    **Invariant**: the handler that was there is there again when this is left, and is never replaced but
    for Python's own, in the main thread.
    """

    def __init__(self, command: Command | None) -> None:
        self._command = command
        self.owns_process = command is not None and command.owns_process
        self._count = 0
        self._held_back_for: Literal["imports", "printing"] | None = None

    def __enter__(self) -> Interrupts:
        self._install()
        self._giving_way = giving_way(self.owns_process)
        self._giving_way.__enter__()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._uninstall()
        self._giving_way.__exit__(None, None, None)
        if self.is_set() and isinstance(error, Exception):
            raise KeyboardInterrupt from error

    def is_set(self) -> bool:
        return self._count > 0

    def check(self) -> None:
        """Raises `KeyboardInterrupt` if there was one."""
        if self.is_set():
            raise KeyboardInterrupt

    @contextmanager
    def importing(self) -> Iterator[None]:
        # torch and numpy can't be imported again if their import was cut in the middle. Where the process goes
        # on a Ctrl-C takes effect behind the imports.
        with self._held_back("imports"):
            yield
        self.check()

    @contextmanager
    def printing(self) -> Iterator[None]:
        """While who asked for the reply has the word.

        llm's commands print, and one that is interrupted there would lose the turn: it is stopped behind that,
        unless nobody reads what is printed. A program may do anything: its Ctrl-C is its own.
        """
        if self._command is None:
            self._uninstall()
            try:
                yield
            finally:
                self._install()
        else:
            with self._held_back("printing"):
                yield

    @contextmanager
    def _held_back(self, reason: Literal["imports", "printing"]) -> Iterator[None]:
        """The first Ctrl-C waits, to be asked for; who presses again doesn't want to wait."""
        before, self._held_back_for = self._held_back_for, reason
        try:
            yield
        finally:
            self._held_back_for = before

    def _install(self) -> None:
        if _in_main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._handle)

    def _uninstall(self) -> None:
        # By what is there: a Ctrl-C may have come before that could be noted down.
        if _in_main_thread() and signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        is_insisted = self._count > 1
        command = self._command if self.owns_process else None
        if self._held_back_for == "imports" and command is not None and (is_insisted or not command.goes_on):
            # What is raised in the middle of an import may meet torch's C++, which ends the process by an abort.
            command.end_at_once()
        if is_insisted or self._held_back_for is None:
            raise KeyboardInterrupt
        if self._held_back_for == "printing":
            _insist(lambda: self._held_back_for == "printing")
