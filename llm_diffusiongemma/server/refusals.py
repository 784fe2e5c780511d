"""Errors as OpenAI's clients read them, each with its status."""

from __future__ import annotations

import logging
from typing import Any

from starlette.responses import JSONResponse, Response

from .. import errors
from ..backends.protocol import error_to_wire
from ..errors import DiffusionGemmaError

# What nobody who asks can do anything about is 500.
STATUSES: dict[type[DiffusionGemmaError], int] = {
    errors.PromptError: 400,
    errors.OptionError: 400,
    errors.ConstraintError: 400,
    errors.ServerAccessError: 401,
    errors.ServerBusyError: 429,
    errors.ServerError: 503,
    errors.DeviceMemoryError: 503,
    errors.CheckpointNotFoundError: 503,
    errors.HubConnectionError: 503,
    errors.HubAccessError: 503,
    errors.DownloadError: 503,
    errors.DiskSpaceError: 503,
}

_log = logging.getLogger(__name__)


class RefusalError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, error: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        super().__init__(error["message"])
        self.status = status
        self.error = error
        self._headers = headers

    @property
    def wire(self) -> dict[str, Any]:
        return {"error": self.error}

    def response(self) -> Response:
        return JSONResponse(self.wire, self.status, self._headers)


def invalid(
    status: int, message: str, *, param: str | None = None, code: str | None = None, allow: str | None = None
) -> RefusalError:
    """Of a request that is none."""
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return RefusalError(status, error, None if allow is None else {"Allow": allow})


def refusal_of(error: Exception, retry_after: int | None = None) -> RefusalError:
    """Of what went wrong with a reply. What nobody has foreseen is in the log, and only there.

    `retry_after` are seconds, for a server that is busy.
    """
    if isinstance(error, RefusalError):
        return error
    if isinstance(error, DiffusionGemmaError):
        status = next((status for kind, status in STATUSES.items() if isinstance(error, kind)), 500)
        headers = {"Retry-After": str(retry_after)} if status == 429 and retry_after is not None else None
        if status == 401:
            headers = {"WWW-Authenticate": "Bearer"}
        return RefusalError(status, error_to_wire(error, status), headers)
    _log.error("A reply has failed.", exc_info=error)
    message = f"The server has failed ({type(error).__name__}). Its log says where."
    return RefusalError(500, {"message": message, "type": "server_error", "param": None, "code": None})
