"""`llm diffusiongemma bench`: how fast a model is on this machine, by whole replies of several kinds.

In this process, whatever server runs, and nothing of it goes to llm's log. What is found are plain values, which
`--json` prints; `table` makes of them what people read.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backends import running
from ..catalog import EMBEDDED_CHECKPOINT, GRAPH_VARIABLE, KERNELS_VARIABLE
from ..errors import CheckpointNotFoundError, DiffusionGemmaError
from ..installation import system, versions
from ..view.progress import indicate
from ..wording import quoted, tell

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..backends.choice import Choice
    from ..backends.engine import Ready
    from ..backends.turn import Stop, WeightsReport
    from ..catalog import ModelEntry, Representation
    from ..diffusion.placement import Placement
    from .replies import Replies, Subject
    from .theirs import Theirs

# Of the prompts that random weights read, in tokens.
CONTEXT_LENGTHS = (64, 1024, 8192)
DRIVER_SECONDS = 10.0


def of_model(entry: ModelEntry, stop: Stop, repeats: int, seed: int, *, against: bool) -> dict[str, Any]:
    """Measure a model whose weights are on this machine, and transformers' `generate` `against` it if wanted.

    What has been measured is kept when somebody interrupts. Raises what loading raises, what every reply raises,
    and what `stop` raises before anything has been measured.
    """
    _tell_of_server()
    if against:
        _import_transformers(stop)
    with indicate(f"Loading {entry.model_id}") as progress:
        ready = _loaded(entry, stop, against)
        from .prompts import EMBEDDED, GENERAL
        from .replies import Replies

        subject = Replies(entry, ready, EMBEDDED if _is_embedded(ready) else GENERAL)
        theirs = _theirs_of(ready, subject) if against else None
        placement = ready.engine.loaded.placement
        found = _measure(subject, placement, stop, repeats, seed, progress.describe, theirs)
    assert subject.weights is not None  # of something that was measured
    about = _about(subject, subject.weights, ready.resolved_model, ready.load_seconds)
    return {"model": entry.model_id, "random_weights": None, **about, "repeats": repeats, "seed": seed, **found}


def of_random_weights(
    representation: Representation, stop: Stop, repeats: int, seed: int, steps: int | None, *, against: bool
) -> dict[str, Any]:
    """Measure a network of the real sizes whose weights are drawn where they are to lie, at so many steps a
    canvas, by default as many as are usual.

    Raises `DeviceMemoryError` or `NoGpuError` if this machine has no room for it, else as `of_model`.
    """
    _tell_of_server()
    with indicate("Importing PyTorch"), stop.importing():
        from ..diffusion.placement import STEPS_A_CANVAS
        from . import random_weights
        from .replies import RandomReplies
        from .theirs import Theirs, check, check_representation
    if against:
        check_representation(representation)
        _import_transformers(stop)
    with indicate(f"Drawing {representation} weights") as progress:
        placement = random_weights.place(representation, against=against)
        if against:
            check(placement)
        made = random_weights.make(placement, stop)
        network, lengths = made.network, made.room_for(CONTEXT_LENGTHS)
        subject = RandomReplies(network, placement, lengths, steps or STEPS_A_CANVAS)
        theirs = None
        if against:
            prompts = {name: subject.prompt(name, seed) for name in subject.texts}
            theirs = Theirs(network, made.config, subject.settings, subject.max_tokens, prompts)
        found = _measure(subject, placement, stop, repeats, seed, progress.describe, theirs)
    return {
        "model": None,
        "random_weights": representation,
        "max_denoising_steps": subject.settings.max_denoising_steps,
        "left_out_prompt_tokens": [length for length in CONTEXT_LENGTHS if length not in lengths],
        **_about(subject, made.report(), None, made.seconds),
        "repeats": repeats,
        "seed": seed,
        **found,
    }


def _measure(
    subject: Subject,
    placement: Placement,
    stop: Stop,
    repeats: int,
    seed: int,
    describe: Callable[[str], object],
    theirs: Theirs | None,
) -> dict[str, Any]:
    from .figures import figures
    from .measure import Measured, measure

    measured, is_interrupted = Measured(subject.names), False
    try:
        measure(measured, subject, placement.devices, repeats, seed, stop, describe, theirs)
    except BaseException as error:
        # Python drops some interrupts, and libraries make errors of their own of others.
        if measured.is_empty or not (isinstance(error, KeyboardInterrupt) or stop.is_set()):
            raise
        is_interrupted = True
    if measured.is_empty:
        raise DiffusionGemmaError("\n".join(dict.fromkeys(measured.problems.values())))
    return {**figures(measured), "is_interrupted": is_interrupted}


def _loaded(entry: ModelEntry, stop: Stop, against: bool) -> Ready:
    """Raises `CheckpointNotFoundError` if its weights aren't here, `OptionError` if transformers can't have them,
    and what loading it raises."""
    with indicate("Importing PyTorch"), stop.importing():
        from ..backends.choice import choose
        from ..backends.engine import get_engine
        from .theirs import check_representation
    choice = choose(entry)
    representation = choice.placement.representation if choice.placement else choice.source.representation
    if against and representation is not None:
        check_representation(representation)
    # What is wrong with a folder is told when it is loaded.
    if not isinstance(choice.source.where, Path) and choice.candidate.folder is None:
        raise CheckpointNotFoundError(
            f"The weights of {entry.model_id} are not on this machine{_ways(choice, against)}"
        )
    return get_engine(entry, stop)


def _ways(choice: Choice, against: bool) -> str:
    """The end of a sentence: what can be measured where a model's weights are not."""
    from .random_weights import fitting_here, tiny

    model_id = choice.entry.model_id
    if choice.refusal is not None:
        return (
            f", and it would not run them as it is (llm diffusiongemma status says why). What it can measure: "
            f"{tiny(against)}"
        )
    ways = [f"Download them first, by llm diffusiongemma download {model_id}"]
    if drawn := [each for each in fitting_here() if each == "bf16" or not against]:
        option = " --against transformers" * against
        ways.append(f"measure without any: llm diffusiongemma bench --random-weights {drawn[0]}{option}")
    return f". {', or '.join(ways)}"


