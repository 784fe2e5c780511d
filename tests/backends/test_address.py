"""Which server the user has named for a model, and with which key it is asked."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llm_diffusiongemma.backends.address import Address, address_of
from llm_diffusiongemma.catalog import ModelEntry, Server, Source, built_in
from llm_diffusiongemma.errors import RegistryError, ServerAccessError

URL = "http://host:8000/v1"
BUILT_IN = built_in()[0]


def set_keys(**keys: str) -> None:
    (Path(os.environ["LLM_USER_PATH"]) / "keys.json").write_text(json.dumps(keys))


def found(entry: ModelEntry) -> Address:
    address = address_of(entry)
    assert address is not None
    return address


def test_a_model_that_a_server_has(monkeypatch: pytest.MonkeyPatch) -> None:
    set_keys(mine="secret\n", diffusiongemma="other")
    for switch in ("off", "http://elsewhere/v1"):
        monkeypatch.setenv("LLM_DIFFUSIONGEMMA_SERVER", switch)
        address = found(ModelEntry("box", (), server=Server(URL, "tiny", "mine")))
        assert (address.url, address.model, address.key, address.key_name) == (URL, "tiny", "secret", "mine")
        assert address.takes_any
        assert "secret" not in repr(address)
        # No key is sent that was not named for it.
        assert found(ModelEntry("box", (), server=Server(URL))).key is None


@pytest.mark.parametrize(("keys", "words"), [({}, "has no key named mine"), ({"mine": "a b"}, "no key has")])
def test_a_key_that_cannot_be(keys: dict[str, str], words: str) -> None:
    set_keys(**keys)
    with pytest.raises(ServerAccessError, match=words) as caught:
        address_of(ModelEntry("box", (), server=Server(URL, key_name="mine")))
    assert "llm keys set mine" in str(caught.value)
    assert "a b" not in str(caught.value)


def test_a_server_that_the_environment_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for value in ("", " ", "off", "OFF"):
        monkeypatch.setenv("LLM_DIFFUSIONGEMMA_SERVER", value)
        assert address_of(BUILT_IN) is None
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_SERVER", f" {URL}/ ")
    address = found(BUILT_IN)
    assert (address.url, address.key, address.model, address.is_ours) == (URL, None, None, False)
    assert address.wanted[0] == "diffusiongemma"
    assert "google/diffusiongemma-26B-A4B-it" in address.wanted
    assert not address.takes_any
    assert address.variable == "LLM_DIFFUSIONGEMMA_SERVER"
    assert found(ModelEntry("mine", (Source(tmp_path),))).wanted == ("mine",)
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_KEY", "of the environment".replace(" ", "-"))
    address = found(BUILT_IN)
    assert (address.key, address.key_variable) == ("of-the-environment", "LLM_DIFFUSIONGEMMA_KEY")
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_KEY", "a b")
    with pytest.raises(ServerAccessError, match=r"^LLM_DIFFUSIONGEMMA_KEY holds blanks"):
        address_of(BUILT_IN)
    set_keys(diffusiongemma="kept")
    address = found(BUILT_IN)
    assert (address.key, address.key_variable) == ("kept", None)
    monkeypatch.setenv("LLM_DIFFUSIONGEMMA_SERVER", "on")
    with pytest.raises(RegistryError, match="LLM_DIFFUSIONGEMMA_SERVER is neither off nor the URL"):
        address_of(BUILT_IN)


def test_what_is_on_this_machine() -> None:
    here = Address(URL, None, "/run/socket", None, False, "box")
    assert here.is_local
    assert not Address(URL, None, None, None, False, "box").is_local
    assert Address("http://[::1]:8000/v1", None, None, None, False, "box").is_local
