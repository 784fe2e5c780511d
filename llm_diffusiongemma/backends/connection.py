"""The way to a server: a client that keeps to limits and says nothing it needn't, and its failures in sentences.

`openai` and `httpx2` are imported by llm itself; here they are when a server is asked.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..catalog import SERVER_VARIABLE
from ..errors import (
    DiffusionGemmaError,
    ServerAccessError,
    ServerBusyError,
    ServerError,
    ServerUnreachableError,
)
from ..wording import quoted
from . import running
from .address import Address
from .dialects import of_an_earlier_version
from .protocol import EXTENSION, EXTENSION_OPTIONS, NO_OPTION, error_from_wire
from .sse import DataOnly

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI, OpenAI

CONNECT_SECONDS = 5.0
# What it has of models a server knows at once.
ASK_SECONDS = 10.0
# Ours says every few seconds that it is still there.
SILENCE_SECONDS = 60.0
# Others say nothing before the first canvas is done, and before that others' replies may be.
FOREIGN_SILENCE_SECONDS = 600.0

# Of one event of a stream: a canvas has some 4,000 characters, and a report of a thousand canvases some 200,000.
MAX_EVENT_BYTES = 16 << 20
# Of an answer that is no stream: a list of models, or an error.
MAX_ANSWER_BYTES = 1 << 20

STREAM_TYPE = "text/event-stream"

# All that is sent of headers. The client would add what its environment holds for OpenAI's own servers.
HEADERS = frozenset(
    ("host", "connection", "accept", "accept-encoding", "content-type", "content-length", "user-agent")
)
USER_AGENT = "llm-diffusiongemma"


def sync_client(address: Address) -> OpenAI:
    """To be closed. Raises `ServerError` if the environment asks for a proxy that can't be."""
    import httpx2
    from openai import OpenAI

    def requested(request: httpx2.Request) -> None:
        _set_headers(request, address)

    def answered(response: httpx2.Response) -> None:
        _check_headers(response, address)
        response.stream = _limited(response, address)

    with _setting_up(address):
        # What has a transport of its own goes through no proxy.
        transport = httpx2.HTTPTransport(uds=address.socket, verify=_tls(address)) if address.is_local else None
        client = httpx2.Client(
            transport=transport,
            follow_redirects=False,
            timeout=_timeout(address),
            event_hooks={"request": [requested], "response": [answered]},
        )
        return OpenAI(base_url=address.url, api_key="set below", max_retries=0, http_client=client)


def async_client(address: Address) -> AsyncOpenAI:
    """The same for who has an event loop."""
    import httpx2
    from openai import AsyncOpenAI

    async def requested(request: httpx2.Request) -> None:
        _set_headers(request, address)

    async def answered(response: httpx2.Response) -> None:
        _check_headers(response, address)
        response.stream = _limited(response, address)

    with _setting_up(address):
        transport = (
            httpx2.AsyncHTTPTransport(uds=address.socket, verify=_tls(address)) if address.is_local else None
        )
        client = httpx2.AsyncClient(
            transport=transport,
            follow_redirects=False,
            timeout=_timeout(address),
            event_hooks={"request": [requested], "response": [answered]},
        )
        return AsyncOpenAI(base_url=address.url, api_key="set below", max_retries=0, http_client=client)


@contextmanager
def _setting_up(address: Address) -> Iterator[None]:
    """It depends on the environment only: proxies, and who is trusted."""
    try:
        yield
    except Exception as error:  # as many kinds as there are settings
        raise ServerError(
            f"{address.subject} can't be asked: {quoted(error)}. See what HTTP_PROXY, HTTPS_PROXY, ALL_PROXY "
            "and SSL_CERT_FILE say."
        ) from error


def _timeout(address: Address) -> httpx2.Timeout:
    import httpx2

    silence = SILENCE_SECONDS if address.is_ours else FOREIGN_SILENCE_SECONDS
    return httpx2.Timeout(silence, connect=CONNECT_SECONDS)


def _tls(address: Address) -> ssl.SSLContext | bool:
    # To read the list of all authorities takes longer than anything else here. Without it TLS fails.
    return True if address.url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _set_headers(request: httpx2.Request, address: Address) -> None:
    for name in [name for name in request.headers if name.lower() not in HEADERS]:
        del request.headers[name]
    request.headers["user-agent"] = USER_AGENT
    # What is compressed could become any size.
    request.headers["accept-encoding"] = "identity"
    if address.key is not None:
        request.headers["authorization"] = f"Bearer {address.key}"