def _is_embedded(ready: Ready) -> bool:
    """Whether it is a network of the embedded checkpoint's sizes, which knows its lessons only."""
    from ..diffusion.loading import describe

    return ready.engine.loaded.network.config == describe(EMBEDDED_CHECKPOINT).config.network()


def _import_transformers(stop: Stop) -> None:
    """Before anything is loaded or drawn, which may take minutes.

    Raises `OptionError` if it has no DiffusionGemma, and `DiffusionGemmaError` where it can't be imported.
    """
    with indicate("Importing transformers"), stop.importing():
        from ..backends.engine import import_vision

        import_vision(stop.owns_process)
        from .theirs import classes

        classes()


def _theirs_of(ready: Ready, subject: Replies) -> Theirs:
    """For the kinds of replies that transformers has: none is held to a form there."""
    from ..diffusion.sampler import SamplerSettings
    from .prompts import MAX_TOKENS
    from .theirs import Theirs, check

    engine, loaded = ready.engine, ready.engine.loaded
    check(loaded.placement)
    prompts = {
        kind.name: engine.prompt_encoder.encode([{"role": "user", "content": kind.text}])
        for kind in subject.kinds.values()
        if kind.is_free
    }
    settings = SamplerSettings.from_generation_config(loaded.generation)
    eos_token_ids = loaded.generation.eos_token_id
    return Theirs(loaded.network, loaded.config, settings, MAX_TOKENS, prompts, eos_token_ids=eos_token_ids)


def _about(
    subject: Subject, weights: WeightsReport, resolved_model: str | None, load_seconds: float
) -> dict[str, Any]:
    """What ran, by the names that the report of a reply has."""
    import torch

    device = torch.device(weights.device)
    of_weights = asdict(weights)
    del of_weights["peak_memory_bytes"]  # measured anew
    return {
        "resolved_model": resolved_model,
        **of_weights,
        "graph": subject.pipeline.graph_state,
        "streaming": subject.network.streaming_report(),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "load_seconds": round(load_seconds, 3),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": {
            name: os.environ[name] for name in (KERNELS_VARIABLE, GRAPH_VARIABLE) if name in os.environ
        },
        "driver_version": _driver_version() if device.type == "cuda" and torch.version.hip is None else None,
        "versions": versions() | {name: number for name in ("cuda", "hip") if (number := _built_for(name))},
        "system": system(),
    }


def _driver_version() -> str | None:
    """Of NVIDIA's, which PyTorch doesn't tell; None if it can't be had."""
    command = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=DRIVER_SECONDS, check=True).stdout
    except (OSError, ValueError, subprocess.SubprocessError):  # none here, or a driver that hangs
        return None
    return next(iter(told.split()), None)


def _built_for(name: str) -> str | None:
    """The version of what this PyTorch was built for, if it is that."""
    import torch

    number = getattr(torch.version, name, None)
    return None if number is None else str(number)


def _tell_of_server() -> None:
    """One that runs may compute at the same time, and has memory of the device."""
    with suppress(OSError, DiffusionGemmaError):
        found = running.recorded()
        if found is not None and running.answers(found):
            tell(
                f"A server for {quoted(found.identity.model_id)} is running (process {found.pid}). What it has of "
                "the memory, and what it computes meanwhile, is missing here: `llm diffusiongemma stop` ends it."
            )
