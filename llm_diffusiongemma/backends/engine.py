"""A loaded model with its tokenizer, and the process-wide cache of them.

torch is imported here, on the first prompt, and transformers at the first image, and nowhere above.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import llm

from .. import hub
from ..catalog import DEVICE_VARIABLE, ModelEntry, Source
from ..chat.checkpoint import NetworkTokens, load_tokenizer
from ..chat.drafts import Spelling
from ..chat.output import THOUGHT_CLOSES, THOUGHT_OPENS
from ..chat.prompt import TURN_CLOSES, TURN_OPENS, PromptEncoder
from ..chat.tokenizer import ChatTokenizer, table_decoder, token_bytes
from ..errors import (
    CheckpointError,
    ConstraintError,
    DeviceError,
    DiffusionGemmaError,
    NotANumberError,
    OptionError,
)
from ..layout import read_files
from ..view.progress import indicate
from ..wording import quoted, tell_once
from . import forks
from .forks import importing, indivisible
from .form import Form
from .isolation import isolated, isolated_numbers
from .turn import ALWAYS_WANTED, Stop

if TYPE_CHECKING:
    from ..diffusion.drafting import DraftedText
    from ..diffusion.loading import Described, LoadedModel
    from ..diffusion.placement import Machine, Placement
    from ..diffusion.weights import Stamp
    from ..grammar.automaton import Vocabulary
    from ..grammar.choices import ChoiceTexts
    from ..grammar.constraint import TextConstraint

# In llm's folder: what schemas and other forms were made into, for each tokenizer. It may be deleted.
AUTOMATA_FOLDER = "diffusiongemma-automata"

TRYING_KERNELS = "Trying kernels on this GPU, compiled the first time only"


class ReentrantLock(Protocol):
    """What is used of `threading.RLock`, which is a function to the type checker."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...
    def __enter__(self) -> bool: ...
    def __exit__(self, kind: Any, error: Any, traceback: Any, /) -> None: ...


