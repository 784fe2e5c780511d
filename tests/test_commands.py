"""`llm diffusiongemma …`, by hand of click's runner and over a Hub on loopback."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import llm
import pytest
import torch

from llm_diffusiongemma import registry, status
from llm_diffusiongemma.backends import launch
from llm_diffusiongemma.backends.running import Running, identity_of
from llm_diffusiongemma.catalog import (
    EMBEDDED_CHECKPOINT,
    GRAPH_VARIABLE,
    KERNELS_VARIABLE,
    SERVER_VARIABLE,
    ModelEntry,
    Source,
)
from llm_diffusiongemma.commands import _say_served
from llm_diffusiongemma.diffusion import devices
from llm_diffusiongemma.errors import ServerError
from llm_diffusiongemma.hub.failures import size
from llm_diffusiongemma.server import process
from llm_diffusiongemma.status import _prompts, _server_state

from .backends.scripted_server import Answer, ScriptedServer, free_port, models
from .conftest import Llm
from .loopback_hub import COMMIT, NEWER_COMMIT, REPO, LoopbackHub, Refusal
from .terminals import Terminal

NVIDIA = "nvidia/diffusiongemma-26B-A4B-it-NVFP4"
OURS = ["diffusiongemma", *(f"diffusiongemma-{kind}" for kind in ("bf16", "fp8", "nvfp4", "tiny"))]


class Command:
    """`llm diffusiongemma`."""

    def __init__(self, llm_command: Llm) -> None:
        self.llm = llm_command

    def ok(self, *arguments: str, **settings: Any) -> str:
        return self.llm.ok("diffusiongemma", *arguments, **settings)

    def fails(self, *arguments: str, **settings: Any) -> str:
        return self.llm.fails("diffusiongemma", *arguments, **settings)

    def status(self, *arguments: str) -> dict[str, Any]:
        return json.loads(self.ok("status", "--json", *arguments))


@pytest.fixture
def command(llm_command: Llm) -> Command:
    return Command(llm_command)


def weights_of(found: dict[str, Any], source: str) -> dict[str, Any]:
    (weights,) = (each for each in found["weights"] if source in (each["repository"], each["folder"]))
    return weights


def prompt_of(found: dict[str, Any], model_id: str) -> dict[str, Any]:
    (model,) = (each for each in found["models"] if each["model"] == model_id)
    return model["prompt"]


# --- status --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_process")
def test_status_before_and_after(command: Command, hub: LoopbackHub, checkpoint_files: dict[str, bytes]) -> None:
    hub.others[NVIDIA] = checkpoint_files
    before = command.status()
    assert [model["model"] for model in before["models"]] == OURS
    assert weights_of(before, NVIDIA) == {
        "repository": NVIDIA,
        "folder": None,
        "representation": "nvfp4",
        "revision": None,
        "commit": None,
        "bytes": 0,
        "missing_bytes": 18_818_000_000,
        "is_whole": False,
    }
    assert prompt_of(before, "diffusiongemma-nvfp4")["download_bytes"] == 18_818_000_000
    assert prompt_of(before, "diffusiongemma-tiny")["download_bytes"] == 0
    assert not hub.requests

    assert NVIDIA in command.ok("download", "diffusiongemma-nvfp4")
    hub.requests.clear()
    after = command.status()
    size = sum(map(len, checkpoint_files.values()))
    weights = weights_of(after, NVIDIA)
    assert (weights["commit"], weights["bytes"], weights["is_whole"]) == (COMMIT, size, True)
    assert prompt_of(after, "diffusiongemma-nvfp4")["download_bytes"] == 0
    text = command.ok("status")
    assert f"  nvfp4   {NVIDIA}" in text
    assert f"  folder  {EMBEDDED_CHECKPOINT}" in text
    assert f"MB, commit {COMMIT[:12]}\n" in text
    assert not hub.requests


def test_status_for_people(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_DEVICE", "cpu")
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_MEMORY", "24GiB")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(devices, "total_memory", lambda device: 64 * 2**30)
    text = command.ok("status")
    assert "  cpu    64.0 GiB, " in text
    assert "at most 24.0 GiB may be taken" in text
    assert "not here (51.6 GB)" in text
    unwrapped = " ".join(text.split())
    assert f"diffusiongemma, diffusiongemma-nvfp4: nvfp4 weights ({NVIDIA}) on cpu: " in unwrapped
    assert "It downloads 18.8 GB first. Expected: " in unwrapped
    assert "Versions llm-diffusiongemma " in unwrapped
    paragraphs = text.partition("What a prompt would do")[2]
    assert all(len(line) <= 80 for line in paragraphs.splitlines() if "/" not in line)


def test_what_is_wrong_with_one_model_hides_no_other(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(EMBEDDED_CHECKPOINT, folder)
    command.ok("add", "mine", str(folder))
    shutil.rmtree(folder)
    registry.path().write_text(
        json.dumps({"models": {**json.loads(registry.path().read_text())["models"], "bad": {}}})
    )
    found = command.status()
    assert "is not there" in weights_of(found, str(folder))["error"]
    assert prompt_of(found, "diffusiongemma-tiny")["representation"] == "bf16"
    (problem,) = found["problems"]
    assert "'bad'" in problem
    assert "There is no folder" in command.llm.fails("-m", "mine", "Hello")
    text = command.ok("status")
    assert "mine: There is no folder" in text
    assert "It downloads" not in text.partition("mine: ")[2]
    assert "Problems\n  'bad' in" in text  # the lines break where the path is long


@pytest.mark.parametrize("variable", ["LLM_DIFFUSIONGEMMA_MEMORY", "LLM_DIFFUSIONGEMMA_DEVICE"])
def test_settings_that_mean_nothing_are_said_once(
    command: Command, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "much")
    found = command.status()
    assert all("'much'" in model["error"] for model in found["models"])
    assert len(found["weights"]) == 4
    text = command.ok("status")
    assert text.count("'much'") == 1
    assert f"{', '.join(OURS[:3])}, " in text


def test_status_says_who_would_answer(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed() -> None:
        raise ServerError("A server needs two more libraries: pip install them")

    monkeypatch.setenv(SERVER_VARIABLE, "http://box:8000/v1")
    text = " ".join(command.ok("status").split())
    assert f"diffusiongemma-tiny: the server http://box:8000/v1 is asked ({SERVER_VARIABLE})." in text
    monkeypatch.setenv(SERVER_VARIABLE, "on")
    assert f"diffusiongemma-tiny: {SERVER_VARIABLE} is neither off nor" in " ".join(command.ok("status").split())
    monkeypatch.setenv(SERVER_VARIABLE, "off")
    monkeypatch.setattr(launch, "check_installed", not_installed)
    text = command.ok("status").partition("\nServer\n")[2].partition("\nVersions\n")[0]
    text = " ".join(text.split())
    assert text.startswith("None is running. A server needs two more libraries: ")
    assert text.endswith(f"{SERVER_VARIABLE} is off: prompts from here ask none.")


def test_status_of_kernels(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is tried for it: that may take a minute."""
    no_gpu = "they need an NVIDIA or AMD GPU"
    found = command.status()
    assert (found["kernels"], found["graph"]) == ({"are_tried": False, "because": no_gpu}, None)
    assert f"  Kernels: none: {no_gpu}.\n" in "\n".join([*status.lines(found), ""])
    capability = [(7, 5)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])
    monkeypatch.setattr(status, "_free_memory", lambda device: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert "compute capability 8.0 or newer" in status._kernels()["because"]
    capability[0] = (8, 0)
    found = command.status()
    assert found["kernels"] == {"are_tried": True, "because": None}
    text = " ".join(" ".join(status.lines(found)).split())
    assert "Kernels: tried when a model is loaded; behind a reply" in text
    assert "A denoising step as one CUDA graph: captured where all of a model is on one card." in text
    monkeypatch.setenv(KERNELS_VARIABLE, "off")
    monkeypatch.setenv(GRAPH_VARIABLE, "0")
    found = command.status()
    assert found["kernels"] == {"are_tried": False, "because": f"{KERNELS_VARIABLE} is off"}
    text = "\n".join(status.lines(found))
    assert f"  Kernels: none: {KERNELS_VARIABLE} is off.\n" in text
    assert f"  A denoising step as one CUDA graph: off ({GRAPH_VARIABLE}).\n" in text


@pytest.mark.parametrize("variable", [KERNELS_VARIABLE, GRAPH_VARIABLE])
def test_a_switch_that_is_not_understood(
    variable: str, command: Command, llm_command: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, too: who sets it has a card in doubt, which may be there with the next prompt."""
    monkeypatch.setenv(variable, "no")
    says = f"{variable} is 'no'. Set it to on or off, or unset it."
    assert llm_command.fails("-m", "diffusiongemma-tiny", "hi") == says
    assert command.status()["models"][-1]["error"] == says
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert (status._kernels() is None, status._graph() is None) == (
        variable == KERNELS_VARIABLE,
        variable == GRAPH_VARIABLE,
    )


def test_status_of_what_a_server_computes_with() -> None:
    state = {"replies": 1, "running_since": 1.0, "waiting": 0}
    loaded = {"representation": "bf16", "device": "cuda:0"}  # all that one of an earlier version tells
    before = "Its weights (bf16) are loaded on cuda:0."
    assert _server_state({**state, "loaded": loaded}, None, False).startswith(f"{before} Replies so far: 1.")
    kernels = {"in_use": [], "switched_off": {"all": "why"}}
    loaded |= {"kernels": kernels, "graph": "used"}
    assert _server_state({**state, "loaded": loaded}, None, False).startswith(
        f"{before} Kernels: none in use; why. A denoising step as one CUDA graph: used. Replies"
    )


def test_status_of_a_server_at_work() -> None:
    state = {"loaded": None, "replies": 1, "running_since": 1.0}
    said = [_server_state({**state, "waiting": number}, None, False) for number in range(3)]
    assert [text.partition("is writing ")[2] for text in said] == ["one.", "one, and 1 waits.", "one, and 2 wait."]


def test_of_what_differs_in_numbers_only_the_numbers_are_said_again(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "available_devices", lambda: ["cpu"])
    text = " ".join(command.ok("status").split())
    assert text.count("finds no GPU") == 1
    assert "diffusiongemma, diffusiongemma-nvfp4: The model's weights take 17.5 GiB, " in text
    assert "diffusiongemma-bf16: the same, but 48.1 GiB" in text


def test_numbers_in_names_are_none() -> None:
    sentences = ["run-1/2 takes 1.5 GiB, 7 B.", "run-1/2 takes 2.5 GiB, 7 B.", "run-2/2 takes 1.5 GiB, 7 B."]
    models = [{"model": name, "error": text} for name, text in zip("abc", sentences, strict=True)]
    assert list(_prompts(models)) == [f"a: {sentences[0]}", "b: the same, but 2.5 GiB.", f"c: {sentences[2]}"]


def test_a_card_that_does_not_answer(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch counts it, and that is all."""

    def fail(*arguments: object) -> None:
        raise RuntimeError("CUDA error: unknown error")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name in ("get_device_name", "get_device_properties", "mem_get_info"):
        monkeypatch.setattr(torch.cuda, name, fail)
    text = command.ok("status")
    assert "  cuda:0    memory not known\n" in text
    assert text.count("CUDA error: unknown error") == 1


@pytest.mark.usefixtures("in_process")
def test_newer_weights_are_told_only_if_asked_for(
    command: Command, hub: LoopbackHub, checkpoint_files: dict[str, bytes]
) -> None:
    command.ok("download", "diffusiongemma-bf16")
    assert "newer_commit" not in weights_of(command.status(), REPO)
    assert weights_of(command.status("--updates"), REPO)["newer_commit"] is None
    assert f"commit {COMMIT[:12]}, the newest" in command.ok("status", "--updates")
    hub.newer = {**checkpoint_files, "README.md": b"newer"}
    assert weights_of(command.status("--updates"), REPO)["newer_commit"] == NEWER_COMMIT
    hint = "`llm diffusiongemma download diffusiongemma-bf16 --update`"
    assert f"newer: {NEWER_COMMIT[:12]} ({hint})\n" in command.ok("status", "--updates")
    hub.refuse_all = Refusal(503)
    result = command.llm("diffusiongemma", "status", "--updates")
    assert result.exit_code == 1
    assert "; newer: not known\n" in result.stdout
    assert "(status 503)" in " ".join(result.stdout.partition("Problems\n")[2].split())
    assert "diffusiongemma-tiny: " in result.stdout


@pytest.mark.usefixtures("in_process")
def test_a_hub_that_is_not_there_is_said_once(
    command: Command, hub: LoopbackHub, checkpoint_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.others[NVIDIA] = checkpoint_files
    for kind in ("bf16", "nvfp4"):
        command.ok("download", f"diffusiongemma-{kind}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    text = command.llm("diffusiongemma", "status", "--updates").stdout
    assert text.count("; newer: not known\n") == 2
    assert text.partition("Problems\n")[2].count("HF_HUB_OFFLINE") == 1
    assert "-m diffusiongemma-tiny" not in text.partition("Problems\n")[2]


# --- download ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_process")
def test_download_brings_what_a_prompt_then_need_not(
    command: Command, hub: LoopbackHub, checkpoint_files: dict[str, bytes]
) -> None:
    said = command.ok("download", "diffusiongemma-bf16")
    shown = size(sum(map(len, checkpoint_files.values())))
    assert said == f"{REPO}@{COMMIT} is here ({shown}): `llm -m diffusiongemma-bf16` runs it."
    hub.requests.clear()
    # Once more it asks nobody, unless for something newer.
    assert command.ok("download", "diffusiongemma-bf16") == said
    assert not hub.requests
    assert command.ok("download", "diffusiongemma-bf16", "--update") == said
    assert not hub.file_gets
    hub.newer = {
        **checkpoint_files,
        "chat_template.jinja": checkpoint_files["chat_template.jinja"] + b"{# newer #}",
    }
    assert NEWER_COMMIT in command.ok("download", "diffusiongemma-bf16", "--update")
    assert hub.file_gets == ["chat_template.jinja"]


def test_download_of_what_is_in_a_folder(command: Command) -> None:
    assert "nothing to download" in command.ok("download", "diffusiongemma-tiny")


def test_download_to_a_machine_that_runs_none_of_it(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU nobody is asked; whoever wants to have it all the same names it."""
    monkeypatch.setattr(devices, "available_devices", lambda: ["cpu"])
    assert "It downloads" not in command.ok("status")
    message = command.fails("download")
    assert "no GPU" in message
    assert "diffusiongemma-bf16 or diffusiongemma-fp8 or diffusiongemma-nvfp4" in message
    message = command.fails("download", "diffusiongemma-nvfp4")
    assert "HF_HUB_OFFLINE" in message
    assert "-m diffusiongemma-tiny" not in message  # it is no prompt


@pytest.mark.usefixtures("in_process")
def test_download_of_what_this_machine_refuses(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_MEMORY", "1MiB")
    said = " ".join(command.ok("download", "diffusiongemma-bf16").split())
    assert f"{REPO}@{COMMIT} is here (" in said
    assert "LLM_DIFFUSIONGEMMA_MEMORY to more" in said
    assert "runs it." not in said


@pytest.mark.parametrize("name", ["download", "remove"])
def test_no_such_model(command: Command, name: str) -> None:
    message = command.fails(name, "diffusiongemma-tinny")
    assert "'diffusiongemma-tinny'. Did you mean diffusiongemma-tiny? Here are: " in message
    assert "Did you mean" not in command.fails(name, "xyz")
    assert ", ".join(OURS) in message


# --- add -----------------------------------------------------------------------------------------------------


def test_a_model_of_ones_own_answers(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EMBEDDED_CHECKPOINT.parent)
    said = command.ok("add", "mine", "checkpoint", "--device", "CPU")
    assert said == f"Added: `llm -m mine` runs {EMBEDDED_CHECKPOINT}."
    monkeypatch.chdir(tmp_path)
    options = ("-o", "seed", "1", "-o", "max_denoising_steps", "1", "-o", "max_tokens", "8")
    assert command.llm.ok("-m", "mine", "What is a canvas?", *options)
    (log,) = command.llm.logs()
    assert log["model"] == "mine"


def test_advice_for_a_folder_of_ones_own(command: Command, tmp_path: Path) -> None:
    """It isn't the environment that names it."""
    folder = tmp_path / "mine"
    shutil.copytree(EMBEDDED_CHECKPOINT, folder)
    command.ok("add", "mine", str(folder))
    (folder / "config.json").write_text("{")
    damaged = command.llm.fails("-m", "mine", "Hello")
    assert "config.json" in damaged
    snapshot = folder / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (folder / "config.json").rename(snapshot / "config.json")
    of_a_cache = command.llm.fails("-m", "mine", "Hello")
    assert "is a repository's folder" in of_a_cache
    shutil.rmtree(folder)
    for message in (damaged, of_a_cache, command.llm.fails("-m", "mine", "Hello")):
        assert "`llm diffusiongemma remove`" in message
        assert "LLM_DIFFUSIONGEMMA_MODEL" not in message


def test_what_cannot_be_added_is_not(command: Command, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    llm.set_alias("short", "diffusiongemma-tiny")
    for arguments, words in (
        (("mine", str(tmp_path)), "generation_config.json"),
        (("diffusiongemma", "a/b"), "already"),
        (("short", "a/b"), "already"),
        (("mine", "a/b", "--device", "much"), "no device"),
        (("mine", "nowhere"), "owner/name"),
        (("mine", "a/b", "--revision", "../x"), "revision"),
    ):
        assert words in command.fails("add", *arguments)
    assert not registry.path().exists()


# --- remove --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_process")
def test_remove_asks_and_says_what_it_frees(
    command: Command, cache: Path, checkpoint_files: dict[str, bytes]
) -> None:
    shown = size(sum(map(len, checkpoint_files.values())))
    command.ok("download", "diffusiongemma-bf16")
    refused = command.llm("diffusiongemma", "remove", "diffusiongemma-bf16", input="n\n")
    assert refused.exit_code == 1
    assert f"deleted:\n  {REPO}: {shown} (the weights of diffusiongemma, too)\n" in refused.stdout
    assert weights_of(command.status(), REPO)["is_whole"]
    assert f"{shown} are free again" in command.ok("remove", "diffusiongemma-bf16", input="y\n")
    assert weights_of(command.status(), REPO)["bytes"] == 0
    assert not [file for file in cache.rglob("*") if file.is_file() and file.stat().st_size > 1000]
    assert f"Nothing of {REPO}" in command.fails("remove", "diffusiongemma-bf16")


@pytest.mark.usefixtures("in_process")
def test_remove_of_a_model_of_ones_own(
    command: Command, hub: LoopbackHub, checkpoint_files: dict[str, bytes], tmp_path: Path
) -> None:
    """Its name goes, and weights that are nobody else's."""
    hub.others["somebody/tuned"] = checkpoint_files
    folder = tmp_path / "mine"
    shutil.copytree(EMBEDDED_CHECKPOINT, folder)
    for arguments in (("mine", str(folder)), ("tuned", "somebody/tuned"), ("other", REPO)):
        command.ok("add", *arguments)
    for model_id in ("tuned", "other"):
        command.ok("download", model_id)
    assert "stays as it is" in command.ok("remove", "mine", "-y")
    assert (folder / "config.json").exists()
    assert "will be deleted:\n  somebody/tuned: " in command.ok("remove", "tuned", "-y")
    assert "stay: they are those of diffusiongemma and diffusiongemma-bf16, too" in command.ok(
        "remove", "other", "-y"
    )
    assert registry.read().entries == ()
    found = command.status()
    assert weights_of(found, REPO)["is_whole"]
    assert "somebody/tuned" not in json.dumps(found)
    command.ok("add", "tuned", "somebody/tuned")
    assert weights_of(command.status(), "somebody/tuned")["bytes"] == 0


@pytest.mark.usefixtures("in_process")
def test_remove_of_several_repositories_names_each(
    command: Command, hub: LoopbackHub, checkpoint_files: dict[str, bytes]
) -> None:
    hub.others[NVIDIA] = checkpoint_files
    for kind in ("bf16", "nvfp4"):
        command.ok("download", f"diffusiongemma-{kind}")
    num_bytes = sum(map(len, checkpoint_files.values()))
    shown = size(num_bytes)
    refused = command.llm("diffusiongemma", "remove", "diffusiongemma", input="n\n").stdout
    assert f"\n  {REPO}: {shown} (the weights of diffusiongemma-bf16, too)\n" in refused
    assert f"\n  {NVIDIA}: {shown} (the weights of diffusiongemma-nvfp4, too)\n" in refused
    assert f"Delete {size(2 * num_bytes)}? [y/N]" in refused
    # Whoever has a model of that name may mean only that.
    registry.add(ModelEntry("diffusiongemma", (Source("a/b"),)))
    assert "Give that one another name" in command.fails("remove", "diffusiongemma", "-y")
    found = command.status()
    assert all(weights_of(found, repo)["is_whole"] for repo in (REPO, NVIDIA))


def test_what_comes_with_the_plugin_stays(command: Command) -> None:
    assert "stays as it is" in command.fails("remove", "diffusiongemma-tiny", "-y")
    assert (EMBEDDED_CHECKPOINT / "config.json").exists()


# --- as a process --------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="another Ctrl-C")
@pytest.mark.usefixtures("in_processes")
def test_an_interrupted_download_ends_as_a_prompt_does(
    command: Command, hub: LoopbackHub, checkpoint_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the bar that a terminal sees is gone."""
    monkeypatch.setenv("TERM", "xterm")
    hub.pause_after = 1_000_000
    terminal = Terminal()
    try:
        process = command.llm.process(
            "diffusiongemma", "download", "diffusiongemma-bf16", stderr=terminal.stream.fileno()
        )
        terminal.wait_for(f"/{size(sum(map(len, checkpoint_files.values())))} ")
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=60)
        screen = terminal.settle()
    finally:
        terminal.close()
    assert process.returncode == 130
    assert stdout.strip() == ""
    told, _, last = screen.partition("Stopped. ")
    assert told.endswith("the same command goes on where it was.\n\n")
    assert "stay there: the same command goes on" in " ".join(last.split())
    assert last.endswith("Interrupted.\n")


def test_help_says_what_there_is(command: Command) -> None:
    help_text = command.ok("--help")
    names = ("add", "check", "download", "last", "remove", "serve", "status", "stop", "warm")
    assert all(f"  {name} " in help_text for name in names)
    assert "..." not in help_text.partition("Commands:")[2]  # of a sentence that is too long for its place


@pytest.mark.parametrize(
    ("keep_alive", "weights"),
    [
        (None, "The weights stay until it ends."),
        (0.0, "The weights go after each reply that nobody waits behind, "),
        (600.0, "The weights go after 10m without a prompt, "),
    ],
)
def test_a_server_says_how_it_is_asked(
    keep_alive: float | None, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = llm.get_model("diffusiongemma-tiny").entry
    server = Running(identity_of(entry), 1, 0.0, "a", None, "http://127.0.0.1:1/v1", keep_alive, False)
    _say_served(server, "", "Ctrl-C ends it.")
    text = capsys.readouterr().out
    assert "`llm -m diffusiongemma-tiny` finds it by itself." in text
    assert weights in text
    assert "Other machines" not in text
    _say_served(replace(server, url_of_others="http://box:1/v1", key_name="mine"), "off", "Ctrl-C ends it.")
    text = capsys.readouterr().out
    assert "  llm diffusiongemma add NAME http://box:1/v1 --key mine\n" in text
    assert f"Prompts from here don't ask it: {SERVER_VARIABLE} is 'off'." in text
    assert "finds it by itself" not in text


@pytest.mark.parametrize(
    ("status", "said"), [(130, "\nThe server is stopped.\n"), (0, "The server is stopped.\n")]
)
def test_the_end_of_a_server_is_said(
    command: Command, status: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "serve", lambda *_, **__: status)
    result = command.llm("diffusiongemma", "serve", "diffusiongemma-tiny")
    assert (result.exit_code, result.stderr) == (status, said)


# --- models that a server has --------------------------------------------------------------------------------


def test_a_server_as_a_model(command: Command) -> None:
    server = ScriptedServer()
    server.start()
    try:
        command.llm.ok("keys", "set", "mine", "--value", "secret")
        added = command.ok("add", "box", f"{server.url}/", "--key", "mine")
        assert added == (f"Added: `llm -m box` asks {server.url}. That is vLLM, which has the model as tiny.")
        assert server.requests[0].headers["authorization"] == "Bearer secret"
        # Nothing is added of which it is clear that it can't be meant.
        server.models = models("vllm", "a", "b")
        assert "It has: a, b." in command.fails("add", "other", server.url)
        assert "has no model c. It has: a, b. Add it with --served-model" in command.fails(
            "add", "other", server.url, "--served-model", "c"
        )
        # Somebody's list may be of something else than what it serves.
        server.models = models("somebody", "a", "b")
        assert "has no model c. It has: a, b." in command.ok("add", "third", server.url, "--served-model", "c")
        server.models = Answer(b"<html>", {"Content-Type": "text/html"})
        assert "no OpenAI-compatible server" in command.fails("add", "other", server.url)
        assert "vLLM" not in command.ok("add", "other", f"{server.url}", "--served-model", "a", "--key", "gone")
        # What was forgotten can be said later: the key, or which of its models.
        refused = command.fails("add", "box", "http://elsewhere/v1")
        assert "already" in refused
        assert refused.endswith("llm diffusiongemma remove box")
        server.models = models("vllm", "tiny")
        changed = command.ok("add", "box", f"{server.url}", "--served-model", "tiny")
        assert changed.startswith(f"Changed: `llm -m box` asks {server.url} without a key. That is vLLM")
        changed = command.ok("add", "box", f"{server.url}/", "--key", "mine")
        assert changed.startswith(
            f"Changed: `llm -m box` asks {server.url} with the key that `llm keys` has as mine."
        )
        server.requests.clear()

        found = command.status()
        models_by_id = {model["model"]: model for model in found["models"]}
        assert models_by_id["box"]["server"] == {"url": server.url, "served_model": None, "key_name": "mine"}
        assert models_by_id["other"]["server"]["served_model"] == "a"
        text = " ".join(command.ok("status").split())
        assert f"box: the server {server.url} is asked, with the key that `llm keys` has as mine." in text
        assert f"other: the server {server.url} is asked for its model a, with the key" in text
        assert "secret" not in text
        assert not server.requests
    finally:
        server.stop()

    assert "nothing to download" in command.ok("download", "box")
    assert "on that machine" in command.fails("check", "box")
    assert command.ok("remove", "box", "-y") == "llm will not know 'box' any more.\nDone."
    assert "box" not in {model["model"] for model in command.status()["models"]}


def test_a_server_that_is_not_there_yet(command: Command) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    added = command.ok("add", "box", url)
    assert added.startswith(f"Added: `llm -m box` asks {url}. It can't be asked now: {url} can't be reached")
    assert command.status()["models"][-1]["server"]["url"] == url
    assert "can't hold a name or a password" in command.fails("add", "other", "http://me:secret@host/v1")
