"""`llm diffusiongemma last`: what it says of replies, whoever gave them, and of logs that have none."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import llm
import pytest

from llm_diffusiongemma import registry
from llm_diffusiongemma.backends import remote
from llm_diffusiongemma.backends.engine import get_engine
from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.diffusion.network import Network
from llm_diffusiongemma.diffusion.operations import PLAIN_TORCH
from llm_diffusiongemma.diffusion.pipeline import BlockDiffusionPipeline
from llm_diffusiongemma.diffusion.proving import Verdict

from .backends.scripted_server import Answer, ScriptedServer, delta, models, sse, usage
from .conftest import TINY, Llm

FEW_STEPS = ("-o", "max_denoising_steps", "2")


def last(llm_command: Llm) -> dict[str, Any]:
    return json.loads(llm_command.ok("diffusiongemma", "last", "--json"))


def told(llm_command: Llm) -> str:
    return llm_command.ok("diffusiongemma", "last")


def row(text: str, name: str) -> str:
    """What a line of `told` says."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"  {name} "))
    return line.removeprefix(f"  {name} ").strip()


def log() -> Path:
    return Path(os.environ["LLM_USER_PATH"]) / "logs.db"


def change(statement: str, *values: object) -> None:
    """Make the log one that somebody else has written."""
    with closing(sqlite3.connect(log())) as database:
        database.execute(statement, values)
        database.commit()


def test_a_reply_of_several_canvases(llm_command: Llm) -> None:
    answer = llm_command.ok("-m", TINY, "Count from 1 to 400", "-o", "seed", "3")
    (turn,) = llm_command.logs()
    report, found = turn["response_json"], last(llm_command)
    for name in ("seed", "device", "dtype", "placement", "peak_memory_bytes", "load_seconds", "generate_seconds"):
        assert found[name] == report[name]
    for name in ("model", "resolved_model", "datetime_utc", "input_tokens", "output_tokens"):
        assert found[name] == turn[name]
    blocks = report["blocks"]
    assert [{name: canvas[name] for name in blocks[0]} for canvas in found["canvases"]] == blocks
    assert found["denoising_steps"] == sum(block["denoising_steps"] for block in blocks)
    assert found["tokens_per_second"] == pytest.approx(turn["output_tokens"] / report["generate_seconds"], abs=0.1)
    # The engine is this process's, and may have the beginning of the prompt from another test.
    cached = json.loads(turn["token_details"]).get("cached_tokens", 0)
    assert (found["finish_reason"], found["answered_by"]) == ("stop", "this process")
    assert found["cached_tokens"] == cached
    assert answer not in json.dumps(found)

    text = told(llm_command)
    assert text.startswith(f"The last reply of {TINY}, 20")
    assert row(text, "prompt") == "Count from 1 to 400"
    assert row(text, "ended") == "complete"
    kept = f" ({cached} of them cached)" if cached else ""
    assert row(text, "tokens") == f"{turn['input_tokens']} in{kept}, {turn['output_tokens']} out"
    assert row(text, "weights") == f"bf16 of {turn['resolved_model']}, computed in float32"
    assert [line.split()[:3] for line in text.partition("  canvas ")[2].splitlines()[1 : len(blocks) + 1]] == [
        [str(i + 1), str(block["tokens"]), str(block["denoising_steps"])] for i, block in enumerate(blocks)
    ]
    assert text.endswith("makes this reply again:\n    -o seed 3")


def test_what_is_ones_own_is_for_people_only(llm_command: Llm, tmp_path: Path) -> None:
    """`--json` is what the issue template asks for."""
    folder = tmp_path / "secretfolder"
    folder.symlink_to(EMBEDDED_CHECKPOINT)
    registry.add(registry.new_entry("mine", str(folder)))
    options = (
        "-o",
        "regex",
        "secret[ab]",
        "-o",
        "replay",
        str(tmp_path / "secret.html"),
        "-o",
        "max_tokens",
        "20",
    )
    assert llm_command.ok("-m", "mine", "A secret\x1b[2J?\nsay it", *options).startswith("secret")
    shown = llm_command.ok("diffusiongemma", "last", "--json")
    assert "secret" not in shown
    found = json.loads(shown)
    assert (found["model"], found["constraint"], found["options"]) == (
        "mine",
        "regex",
        {"max_tokens": 20},
    )
    # A model that has gone since is no less known by its reply.
    registry.take_out("mine")
    text = told(llm_command)
    assert row(text, "prompt") == r"A secret\x1b[2J? …"
    assert row(text, "constraint").startswith("regex secret[ab]; positions where the network preferred another")
    assert text.endswith(f"\n    -o max_tokens 20 -o regex 'secret[ab]' -o seed {found['seed']}")


