"""Answers a turn in this process: engine cache, chat format, diffusion.

torch and transformers are imported here, on the first prompt, and nowhere above.
"""

from __future__ import annotations

import atexit
import gc
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import llm
from llm.parts import Message, StreamEvent

from .. import hub
from ..catalog import ModelEntry
from ..chat.declarations import declare
from ..chat.messages import Conversation, PromptEncoder, read_conversation
from ..chat.output import THOUGHT_CLOSES, THOUGHT_OPENS, ReplyReader
from ..chat.tokenizer import ChatTokenizer, control_tokens, decode, table_decoder, token_bytes
from ..errors import CheckpointError
from ..options import DEFAULT_MAX_TOKENS, Options
from .form import Form, read_form

if TYPE_CHECKING:
    from ..diffusion.loading import LoadedModel
    from ..diffusion.pipeline import Block, BlockDiffusionPipeline, Draft, ImageInputs
    from ..grammar.automaton import Vocabulary
    from ..grammar.constraint import ConstraintReport, TextConstraint
    from ..grammar.schema import Lowered


class ReentrantLock(Protocol):
    """What is used of `threading.RLock`, which is a function to the type checker."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...
    def __enter__(self) -> bool: ...
    def __exit__(self, kind: Any, error: Any, traceback: Any, /) -> None: ...


FinishReason = Literal["stop", "tool_calls", "length", "interrupted"]

# A frame of a video gets the fewest soft tokens there are: there may be sixty of them.
FRAME_SOFT_TOKENS = 70

# In llm's folder: what schemas and other forms were made into, for each tokenizer. It may be deleted.
AUTOMATA_FOLDER = "diffusiongemma-automata"


@dataclass(frozen=True)
class Turn:
    """What one request asks for."""

    messages: Sequence[Message]
    options: Options
    tools: Sequence[llm.Tool] = ()
    schema: dict[str, Any] | None = None


@dataclass(frozen=True)
class BlockReport:
    """How one canvas went."""

    tokens: int
    denoising_steps: int
    converged: bool
    encoded_tokens: int
    seconds: float
    constraint: ConstraintReport | None

    def as_json(self) -> dict[str, Any]:
        plain = {**asdict(self), "seconds": round(self.seconds, 3)}
        if self.constraint is None:
            del plain["constraint"]
        return plain


@dataclass
class Report:
    """What happened in one reply, as plain values: it becomes `response_json` and the usage."""

    resolved_model: str
    device: str
    dtype: str
    seed: int
    load_seconds: float
    input_tokens: int
    cached_tokens: int = 0
    """Tokens of the prompt that the engine still had from the last turn."""
    finish_reason: FinishReason = "interrupted"
    """Until the last block says otherwise, the reply has been cut short."""
    generate_seconds: float = 0.0
    blocks: list[BlockReport] = field(default_factory=list)
    lowered: tuple[Lowered, ...] = ()
    """What the schema allows, and a reply held to it can't have."""

    @property
    def output_tokens(self) -> int:
        return sum(block.tokens for block in self.blocks)

    def as_json(self) -> dict[str, Any]:
        """For `llm logs --json`. Times are seconds; tokens per forward is the speed-up over one a step."""
        steps = sum(block.denoising_steps for block in self.blocks)
        return {
            "finish_reason": self.finish_reason,
            "seed": self.seed,
            "device": self.device,
            "dtype": self.dtype,
            "load_seconds": round(self.load_seconds, 3),
            "generate_seconds": round(self.generate_seconds, 3),
            "tokens_per_forward": round(self.output_tokens / steps, 2) if steps else 0.0,
            "blocks": [block.as_json() for block in self.blocks],
            **({"lowered": [asdict(each) for each in self.lowered]} if self.lowered else {}),
        }


