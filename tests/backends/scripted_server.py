"""A server on 127.0.0.1 that plays a script: which models it has, and what it answers to a prompt."""

from __future__ import annotations

import json
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

STREAM = {"Content-Type": "text/event-stream"}
JSON = {"Content-Type": "application/json"}

PATIENCE_SECONDS = 60


@dataclass
class Answer:
    """What is sent, and how."""

    body: bytes
    headers: dict[str, str] = field(default_factory=lambda: STREAM)
    status: int = 200
    is_cut: bool = False
    """Promise more and drop the connection."""
    stays: bool = False
    """Send no more, and keep the connection until the client leaves or it is over."""


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class ScriptedServer:
    """Start with `start`, stop with `stop`. The script can be changed at any time."""

    models: Answer = field(default_factory=lambda: models("vllm", "tiny"))
    reply: Answer = field(default_factory=lambda: Answer(b""))
    requests: list[Asked] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)
    """The client of an answer that stays has gone."""
    over: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *arguments: _Handler(self, *arguments))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def prompts(self) -> list[Asked]:
        return [asked for asked in self.requests if asked.method == "POST"]


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, script: ScriptedServer, *arguments: Any) -> None:
        self.script = script
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self._answer(self.script.models, None)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(self.script.reply, body)

    def _answer(self, answer: Answer, body: Any) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.script.requests.append(Asked(self.command, self.path, headers, body))
        self.close_connection = True
        if answer.status == 0:  # nothing at all
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.is_cut:
            self.send_header("Content-Length", str(len(answer.body) + 1))
        self.end_headers()
        try:
            self.wfile.write(answer.body)
            self.wfile.flush()
        except OSError:  # the client has seen enough
            return
        if answer.stays:
            self.connection.settimeout(0.02)
            while not self.script.over.is_set():
                try:
                    if not self.connection.recv(1):
                        self.script.left.set()
                        return
                except TimeoutError:
                    continue
                except OSError:
                    self.script.left.set()
                    return

    def log_message(self, *arguments: object) -> None:
        pass


# --- what scripts are made of --------------------------------------------------------------------------------


def models(owner: str | None, *names: str, **fields: Any) -> Answer:
    data = [{"id": name, "object": "model", "owned_by": owner, **fields} for name in names]
    return Answer(json.dumps({"object": "list", "data": data}).encode(), JSON)


def sse(*chunks: Any, ends: bool = True) -> bytes:
    """Each a chunk, or a line as it is sent."""
    lines = [chunk if isinstance(chunk, str) else f"data: {json.dumps(chunk)}" for chunk in chunks]
    return "".join(f"{line}\n\n" for line in (*lines, *(["data: [DONE]"] if ends else []))).encode()


def delta(finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": fields, "finish_reason": finish_reason}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "tiny", "choices": [choice]}


def usage(prompt: int, completion: int, **details: Any) -> dict[str, Any]:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {"id": "chatcmpl-1", "model": "tiny", "choices": [], "usage": {**counts, **details}}


def call(
    index: int | None, name: str | None, arguments: str | None, call_id: str | None = "call-1"
) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {"index": index, "id": call_id, "type": "function", "function": function}


def free_port() -> int:
    """One that nothing listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
