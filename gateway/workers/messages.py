"""The rare messages of a link: calls around inference, HTTP requests, states, statistics.

As frames.py, but nobody counts their microseconds: msgspec writes and reads them.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from gateway.workers.frames import FrameError

_T = TypeVar("_T")
_encode: Final = msgspec.msgpack.Encoder().encode


class _Body(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """The body of a message."""


class UnaryCall(_Body, frozen=True):
    """A gRPC call that is no infer call."""

    method: str
    """Of the inference service; "package.Service/Method" of the others."""
    data: bytes
    headers: dict[str, str] = {}
    """Those of its metadata that the method looks at."""


class HttpCall(_Body, frozen=True):
    """An HTTP request that is no infer call."""

    method: str
    path: str
    raw_path: bytes
    query: bytes
    http_version: str
    headers: list[tuple[bytes, bytes]]
    body: bytes


class HttpAnswer(_Body, frozen=True):
    """Its answer."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class EngineState(_Body, frozen=True):
    """What the fronts answer health calls by."""

    phase: str
    """Of gateway.lifecycle.Phase."""


class Refused(_Body, frozen=True):
    """A request that a front answered with an error of its own."""

    protocol: str
    name: str
    """Of the error's class."""
    sentence: str


class FrontStatistics(_Body, frozen=True):
    """What a front says of itself."""

    front: int
    pid: int
    in_flight: int
    """Requests that were sent, or are held, and not answered."""
    held: int
    """Of those, the ones that wait for the next engine process."""
    resent: int
    """Requests that were sent to a second engine process."""
    given_up: int
    """Requests that were answered with EngineAway, ExpiredUnanswered or LinkFull."""


def write(body: _Body) -> bytes:
    """Return the bytes of a body."""
    return _encode(body)


def read(kind: type[_T], data: bytes, start: int, end: int) -> _T:
    """Return a body.

    Raises:
        FrameError: the bytes are none.
    """
    try:
        return msgspec.msgpack.decode(memoryview(data)[start:end], type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise FrameError(f"{kind.__name__}: {exc}") from None
