"""What is measured: replies of a loaded model, as a prompt gets them, and those of a network of random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from llm.parts import Message, TextPart

from ..backends.isolation import isolated
from ..backends.local import LocalReply
from ..backends.turn import Turn
from ..diffusion.graphs import StepGraphs
from ..diffusion.pipeline import Block, BlockDiffusionPipeline, Draft, Read
from ..diffusion.request import Prompt, Reads, Request
from ..diffusion.sampler import GeneratorRandomness, SamplerSettings
from ..options import CANVAS_PIECE, Options
from ..view.records import Reading, Watch
from .prompts import MAX_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..backends.engine import Ready
    from ..backends.turn import WeightsReport
    from ..catalog import ModelEntry
    from ..diffusion.network import Network
    from ..diffusion.placement import Placement
    from .clock import ReplyClock
    from .prompts import Kind

# No canvas is ever so sure of itself.
NEVER_CONFIDENT = 1e-30
CANVASES = 2
#: The kind of reply that is a single step, behind the shortest of the prompts.
DECISION = "decision"
# Of what is in a decision's choices.
DECISION_TOKENS = range(8)


class Subject(Protocol):
    """Something that replies."""

    network: Network
    pipeline: BlockDiffusionPipeline

    @property
    def names(self) -> Sequence[str]:
        """Of the kinds of replies that it makes."""

    def reply(self, name: str, seed: int, clock: ReplyClock) -> None:
        """Make one, from nothing that others have left, and tell the clock. Raises what `clock.check` raises."""


class Replies:
    """Of a model, to prompts of several kinds."""

    def __init__(self, entry: ModelEntry, ready: Ready, kinds: Sequence[Kind]) -> None:
        self.network = ready.engine.loaded.network
        self.kinds = {kind.name: kind for kind in kinds}
        self.weights: WeightsReport | None = None
        """What the last reply's report says of them."""
        self._entry = entry
        self.pipeline = ready.engine.pipeline

    @property
    def names(self) -> Sequence[str]:
        """See `Subject`."""
        return list(self.kinds)

    def reply(self, name: str, seed: int, clock: ReplyClock) -> None:
        """See `Subject`. Raises what answering a prompt raises."""
        kind = self.kinds[name]
        self.pipeline.prefix_cache.clear()
        turn = Turn(
            [Message(role="user", parts=[TextPart(text=kind.text)])],
            Options(
                seed=seed,
                max_tokens=MAX_TOKENS,
                choices=kind.choices,
                probabilities=None if kind.choices is None else True,
            ),
            schema=kind.schema,
            watch=Watch(clock.read, "readings"),
        )
        clock.sample.writes = kind.choices is None
        reply = LocalReply(self._entry, turn, clock)
        for _ in reply.steps():
            block = reply.report.blocks[-1]
            clock.block(block.tokens, block.denoising_steps, block.converged)
        clock.check()
        self.weights = reply.report.weights


class RandomReplies:
    """Of a network of random weights, `CANVASES` canvases behind prompts of some lengths. It never converges.

    And a decision.
    """

    def __init__(self, network: Network, placement: Placement, lengths: Sequence[int], steps: int) -> None:
        """`steps` are taken for each canvas."""
        self.network = network
        self.settings = SamplerSettings(steps, 0.1, 0.4, 0.8, NEVER_CONFIDENT, 1)
        self.max_tokens = CANVASES * network.config.canvas_length
        self._lengths = {f"{length:,} tokens": length for length in lengths}
        # Nothing ends a reply.
        self.pipeline = BlockDiffusionPipeline(
            network,
            eos_token_ids=(),
            pad_token_id=None,
            context_tokens=placement.context_tokens,
            graphs=StepGraphs.of(network, has_room=placement.has_room_for_graph),
        )

    @property
    def names(self) -> Sequence[str]:
        """See `Subject`."""
        return [*self._lengths, DECISION]

    @property
    def texts(self) -> Sequence[str]:
        """Those of them that are texts."""
        return list(self._lengths)

    def prompt(self, name: str, seed: int) -> list[int]:
        """Token ids. Among the last of a vocabulary are those of pictures, which transformers would ask for."""
        generator = torch.Generator().manual_seed(seed)
        length = self._lengths[name] if name in self._lengths else min(self._lengths.values())
        return torch.randint(self.network.size // 2, (length,), generator=generator).tolist()

    def reply(self, name: str, seed: int, clock: ReplyClock) -> None:
        """See `Subject`. Raises what the pipeline raises."""
        self.pipeline.prefix_cache.clear()
        clock.sample.writes = name != DECISION
        prompt, randomness = (
            Prompt(self.prompt(name, seed)),
            GeneratorRandomness(torch.Generator().manual_seed(seed)),
        )
        records: Iterator[Reading | Draft | Block | Read]
        with isolated():
            if name == DECISION:
                length = min(CANVAS_PIECE, self.network.config.canvas_length)
                asked = Reads(prompt, DECISION_TOKENS, length)
                records = self.pipeline.read(asked, randomness=randomness, readings=True, should_stop=clock.is_set)
            else:
                request = Request(prompt, self.settings, self.max_tokens)
                records = self.pipeline.generate(
                    request, randomness=randomness, readings=True, should_stop=clock.is_set
                )
            for record in records:
                if isinstance(record, Reading):
                    clock.read(record)
                elif isinstance(record, Read):
                    clock.block(0, 1, False)
                elif isinstance(record, Block):
                    clock.block(len(record.tokens), record.denoising_steps, record.converged)
        clock.check()
