"""A raw HTTP/2 client: frames as bytes, sent exactly as a test says, and all that comes back.

Knows frames and HPACK (by the `hpack` library, not by the gateway's decoder) and nothing of gRPC.
It corrects nothing: a test may break any rule. Blocking, one thread, one socket. Acknowledges
SETTINGS and PING and opens windows by itself unless it is told not to.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

import hpack

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0, 1, 2, 3, 4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 5, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITISED = 0x1, 0x1, 0x4, 0x8, 0x20
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
CANCEL, ENHANCE_YOUR_CALM = 8, 11
HEADER_TABLE_SIZE, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 3, 4, 5
MAX_HEADER_LIST_SIZE: Final = 6
DEFAULT_WINDOW: Final = 65_535
MAX_WINDOW: Final = (1 << 31) - 1
LIMIT_S: Final = 10.0
_LEAST_FRAME: Final = 16_384

Fields = Iterable[tuple[str, str]]
FieldList = tuple[tuple[str, str], ...]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return one frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(pairs: Iterable[tuple[int, int]] = ()) -> bytes:
    """Return a SETTINGS frame."""
    payload = b"".join(struct.pack(">HI", name, value) for name, value in pairs)
    return frame(SETTINGS, 0, 0, payload)


def window_update(stream: int, increment: int) -> bytes:
    """Return a WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def reset(stream: int, code: int = CANCEL) -> bytes:
    """Return a RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream, struct.pack(">I", code))


def headers(stream: int, fields: Fields, *, end: bool = False) -> bytes:
    """Return a HEADERS frame that needs no state: plain literals that touch no table."""
    flags = END_HEADERS | (END_STREAM if end else 0)
    return frame(HEADERS, flags, stream, literals(fields))


def literals(fields: Fields) -> bytes:
    """Return a header block of literals without indexing and without Huffman."""
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in fields)


def _string(text: str) -> bytes:
    data = text.encode("latin-1")
    head, rest = bytearray(), len(data) - 127
    if rest < 0:
        return bytes([len(data)]) + data
    head.append(127)
    while rest >= 128:
        head.append(rest & 127 | 128)
        rest >>= 7
    head.append(rest)
    return bytes(head) + data


class Closed(Exception):
    """The server has closed the connection."""


@dataclass(slots=True)
class Received:
    """What has come back on one stream."""

    heads: list[FieldList] = field(default_factory=list)
    """Header blocks in their order: the head, and trailers; one block is trailers-only."""
    data: bytearray = field(default_factory=bytearray)
    is_ended: bool = False
    reset_code: int | None = None
    """Of a RST_STREAM that came before the end."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.is_ended or self.reset_code is not None


