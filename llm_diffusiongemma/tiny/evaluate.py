"""How well the embedded checkpoint does: `python -m llm_diffusiongemma.tiny.evaluate`.

Every skill is asked on prompts that were never trained, and on some like those of the training, under the
checkpoint's own sampler settings and with the pipeline that the plugin runs. A reply counts only if it is
right to the last character and ended by the right control token.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, field
from pathlib import Path

from ..catalog import EMBEDDED_CHECKPOINT
from ..options import DEFAULT_NOISE
from . import data
from .network import STOP, TOOL_STOP


@dataclass
class Score:
    """The result of one skill. `wrong` holds (prompt, expected, got)."""

    right: int = 0
    asked: int = 0
    blocks: int = 0
    denoising_steps: int = 0
    wrong: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.right / self.asked

    def __str__(self) -> str:
        return f"{self.right} of {self.asked} right, {self.denoising_steps / self.blocks:.1f} steps a block"


class Examiner:
    """Asks a checkpoint folder lessons and marks its replies."""

    def __init__(self, folder: Path = EMBEDDED_CHECKPOINT) -> None:
        from ..backends.engine import Engine
        from ..diffusion.loading import describe
        from ..diffusion.placement import whole
        from ..diffusion.sampler import SamplerSettings

        described = describe(folder)
        num_layers = described.config.text_config.num_hidden_layers
        self._engine = Engine.load(described, whole(described.formats.representation, num_layers, "cpu"))
        self.settings = SamplerSettings.from_generation_config(self._engine.loaded.generation)
        """What its canvases are denoised by. Others may be put in their place."""

    def examine(self, skill: str, questions: int, *, held_out: bool = True, seed: int = 1) -> Score:
        """Ask one skill so many questions."""
        rng = random.Random(f"{skill} {seed}")
        score = Score()
        for number in range(questions):
            self.mark(score, data.SKILLS[skill][0](rng, held_out), seed=number)
        return score

    def mark(
        self, score: Score, lesson: data.Lesson, seed: int, draft: str | None = None, noise: float = DEFAULT_NOISE
    ) -> None:
        """Add the reply to one lesson, asked as `answer` asks it."""
        reply, end, blocks, steps = self.answer(lesson, seed, draft, noise)
        score.asked += 1
        score.blocks += blocks
        score.denoising_steps += steps
        if reply == lesson.reply and end == (TOOL_STOP if lesson.calls_tool else STOP):
            score.right += 1
        else:
            score.wrong.append((str(lesson.messages[-1]["content"]), lesson.reply, reply))

    def answer(
        self, lesson: data.Lesson, seed: int, draft: str | None = None, noise: float = DEFAULT_NOISE
    ) -> tuple[str, int | None, int, int]:
        """The reply to a lesson's prompt with its control tokens, what ended it, its blocks and steps. With a
        `draft` it begins as that text, so much of which is noise."""
        import torch

        from ..backends.deciding import behind_a_thought
        from ..diffusion.pipeline import Block
        from ..diffusion.request import Prompt, Request, Text
        from ..diffusion.sampler import GeneratorRandomness

        engine = self._engine
        ids = engine.prompt_encoder.encode(lesson.messages, tools=lesson.tools, thinking=lesson.thinking)
        shown = []
        if lesson.colour is not None:
            from . import images  # needs Pillow, which nothing else does

            shown.append(engine.image_reader.cut(images.plain(lesson.colour, random.Random(seed)), None))
        prompt = Prompt(*engine.image_reader.place(ids, shown))
        if lesson.decides:
            prompt = behind_a_thought(engine, prompt)
        text = Text(None if draft is None else engine.drafted(draft, noise))
        tokens: list[int] = []
        blocks = steps = 0
        end = None
        for block in engine.pipeline.generate(
            Request(prompt, self.settings, max_tokens=1024, parts=(text,)),
            randomness=GeneratorRandomness(torch.Generator().manual_seed(seed)),
        ):
            assert isinstance(block, Block)
            tokens += block.tokens
            blocks += 1
            steps += block.denoising_steps
            end = block.eos_token_id
        return engine.decode(tokens), end, blocks, steps


def main() -> None:
    parser = argparse.ArgumentParser(description="Score the embedded checkpoint.")
    parser.add_argument("--checkpoint", type=Path, default=EMBEDDED_CHECKPOINT)
    parser.add_argument("--questions", type=int, default=20, help="how many prompts of each kind for each skill")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wrong", type=int, default=1, help="how many wrong replies of a skill to show")
    parser.add_argument("skills", nargs="*", default=list(data.SKILLS))
    arguments = parser.parse_args()

    import torch

    torch.set_num_threads(arguments.threads)
    examiner = Examiner(arguments.checkpoint)
    for skill in arguments.skills:
        known = examiner.examine(skill, arguments.questions, held_out=False)
        print(f"{skill:14} as in training: {known}", flush=True)
        score = examiner.examine(skill, arguments.questions)
        print(f"{skill:14} never seen:     {score}", flush=True)
        for asked, expected, got in score.wrong[: arguments.wrong]:
            print(f"    asked    {asked!r}\n    expected {expected!r}\n    got      {got[:400]!r}")


if __name__ == "__main__":
    main()
