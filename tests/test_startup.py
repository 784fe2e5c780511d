"""What the plugin costs every `llm` command: nothing heavy may be imported before a prompt."""

from __future__ import annotations

import json
import os
import subprocess
import sys


def imported_by(code: str, plugins: str = "llm-diffusiongemma") -> frozenset[str]:
    """Top-level modules in a new process after running some code."""
    show = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{show}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, "LLM_LOAD_PLUGINS": plugins},
    )
    return frozenset(json.loads(done.stdout.splitlines()[-1]))


USES = [
    "import llm_diffusiongemma",
    "import llm; llm.get_models_with_aliases()",
    "import llm; llm.get_model('diffusiongemma').Options(seed=1)",
    "import llm; str(llm.get_async_model('diffusiongemma-tiny'))",
    "import click.testing; click.testing.CliRunner().invoke(llm.cli.cli, ['diffusiongemma', 'add', '--help'])",
]


def test_no_heavy_import() -> None:
    # What llm itself loads for its own models, among them the OpenAI client's options.
    bare = imported_by("import llm, llm.cli; llm.get_models_with_aliases()", plugins="")
    # One use after the other: what any of them imports is there at the end.
    added = imported_by("\n".join(["import llm, llm.cli", *USES])) - bare
    # The standard library is free to use; anything else has to be ours.
    assert {name for name in added if name not in sys.stdlib_module_names} <= {"llm_diffusiongemma"}


def test_a_reply_of_text_imports_nothing_for_images_training_or_compiling() -> None:
    """They were most of a short command's time."""
    code = """
import llm, sys
llm.get_model("diffusiongemma-tiny").prompt("Hello", max_denoising_steps=1, max_tokens=8).text()
assert "torch._dynamo" not in sys.modules
"""
    imported = imported_by(code)
    assert "torch" in imported  # these tests would see it
    assert imported.isdisjoint({"transformers", "sympy", "scipy", "PIL", "accelerate", "torchvision"})
