"""The errors that the gateway itself raises, and the one table from exception class to status.

No adapter decides a status: both protocols look here, along the exception's ancestry. What is not
in the table is a bug: INTERNAL/500 with a fixed sentence, and a stack trace in the log.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from engines import errors as engine_errors
from router.faults import RouteError


class GatewayError(Exception):
    """Family of the gateway's own errors."""

    def __new__(cls, *args: object, **kwargs: object) -> GatewayError:
        """Refuse to make the family itself."""
        if cls is GatewayError:
            raise TypeError("GatewayError is a family: raise one of its members")
        return super().__new__(cls)


class MalformedRequest(GatewayError):
    """The bytes are no request: broken JSON or protobuf, contradicting fields."""


class PayloadTooLarge(GatewayError):
    """The body, or what it decompresses to, is over the limit."""

    def __init__(self, *, limit_bytes: int) -> None:
        super().__init__(f"the request is larger than the limit of {limit_bytes} bytes")


class TooMuchInFlight(GatewayError):
    """Requests under way hold as many bytes as they may."""

    def __init__(self, *, limit_bytes: int) -> None:
        super().__init__(
            f"the requests under way hold as much as they may: their limit is {limit_bytes} bytes"
        )


class UnknownName(GatewayError):
    """Neither a route nor a model answers to this name, version or path."""


class NotAllowed(GatewayError):
    """The configuration does not allow this call on this listener."""


class NotSupported(GatewayError):
    """A part of the protocol that this server does not implement."""


class Draining(GatewayError):
    """The server is shutting down and accepts nothing new."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class Starting(GatewayError):
    """The models are still being loaded."""

    def __init__(self) -> None:
        super().__init__("the server is starting: its models are being loaded")


class NotAuthenticated(GatewayError):
    """The listener wants a key, and there is none that it knows."""

    def __init__(self) -> None:
        super().__init__("authenticate with 'authorization: Bearer KEY'")


class ConditionMissing(GatewayError):
    """A write that does not say which revision it changes."""


class ConditionFailed(GatewayError):
    """A write to a revision that is no longer the newest one."""


class Conflict(GatewayError):
    """A write that the state of the route does not allow."""


class StoreUnavailable(GatewayError):
    """Where routes are kept cannot be reached: they are served, and cannot be changed."""


class Unrepresentable(GatewayError):
    """The answer cannot be written in the form that the caller asked for."""


class Code(IntEnum):
    """gRPC status codes, by number, so that nothing but the gRPC adapter imports grpc."""

    OK = 0
    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What an error is called on each protocol."""

    grpc: Code
    http: int
    retry_after_s: int = 0
    """Seconds for Retry-After; 0: do not invite a retry."""


INTERNAL: Final = Status(grpc=Code.INTERNAL, http=500)
INTERNAL_SENTENCE: Final = "internal error: the server's log has the details"
MAX_SENTENCE_CHARS: Final = 512
"""A sentence quotes names and shapes of the caller's, which may be huge; a gRPC status message
that is longer than a few kilobytes never arrives."""
CLIENT_CLOSED_REQUEST: Final = 499
_INVALID: Final = Status(grpc=Code.INVALID_ARGUMENT, http=400)
_NOT_FOUND: Final = Status(grpc=Code.NOT_FOUND, http=404)
_SHED: Final = Status(grpc=Code.RESOURCE_EXHAUSTED, http=429, retry_after_s=1)
_UNAVAILABLE: Final = Status(grpc=Code.UNAVAILABLE, http=503, retry_after_s=1)

STATUSES: Final[dict[type[Exception], Status]] = {
    MalformedRequest: _INVALID,
    Unrepresentable: _INVALID,
    PayloadTooLarge: Status(grpc=Code.RESOURCE_EXHAUSTED, http=413),
    UnknownName: _NOT_FOUND,
    NotAllowed: Status(grpc=Code.PERMISSION_DENIED, http=403),
    NotSupported: Status(grpc=Code.UNIMPLEMENTED, http=501),
    NotAuthenticated: Status(grpc=Code.UNAUTHENTICATED, http=401),
    ConditionMissing: Status(grpc=Code.FAILED_PRECONDITION, http=428),
    ConditionFailed: Status(grpc=Code.ABORTED, http=412),
    Conflict: Status(grpc=Code.FAILED_PRECONDITION, http=409),
    StoreUnavailable: _UNAVAILABLE,
    RouteError: Status(grpc=Code.INVALID_ARGUMENT, http=422),
    Draining: _UNAVAILABLE,
    Starting: _UNAVAILABLE,
    engine_errors.InvalidInput: _INVALID,
    engine_errors.UnknownModel: _NOT_FOUND,
    engine_errors.VersionNotReady: _UNAVAILABLE,
    engine_errors.QueueFull: _SHED,
    TooMuchInFlight: _SHED,
    engine_errors.DeadlineExpired: Status(grpc=Code.DEADLINE_EXCEEDED, http=504),
    engine_errors.Cancelled: Status(grpc=Code.CANCELLED, http=CLIENT_CLOSED_REQUEST),
    engine_errors.InstanceFailed: INTERNAL,
    engine_errors.DeviceFailed: INTERNAL,
    engine_errors.OutOfMemory: _SHED,
    engine_errors.ModelLoadError: _UNAVAILABLE,
    engine_errors.EngineClosed: _UNAVAILABLE,
}

# The setting overload_codes = "triton": shedding looks as Triton's does.
_TRITON_OVERLOAD: Final[dict[type[Exception], Status]] = {
    engine_errors.QueueFull: _UNAVAILABLE,
    TooMuchInFlight: _UNAVAILABLE,
}


class StatusTable:
    """Looks statuses up; one per server, because the overload codes are a setting."""

    def __init__(self, overload_codes: str = "standard") -> None:
        self._table = STATUSES | (_TRITON_OVERLOAD if overload_codes == "triton" else {})

    def of(self, exc: BaseException) -> Status:
        """Return the status of the nearest ancestor in the table; INTERNAL for a foreign error."""
        for cls in type(exc).__mro__:
            status = self._table.get(cls)
            if status is not None:
                return status
        return INTERNAL

    def sentence(self, exc: BaseException) -> str:
        """Return what the caller is told: the error's own words, never those of a foreign one."""
        if not self.is_known(exc):
            return INTERNAL_SENTENCE
        text = str(exc)
        return text if len(text) <= MAX_SENTENCE_CHARS else f"{text[: MAX_SENTENCE_CHARS - 3]}..."

    def is_known(self, exc: BaseException) -> bool:
        """Whether the error is one of ours, so that its words may leave the process."""
        return any(cls in self._table for cls in type(exc).__mro__)

    def families(self) -> tuple[type[Exception], ...]:
        """Return the families of errors that adapters translate."""
        return GatewayError, engine_errors.EngineError, RouteError
