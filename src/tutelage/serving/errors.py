"""Typed errors as HTTP: one table from an error to its status code and kind."""

from __future__ import annotations

from typing import Any

from tutelage.errors import InputError, TutelageError
from tutelage.programs.generators.base import GenerationFailed
from tutelage.programs.image_io import ImageTooLarge
from tutelage.programs.types import ProgramFailure


class ServingError(TutelageError):
    """A request that is not served; the class tells its status code and kind."""

    code = 400
    kind = "request"


class Unauthorized(ServingError):
    """No API key, or a wrong one."""

    code = 401
    kind = "key"


class TooSlow(ServingError):
    """A body that comes too slowly."""

    code = 408
    kind = "slow"


class PayloadTooLarge(ServingError):
    """A body over the limit."""

    code = 413
    kind = "too_large"


class TooManyRequests(ServingError):
    """No place is free in the queue."""

    code = 429
    kind = "busy"
    retry_after_s = 1


class ClientDisconnected(ServingError):
    """The client hung up: nobody reads this."""

    code = 499
    kind = "gone"


class ServiceUnavailable(ServingError):
    """The engine takes no more programs: the server is stopping, or a fault ended it."""

    code = 503
    kind = "stopped"


class RequestTimeout(ServingError):
    """The time limit of a request has passed."""

    code = 504
    kind = "timeout"


def status_and_kind(error: Exception) -> tuple[int, str]:
    """The status code of ``error``, and its kind in one word; anything unforeseen is a fault of ours."""
    match error:
        case ServingError():
            return error.code, error.kind
        case GenerationFailed():
            return 502, error.kind
        case ProgramFailure():
            return 422, error.kind
        case ImageTooLarge():
            return 413, "too_large"
        case InputError():
            return 422, "input"
    return 500, "fault"


def error_payload(error: Exception, kind: str = "") -> dict[str, Any]:
    """{kind, message, where, remedy}; of an unforeseen error no more than its type."""
    kind = kind or status_and_kind(error)[1]
    if not isinstance(error, TutelageError):
        remedy = "this is a fault of the server; its log says more"
        return {"kind": kind, "message": type(error).__name__, "where": None, "remedy": remedy}
    where = None if error.where is None else str(error.where)
    return {"kind": kind, "message": error.message, "where": where, "remedy": error.remedy}