class Engine:
    """A loaded model with its tokenizer. Lives in the process-wide cache; answers one turn at a time."""

    def __init__(self, loaded: LoadedModel, tokenizer: ChatTokenizer, folder: Path) -> None:
        from ..diffusion.images import ImageReader
        from ..diffusion.pipeline import BlockDiffusionPipeline

        self.image_reader = ImageReader(folder, loaded.model.config)
        self.loaded = loaded
        self.pipeline: BlockDiffusionPipeline = BlockDiffusionPipeline(loaded.model)
        self.prompt_encoder = PromptEncoder(tokenizer)
        self._tokenizer = tokenizer
        self.control_tokens = control_tokens(tokenizer)
        # Reentrant: a worker thread holds it for its whole reply, each step takes it again.
        self.lock: ReentrantLock = threading.RLock()

    def decode(self, token_ids: list[int]) -> str:
        return decode(self._tokenizer, token_ids)

    @cached_property
    def _token_bytes(self) -> list[bytes | None]:
        return token_bytes(self._tokenizer)

    @cached_property
    def decode_bytes(self) -> Callable[[list[int]], str]:
        """`decode` for a reply of a form: by what the tokens stand for in the form's automaton."""
        return table_decoder(self._tokenizer, self._token_bytes)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        from ..grammar.automaton import Vocabulary

        return Vocabulary(
            self._token_bytes,
            size=self.pipeline.vocab_size,
            eos_token_ids=self.pipeline.eos_token_ids,
            pad_token_id=self.loaded.model.generation_config.pad_token_id,
        )

    def hold_to(self, form: Form) -> TextConstraint:
        """A fresh constraint for one reply. Raises `ConstraintError` if no tokens can spell the form."""
        from ..grammar.cache import load_or_build
        from ..grammar.constraint import TextConstraint

        folder = Path(llm.user_dir())  # type: ignore[no-untyped-call]
        automaton = load_or_build(form.language, self._vocabulary, folder / AUTOMATA_FOLDER)
        return TextConstraint(automaton, self.loaded.device)

    def opens_thought(self, prompt_ids: list[int]) -> bool:
        """Whether a prompt ends inside a thought, as templates do after a tool's result."""
        for token_id in reversed(prompt_ids):
            name = self.control_tokens.get(token_id)
            if name in (THOUGHT_OPENS, THOUGHT_CLOSES):
                return name == THOUGHT_OPENS
        return False


_engines: dict[tuple[Path, str], Engine] = {}
_engines_lock = threading.Lock()


@dataclass(frozen=True)
class Ready:
    """An engine, the name to log for it, and what loading it took just now: 0 if it was there."""

    engine: Engine
    resolved_model: str
    load_seconds: float