def test_a_text_of_several_lines_is_copied_as_it_was(llm_command: Llm) -> None:
    draft = "1\n\t2\\n 'three'\x1b[2J"
    llm_command.ok("-m", TINY, "count 1 to 3", "-o", "draft", draft)
    line = told(llm_command).splitlines()[-1].strip()
    assert line == r"-o seed 1 -o draft $'1\n\t2\\n \'three\'\x1b[2J'"
    if shell := shutil.which("bash"):
        words = subprocess.run([shell, "-c", f"printf '%s|' {line}"], capture_output=True, text=True, check=True)
        assert words.stdout == f"-o|seed|1|-o|draft|{draft}|"


def test_what_a_reply_hung_on_beside_its_prompt(llm_command: Llm) -> None:
    def again() -> str:
        return " ".join(told(llm_command).rpartition("\n\n")[2].split())

    llm_command.ok("-m", TINY, "Hello", "-s", "Be brief.", "--schema", "age int", "-o", "seed", "3")
    assert again().startswith(
        "On the same device the same prompt, system prompt and schema with these options make"
    )
    llm_command.ok("-c", "Hello", "-o", "max_tokens", "5")
    assert "make this reply again, as the same turn of the same conversation: -o max_tokens 5" in again()
    llm_command.ok("-m", TINY, "-T", "llm_version", "What is the version of llm?", "-o", "seed", "1")
    assert "makes this reply again" not in again()
    assert "It is the last of several turns, after the results of tools" in " ".join(told(llm_command).split())


def test_replies_that_did_not_come_to_their_end(llm_command: Llm) -> None:
    llm_command.ok("-m", TINY, "Count from 1 to 100", "-o", "max_tokens", "5")
    assert row(told(llm_command), "ended") == "cut: max_tokens (5) was used up"
    # A chat goes on behind an error, and so it is kept.
    llm_command.ok("chat", "-m", TINY, "-o", "regex", "(", input="Hello\nexit\n")
    assert row(told(llm_command), "ended").startswith("an error: ")
    assert last(llm_command)["finish_reason"] == "error"
    change("""update turns set response_json = '{"finish_reason": "interrupted"}'""")
    assert row(told(llm_command), "ended") == "interrupted"
    assert last(llm_command)["canvases"] == []
    # One of a server, before it was heard of, and after that but before the first canvas.
    served = """{"finish_reason": "interrupted", "server": "local server", "generate_seconds": 0.0}"""
    change(f"update turns set response_json = '{served}', resolved_model = '{TINY}'")
    text = told(llm_command)
    assert row(text, "server") == "the local server"
    assert "to generate" not in text


