"""What an error becomes over HTTP.

Decides status codes, the words of a refusal, and when to come back. Which errors there are is everybody else's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from edgeml.errors import BudgetError, ConfigError, EdgemlError

from .line import LateError, OverloadError
from .serving import NoModelError
from .turnstile import ShedError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

RETRY_AFTER_S: Final = 1


def as_json(content: msgspec.Struct | dict[str, object], status: int = 200) -> Response:
    """Answer with a message."""
    from starlette.responses import Response

    return Response(msgspec.json.encode(content), status_code=status, media_type="application/json")


def _status(error: EdgemlError) -> int:
    match error:
        case NoModelError():
            return 503
        case BudgetError():
            return 429
        case LateError():
            return 504
        case ConfigError():
            return 400
        case _:
            return 500


async def report(_request: Request, error: EdgemlError) -> Response:
    """Answer with an error of ours."""
    status = _status(error)
    response = as_json({"error": f"{error.message} ({error.hint})" if error.hint else error.message}, status)
    if status in {429, 503}:
        seconds = error.retry_after_s if isinstance(error, OverloadError | ShedError) else RETRY_AFTER_S
        response.headers["Retry-After"] = str(seconds)
    return response


async def refuse(_request: Request, error: Exception) -> Response:
    """Answer with what the endpoint itself refuses."""
    from starlette.exceptions import HTTPException

    assert isinstance(error, HTTPException)
    response = as_json({"error": error.detail}, error.status_code)
    response.headers.update(error.headers or {})
    return response
