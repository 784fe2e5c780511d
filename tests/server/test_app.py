"""The server's answers, asked in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import llm
import pytest

from llm_diffusiongemma.server.app import make_app
from llm_diffusiongemma.server.desk import Desk
from llm_diffusiongemma.server.guard import only

from ..conftest import TINY

TOKEN = "a-token"
REQUEST = {"model": TINY, "messages": [{"role": "user", "content": "What is a canvas?"}], "seed": 1}


@pytest.fixture
def desk() -> Desk:
    return Desk(llm.get_model(TINY).entry)


@pytest.fixture
async def client(desk: Desk) -> AsyncIterator[httpx2.AsyncClient]:
    app = make_app(desk, only(TOKEN), instance="this-one", stop=lambda: None)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
        yield client


async def test_a_reply(client: httpx2.AsyncClient) -> None:
    answer = (await client.post("/v1/chat/completions", json=REQUEST)).json()
    alone = llm.get_model(TINY).prompt("What is a canvas?", seed=1)
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": alone.text()}
    assert answer["choices"][0]["finish_reason"] == "stop"
