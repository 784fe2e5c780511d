"""The URLs of servers."""

from __future__ import annotations

import pytest

from llm_diffusiongemma.errors import RegistryError
from llm_diffusiongemma.urls import is_loopback, parse_url


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://host:8000/v1", "http://host:8000/v1"),
        (" HTTPS://Host.Example/v1// ", "https://host.example/v1"),
        ("http://host", "http://host"),
        ("http://my_box:8000/v1/chat/completions", "http://my_box:8000/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("http://bücher.example/v1", "http://bücher.example/v1"),
        ("http://host/a/b/v1", "http://host/a/b/v1"),
    ],
)
def test_one_form(text: str, url: str) -> None:
    assert parse_url(text) == url
    assert parse_url(url) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host:8000/v1",
        "ftp://host/v1",
        "file:///v1",
        "http://",
        "http:///v1",
        "http://host:port/v1",
        "http://host:99999/v1",
        "http://[::1/v1",
        "http://ho st/v1",
        "http://host/v 1",
        "http://host/\x1b[2J",
        "http://host/v1?key=1",
        "http://host/v1#1",
        "http://-/v1",
        "http://a..b/v1",
        f"http://{'a' * 64}/v1",
        "http://ho\ud800st/v1",
    ],
)
def test_none(text: str) -> None:
    with pytest.raises(RegistryError, match="can't be the URL of a server") as caught:
        parse_url(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["http://me:secret@host/v1", "http://secret@host", "http://me:secret@[/v1"])
def test_a_password_is_not_shown_again(text: str) -> None:
    with pytest.raises(RegistryError) as caught:
        parse_url(text)
    assert "secret" not in str(caught.value)
    assert "llm keys set" in str(caught.value)


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.0.0.2", "::1", "localhost", "LOCALHOST")))
    assert not any(map(is_loopback, ("host", "10.0.0.1", "0.0.0.0", "::", "localhost.example", "")))
