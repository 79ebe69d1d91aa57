"""Closed loops on blocking sockets, in bursts: 32 requests are written, 32 answers are read.

A burst meets the server as one piece, so that what it costs does not depend on the timing of the
client. The answers' statuses are looked at where that is cheap; that the calls succeeded, the
server's statistics must say (smoke/__main__.py).
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Protocol, Self

from loadtests import http_loop
from loadtests.bench import content
from loadtests.bench.questions import Question

Address = tuple[str, int]
_LIMIT_S: Final = 20.0
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME_HEAD: Final = 9
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_WINDOW_UPDATE: Final = 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_WINDOW: Final = (1 << 30).to_bytes(4, "big")


class Refused(Exception):
    """The server did not answer as it should."""


class Client(Protocol):
    """Asks one question in bursts."""

    def burst(self, requests: int) -> None:
        """Have so many requests answered; raises Refused."""


class HttpClient:
    """HTTP/1.1: a connection per request of a burst."""

    def __init__(self, address: Address, asked: Question, connections: int) -> None:
        self._open = [_connect(address) for _ in range(connections)]
        self._requests = [
            http_loop.post(asked.path, asked.body, asked.headers | {content.KEY_HEADER: user})
            for user in _users(connections)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None
    ) -> None:
        for connection in self._open:
            connection.close()

    def burst(self, requests: int) -> None:
        """Write one request on each of so many connections, then read their answers."""
        used = self._open[:requests]
        for connection, request in zip(used, self._requests, strict=False):
            connection.sendall(request)
        for connection in used:
            received = b""
            while (parsed := http_loop.parse(received)) is None:
                received += _receive(connection)
            if parsed[0].status != 200:
                raise Refused(f"{parsed[0].status}: {parsed[0].body[:200]!r}")


class GrpcClient:
    """gRPC: one connection, a stream per request; headers that no table remembers."""

    def __init__(self, address: Address, asked: Question, streams: int) -> None:
        self._open = _connect(address)
        self._blocks = [header_block(asked.path, user) for user in _users(streams)]
        message = b"\0" + len(asked.body).to_bytes(4, "big") + asked.body
        self._data = message
        self._next = 1
        self._received = bytearray()
        window = _frame(_WINDOW_UPDATE, 0, 0, _WINDOW)
        self._open.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, b"") + window)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None
    ) -> None:
        self._open.close()

    def burst(self, requests: int) -> None:
        """Open so many streams in one write, then read until each has ended."""
        frames = []
        for block in self._blocks[:requests]:
            frames.append(_frame(_HEADERS, _END_HEADERS, self._next, block))
            frames.append(_frame(_DATA, _END_STREAM, self._next, self._data))
            self._next += 2
        self._open.sendall(b"".join(frames))
        left = requests
        while left:
            self._received += _receive(self._open)
            for kind, flags, payload in self._frames():
                if kind in (_RST, _GOAWAY):
                    raise Refused(f"frame of type {kind}: {payload!r}")
                if kind == _PING and not flags & _ACK:
                    self._open.sendall(_frame(_PING, _ACK, 0, payload))
                elif kind == _SETTINGS and not flags & _ACK:
                    self._open.sendall(_frame(_SETTINGS, _ACK, 0, b""))
                elif kind in (_DATA, _HEADERS) and flags & _END_STREAM:
                    left -= 1

    def _frames(self) -> Iterator[tuple[int, int, bytes]]:
        at, received = 0, self._received
        while at + _FRAME_HEAD <= len(received):
            end = at + _FRAME_HEAD + int.from_bytes(received[at : at + 3], "big")
            if end > len(received):
                break
            yield received[at + 3], received[at + 4], bytes(received[at + _FRAME_HEAD : end])
            at = end
        del received[:at]


def _users(many: int) -> list[str]:
    return [f"user-{number:04}" for number in range(many)]


def _connect(address: Address) -> socket.socket:
    connection = socket.create_connection(address, timeout=_LIMIT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _receive(connection: socket.socket) -> bytes:
    with contextlib.suppress(TimeoutError):
        received = connection.recv(262_144)
        if received:
            return received
        raise Refused("the server closed the connection")
    raise Refused(f"no answer within {_LIMIT_S:g} s")


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return b"".join(
        (
            len(payload).to_bytes(3, "big"),
            bytes((kind, flags)),
            stream.to_bytes(4, "big"),
            payload,
        )
    )


def header_block(path: str, user: str) -> bytes:
    """Return a call's header block: literals without indexing, not Huffman coded (RFC 7541)."""
    lines = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "gateway"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        (content.KEY_HEADER, user),
    )
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in lines)


def _text(text: str) -> bytes:
    """Return a string literal; shorter than 127 bytes, so its length is one byte."""
    assert len(text) < 127
    return bytes((len(text),)) + text.encode()
