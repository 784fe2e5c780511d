"""`llm -m` with a model that somebody's server has."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import llm
import pytest

from llm_diffusiongemma import registry
from llm_diffusiongemma.backends import remote

from .backends.scripted_server import JSON, Answer, ScriptedServer, call, delta, models, sse, usage
from .conftest import Llm


@pytest.fixture(scope="module")
def _server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> ScriptedServer:
    """One that `llm` knows as box."""
    monkeypatch.setattr(remote, "_known", {})
    _server.requests.clear()
    _server.left.clear()
    _server.models = models("vllm", "tiny")
    _server.reply = Answer(sse(delta(content="One "), delta("stop", content="two."), usage(9, 5)))
    registry.add(registry.new_entry("box", _server.url))
    return _server


def test_a_conversation(server: ScriptedServer, llm_command: Llm) -> None:
    assert llm_command.ok("-m", "box", "Count") == "One two."
    assert llm_command.ok("-c", "And on", "-o", "thinking", "true") == "One two."
    first, second = llm_command.logs()
    assert first["response_json"]["server"] == server.url
    assert first["response_json"]["finish_reason"] == "stop"
    assert (first["input_tokens"], first["output_tokens"]) == (9, 5)
    assert first["resolved_model"] == "tiny"
    assert [message["content"] for message in server.prompts[1].body["messages"]] == [
        "Count",
        "One two.",
        "And on",
    ]
    assert second["conversation_id"] == first["conversation_id"]


def test_tools(server: ScriptedServer) -> None:
    def add(a: int, b: int) -> str:
        """Adds."""
        server.reply = Answer(sse(delta("stop", content="It is 5.")))
        return str(a + b)

    server.reply = Answer(sse(delta("tool_calls", tool_calls=[call(0, "add", '{"a": 2, "b": 3}')])))
    assert llm.get_model("box").chain("2 + 3?", tools=[add]).text() == "It is 5."
    result = server.prompts[1].body["messages"][-1]
    assert (result["role"], result["content"]) == ("tool", "5")


async def test_async(server: ScriptedServer) -> None:
    response = llm.get_async_model("box").prompt("Count")
    assert [chunk async for chunk in response] == ["One ", "two."]
    assert response.response_json["server"] == server.url


def test_what_fails_is_a_sentence_and_no_turn(server: ScriptedServer, llm_command: Llm) -> None:
    assert "can't be asked for a schema" in llm_command.fails("-m", "box", "Count", "--schema", "a int")
    assert not server.prompts
    server.reply = Answer(json.dumps({"error": {"message": "too long"}}).encode(), JSON, 400)
    assert "refused the request (400): too long" in llm_command.fails("-m", "box", "Count", "--no-stream")
    # A chat goes on.
    result = llm_command("chat", "-m", "box", input="Count\nexit\n")
    assert result.exit_code == 0
    assert "Error: " in result.stderr


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
def test_ctrl_c(server: ScriptedServer, llm_command: Llm) -> None:
    """What has come is kept, and the server is let go."""
    server.reply = Answer(sse(delta(content="One "), ends=False), stays=True)
    process = llm_command.process("-m", "box", "Count")
    assert process.stdout is not None
    assert process.stdout.read(4) == "One "
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130
    assert "Interrupted" in stderr
    assert server.left.wait(30)
    (turn,) = llm_command.logs()
    assert (turn["response"], turn["response_json"]["finish_reason"]) == ("One ", "interrupted")
