"""Hostile HTTP/1.1 clients, and TLS ones, one function each: (address, seconds) -> their fate.

As in attacks_h2: where the server closes a connection, the next is opened.
"""

from __future__ import annotations

import gzip
import json
import re
import socket
import time
from collections.abc import Callable
from typing import Final

from tests.conformance.attacks_h2 import Fate
from tests.conformance.watch import http_body

_PATH: Final = "/v2/models/echo_fp32/infer"
_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_BODY: Final = http_body(1)
_RECEIVED: Final = 1 << 18

Part = Callable[[int], bytes]
"""Bytes to send next; the number goes up, from 0 on each connection."""


def head(*lines: str) -> bytes:
    """Return the head of an infer request without its last empty line."""
    return "\r\n".join([f"POST {_PATH} HTTP/1.1", "Host: sluice", *lines, ""]).encode()


def whole() -> bytes:
    """Return a request that is well formed."""
    return head(f"Content-Length: {len(_BODY)}") + b"\r\n" + _BODY


def _connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=5)


def keep_on(
    address: str,
    seconds: float,
    part: Part,
    *,
    count: int = 1,
    pause_s: float = 0.0,
    reads: bool = True,
) -> Fate:
    """Send parts on some connections, in turn, until the time is up."""
    fate, end = Fate(), time.monotonic() + seconds
    live: list[tuple[socket.socket, int]] = []
    while time.monotonic() < end:
        try:
            while len(live) < count:
                live.append((_connect(address), 0))
                fate.connections += 1
        except OSError:
            fate.codes["refused"] += 1
            time.sleep(0.01)
        left = []
        for connection, number in live:
            if _step(connection, part(number), fate, reads=reads):
                left.append((connection, number + 1))
            else:
                connection.close()
        live = left
        time.sleep(pause_s)
    for connection, _ in live:
        fate.codes["served"] += 1
        connection.close()
    return fate


def _step(connection: socket.socket, data: bytes, fate: Fate, *, reads: bool) -> bool:
    """Send and look for an answer; False once the server has closed."""
    connection.settimeout(0.5 if reads else 0.02)
    try:
        connection.sendall(data)
    except TimeoutError:
        return True  # it reads no more; that is its right
    except OSError:
        _read(connection, fate)
        fate.codes["closed"] += 1
        return False
    fate.sent += 1
    if reads and not _read(connection, fate):
        fate.codes["closed"] += 1
        return False
    return True


def _read(connection: socket.socket, fate: Fate) -> bool:
    connection.settimeout(0.0005)
    try:
        data = connection.recv(_RECEIVED)
    except TimeoutError:
        return True
    except OSError:
        return False
    for status in _STATUS.findall(data):
        fate.codes[status.decode()] += 1
    return bool(data)


def _bytewise(data: bytes) -> Part:
    return lambda number: data[number : number + 1]


def slow_heads(address: str, seconds: float) -> Fate:
    """Heads that arrive byte by byte."""
    return keep_on(address, seconds, _bytewise(whole()), count=100, pause_s=0.1)


def slow_bodies(address: str, seconds: float) -> Fate:
    """Bodies that arrive byte by byte, after a head that is there at once."""
    first = head("Content-Length: 100000") + b"\r\n"

    def part(number: int) -> bytes:
        return first if number == 0 else b" "

    return keep_on(address, seconds, part, count=100, pause_s=0.1)


def silent(address: str, seconds: float) -> Fate:
    """Connections that say nothing."""
    return keep_on(address, seconds, lambda _: b"", count=300, pause_s=0.1)


def pipelining(address: str, seconds: float) -> Fate:
    """Requests without end, whose answers are never read."""
    many = whole() * 200
    return keep_on(address, seconds, lambda _: many, reads=False)


def pipelining_read(address: str, seconds: float) -> Fate:
    """Requests without end, whose answers are read."""
    many = whole() * 200
    return keep_on(address, seconds, lambda _: many)


