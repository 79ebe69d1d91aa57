"""A closed loop of HTTP/1.1 requests on asyncio: so many connections, each with one under way.

Cheaper than a client library, which matters where client and server share the cores. Requests are
given as bytes ready to send. Reads only what a gateway sends: answers with a Content-Length.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

Tag = TypeVar("Tag")
HttpAddress = tuple[str, int]

_END_OF_HEAD: Final = b"\r\n\r\n"


class LoopFailed(Exception):
    """A connection ended early, or sent what is no answer."""


class Answer(NamedTuple):
    """One HTTP answer."""

    status: int
    head: bytes
    """Status line and headers, in lower case."""
    body: bytes

    def header(self, name: str) -> str | None:
        """Return a header by lower-case name."""
        return _header(self.head, name)


def post(path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return a POST as bytes."""
    lines = [f"POST {path} HTTP/1.1", "Host: gateway", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode("latin-1") + _END_OF_HEAD + body


def parse(received: bytes) -> tuple[Answer, int] | None:
    """Return the first whole answer and its length in bytes; None while it is not whole.

    Raises:
        LoopFailed: it is no HTTP/1.1 answer with a Content-Length.
    """
    end = received.find(_END_OF_HEAD)
    if end < 0:
        return None
    head = received[:end].lower()
    length = _header(head, "content-length")
    status = head[9:12]
    if not head.startswith(b"http/1.") or not status.isdigit() or length is None:
        raise LoopFailed(f"no answer that is understood here: {head[:200]!r}")
    start = end + len(_END_OF_HEAD)
    stop = start + int(length)
    if len(received) < stop:
        return None
    return Answer(int(status), head, received[start:stop]), stop


def _header(head: bytes, name: str) -> str | None:
    start = head.find(f"\r\n{name}:".encode())
    if start < 0:
        return None
    start += len(name) + 3
    end = head.find(b"\r\n", start)
    return head[start : end if end >= 0 else len(head)].strip().decode("latin-1")


async def closed_loop(
    address: HttpAddress,
    requests: Iterator[tuple[Tag, bytes]],
    on_answer: Callable[[Tag, Answer], None],
    *,
    connections: int,
) -> None:
    """Send every request; return when the last one is answered.

    Args:
        address: of the listener.
        requests: each with a tag that `on_answer` gets back; drawn when a connection is free.
        on_answer: called once per answer, in the order in which they come.
        connections: how many requests are under way at any time.

    Raises:
        LoopFailed: a connection ended before its answer came.
    """
    loop = asyncio.get_running_loop()
    ends: list[asyncio.Future[None]] = [loop.create_future() for _ in range(connections)]
    made = [
        await loop.create_connection(partial(_Connection, requests, on_answer, end), *address)
        for end in ends
    ]
    try:
        await asyncio.gather(*ends)
    finally:
        for transport, _ in made:
            transport.close()


class _Connection(asyncio.Protocol):
    """One connection: sends, waits for the answer, draws the next request."""

    def __init__(
        self,
        # Any: the tag's type is the caller's; closed_loop ties the two together.
        requests: Iterator[tuple[Any, bytes]],
        on_answer: Callable[[Any, Answer], None],
        end: asyncio.Future[None],
    ) -> None:
        self._requests = requests
        self._on_answer = on_answer
        self._end = end
        self._tag: Any = None
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send_next()

    def data_received(self, data: bytes) -> None:
        """Take a piece of an answer."""
        self._received += data
        try:
            parsed = parse(self._received)
            if parsed is None:
                return
            answer, size_bytes = parsed
            self._received = self._received[size_bytes:]
            self._on_answer(self._tag, answer)
            self._send_next()
        except Exception as exc:  # whoever waits for the loop is to see it, not asyncio's log
            self._fail(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail, unless all is done."""
        self._fail(LoopFailed(f"the connection ended before its answer: {exc or 'closed'}"))

    def _send_next(self) -> None:
        for tag, request in self._requests:
            self._tag = tag
            self._transport.write(request)
            return
        if not self._end.done():
            self._end.set_result(None)

    def _fail(self, exc: Exception) -> None:
        if not self._end.done():
            self._end.set_exception(exc)
