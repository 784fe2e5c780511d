"""What the environment and huggingface_hub's files say about the Hub: where it is, where its cache is, who asks.

Each can be unusable, and is then named in the sentence: nothing has been sent yet.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from ..errors import CheckpointNotFoundError, HubAccessError, HubConnectionError
from ..wording import quoted

PROXY_VARIABLES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")
CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")

# What huggingface_hub's own ten seconds are too few for: a hub that is slow, or a mirror that asks another first.
LISTING_SECONDS = 60
LONGEST_SECONDS = 86_400


def check_environment() -> None:
    """Raises `HubConnectionError` if huggingface_hub, and so whatever uses it, can't even be imported."""
    _constants()


def _constants() -> ModuleType:
    try:
        from huggingface_hub import constants
    except ValueError as error:
        # It makes numbers and addresses of its variables when it is imported.
        names = ("HF_ENDPOINT", *sorted(name for name in os.environ if _is_number_for_the_hub(name)))
        raise HubConnectionError(
            f"The Hugging Face Hub's variables can't be understood ({quoted(error)}). Correct or unset "
            f"{_listed_or(name for name in names if name in os.environ)}."
        ) from error
    return constants


def _is_number_for_the_hub(name: str) -> bool:
    return name.startswith("HF_") and name.endswith("_TIMEOUT")


def is_offline() -> bool:
    return bool(_constants().HF_HUB_OFFLINE)


def cache_folder() -> Path:
    """The folder of all repositories, there or not."""
    name = _constants().HF_HUB_CACHE
    try:
        folder = Path(name).expanduser()
        if "~" in folder.parts[:1]:
            raise RuntimeError("no home folder")
        return folder.resolve()
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointNotFoundError(
            f"The Hugging Face cache would be {quoted(name)}, which is no folder that can be found "
            f"({quoted(error)}). Set HOME to your home folder, or HF_HUB_CACHE to a folder for the weights."
        ) from error


def endpoint() -> str:
    """The Hub's address, without a slash at its end."""
    address = str(_constants().ENDPOINT)
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        usable = usable and address.isprintable() and " " not in address
    except ValueError:
        usable = False
    if not usable:
        raise blame_for_endpoint()
    return address.rstrip("/")


def blame_for_endpoint() -> HubConnectionError:
    return HubConnectionError(
        f'HF_ENDPOINT is "{shown_endpoint()}", which is no address of a Hub: it has to be like '
        "https://huggingface.co. Correct or unset it. Nothing was sent."
    )


def shown_endpoint() -> str:
    return quoted(shown_address(str(_constants().ENDPOINT)))


def shown_address(address: str) -> str:
    """An address as a sentence may show it: without the password that may stand in it."""
    before, at, after = address.rpartition("@")
    return before.partition("://")[0] + "://…@" + after if at and "://" in before else address


def listing_seconds() -> tuple[float, float]:
    """How long the Hub may be silent before it says what it has, and how long all of that may take."""
    constants = _constants()
    silence = constants.HF_HUB_ETAG_TIMEOUT
    if silence == constants.DEFAULT_ETAG_TIMEOUT and not os.environ.get("HF_HUB_ETAG_TIMEOUT"):
        silence = LISTING_SECONDS
    silence = _within_reason(silence)
    return silence, max(silence, LISTING_SECONDS)


def download_silence_seconds() -> float:
    """How long a file may bring nothing."""
    return _within_reason(_constants().HF_HUB_DOWNLOAD_TIMEOUT)


def _within_reason(seconds: Any) -> float:
    return float(min(max(seconds, 1), LONGEST_SECONDS))


def headers() -> dict[str, str]:
    """Of a request to the Hub, with the user's token if there is one. Raises `HubAccessError` for an odd one."""
    from huggingface_hub.utils import build_hf_headers

    try:
        result = build_hf_headers(library_name="llm-diffusiongemma")
    except Exception as error:  # it may read files, or ask a service for a token
        raise HubAccessError(
            f"The login for the Hugging Face Hub can't be used ({quoted(error)}). It was read from "
            f"{_token_source()}: correct or unset that, or log in again with `hf auth login`. Nothing was sent."
        ) from error
    token = result.get("authorization", "")
    if not (token.isascii() and token.isprintable() and " " not in token.removeprefix("Bearer ")):
        raise HubAccessError(
            f"The token in {_token_source()} is none: it holds characters that no token has, such as curly "
            "quotes, blanks or a line break. Copy it again as plain text, or unset it. Nothing was sent."
        )
    return result


def _token_source() -> str:
    named = [name for name in TOKEN_VARIABLES if os.environ.get(name)]
    return named[0] if named else quoted(_constants().HF_TOKEN_PATH)


def check_usable() -> None:
    """Raises `HubConnectionError` or `HubAccessError` if no request could be made, whoever were to answer it."""
    endpoint()
    headers()
    session()


def session() -> Any:
    """huggingface_hub's HTTP client, which all of a process share. Raises `HubConnectionError`."""
    from huggingface_hub import get_session

    try:
        return get_session()
    except Exception as error:
        raise _blame_for_session(error) from error


def _blame_for_session(error: BaseException) -> HubConnectionError:
    """The client could not be made: of proxies and certificates it reads the environment."""
    variables = CERTIFICATE_VARIABLES if isinstance(error, OSError) else PROXY_VARIABLES
    names = [name for variable in variables for name in (variable, variable.lower()) if os.environ.get(name)]
    where = f"Correct or unset {_listed_or(names)}" if names else "Correct this machine's network settings"
    # A proxy's address may hold a password, and such an error the address.
    words = quoted(error, 200) if isinstance(error, ImportError | OSError) else type(error).__name__
    return HubConnectionError(
        f"No request can be sent to the Hugging Face Hub: its settings can't be used ({words}). {where}. Nothing "
        "was sent."
    )


def _listed_or(names: Iterable[str]) -> str:
    return " or ".join(names)