def slow_reading(address: str, seconds: float) -> Fate:
    """Large answers that are never read."""
    values = [0.0] * 200_000
    given = {"name": "x", "datatype": "FP32", "shape": [1, len(values)], "data": values}
    body = gzip.compress(json.dumps({"inputs": [given]}).encode(), mtime=0)
    lines = (f"Content-Length: {len(body)}", "Content-Encoding: gzip")
    request = head(*lines) + b"\r\n" + body

    return keep_on(address, seconds, lambda _: request, count=8, reads=False)


def endless_chunks(address: str, seconds: float) -> Fate:
    """A chunked body that never ends."""
    first = head("Transfer-Encoding: chunked") + b"\r\n"
    chunk = b"ffff\r\n" + b" " * 0xFFFF + b"\r\n"
    return keep_on(address, seconds, lambda n: first if n == 0 else chunk)


def small_chunks(address: str, seconds: float) -> Fate:
    """A chunked body of one byte a chunk, which never ends."""
    first = head("Transfer-Encoding: chunked") + b"\r\n"
    chunks = b"1\r\n \r\n" * 2_000
    return keep_on(address, seconds, lambda n: first if n == 0 else chunks)


def chunk_extensions(address: str, seconds: float) -> Fate:
    """A chunk whose extension never ends."""
    first = head("Transfer-Encoding: chunked") + b"\r\n1;e="
    return keep_on(address, seconds, lambda n: first if n == 0 else b"e" * 10_000)


def endless_trailers(address: str, seconds: float) -> Fate:
    """Trailers that never end."""
    first = head("Transfer-Encoding: chunked") + b"\r\n0\r\n"
    lines = b"X-More: 1\r\n" * 1_000
    return keep_on(address, seconds, lambda n: first if n == 0 else lines)


def endless_head(address: str, seconds: float) -> Fate:
    """A head of ever more lines."""
    lines = b"X-More: 1\r\n" * 1_000
    return keep_on(address, seconds, lambda n: head() if n == 0 else lines)


def endless_line(address: str, seconds: float) -> Fate:
    """A head with a line that never ends."""
    return keep_on(address, seconds, lambda n: b"GET /" if n == 0 else b"a" * 10_000)


def promised_bodies(address: str, seconds: float) -> Fate:
    """Bodies announced as large as they may be, most of which comes, and never all."""
    first = head(f"Content-Length: {30 << 20}") + b"\r\n"
    return keep_on(
        address, seconds, lambda n: first if n == 0 else b" " * 100_000, count=20, pause_s=0.02
    )


def noise(address: str, seconds: float) -> Fate:
    """What is no HTTP."""
    return keep_on(address, seconds, lambda _: b"\x00\xff\r\n\r\n" * 20)


def half_handshakes(address: str, seconds: float) -> Fate:
    """TLS handshakes that stop after their first bytes."""
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x01" * 40
    return keep_on(address, seconds, lambda n: hello if n == 0 else b"", count=300, pause_s=0.1)


def no_handshakes(address: str, seconds: float) -> Fate:
    """Plain text where TLS is spoken."""
    return keep_on(address, seconds, lambda _: whole())


ATTACKS: Final[dict[str, Callable[[str, float], Fate]]] = {
    "slow heads": slow_heads,
    "slow bodies": slow_bodies,
    "silent connections": silent,
    "pipelining, never read": pipelining,
    "pipelining": pipelining_read,
    "slow reading": slow_reading,
    "endless chunks": endless_chunks,
    "one-byte chunks": small_chunks,
    "endless chunk extension": chunk_extensions,
    "endless trailers": endless_trailers,
    "endless head": endless_head,
    "endless line": endless_line,
    "promised bodies": promised_bodies,
    "noise": noise,
}
TLS_ATTACKS: Final[dict[str, Callable[[str, float], Fate]]] = {
    "half handshakes": half_handshakes,
    "silent connections": silent,
    "no handshake": no_handshakes,
}
