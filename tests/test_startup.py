"""What the plugin costs every `llm` command: nothing heavy may be imported before a prompt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache

import pytest


@cache
def imported_by_llm() -> frozenset[str]:
    """For its own models, among them the OpenAI client."""
    return imported_by("import llm, llm.cli; llm.get_models_with_aliases()", plugins="")


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
    "import click.testing; click.testing.CliRunner().invoke(llm.cli.cli, ['diffusiongemma', 'last'])",
]


def test_no_heavy_import() -> None:
    # One use after the other: what any of them imports is there at the end.
    added = imported_by("\n".join(["import llm, llm.cli", *USES])) - imported_by_llm()
    # The standard library is free to use; anything else has to be ours.
    assert {name for name in added if name not in sys.stdlib_module_names} <= {"llm_diffusiongemma"}


def test_a_reply_of_text_imports_nothing_for_images_training_or_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were most of a short command's time. And with these variables huggingface_hub can't be imported, nor
    transformers, for an image to any model: text to the embedded one needs neither."""
    monkeypatch.setenv("HF_ENDPOINT", "http://[::1")
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "soon")
    code = """
import llm, sys
model = llm.get_model("diffusiongemma-tiny")
model.prompt("Hello", max_denoising_steps=1, max_tokens=8).text()
assert "torch._dynamo" not in sys.modules
before = {*sys.modules}
import io
from PIL import Image
Image.new("RGB", (8, 8)).save(image := io.BytesIO(), "PNG")
try:
    model.prompt("Hello", attachments=[llm.Attachment(content=image.getvalue())]).text()
except llm.ModelError as error:
    assert "Correct or unset HF_ENDPOINT or HF_HUB_DOWNLOAD_TIMEOUT." in str(error), error
else:
    raise AssertionError
for name in {*sys.modules} - before:
    del sys.modules[name]
"""
    imported = imported_by(code)
    assert "torch" in imported  # these tests would see it
    unneeded = {"transformers", "huggingface_hub", "sympy", "scipy", "PIL", "accelerate", "torchvision", "triton"}
    assert imported.isdisjoint(unneeded)


@pytest.mark.usefixtures("served")
def test_a_reply_of_a_server_imports_none_of_what_makes_it() -> None:
    """The second of a command is llm's own: whatever is asked for, ours is to be next to nothing of it."""
    code = """
import llm, llm.cli
def weather(city: str) -> str: "Weather in a city"
chain = llm.get_model("diffusiongemma-tiny").chain(
    "What is entropy?", system="Be brief.", tools=[weather], schema={"type": "string", "maxLength": 8},
    options={"seed": 1, "thinking": True, "max_denoising_steps": 2},
)
(response,) = chain.responses()
assert response.text() and response.response_json["server"] == "local server"
"""
    added = imported_by(code) - imported_by_llm()
    assert "httpcore2" in added  # these tests would see it
    made_of = {"torch", "numpy", "transformers", "tokenizers", "safetensors", "jinja2", "jsonschema", "PIL", "av"}
    assert added.isdisjoint({*made_of, "huggingface_hub", "rich", "starlette", "uvicorn", "scipy", "sympy"})
