"""What a check found, as a page to be read and to be sent to whoever can use it. No torch.

**Invariant**: nothing in it says whose machine it is: no path, no host, no user, no repository of somebody's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ..wording import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Outcome = Literal["passed", "failed", "skipped"]

Part = Literal["files", "logits", "values", "layers", "prompts"]
TITLES: dict[Part, str] = {
    "files": "Weight files",
    "logits": "Recorded logits",
    "values": "Values of two representations",
    "layers": "Layer by layer against transformers",
    "prompts": "Prompts",
}


@dataclass(frozen=True)
class Finding:
    """What one part of a check came to."""

    part: Part
    outcome: Outcome
    says: str
    """A sentence: what is right, what is wrong, or why it couldn't be looked at."""
    figures: Sequence[str] = ()
    """Lines with what was measured."""


@dataclass(frozen=True)
class CheckReport:
    """All of it."""

    about: Mapping[str, str]
    """Versions, machine and weights."""
    findings: Sequence[Finding]
    private: Mapping[str, str] = field(default_factory=dict)
    """What stands on the page instead of words that are nobody's business."""

    @property
    def failed(self) -> bool:
        return any(finding.outcome == "failed" for finding in self.findings)

    def markdown(self) -> str:
        """The page."""
        counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
        for finding in self.findings:
            counts[finding.outcome] += 1
        lines = ["# llm diffusiongemma check", ""]
        lines += [f"- {name}: {value}" for name, value in self.about.items()]
        lines += ["", ", ".join(f"{count} {outcome}" for outcome, count in counts.items()) + "."]
        for finding in self.findings:
            lines += ["", f"## {TITLES[finding.part]}: {finding.outcome}", "", finding.says]
            if finding.figures:
                lines += ["", *(f"- {figure}" for figure in finding.figures)]
        page = "\n".join(lines) + "\n"
        # The longest first: a folder may stand in a longer path of itself.
        for word in sorted(self.private, key=len, reverse=True):
            page = page.replace(word, self.private[word])
        return printable(page)
