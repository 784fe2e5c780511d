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
from typing import TYPE_CHECKING, Any

from ..catalog import EMBEDDED_CHECKPOINT
from . import data
from .network import STOP, TOOL_STOP, render

if TYPE_CHECKING:
    from ..diffusion.pipeline import BlockDiffusionPipeline


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
        import torch
        from transformers import AutoTokenizer

        from ..diffusion.loading import load_model
        from ..diffusion.pipeline import BlockDiffusionPipeline
        from ..diffusion.vision import ImageReader

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._loaded = load_model(folder, torch.device("cpu"))
        self._pipeline: BlockDiffusionPipeline = BlockDiffusionPipeline(
            self._loaded.network,
            eos_token_ids=self._loaded.generation.eos_token_id,
            pad_token_id=self._loaded.generation.pad_token_id,
        )
        self._image_reader = ImageReader(folder, self._loaded.config, self._loaded.dtype, self._loaded.device)

    def examine(self, skill: str, questions: int, *, held_out: bool = True, seed: int = 1) -> Score:
        """Ask one skill so many questions."""
        rng = random.Random(f"{skill} {seed}")
        score = Score()
        for number in range(questions):
            lesson = data.SKILLS[skill][0](rng, held_out)
            reply, end, blocks, steps = self.answer(lesson, seed=number)
            score.asked += 1
            score.blocks += blocks
            score.denoising_steps += steps
            if reply == lesson.reply and end == (TOOL_STOP if lesson.calls_tool else STOP):
                score.right += 1
            else:
                score.wrong.append((str(lesson.messages[-1]["content"]), lesson.reply, reply))
        return score

    def answer(self, lesson: data.Lesson, seed: int) -> tuple[str, int | None, int, int]:
        """The reply to a lesson's prompt with its control tokens, what ended it, its blocks and steps."""
        import torch

        from ..diffusion.pipeline import Block
        from ..diffusion.request import Prompt, Request
        from ..diffusion.sampler import GeneratorRandomness, SamplerSettings

        prompt = self.tokenizer.encode(render(self.tokenizer, lesson), add_special_tokens=False)
        shown = []
        if lesson.colour is not None:
            from . import images  # needs Pillow, which nothing else does

            shown.append(self._image_reader.cut(images.plain(lesson.colour, random.Random(seed)), None))
        prompt, placed = self._image_reader.place(prompt, shown)
        settings = SamplerSettings.from_generation_config(self._loaded.generation)
        tokens: list[int] = []
        blocks = steps = 0
        end = None
        for block in self._pipeline.generate(
            Request(Prompt(prompt, placed), settings, max_tokens=1024),
            randomness=GeneratorRandomness(torch.Generator().manual_seed(seed)),
        ):
            assert isinstance(block, Block)
            tokens += block.tokens
            blocks += 1
            steps += block.denoising_steps
            end = block.eos_token_id
        return self.tokenizer.decode(tokens, skip_special_tokens=False), end, blocks, steps


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
