"""`llm diffusiongemma check`: are weights on this machine read and computed right? And a page that says so.

Made for the first who own weights that nobody here could read: what a part can't look at it names as skipped, with
the reason, and never as passed.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from .. import hub
from ..catalog import EMBEDDED_CHECKPOINT, HUB_SOURCES, ModelEntry, Source
from ..errors import CheckpointError, CheckpointNotFoundError, DeviceMemoryError, DiffusionGemmaError, NoGpuError
from ..hub import settings
from ..hub.cache import Repository
from ..installation import system, versions
from ..printing import kernels_told
from ..view.progress import Progress, indicate
from .report import CheckReport, Finding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from ..backends.engine import Ready
    from ..diffusion.config_file import ConfigFile
    from ..diffusion.loading import Described
    from ..diffusion.placement import ExpertsHome, Placement

# Repositories with the original weights. Others are somebody's own, and so are their names.
ORIGINALS = (*(str(source.where) for source in HUB_SOURCES), "RedHatAI/diffusiongemma-26B-A4B-it-NVFP4")

# A recorded prompt and a canvas.
CUT_CONTEXT_TOKENS = 512

NOTHING_RECORDED = Finding("logits", "skipped", "Nobody has recorded the logits of a network of this shape.")


def run(entry: ModelEntry, *, is_quick: bool = False) -> CheckReport:
    """Check a model whose weights are on this machine. A quick check leaves out what takes minutes.

    Raises `CheckpointNotFoundError` if they aren't, and what a device that can't be used raises.
    """
    from ..backends.choice import choose
    from ..backends.engine import get_engine

    sources = (source if isinstance(source.where, str) else _absolute(source) for source in entry.sources)
    here = tuple(source for source in sources if _folder(source) is not None)
    if not here:
        raise CheckpointNotFoundError(
            f"The weights of {entry.model_id} are not on this machine. Download them first: "
            f"llm diffusiongemma download {entry.model_id}"
        )
    with indicate("Loading the model that is checked") as progress:
        entry = replace(entry, sources=here)
        try:
            ready = get_engine(entry)
        except (DeviceMemoryError, NoGpuError) as error:
            # What takes the least is the last of them.
            return _check_cut(entry.device, here[-1], str(error), progress)
        except CheckpointError as error:
            return _report(choose(entry).source, [Finding("files", "failed", str(error))])
        return _check_whole(entry, ready, is_quick, progress)


def _check_whole(entry: ModelEntry, ready: Ready, is_quick: bool, progress: Progress) -> CheckReport:
    from ..diffusion.loading import describe
    from . import logits, prompts, tensors, witness

    engine, loaded = ready.engine, ready.engine.loaded
    network, described = loaded.network, describe(engine.folder)
    findings = [tensors.headers(described)]
    recorded = logits.recordings(network.config)
    progress.describe("Comparing logits with recorded ones")
    with engine.at_work():
        findings.append(logits.compare(network, recorded[0]) if recorded else NOTHING_RECORDED)
    progress.describe("Comparing representations")
    findings += _compare_representations(described, ready.source)
    if is_quick:
        findings.append(Finding("layers", "skipped", "A quick check leaves it out."))
    else:
        progress.describe("Comparing layers with transformers'")
        prompt = engine.prompt_encoder.encode([{"role": "user", "content": logits.QUESTION}])
        with engine.at_work():
            findings.append(witness.compare(network, described, prompt, _host_room(loaded.placement)))
    is_embedded = network.config == describe(EMBEDDED_CHECKPOINT).config.network()
    questions = prompts.EMBEDDED if is_embedded else prompts.GENERAL
    asked = questions[: prompts.QUICK_PROMPTS] if is_quick else questions
    findings.append(prompts.ask(entry, asked, progress.describe))
    return _report(
        ready.source,
        findings,
        {
            "device": _device_name(network.device),
            "computed in": str(network.dtype).removeprefix("torch."),
            "experts": _experts(loaded.placement),
            "kernels": kernels_told(loaded.verdict.as_json()) or "none in use",
            "loading": f"{loaded.load_seconds:.1f} s for {loaded.weight_bytes:,} bytes",
        },
    )


def _check_cut(device: str | None, source: Source, why: str, progress: Progress) -> CheckReport:
    """What the first few layers can tell, where the whole network can't be held."""
    from ..backends.choice import described_sizes
    from ..backends.isolation import isolated
    from ..diffusion.devices import find_machine
    from ..diffusion.loading import describe, load_model
    from ..diffusion.placement import place
    from . import logits, tensors

    folder = _folder(source)
    assert folder is not None
    described = describe(folder)
    findings = [tensors.headers(described)]
    shortest = logits.recordings(described.config.network())[-1:]
    if not shortest:
        findings.append(NOTHING_RECORDED)
    for recording in shortest:
        progress.describe(f"Comparing the logits of {recording.num_layers} layers")
        cut = replace(described, config=first_layers(described.config, recording.num_layers))
        try:
            machine = find_machine(device)
            placement = place(described_sizes(cut, machine.devices[0].device), machine, CUT_CONTEXT_TOKENS)
            with isolated():
                network = load_model(cut, placement).network
                findings.append(logits.compare(network, recording, is_cut=True))
        except DeviceMemoryError as error:
            findings.append(Finding("logits", "skipped", str(error)))
    findings += _compare_representations(described, source)
    findings += [Finding("layers", "skipped", why), Finding("prompts", "skipped", why)]
    return _report(source, findings)