def _check_headers(response: httpx2.Response, address: Address) -> None:
    """Raises `ServerError` for what can't be the answer of such a server."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise ServerError(f"{address.subject} compresses what was to come as it is.")
    if not response.is_success:
        return
    kind = response.headers.get("content-type", "")
    expected = STREAM_TYPE if response.request.method == "POST" else "application/json"
    if expected not in kind.lower():
        raise ServerError(
            f"{address.subject} is no OpenAI-compatible server: it answered with "
            f"{quoted(kind or 'data', 60)} in place of {expected}. {_right_url()}"
        )


def _limited(response: httpx2.Response, address: Address) -> Any:
    """What comes of an answer, as long as it keeps to the limits. Sync or async, as the stream is."""
    import httpx2

    inner = response.stream
    is_stream = response.is_success and response.request.method == "POST"
    read = _stream_reader(address) if is_stream else _answer_reader(address)

    class Limited(httpx2.SyncByteStream, httpx2.AsyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            assert isinstance(inner, httpx2.SyncByteStream)
            for piece in inner:
                yield read(piece)
            yield read(None)

        async def __aiter__(self) -> AsyncIterator[bytes]:
            assert isinstance(inner, httpx2.AsyncByteStream)
            async for piece in inner:
                yield read(piece)
            yield read(None)

        def close(self) -> None:
            assert isinstance(inner, httpx2.SyncByteStream)
            inner.close()

        async def aclose(self) -> None:
            assert isinstance(inner, httpx2.AsyncByteStream)
            await inner.aclose()

    return Limited()


# From the next piece of an answer, or None behind the last, to what is passed on of it.
Reader = Callable[[bytes | None], bytes]


def _stream_reader(address: Address) -> Reader:
    events = DataOnly()

    def read(piece: bytes | None) -> bytes:
        data = events.end() if piece is None else events.feed(piece)
        _check_size(events.num_bytes, MAX_EVENT_BYTES, address)
        return data

    return read


def _answer_reader(address: Address) -> Reader:
    num_bytes = 0

    def read(piece: bytes | None) -> bytes:
        nonlocal num_bytes
        num_bytes += len(piece or b"")
        _check_size(num_bytes, MAX_ANSWER_BYTES, address)
        return piece or b""

    return read


def _check_size(num_bytes: int, most: int, address: Address) -> None:
    if num_bytes > most:
        raise ServerError(f"{address.subject} sends more at once than any answer has. It was left there.")


# --- failures ------------------------------------------------------------------------------------------------


@contextmanager
def telling(address: Address, known: tuple[str, ...] = (), has_begun: bool = False) -> Iterator[None]:
    """What the client raises becomes a sentence of ours. `known` are the server's models, as far as it said."""
    try:
        yield
    except DiffusionGemmaError:
        raise
    except Exception as error:
        raise _failure(error, address, known, has_begun) from error


def _failure(error: Exception, address: Address, known: tuple[str, ...], has_begun: bool) -> DiffusionGemmaError:
    import openai

    name = address.subject
    if isinstance(error, openai.APIStatusError):
        return _refusal(error, address, known)
    if isinstance(error, openai.APIConnectionError):
        return _disconnection(list(_causes(error)), address, has_begun)
    if isinstance(error, openai.APIError):  # inside a stream
        return _ours(error.body, address) or ServerError(f"{name} failed: {_words(error, address)}")
    if isinstance(error, (ValueError, RecursionError)):  # no JSON, no UTF-8, nested too deeply
        return ServerError(f"{name} says what can't be understood: {quoted(error, 200)}. {_right_url()}")
    return ServerError(f"{name} can't be asked: {quoted(error or type(error).__name__)}")


