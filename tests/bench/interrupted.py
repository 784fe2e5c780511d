"""The `llm` command, which gets a SIGINT in the first step of a reply that follows the third of a measurement."""

from __future__ import annotations

import os
import signal
from typing import Any

from llm.cli import cli

from llm_diffusiongemma.bench import measure, prompts

if __name__ == "__main__":
    prompts.EMBEDDED = prompts.EMBEDDED[:1]
    original, made = measure._reply, []

    def reply(*arguments: Any, **named: Any) -> Any:
        made.append(None)
        if len(made) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **named)

    measure._reply = reply
    cli()