class Engine:
    """A loaded model with its tokenizer. Lives in the process-wide cache; answers one turn at a time."""

    def __init__(self, loaded: LoadedModel, tokenizer: ChatTokenizer, described: Described) -> None:
        import torch

        from ..diffusion.graphs import StepGraphs
        from ..diffusion.pipeline import BlockDiffusionPipeline
        from ..diffusion.vision import ImageReader

        # It is read from with the first picture, and the program may be in another folder by then.
        self.folder = described.folder.absolute()
        self.files: Mapping[str, Stamp] = {}
        """What was read of the folder, as it was then: when a file is replaced, this is another."""
        self.loaded_at = time.time()
        vision = torch.device(loaded.placement.vision)
        self.image_reader = ImageReader(self.folder, loaded.config, loaded.dtype, vision)
        self.loaded = loaded
        self.pipeline = BlockDiffusionPipeline(
            loaded.network,
            eos_token_ids=loaded.generation.eos_token_id,
            pad_token_id=loaded.generation.pad_token_id,
            context_tokens=loaded.placement.context_tokens,
            graphs=StepGraphs.of(loaded.network, has_room=loaded.placement.has_room_for_graph),
        )
        self.prompt_encoder = PromptEncoder(tokenizer)
        self._tokenizer = tokenizer
        self.control_tokens = tokenizer.control_tokens
        # Reentrant: a worker thread holds it for its whole reply, each step takes it again.
        self.lock: ReentrantLock = threading.RLock()
        """Anew in a forked process: don't keep it."""
        self._process = os.getpid()
        self._last_choices: tuple[tuple[str, ...], ChoiceTexts] | None = None

    @classmethod
    def load(
        cls,
        described: Described,
        placement: Placement,
        check_wanted: Callable[[], None] = lambda: None,
        progress: Callable[[int], None] = lambda num_bytes: None,
    ) -> Engine:
        """A checkpoint at its places. Raises what loading its model or its tokenizer raises, and between their
        parts what `check_wanted` raises. `progress` is called with the number of bytes that were read."""
        from ..diffusion.loading import load_model

        # The model first: its checks say best what is wrong with a folder.
        loaded = load_model(
            described,
            placement,
            check_wanted,
            progress,
            lambda: indicate(TRYING_KERNELS),
        )
        check_wanted()
        config, text = loaded.config, loaded.config.text_config
        expected = NetworkTokens(
            vocab_size=text.vocab_size,
            bos_token_id=text.bos_token_id,
            image_tokens=(config.boi_token_id, config.image_token_id, config.eoi_token_id),
            eos_token_ids=tuple(loaded.generation.eos_token_id),
        )
        return cls(loaded, load_tokenizer(described.folder, expected), described)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Around each step of a reply: nobody else's is computed, and what the host has set doesn't matter.

        Raises `DeviceError` in a process that was forked off the one which loaded the model to a GPU.
        """
        with self.lock:
            self.check_process()
            with isolated():
                yield

    def check_process(self) -> None:
        """Raises `DeviceError` if what the model is loaded to can't be used in this process."""
        if self._process != os.getpid() and self.loaded.device.type != "cpu":
            raise _lost_by_fork(self.loaded.device.type)

    @property
    def context_tokens(self) -> int:
        """The longest context: of the network, or that there is memory for."""
        possible = self.loaded.placement.context_tokens
        length = self.pipeline.context_length
        return length if possible is None else min(length, possible)

    def peak_memory_bytes(self) -> int | None:
        """The most that this process has held so far, of all devices; on the CPU of its memory. None if it can't
        be told."""
        from ..diffusion.devices import peak_memory

        return peak_memory(self.loaded.placement.devices)

    def decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids)

    @cached_property
    def _token_bytes(self) -> list[bytes | None]:
        return token_bytes(self._tokenizer)

    @cached_property
    def decode_bytes(self) -> Callable[[list[int]], str]:
        """`decode` for a reply of a form: by what the tokens stand for in the form's automaton."""
        return table_decoder(self._tokenizer, self._token_bytes)

    @cached_property
    def spelling(self) -> Spelling:
        """What tokens stand for, for who watches a reply. It grows with what is asked of it."""
        return Spelling(self._tokenizer)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        from ..grammar.automaton import Vocabulary

        return Vocabulary(
            self._token_bytes,
            size=self.loaded.network.config.vocab_size,
            eos_token_ids=self.loaded.generation.eos_token_id,
            pad_token_id=self.loaded.generation.pad_token_id,
        )

    def hold_to(self, form: Form) -> TextConstraint:
        """A fresh constraint for one reply. Raises `ConstraintError` if no tokens can spell the form."""
        from ..grammar.automaton import build
        from ..grammar.cache import load_or_build
        from ..grammar.constraint import TextConstraint

        with indicate("Spelling the form in tokens"):
            try:
                folder = Path(llm.user_dir()) / AUTOMATA_FOLDER  # type: ignore[no-untyped-call]
            except OSError:  # llm makes the folder, and can't
                automaton = build(form.language, self._vocabulary)
            else:
                automaton = load_or_build(form.language, self._vocabulary, folder)
            choices = None
            if form.choices:
                with suppress(ConstraintError):  # too many: they can be chosen from all the same
                    choices = self.choice_texts(form.choices)
        return TextConstraint(automaton, self.loaded.device, choices=choices)

    def drafted(self, text: str, noise: float) -> DraftedText:
        """What the canvases of one attempt at a reply begin as. Raises `OptionError` for a text of no tokens."""
        from ..diffusion.drafting import DraftedText

        tokens = self.prompt_encoder.encode_text(text)
        if not tokens:
            raise OptionError("The draft is nothing to this checkpoint's tokenizer. Give another text.")
        ends, turn_closes = self.loaded.generation.eos_token_id, self.prompt_encoder.control_id(TURN_CLOSES)
        return DraftedText(tokens, noise, turn_closes if turn_closes in ends else ends[0])

    def choice_texts(self, choices: tuple[str, ...]) -> ChoiceTexts:
        """Of a form's choices, to be asked how probable each is. Raises what `ChoiceTexts` does.

        The last ones are kept: who decides many things decides them all between the same.
        """
        from ..grammar.choices import ChoiceTexts

        last = self._last_choices
        if last is None or last[0] != choices:
            vocabulary = self._vocabulary
            texts = ChoiceTexts(
                choices,
                self._token_bytes[: vocabulary.size],
                eos_token_ids=vocabulary.eos_token_ids,
                pad_token_id=vocabulary.pad_token_id,
            )
            # Read once and written once: other threads make other replies of this engine ready meanwhile.
            last = self._last_choices = choices, texts
        return last[1]

    def opens_thought(self, prompt_ids: Sequence[int]) -> bool:
        """Whether a prompt ends inside a thought, as templates do after a tool's result."""
        return self._last_control(prompt_ids, THOUGHT_OPENS, THOUGHT_CLOSES) == THOUGHT_OPENS

    def with_thought_open(self, prompt_ids: Sequence[int]) -> list[int]:
        """A prompt that ends inside a thought, opened if need be."""
        opening = [] if self.opens_thought(prompt_ids) else self.prompt_encoder.opening_of_thought
        return [*prompt_ids, *opening]

    def has_thought(self, prompt_ids: Sequence[int]) -> bool:
        """Whether a prompt ends with a thought that is closed, in the turn that is to be written."""
        markers = THOUGHT_OPENS, THOUGHT_CLOSES, TURN_OPENS
        return self._last_control(prompt_ids, *markers) == THOUGHT_CLOSES

    def _last_control(self, token_ids: Sequence[int], *names: str) -> str | None:
        """Which of these control tokens stands there last, if one does."""
        found = (self.control_tokens.get(token_id) for token_id in reversed(token_ids))
        return next((name for name in found if name in names), None)