def _disconnection(causes: list[BaseException], address: Address, has_begun: bool) -> ServerError:
    from urllib.request import getproxies

    import httpx2

    name = address.subject

    def is_any(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if is_any(httpx2.ConnectError, httpx2.ConnectTimeout):
        way_out = "Is it running, and is that its address?"
        if tls := next((cause for cause in causes if isinstance(cause, ssl.SSLError)), None):
            reason = f"the encrypted connection fails ({quoted(tls.reason or tls)})"
            way_out = "Is it https, and is who certifies it known here?"
        elif is_any(socket.gaierror):
            reason = "there is no host of that name"
        elif is_any(ConnectionRefusedError, FileNotFoundError):
            reason = "nothing listens there"
        elif is_any(httpx2.ConnectTimeout):
            reason = f"no answer in {CONNECT_SECONDS:.0f} s"
        else:
            reason = quoted(causes[-1])
        if address.variable is not None:
            way_out += f" {address.variable} names it."
        if not address.is_local and getproxies().keys() - {"no"}:
            way_out += " Or is it a proxy? See what HTTP_PROXY, HTTPS_PROXY and ALL_PROXY say."
        return ServerUnreachableError(f"{name} can't be reached: {reason}. {way_out}")
    if is_any(httpx2.TimeoutException):
        (timeout,) = (cause for cause in causes if isinstance(cause, httpx2.TimeoutException))
        silence = timeout.request.extensions["timeout"]["read"]
        kind = ServerError if has_begun else ServerUnreachableError
        end = " It may hang: llm diffusiongemma stop ends it." if address.was_found else ""
        return kind(f"{name} went silent: nothing came for {silence:.0f} s.{end}{_without(address)}")
    if is_any(httpx2.ProxyError):
        return ServerUnreachableError(f"The proxy before {name} fails: {quoted(causes[-1])}")
    reason = quoted(causes[-1]) or "the connection was lost"
    if has_begun:
        return ServerError(f"{name} broke off in the middle of the reply: {reason}")
    return ServerUnreachableError(f"{name} broke off before it had answered: {reason}")


def _refusal(error: Any, address: Address, known: tuple[str, ...]) -> DiffusionGemmaError:
    """For an answer with another status than 200."""
    name, status = address.subject, error.status_code
    if ours := _ours(error.body, address):
        return ours
    if 300 <= status < 400:
        where = error.response.headers.get("location", "nowhere")
        return ServerError(f"{name} sends on to {quoted(where, 200)}. If you trust that, give its URL.")
    words = _words(error, address)
    if status == 400 and address.is_ours and NO_OPTION in words:
        # It says which, at that field.
        unknown = [name for name in EXTENSION_OPTIONS if error.param == f"{EXTENSION}.{name}"]
        if unknown:
            return of_an_earlier_version(address, unknown[0])
    if status in (401, 403):
        return ServerAccessError(f"{name} {_access(address)} ({status}: {words})")
    if status == 404:
        is_unlisted = bool(known) and address.model not in known
        is_model = is_unlisted or error.param == "model" or error.code == "model_not_found"
        models = f" It has: {', '.join(quoted(model, 100) for model in known)}." if known else ""
        way_out = address.which_model if is_model else _right_url()
        return ServerError(f"{name} doesn't know what it was asked for (404: {words}).{models} {way_out}")
    if status == 429:
        after = error.response.headers.get("retry-after", "")
        wait = f"Try again in {after} s." if after.isdecimal() else "Try again later."
        return ServerBusyError(f"{name} is busy ({words}). {wait}")
    if status < 500:
        return ServerError(f"{name} refused the request ({status}): {words}{_without(address)}")
    return ServerError(f"{name} failed ({status}): {words}")


def _access(address: Address) -> str:
    own = _own_server(address)
    if address.key_variable is not None:
        return f"doesn't accept the key of {address.key_variable}.{own}"
    if address.key is not None:
        known_as = f"the key that `llm keys` has as {quoted(address.key_name)}" if address.key_name else "its key"
        return f"doesn't accept {known_as}.{own}"
    if own:
        return f"wants its token.{own}"
    if address.key_name is None:
        return "wants a key. Keep it with `llm keys set NAME`, and add the model again with --key NAME."
    return f"wants a key. Set it: llm keys set {quoted(address.key_name)}"


def _own_server(address: Address) -> str:
    """What to do where somebody has named the server that would have been found."""
    server = running.recorded()
    if address.was_found or not address.is_local or server is None or server.url is None:
        return ""
    if urlsplit(server.url).port != urlsplit(address.url).port or not running.answers(server):
        return ""
    way_out = "" if address.variable is None else f", without {address.variable}"
    return f" It is your own server: `llm -m {quoted(server.identity.model_id, 100)}` finds it by itself{way_out}."


def _ours(body: object, address: Address) -> DiffusionGemmaError | None:
    """The error that a reply of this process would have raised, if a server of ours says so."""
    return error_from_wire(body) if address.is_ours and isinstance(body, Mapping) else None


def _words(error: Any, address: Address) -> str:
    """What a server says of its failure, in whatever shape; but some say the key that they were given."""
    body = error.body
    for key in ("message", "detail", "error"):
        if isinstance(body, Mapping) and body.get(key):
            body = body[key]
    if isinstance(body, str) and body.lstrip()[:1] == "<":
        return "a page of HTML"
    text = str(body or "it doesn't say why")
    return quoted(text if address.key is None else text.replace(address.key, "…"))


def _without(address: Address) -> str:
    return f" Set {SERVER_VARIABLE}=off to have this process answer." if address.was_found else ""


def _right_url() -> str:
    return "Is the URL right? It ends in /v1 as a rule."


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came of, the last first."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        yield current
        current = current.__cause__ or current.__context__
