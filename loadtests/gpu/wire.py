"""One gRPC connection of a caller: messages out, who ended how; nothing is done with the answers.

Cheap enough to keep a GPU busy from few processes: a message is written as it lies in memory, and
of an answer only the frames and the status are looked at. Keeps to the server's flow control; what
does not fit its window waits here, and its latency counts that. Knows HTTP/2's frames
(gateway.http2); knows no load.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, cast

from gateway.http2 import frames, hpack, settings
from gateway.http2.frames import ConnectionFault
from loadtests.grpc_loop import METHOD

_HEAD: Final = hpack.literals(
    (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", METHOD.encode()),
        (b":authority", b"gateway"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    )
)
_WINDOW: Final = 1 << 30
"""For answers: more than there can ever be under way."""
_RETURN_AT: Final = 1 << 24
"""Received bytes at which the connection's window is given back."""
_MAX_HEADERS: Final = 1 << 20

Ended = Callable[[int, str], None]
"""Takes a call's number and why it failed; nothing: it did not."""


class Link(asyncio.Protocol):
    """One connection.

    Args:
        on_end: told of every call's end.
        on_lost: told once when the connection is gone, with the reason.
    """

    def __init__(self, on_end: Ended, on_lost: Callable[[str], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self.ready = self._loop.create_future()
        """Done when the server has said what it takes."""
        self._on_end = on_end
        self._on_lost = on_lost
        self._received = bytearray()
        self._decoder = hpack.Decoder(_MAX_HEADERS)
        self._open: set[int] = set()
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._next = 1
        self._window_bytes = frames.DEFAULT_WINDOW
        self._stream_window_bytes = frames.DEFAULT_WINDOW
        self._frame_bytes = frames.DEFAULT_FRAME_BYTES
        self._taken_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say how much of answers may be under way."""
        self._transport = transport = cast("asyncio.Transport", transport)  # uvloop's is none
        windows = frames.settings({frames.SETTING_INITIAL_WINDOW: _WINDOW})
        transport.write(frames.PREFACE + windows + frames.window_update(0, _WINDOW))

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass it on."""
        self._on_lost(str(exc or "the server closed the connection"))

    def ask(self, message: bytes) -> int:
        """Begin a call with this message; return its number."""
        number = self._next
        self._next += 2
        self._open.add(number)
        self._waiting.append((number, message))
        self._write()
        return number

    def close(self) -> None:
        """End the connection."""
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        self._received += data
        try:
            for kind, flags, stream, payload in self._frames():
                self._take(kind, flags, stream, payload)
        except (ConnectionFault, hpack.HpackError) as exc:
            self._on_lost(str(exc))
            self.close()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == frames.DATA:
            self._count(len(payload))
        elif kind == frames.HEADERS:
            fields = dict(self._decoder.decode(payload))
            if flags & frames.END_STREAM:
                self._end(stream, _failure(fields))
        elif kind == frames.RST_STREAM:
            self._end(stream, f"reset with code {int.from_bytes(payload, 'big')}")
        elif kind == frames.GOAWAY:
            raise ConnectionFault(frames.ErrorCode.NO_ERROR, f"the server goes away: {payload!r}")
        elif kind == frames.SETTINGS and not flags & frames.ACK:
            self._adopt(payload)
        elif kind == frames.PING and not flags & frames.ACK:
            self._transport.write(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif kind == frames.WINDOW_UPDATE and not stream:
            self._window_bytes += int.from_bytes(payload, "big")
            self._write()

    def _adopt(self, payload: bytes) -> None:
        """Take the server's settings; it sends them once, before anything else."""
        for name, value in settings.read(payload):
            if name == frames.SETTING_INITIAL_WINDOW:
                self._stream_window_bytes = value
            elif name == frames.SETTING_MAX_FRAME:
                self._frame_bytes = value
        self._transport.write(frames.frame(frames.SETTINGS, frames.ACK, 0))
        if not self.ready.done():
            self.ready.set_result(None)

    def _write(self) -> None:
        """Write calls as far as the window goes, in their order."""
        while self._waiting:
            number, message = self._waiting[0]
            size = len(message) + 5
            if size > self._stream_window_bytes:
                self._waiting.popleft()
                why = f"{size} bytes are more than a stream's window"
                self._loop.call_soon(self._end, number, why)  # whoever asks has no number yet
                continue
            if size > self._window_bytes:
                return
            self._waiting.popleft()
            self._window_bytes -= size
            self._transport.writelines(self._pieces(number, message))

    def _pieces(self, number: int, message: bytes) -> Iterator[bytes | memoryview]:
        yield frames.frame(frames.HEADERS, frames.END_HEADERS, number, _HEAD)
        prefix = b"\0" + len(message).to_bytes(4, "big")
        yield frames.frame(frames.DATA, 0, number, prefix)
        view = memoryview(message)
        for start in range(0, len(view), self._frame_bytes):
            part = view[start : start + self._frame_bytes]
            is_last = start + len(part) == len(view)
            flags = frames.END_STREAM if is_last else 0
            yield frames.frame_head(len(part), frames.DATA, flags, number)
            yield part

    def _end(self, number: int, failure: str) -> None:
        if number in self._open:
            self._open.remove(number)
            self._on_end(number, failure)

    def _count(self, size: int) -> None:
        self._taken_bytes += size
        if self._taken_bytes >= _RETURN_AT:
            self._transport.write(frames.window_update(0, self._taken_bytes))
            self._taken_bytes = 0

    def _frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield the whole frames that have come: kind, flags, stream, payload."""
        received, at = self._received, 0
        while at + frames.HEAD_BYTES <= len(received):
            start = at + frames.HEAD_BYTES
            end = start + int.from_bytes(received[at : at + 3], "big")
            if end > len(received):
                break
            stream = int.from_bytes(received[at + 5 : start], "big") & frames.MAX_STREAM_ID
            yield received[at + 3], received[at + 4], stream, bytes(received[start:end])
            at = end
        del received[:at]


def _failure(fields: dict[bytes, bytes]) -> str:
    status = fields.get(b"grpc-status", b"")
    if status == b"0":
        return ""
    said = fields.get(b"grpc-message", b"").decode(errors="replace")
    return f"status {status.decode() or 'missing'}: {said}"