_engines: dict[tuple[Path, Machine], Engine] = {}
"""By the folder of their weights, and what those were placed on."""
_engines_lock = threading.Lock()


@dataclass(frozen=True)
class Ready:
    """An engine, where its weights are from, the name to log for it, and what loading it took just now: 0 if it
    was there."""

    engine: Engine
    source: Source
    resolved_model: str
    revision: str | None
    """The commit of a repository."""
    load_seconds: float

    @property
    def repository(self) -> str:
        """Or the name of a folder of one's own."""
        where = self.source.where
        return where if isinstance(where, str) else where.absolute().name


def get_engine(entry: ModelEntry, stop: Stop = ALWAYS_WANTED) -> Ready:
    """The engine of a model, loaded if it isn't yet.

    Weights that aren't on this machine are downloaded first, which is not counted as loading.

    Shared by everything in the process: llm makes a new model object for each look-up, and sync and async
    models must not download or load the same weights twice. Whoever comes during a download waits for it.

    Raises what the download and loading raise, and between their parts what `stop` raises.
    """
    with _engines_lock:
        import_seconds = _import_all(stop)
        ready = _find_or_load(entry, stop, import_seconds)
    stop.check()
    return ready


def is_here(entry: ModelEntry, stop: Stop = ALWAYS_WANTED) -> bool:
    """Whether `get_engine` would download nothing. Raises what finding out raises, and what `stop` raises."""
    with _engines_lock:
        _import_all(stop)
        from .choice import choose

        _check_cuda_after_fork(entry.device)
        choice = choose(entry)
    stop.check()
    # Of a folder that isn't there whoever loads it says more.
    return isinstance(choice.source.where, Path) or choice.candidate.is_here


def _import_all(stop: Stop) -> float:
    """How many seconds it took."""
    started = time.perf_counter()
    with indicate("Importing PyTorch"), stop.importing(), isolated_numbers():
        _import_libraries(stop.owns_process)
    return time.perf_counter() - started


def _find_or_load(entry: ModelEntry, stop: Stop, import_seconds: float) -> Ready:
    from ..diffusion.loading import describe
    from .choice import bytes_to_read, choose, place_described, told

    # A device that is not there is told before anything is looked for or downloaded.
    _check_cuda_after_fork(entry.device)
    with indicate(f"Looking for the weights of {entry.model_id}"):
        choice = choose(entry)
        source = choice.source
        checkpoint = hub.locate(source, entry.model_id, choice.check_size, stop.check, choice.announce)
    stop.check()
    revision = checkpoint.folder.name if isinstance(source.where, str) else None
    key = (checkpoint.folder.resolve(), choice.machine)
    files = _files(checkpoint.folder)
    if key in _engines and _engines[key].files != files:
        del _engines[key]
    if key in _engines:
        engine = _engines[key]
        engine.check_process()
        return Ready(engine, source, checkpoint.resolved_model, revision, 0.0)
    started = time.perf_counter()
    with (
        telling_how_to_mend(source.where, checkpoint.folder),
        indicate(f"Loading {entry.model_id}") as progress,
        indivisible(),
        _no_garbage_collection(stop.owns_process),
        isolated(),
    ):
        described = describe(checkpoint.folder)
        placement = place_described(entry, described, choice.machine)
        _let_go_of_large_ones(placement)
        progress.set_total(bytes_to_read(described, placement))
        _import_kernels(described, placement, stop)
        engine = Engine.load(described, placement, stop.check, progress.advance)
    engine.files = files
    # What is in the cache is whole, whenever somebody interrupts.
    _engines[key] = engine
    if (line := told(entry, source, described, placement)) is not None:
        tell_once(line)
    if (line := engine.loaded.verdict.warning) is not None:
        tell_once(f"{entry.model_id}: {line}")
    return Ready(
        engine, source, checkpoint.resolved_model, revision, import_seconds + time.perf_counter() - started
    )


def _import_kernels(described: Described, placement: Placement, stop: Stop) -> None:
    """Triton, where kernels are to be tried. What is wrong with it the trial says."""
    import torch

    from ..diffusion.proving import import_kernels, is_to_be_tried

    if is_to_be_tried(torch.device(placement.devices[0]), described.weights.num_bytes):
        with indicate("Importing Triton"), stop.importing(), suppress(Exception):
            import_kernels()