def first_layers(config: ConfigFile, num_layers: int) -> ConfigFile:
    """The same network cut short."""
    text = config.text_config
    sizes = text.per_layer_config
    cut = {
        "num_hidden_layers": num_layers,
        "layer_types": text.kinds[:num_layers],
        "per_layer_config": sizes and {i: each for i, each in sizes.items() if int(i) < num_layers},
    }
    return config.model_copy(update={"text_config": text.model_copy(update=cut)})


def _compare_representations(described: Described, source: Source) -> list[Finding]:
    """With each other one of the same weights that is on this machine."""
    from ..diffusion.loading import describe
    from . import tensors

    if str(source.where) not in ORIGINALS:
        return [Finding("values", "skipped", "Other representations are known of the original weights only.")]
    found = []
    for where in ORIGINALS:
        folder = None if where == str(source.where) else _folder(Source(where))
        if folder is not None:
            try:
                found.append(tensors.compare(described, describe(folder)))
            except DiffusionGemmaError as error:
                found.append(Finding("values", "skipped", f"{where} can't be used: {error}"))
    return found or [Finding("values", "skipped", "No other representation of these weights is on this machine.")]


def _absolute(source: Source) -> Source:
    return replace(source, where=Path(source.where).absolute())


def _folder(source: Source) -> Path | None:
    """Where its weights are, if all of them are here."""
    here = hub.on_disk(source)
    return here.folder if here is not None and here.is_whole else None


def _report(
    source: Source, findings: Sequence[Finding], about: Mapping[str, str] = MappingProxyType({})
) -> CheckReport:
    """The page, with what it is about. Nothing on it says whose machine it is."""
    here, folder = hub.on_disk(source), _folder(source)
    name = str(source.where)
    if source.where == EMBEDDED_CHECKPOINT:
        name = "the embedded checkpoint"
    elif name not in ORIGINALS:
        name = "somebody's own"
    elif here is not None and here.commit is not None:
        name += f" at {here.commit}"
    everywhere = {
        "weights": name,
        "versions": ", ".join(f"{package} {number}" for package, number in versions().items()),
        "system": system(),
    }
    private = {}
    with suppress(RuntimeError):  # nobody's home
        private[str(Path.home())] = "~"
    private.pop("/", None)  # it has no name
    if folder is not None:
        private |= {str(folder): "FOLDER", str(folder.resolve()): "FOLDER"}
    if isinstance(source.where, str):
        private |= {str(settings.cache_folder()): "CACHE"}
        if source.where not in ORIGINALS:
            private |= {source.where: "REPOSITORY", Repository.of(source.where).folder.name: "REPOSITORY"}
    return CheckReport(everywhere | dict(about), findings, private)


def _host_room(placement: Placement) -> int:
    """What a placed network leaves of the host's memory, in bytes."""
    from ..diffusion.devices import find_machine

    shared = sum(num_bytes for device, num_bytes in placement.device_bytes if device in ("cpu", "mps"))
    return find_machine("cpu").host_bytes - shared - placement.host_bytes


def _experts(placement: Placement) -> str:
    """Where those of how many layers are."""
    homes: tuple[tuple[ExpertsHome, str], ...] = (
        ("device", "on their device"),
        ("host", "streamed from memory"),
        ("files", "streamed from the weight files"),
    )
    counts = [(placement.num_layers(home), where) for home, where in homes]
    return ", ".join(f"{count} layers {where}" for count, where in counts if count)


def _device_name(device: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