def test_what_a_card_has_to_tell(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its kernels, of a step as one graph, and of experts that lie elsewhere. A CPU has none of it."""
    llm_command.ok("-m", TINY, "Hello", "-o", "max_tokens", "1")
    names = ("kernels", "graph", "streaming")
    assert not {*names} & llm_command.logs()[0]["response_json"].keys()
    assert [last(llm_command)[name] for name in names] == [None] * 3
    assert not any(f"\n  {name} " in told(llm_command) for name in names)

    loaded = get_engine(llm.get_model(TINY).entry).engine.loaded
    verdict = Verdict(PLAIN_TORCH, ("heads", "finish"), {"after_attention": "it fails"}, ("after_attention",))
    monkeypatch.setitem(vars(loaded), "verdict", verdict)
    monkeypatch.setattr(BlockDiffusionPipeline, "graph_state", "the first replay differed\x1b[2J")
    streaming = {
        "bytes_a_step": 3 << 30,
        "bytes_a_second": 20 << 30,
        "waited_share": 0.124,
        "of_another_version": 1,
    }
    monkeypatch.setattr(Network, "streaming_report", lambda self: streaming)
    llm_command.ok("-m", TINY, "Hello", "-o", "max_tokens", "1")
    report, found = llm_command.logs()[-1]["response_json"], last(llm_command)
    assert report["kernels"] == {"in_use": ["heads", "finish"], "switched_off": {"after_attention": "it fails"}}
    assert [found[name] for name in names] == [report[name] for name in names]
    text = told(llm_command)
    assert row(text, "kernels") == "2 in use; not after attention: it fails"
    assert row(text, "graph") == r"the first replay differed\x1b[2J"
    assert row(text, "streaming") == "3.0 GiB a step, 20.0 GiB a second, waited for 12% of the time"
    # A log that somebody else has written.
    odd = """'$.kernels', json('{"in_use": 3, "switched_off": {"a": [1]}}'), '$.graph', 1, '$.streaming', 'x'"""
    change(f"update turns set response_json = json_set(response_json, {odd})")
    text = told(llm_command)
    assert row(text, "kernels") == "none in use; not a: [1]"
    assert "streaming" not in text


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    monkeypatch.setattr(remote, "_known", {})
    server = ScriptedServer(models("vllm", "tiny"))
    server.start()
    yield server
    server.stop()


def test_a_server_of_somebody_else(server: ScriptedServer, llm_command: Llm) -> None:
    """What it doesn't tell is left out, and nothing is made up."""
    server.reply = Answer(sse(delta("stop", content="One."), usage(9, 5)))
    registry.add(registry.new_entry("box", server.url))
    llm_command.ok("-m", "box", "Count")
    text = told(llm_command)
    assert row(text, "server") == f"{server.url}, as tiny"
    assert row(text, "tokens") == "9 in, 5 out"
    assert not any(name in text for name in ("canvas", "weights", "memory", "seed"))
    found = last(llm_command)
    assert (found["answered_by"], found["cached_tokens"], found["seed"]) == ("another server", None, None)
    assert "tiny" not in str(found)
    assert server.url not in str(found)


def test_other_models_replies_are_passed_over(llm_command: Llm) -> None:
    llm_command.ok("-m", TINY, "What is a canvas?")
    for i, text in enumerate(["null", "[]", '{"finish_reason": "stop"}', "{", '"seed"', None]):
        change("insert into turns (id, model, response_json) values (?, 'other', ?)", f"z{i}", text)
    assert last(llm_command)["model"] == TINY


def test_words_about_us_are_no_report_of_ours(llm_command: Llm) -> None:
    """OpenAI's reports have the reason for an end, too, and a call of a tool may name us."""
    llm_command.ok("-m", TINY, "What is a canvas?")
    change("update turns set model = 'other', response_json = ?", json.dumps({"finish_reason": "tool_calls"}))
    change("update parts set payload = ?", json.dumps({"arguments": {"model": "diffusiongemma"}}))
    assert "no reply of a DiffusionGemma" in llm_command("diffusiongemma", "last").stderr
    change("update parts set payload = 'no JSON \"diffusiongemma\"'")
    assert "no reply of a DiffusionGemma" in llm_command("diffusiongemma", "last").stderr


def test_a_report_of_another_version(llm_command: Llm) -> None:
    """Whatever is missing, or has become something else."""
    llm_command.ok("-m", TINY, "What is a canvas?")
    change("update turns set options_json = null, datetime_utc = null, input_tokens = null, duration_ms = null")
    for other in ([], ["a"], [{}], [{"denoising_steps": "4", "converged": 1, "constraint": 3}]):
        report = {
            "finish_reason": "odd\x07",
            "seed": 1,
            "generate_seconds": None,
            "blocks": other,
            "lowered": [{}],
        }
        report |= {"placement": [], "peak_memory_bytes": "much", "device": None, "representation": "int3"}
        change("update turns set response_json = ?", json.dumps(report))
        assert row(told(llm_command), "ended") == r"odd\x07"
        assert last(llm_command)["peak_memory_bytes"] is None
    change(
        "update turns set response_json = ?, input_tokens = 'many', output_tokens = 'x', model = x'ff'",
        json.dumps(report | {"lowered": 5, "seed": 10**400}),
    )
    assert "makes this reply again" not in told(llm_command)
    assert last(llm_command)["input_tokens"] is None


def test_of_many_canvases_the_usual_and_the_odd_ones_are_told(llm_command: Llm) -> None:
    llm_command.ok("-m", TINY, "What is a canvas?")
    (turn,) = llm_command.logs()
    report = turn["response_json"]
    (block,) = report["blocks"]
    report["blocks"] = [block | {"denoising_steps": i, "converged": i != 3} for i in range(1, 21)]
    report["blocks"][0]["redrawn"] = 1
    change("update turns set response_json = ?", json.dumps(report))
    text = told(llm_command)
    assert row(text, "canvases").startswith(
        "20, 19 of them converged; canvas 1 drawn again once, as nothing was in it; 210 denoising steps"
    )
    assert row(text, "steps").split() == ["1", "10.5", "20"]


def test_a_decision(llm_command: Llm) -> None:
    decision = ("-o", "choices", "secret one,secret two", "-o", "probabilities", "true", "-o", "reads", "2")
    answer = json.loads(llm_command.ok("-m", TINY, "Which?", *decision))
    (turn,) = llm_command.logs()
    report, text = turn["response_json"]["choices"], told(llm_command)
    (first, *_), of_first = answer, report["probabilities"].values()
    said = row(text, "choices")
    assert said.startswith(f"{first} {answer[first]:.1%} ±{report['spread'][first]:.1%}, secret ")
    assert said.endswith(f"; e^{report['log_mass']:.1f} of all that could be written")
    assert row(text, "canvases") == "2, of pure noise, each read in one denoising step"
    assert " out" not in row(text, "tokens")
    assert "this reply again, but for its last digits:" in " ".join(text.split())
    assert not any(f"\n  {name} " in text for name in ("constraint", "canvas"))
    # What was to be decided is nobody's business.
    found = last(llm_command)
    assert "secret" not in json.dumps(found)
    assert found["choices"] == report | {
        "probabilities": [*of_first],
        "spread": [*report["spread"].values()],
    }
    assert found["denoising_steps"] == 2
    details = '"canvases": 2, "denoising_steps": 2}'
    assert details in llm_command.ok("logs", "-u", "-n", "1")

    many = {str(i): 0.01 for i in range(100)}
    change(
        "update turns set response_json = json_set(response_json, '$.choices.probabilities', json(?))",
        json.dumps(many),
    )
    assert ", 3 1.0%" in (said := row(told(llm_command), "choices"))
    assert ", 96 more; " in said
    for odd in (
        "'x'",
        "json('[1]')",
        """json('{"probabilities": {"a": "b", "c": 0.5}, "spread": [1], "reads": "x"}')""",
    ):
        change(f"update turns set response_json = json_set(response_json, '$.choices', {odd})")
        assert told(llm_command)
        assert last(llm_command)["finish_reason"] == "stop"


def test_choices_and_blanks(llm_command: Llm) -> None:
    llm_command.ok("-m", TINY, "Is it?", "-o", "choices", "yes,no", *FEW_STEPS)
    said = row(told(llm_command), "choices")
    assert "; at the last denoising step; e^-" in said
    assert row(told(llm_command), "constraint").startswith("choices yes,no; ")
    fill = ("-o", "fill", "Name: {name}. {rest...}")
    llm_command.ok("-m", TINY, "name Ada, age 36", *fill, *FEW_STEPS)
    (*_, turn) = llm_command.logs()
    blanks = turn["response_json"]["blanks"]
    text, found = told(llm_command), last(llm_command)
    assert row(text, "blanks").startswith(f"name: {blanks['name']}; rest: ")
    assert (found["constraint"], found["blanks"]) == ("fill", 2)
    assert json.dumps(blanks["name"]) not in json.dumps(found)
    assert row(text, "constraint").startswith("fill Name: {name}. {rest...}; ")


def test_logs_without_a_reply(llm_command: Llm) -> None:
    def fails() -> str:
        result = llm_command("diffusiongemma", "last")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("Error: ")
        return result.stderr

    assert "no reply of a DiffusionGemma" in fails()
    llm_command.ok("logs", "off")
    assert "`llm logs on` changes that" in fails()
    log().write_bytes(b"")
    assert "There is nothing in llm's log" in fails()
    log().write_bytes(b"This is no database at all. " * 100)
    assert "is damaged: file is not a database. Move it away" in fails()
    log().unlink()
    assert "There is no log yet" in fails()
    assert not log().exists()
    log().mkdir()
    assert "can't be read: " in fails()


def test_logging_that_is_off_is_said(llm_command: Llm) -> None:
    llm_command.ok("-m", TINY, "What is a canvas?")
    llm_command.ok("logs", "off")
    llm_command.ok("-m", TINY, "What is entropy?")
    text = told(llm_command)
    assert row(text, "prompt") == "What is a canvas?"
    assert "llm logs nothing now" in text
    assert last(llm_command)["is_logging"] is False


def test_usage_tells_canvases_and_steps(llm_command: Llm) -> None:
    result = llm_command("-m", TINY, "What is a canvas?", "-u")
    found = last(llm_command)
    details = f'"canvases": {len(found["canvases"])}, "denoising_steps": {found["denoising_steps"]}}}'
    assert details in result.stderr
    assert details in llm_command.ok("logs", "-u", "-n", "1")