def get_engine(entry: ModelEntry) -> Ready:
    """The engine of a model, loaded if it isn't yet.

    Weights that aren't on this machine are downloaded first, which is not counted as loading.

    Shared by everything in the process: llm makes a new model object for each look-up, and sync and async
    models must not download or load the same weights twice. Whoever comes during a download waits for it.
    """

    def check_before_download(weight_bytes: int) -> None:
        from ..diffusion.loading import check_fits, resolve_device

        check_fits(weight_bytes, resolve_device(entry.device), chosen=entry.device is not None)

    with _engines_lock:
        checkpoint = hub.locate(entry, check_before_download)
        started = time.perf_counter()
        with _no_garbage_collection():
            from ..diffusion.loading import check_fits, load_model, resolve_device

            device = resolve_device(entry.device)
            key = (checkpoint.folder.resolve(), str(device))
            engine = _engines.get(key)
            if engine is not None:
                return Ready(engine, checkpoint.resolved_model, 0.0)
            check_fits(checkpoint.weight_bytes, device, chosen=entry.device is not None)
            try:
                # The model first: its checks say best what is wrong with a folder.
                loaded = load_model(checkpoint.folder, device)
                engine = _engines[key] = Engine(loaded, _load_tokenizer(checkpoint.folder), checkpoint.folder)
            except CheckpointError as error:
                raise CheckpointError(f"{error}\n{hub.how_to_mend(entry.source)}") from error
    return Ready(engine, checkpoint.resolved_model, time.perf_counter() - started)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """For imports and loading, which make half a million objects and no garbage: some tenths of a second."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


# Python ends by looking through all the objects of torch and transformers for garbage once more, which
# would be a fifth of a short command.
atexit.register(gc.freeze)


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer.json. A DiffusionGemma checkpoint folder holds config.json, "
            "*.safetensors, tokenizer.json, tokenizer_config.json and chat_template.jinja."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever it finds wrong is wrong with the folder
        raise CheckpointError(f"The tokenizer in {folder} can't be read: {error}") from error
    if not tokenizer.chat_template:
        raise CheckpointError(
            f"{folder} has no chat template. Put the checkpoint's chat_template.jinja into the folder."
        )
    return tokenizer


@dataclass(frozen=True)
class _Prompt:
    """What the pipeline is given to read."""

    ids: list[int]
    images: ImageInputs | None
    stable_length: int


class LocalReply:
    """One turn being answered: iterate `steps`, then read `report`."""

    def __init__(self, entry: ModelEntry, turn: Turn) -> None:
        """Loads the model if need be. Raises what loading or a prompt that can't be answered raises."""
        # Before the model is loaded: these need none of it.
        options = turn.options
        self._form = read_form(turn.schema, options.regex, options.choices)
        conversation = read_conversation(turn.messages)
        ready = get_engine(entry)
        self._engine = ready.engine
        self._options = options
        self._tools = turn.tools
        self._pictures = [
            self._engine.image_reader.cut(
                picture.image, options.image_tokens or (FRAME_SOFT_TOKENS if picture.timestamp else None)
            )
            for picture in conversation.pictures
        ]
        # Without a form's request there is one to be written freely: the reply, or the try that may call a tool.
        self._free = self._read(conversation) if self._form is None or turn.tools else None
        self._formed = None if self._form is None else self._read(conversation.with_request(self._form.request))
        prompt = self._free or self._formed
        assert prompt is not None
        self._reader = self._free_reader(prompt)
        self._text = ""
        self._is_hidden = False
        self.report = Report(
            resolved_model=ready.resolved_model,
            device=str(self._engine.loaded.device),
            dtype=str(self._engine.loaded.dtype).removeprefix("torch."),
            seed=options.seed if options.seed is not None else secrets.randbits(32),
            load_seconds=ready.load_seconds,
            input_tokens=len(prompt.ids),
        )

    def _read(self, conversation: Conversation) -> _Prompt:
        encoder = self._engine.prompt_encoder
        ids = encoder.encode(
            conversation.messages, tools=declare(self._tools), thinking=bool(self._options.thinking)
        )
        images: ImageInputs | None = None
        if self._pictures:
            ids, images = self._engine.image_reader.place(ids, self._pictures)
        return _Prompt(ids, images, encoder.stable_length(ids, with_request=self._form is not None))

    @property
    def has_text(self) -> bool:
        """Whether anything but blanks and thoughts has been written."""
        return bool(self._text.strip())

    @property
    def tool_calls(self) -> list[llm.ToolCall]:
        """What the model wants to have run, with the ids that the events have."""
        return self._reader.tool_calls

    @property
    def lock(self) -> ReentrantLock:
        """Hold it to keep other replies of the same engine waiting."""
        return self._engine.lock

    def steps(self, *, should_stop: Callable[[], bool] | None = None) -> Generator[list[StreamEvent], None, None]:
        """The events of each converged block.

        Closing it stops the reply; so does `should_stop`, asked before every denoising step, for those who
        can't close a generator that is running in another thread.

        Tools come before a form: what calls one is no answer yet. So a reply that may do either is written
        without the form first, which nobody sees unless it calls a tool, and then again if it does not.
        """
        form, free = self._form, self._free
        # What can't be guaranteed is refused before anything is written.
        formed = None if form is None else self._start_formed(form, should_stop)
        if form is None or formed is None:
            assert free is not None
            yield from self._events(self._start(free, should_stop))
            return
        if free is not None:
            self._is_hidden = True
            hidden = list(self._events(self._start(free, should_stop)))
            self._is_hidden = False
            if self.tool_calls:
                yield from hidden
                return
            if self.report.finish_reason == "interrupted":
                return
            self.report.finish_reason, self.report.blocks, self._text = "interrupted", [], ""
        assert self._formed is not None
        self.report.lowered = form.lowered
        self.report.input_tokens = len(self._formed.ids)
        self._reader = ReplyReader(
            self._engine.decode_bytes,
            self._engine.control_tokens,
            in_thought=bool(self._options.thinking),
            verbatim=True,
        )
        for events in self._events(formed):
            if self.report.finish_reason != "interrupted":
                form.check(self._text)
            yield events

    def _free_reader(self, prompt: _Prompt) -> ReplyReader:
        return ReplyReader(
            self._engine.decode,
            self._engine.control_tokens,
            in_thought=self._engine.opens_thought(prompt.ids),
            has_tools=bool(self._tools),
        )

    def _start_formed(
        self, form: Form, should_stop: Callable[[], bool] | None
    ) -> Generator[Draft | Block, None, None]:
        """The reply held to a form, its thought excepted. Raises `ConstraintError`."""
        assert self._formed is not None
        encoder = self._engine.prompt_encoder
        thought_closes: int | None = None
        if self._options.thinking:
            # Opened for it: what is free has to be a thought.
            if not self._engine.opens_thought(self._formed.ids):
                self._formed = replace(self._formed, ids=self._formed.ids + encoder.opening_of_thought)
            thought_closes = encoder.control_id(THOUGHT_CLOSES)
        return self._start(self._formed, should_stop, self._engine.hold_to(form), thought_closes)

    def _start(
        self,
        prompt: _Prompt,
        should_stop: Callable[[], bool] | None,
        constraint: TextConstraint | None = None,
        thought_closes: int | None = None,
    ) -> Generator[Draft | Block, None, None]:
        """The pipeline's records, of which none is computed yet. Raises what a prompt or constraint can't be."""
        import torch

        from ..diffusion.sampler import GeneratorRandomness, SamplerSettings

        options = self._options
        engine = self._engine
        settings = SamplerSettings.from_generation_config(
            engine.loaded.model.generation_config,
            max_denoising_steps=options.max_denoising_steps,
            entropy_bound=options.entropy_bound,
            t_min=options.t_min,
            t_max=options.t_max,
            confidence_threshold=options.confidence_threshold,
            stability_threshold=options.stability_threshold,
        )
        # On the CPU whatever the model runs on: a seed then draws the same numbers everywhere.
        generator = torch.Generator().manual_seed(self.report.seed)
        return engine.pipeline.generate(
            prompt.ids,
            settings=settings,
            max_tokens=options.max_tokens or DEFAULT_MAX_TOKENS,
            randomness=GeneratorRandomness(generator),
            images=prompt.images,
            stable_length=prompt.stable_length,
            constraint=constraint,
            thought_closes=thought_closes,
            should_stop=should_stop,
        )

    def _events(self, results: Generator[Draft | Block, None, None]) -> Generator[list[StreamEvent], None, None]:
        from ..diffusion.pipeline import Block

        is_first = True
        try:
            while True:
                with self._engine.lock:
                    started = time.perf_counter()
                    try:
                        result = next(results, None)
                    finally:
                        self.report.generate_seconds += time.perf_counter() - started
                if result is None:
                    break
                assert isinstance(result, Block)  # no drafts were asked for
                if is_first:
                    is_first = False
                    self.report.cached_tokens = max(0, self.report.input_tokens - result.encoded_tokens)
                yield self._take(result)
        finally:
            results.close()

    def _take(self, block: Block) -> list[StreamEvent]:
        self.report.blocks.append(
            BlockReport(
                tokens=len(block.tokens),
                denoising_steps=block.denoising_steps,
                converged=block.converged,
                encoded_tokens=block.encoded_tokens,
                seconds=block.seconds,
                constraint=block.constraint,
            )
        )
        events = self._reader.consume(block.tokens)
        if block.finish_reason is not None:
            events += self._reader.finalize()
            called = block.finish_reason == "stop" and self.tool_calls
            self.report.finish_reason = "tool_calls" if called else block.finish_reason
        self._text += "".join(event.chunk for event in events if event.type == "text")
        return events

    def cut_short(self) -> list[StreamEvent]:
        """What was held back of a reply that won't go on."""
        return [] if self._is_hidden else self._reader.finalize()