class RawConnection:
    """One connection.

    Args:
        address: host:port.
        offered: our settings.
        is_polite: acknowledge and open windows; False: only read.
        context: for TLS.
    """

    def __init__(
        self,
        address: str,
        *,
        offered: Iterable[tuple[int, int]] = (),
        is_polite: bool = True,
        context: ssl.SSLContext | None = None,
    ) -> None:
        host, _, port = address.rpartition(":")
        connected = socket.create_connection((host, int(port)), timeout=LIMIT_S)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connected if context is None else context.wrap_socket(connected)
        self._is_polite = is_polite
        self._buffer = bytearray()
        self._decoder = hpack.Decoder(max_header_list_size=1 << 20)
        self._pieces: list[bytes] = []
        self.streams: dict[int, Received] = {}
        self.peer: dict[int, int] = {}
        """The server's settings."""
        self.goaways: list[tuple[int, int, bytes]] = []
        """Last stream, code and text of each GOAWAY."""
        self.pongs = 0
        self.is_closed = False
        self._window = DEFAULT_WINDOW
        self._windows: dict[int, int] = {}
        self.opening = PREFACE + settings(offered)

    def start(self) -> Self:
        """Send the preface and wait for the server's settings."""
        self.send(self.opening)
        self.wait(lambda: bool(self.peer) or self.is_closed)
        return self

    def send(self, data: bytes) -> None:
        """Send bytes as they are; Closed if the server has gone."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionError, ssl.SSLError) as exc:
            self.is_closed = True
            raise Closed from exc

    def send_data(self, stream: int, data: bytes, *, end: bool) -> None:
        """Send DATA frames within the server's windows, reading meanwhile."""
        view, limit = memoryview(data), time.monotonic() + LIMIT_S
        while True:
            # Larger frames are taken only from who has acknowledged the server's settings.
            largest = (
                self.peer.get(MAX_FRAME_SIZE, _LEAST_FRAME) if self._is_polite else _LEAST_FRAME
            )
            room = min(self._window, self._stream_window(stream), largest)
            piece = view[: max(0, min(room, len(view)))]
            if not piece and view:
                if self.is_closed or self.on(stream).is_over:
                    return
                assert time.monotonic() < limit, "the server opens no window"
                self.pump(0.2)
                continue
            view = view[len(piece) :]
            is_last = end and not view
            self._window -= len(piece)
            self._windows[stream] = self._stream_window(stream) - len(piece)
            self.send(frame(DATA, END_STREAM if is_last else 0, stream, bytes(piece)))
            if not view:
                return

    def _stream_window(self, stream: int) -> int:
        return self._windows.get(stream, self.peer.get(INITIAL_WINDOW_SIZE, DEFAULT_WINDOW))

    def on(self, stream: int) -> Received:
        """Return what has come on a stream."""
        return self.streams.setdefault(stream, Received())

    def finish(self, stream: int, limit_s: float = LIMIT_S) -> Received:
        """Read until the stream is over, or the connection is closed."""
        received = self.on(stream)
        self.wait(lambda: received.is_over or self.is_closed, limit_s)
        return received

    def wait(self, condition: Callable[[], bool], limit_s: float = LIMIT_S) -> bool:
        """Read until a condition holds; False if it does not within the limit."""
        limit = time.monotonic() + limit_s
        while not condition():
            left_s = limit - time.monotonic()
            if left_s <= 0 or self.is_closed:
                return condition()
            self.pump(min(left_s, 0.5))
        return True

    def drain(self, limit_s: float) -> None:
        """Read what is there until the server closes."""
        self.wait(lambda: self.is_closed, limit_s)

    def pump(self, limit_s: float) -> None:
        """Read once and take in the frames that are complete."""
        self.socket.settimeout(max(limit_s, 0.001))
        try:
            data = self.socket.recv(1 << 18)
        except (TimeoutError, ssl.SSLWantReadError):
            return
        except OSError:
            data = b""
        finally:
            self.socket.settimeout(LIMIT_S)
        if not data:
            self.is_closed = True
            return
        self._buffer += data
        for kind, flags, stream, payload in self._frames():
            self._take(kind, flags, stream, payload)

    def _frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        while len(self._buffer) >= 9:
            length = int.from_bytes(self._buffer[:3], "big")
            if len(self._buffer) < 9 + length:
                return
            kind, flags, stream = struct.unpack_from(">BBI", self._buffer, 3)
            payload = bytes(self._buffer[9 : 9 + length])
            del self._buffer[: 9 + length]
            yield kind, flags, stream & MAX_WINDOW, payload

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind in (HEADERS, CONTINUATION):
            self._take_headers(kind, flags, stream, payload)
        elif kind == DATA:
            self._take_data(flags, stream, payload)
        elif kind == SETTINGS:
            if not flags & ACK:
                self._take_settings(payload)
        elif kind == PING:
            self._take_ping(flags, payload)
        elif kind == WINDOW_UPDATE:
            self._take_window(stream, int.from_bytes(payload, "big"))
        elif kind == GOAWAY:
            last, code = struct.unpack_from(">II", payload)
            self.goaways.append((last, code, payload[8:]))
        elif kind == RST_STREAM and not self.on(stream).is_ended:
            self.on(stream).reset_code = int.from_bytes(payload, "big")

    def _take_ping(self, flags: int, payload: bytes) -> None:
        if flags & ACK:
            self.pongs += 1
        elif self._is_polite:
            self._try_send(frame(PING, ACK, 0, payload))

    def _take_window(self, stream: int, increment: int) -> None:
        if stream:
            self._windows[stream] = self._stream_window(stream) + increment
        else:
            self._window += increment

    def _take_headers(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == HEADERS:
            if flags & END_STREAM:
                self.on(stream).is_ended = True
            skipped = 5 if flags & PRIORITISED else 0
            self._pieces = [payload[skipped:]]
        else:
            self._pieces.append(payload)
        if flags & END_HEADERS:
            pairs = self._decoder.decode(b"".join(self._pieces), raw=True)
            fields = tuple(
                (bytes(k).decode("latin-1"), bytes(v).decode("latin-1")) for k, v in pairs
            )
            self.on(stream).heads.append(fields)

    def _take_data(self, flags: int, stream: int, payload: bytes) -> None:
        received = self.on(stream)
        received.data += payload
        received.is_ended = received.is_ended or bool(flags & END_STREAM)
        if payload and self._is_polite:
            opened = window_update(0, len(payload))
            if not received.is_ended:
                opened += window_update(stream, len(payload))
            self._try_send(opened)

    def _take_settings(self, payload: bytes) -> None:
        before = self.peer.get(INITIAL_WINDOW_SIZE, DEFAULT_WINDOW)
        self.peer |= dict(struct.iter_unpack(">HI", payload)) or {0: 0}
        grown = self.peer.get(INITIAL_WINDOW_SIZE, DEFAULT_WINDOW) - before
        for stream in self._windows:
            self._windows[stream] += grown
        if self._is_polite:
            self._try_send(frame(SETTINGS, ACK, 0))

    def _try_send(self, data: bytes) -> None:
        with contextlib.suppress(Closed):
            self.send(data)

    def abort(self) -> None:
        """Close with a TCP reset, as a client that died."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()