def _files(folder: Path) -> dict[str, Stamp]:
    from ..diffusion.weights import Stamp

    stamps = {}
    for file in read_files(folder):
        with suppress(OSError):  # gone just now: loading says so
            stamps[file.name] = Stamp.of(file.stat())
    return stamps


def loaded_engines() -> list[Engine]:
    """The engines that replies find loaded."""
    return list(_engines.values())


def let_go() -> None:
    """Drop all engines, and give their memory back to the system. One that is at work stays until its reply has
    ended; the next reply loads its model anew."""
    if not _engines:
        return
    from ..diffusion.devices import give_memory_back

    with _engines_lock:
        _engines.clear()
    give_memory_back()


def _let_go_of_large_ones(placement: Placement) -> None:
    """A device that a plan has counted whole holds no other large model beside it. One that is at work stays until
    its reply has ended."""
    from .choice import is_small

    for key, engine in list(_engines.items()):
        if not is_small(engine.loaded.weight_bytes) and {*engine.loaded.placement.devices} & {*placement.devices}:
            del _engines[key]


@contextmanager
def telling_how_to_mend(source: str | Path, folder: Path) -> Iterator[None]:
    """What is wrong with a checkpoint's folder is said with the way out for where it came from."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{error}\n{hub.how_to_mend(source, folder)}") from error
    except NotANumberError as error:
        where = f"The weights are in {quoted(folder)}."
        raise CheckpointError(f"{error} {where}\n{hub.how_to_mend(source, folder)}") from error


def _check_cuda_after_fork(device: str | None) -> None:
    """CUDA can't be used in a process whose parent has used it. PyTorch may say that no GPU is there.

    A parent that has only asked for GPUs counts for one that has used them; if there are none that is no matter.
    """
    import torch

    wants_cuda = device is None or device.strip().lower().startswith("cuda")
    # What torch's own modules ask; it has no public name.
    if wants_cuda and torch.cuda._is_in_bad_fork() and (forks.cuda_was_used or torch.cuda.device_count()):
        raise _lost_by_fork("cuda")


def _lost_by_fork(device_type: str) -> DeviceError:
    return DeviceError(
        f"This process was forked off one that had used its GPU by then ({device_type}), so it can't use it. "
        'Start it anew instead (multiprocessing: start method "spawn"), let the first reply come behind the fork, '
        f"not before it, or set {DEVICE_VARIABLE}=cpu."
    )


@cache
def _import_libraries(owns_process: bool) -> None:
    _check_current_folder()
    with importing("engine"), _no_garbage_collection(owns_process):
        import tokenizers  # noqa: F401

        from ..diffusion import loading, pipeline, vision  # noqa: F401
        from . import choice  # noqa: F401


@cache
def import_vision(owns_process: bool) -> None:
    """What the first image of a process needs besides. Raises `DiffusionGemmaError` where it can't be imported."""
    from ..diffusion import vision

    # transformers asks for both when it is imported, and raises whatever comes.
    hub.check_environment()
    _check_current_folder()
    with importing("vision"), _no_garbage_collection(owns_process):
        vision.import_libraries()


def _check_current_folder() -> None:
    """transformers asks for it when it is imported. MKL does at its first large product, and without one it ends
    the process.

    Raises `DiffusionGemmaError`.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise DiffusionGemmaError(
            "The current folder is gone or can't be read, and the libraries that a model needs can't be loaded "
            "without one. Change to another folder."
        ) from error


@contextmanager
def _no_garbage_collection(owns_process: bool) -> Iterator[None]:
    """For imports and loading, which make half a million objects and no garbage: some tenths of a second.

    In a command of llm's own what they made is then left out of every later collection. Without that the first
    one, at once, looks through all of it, and a Ctrl-C in the middle of its destructors is lost. In a program it
    would be the program's own objects, too: what of them is garbage would stay for ever.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if owns_process:
            gc.freeze()
            _freeze_at_the_end()
        if was_enabled:
            gc.enable()


@cache
def _freeze_at_the_end() -> None:
    atexit.register(_spare_the_last_collection)


def _spare_the_last_collection() -> None:
    """Python ends by looking through all the objects of torch for garbage once more, which would be a fifth of a
    short command. But what it doesn't look through it leaves, and Triton, whoever imported it, says of every class
    left of its own that it has leaked: dozens of lines behind the reply."""
    if "triton" in sys.modules:
        gc.unfreeze()
    else:
        gc.freeze()


def _make_locks_anew() -> None:
    """In a forked process: of the threads that held them maybe none is here. The weights are read, and stay."""
    global _engines_lock
    _engines_lock = threading.Lock()
    for engine in loaded_engines():
        engine.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_make_locks_anew)
