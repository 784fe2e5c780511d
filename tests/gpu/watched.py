"""`llm` as a command that tells at its end what it took: for `product`.

    python -m tests.gpu.watched FILE HOST_BYTES ARGUMENTS…

FILE gets a JSON object. Of the host's memory the command finds HOST_BYTES to use, all that there is if that is 0.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner
from llm.cli import cli

from llm_diffusiongemma.diffusion import devices
from llm_diffusiongemma.diffusion.pipeline import Block, BlockDiffusionPipeline


def main() -> None:
    told, host_bytes, *arguments = sys.argv[1:]
    tokens: list[int] = []
    usable_memory, generate = devices._usable_memory, BlockDiffusionPipeline.generate

    def usable(device: torch.device) -> int:
        return int(host_bytes) if device.type == "cpu" and int(host_bytes) else usable_memory(device)

    def watched(*asked: Any, **how: Any) -> Iterator[Any]:
        records = generate(*asked, **how)
        for record in records:
            if isinstance(record, Block):
                tokens.extend(record.tokens)
            yield record
        records.close()

    devices._usable_memory = usable
    BlockDiffusionPipeline.generate = watched  # type: ignore[assignment, method-assign]
    sys.argv = ["llm", *arguments]
    code: object = 0
    try:
        cli()
    except SystemExit as ended:
        code = ended.code
    found: dict[str, Any] = {"exit": code, "tokens": tokens}
    if torch.cuda.is_initialized():
        found |= {
            "allocated": torch.cuda.max_memory_allocated(),
            "reserved": torch.cuda.max_memory_reserved(),
            "pinned": torch.cuda.host_memory_stats().get("reserved_bytes.peak", 0),
        }
    logged = CliRunner().invoke(cli, ["logs", "--json", "-n", "1"])
    found["report"] = json.loads(logged.output)[0]["response_json"] if logged.exit_code == 0 else logged.output
    Path(told).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
