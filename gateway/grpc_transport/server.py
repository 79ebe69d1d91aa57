"""The gRPC server: a listener, its connections, one clock for all of them, and the stop.

Knows methods by path and asyncio; nothing of what methods do. One timer sweeps the connections, and
one callback per turn of the loop flushes those that have output.

Order of a stop: close the listener; tell every connection that the end comes; when it has read that
(or after a short delay) refuse its new calls; close it with its last call; after the limit close
what is left, whose calls are cancelled.
"""

from __future__ import annotations

import asyncio
import socket
import ssl as tls
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from gateway.grpc_transport.call import Call
from gateway.grpc_transport.driver import Line
from gateway.grpc_transport.head import CallHead, HeadReader, Method, Raw
from gateway.http2.connection import PIECE_BYTES
from gateway.http2.fields import Fields
from gateway.http2.frames import ErrorCode
from gateway.http2.limits import Limits
from gateway.sockets import BACKLOG, bind

__all__ = ["Method", "Raw", "Server", "Statistics"]

SWEEP_S: Final = 0.25
"""How often the clock is looked at: deadlines and timeouts are late by up to this."""
STOP_POLL_S: Final = 0.01
CLOSE_LIMIT_S: Final = 1.0
"""How long closed connections may take to go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What the server has and had."""

    connections: int
    """Open now."""
    calls: int
    """Under way now."""
    held_bytes: int
    """Incomplete messages and queued output, of all connections."""
    connections_refused: int
    """Over the limit of open ones, so far."""
    calls_opened: int
    """So far."""
    streams_reset: int
    """By this side, so far."""


class Server:
    """The gRPC listener.

    Args:
        methods: by path, "/package.Service/Method".
        limits: of each connection, and of all.
        max_message_bytes: largest message, as sent and decompressed.
        compression: of answers, for clients that accept it: none, gzip or deflate.
        name: of the listener, for errors.
        host, port: address; port 0 picks a free one.
        ssl: must offer h2 by ALPN; None: plain text.
        sock: a listening socket to use instead of the address.

    Raises:
        AddressInUse: the address cannot be bound.
    """

    open = Call

    def __init__(  # noqa: PLR0913 - what a listener is
        self,
        *,
        methods: Mapping[str, Method],
        limits: Limits,
        max_message_bytes: int,
        compression: str,
        name: str,
        host: str,
        port: int,
        ssl: tls.SSLContext | None = None,
        sock: socket.socket | None = None,
    ) -> None:
        self.limits = limits
        self.scratch = memoryview(bytearray(PIECE_BYTES))
        """Where lines read to, each for the time of one callback."""
        self.on_stop: list[Callable[[], None]] = []
        """Called when a stop begins: to end calls that would never end."""
        self._heads = HeadReader(methods, max_message_bytes, compression)
        self._ssl = ssl
        self._socket = bind(name, host, port) if sock is None else sock
        self.port: int = self._socket.getsockname()[1]
        self._lines: dict[Line, None] = {}
        self._dirty: list[Line] = []
        self._listener: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._refused = self._opened = self._resets = 0

    async def start(self) -> None:
        """Accept connections."""
        self._loop = asyncio.get_running_loop()
        handshake_s = None if self._ssl is None else self.limits.handshake_timeout_s
        self._listener = await self._loop.create_server(
            lambda: Line(self),
            sock=self._socket,
            backlog=BACKLOG,
            ssl=self._ssl,
            ssl_handshake_timeout=handshake_s,
            ssl_shutdown_timeout=None if self._ssl is None else CLOSE_LIMIT_S,
        )
        self._timer = self._loop.call_later(SWEEP_S, self._sweep)

    async def stop(self, limit_s: float) -> None:
        """End as the module says; returns when all connections are closed."""
        if self._listener is None:
            self._socket.close()
            return
        listener, self._listener = self._listener, None
        listener.close()
        for callback in self.on_stop:
            callback()
        for line in self._lines:
            line.connection.drain(time.monotonic_ns())
        await self._until_closed(limit_s)
        for line in list(self._lines):
            line.connection.end(ErrorCode.NO_ERROR, "the server has stopped")
        await self._until_closed(CLOSE_LIMIT_S)
        for line in list(self._lines):
            line.abort()
        if self._timer is not None:
            self._timer.cancel()

    def statistics(self) -> Statistics:
        """Return the counts of this moment."""
        connections = [line.connection for line in self._lines]
        return Statistics(
            connections=len(connections),
            calls=sum([len(connection.streams) for connection in connections]),
            held_bytes=sum([connection.held_bytes for connection in connections]),
            connections_refused=self._refused,
            calls_opened=self._opened + sum([connection.opened for connection in connections]),
            streams_reset=self._resets + sum([connection.resets for connection in connections]),
        )

    # The lines' side

    def add(self, line: Line) -> bool:
        """Take a line on; false if there are too many."""
        self._lines[line] = None
        if len(self._lines) <= self.limits.connections and self._listener is not None:
            return True
        self._refused += 1
        return False

    def remove(self, line: Line) -> None:
        """Let a closed line go."""
        if line in self._lines:
            del self._lines[line]
            self._opened += line.connection.opened
            self._resets += line.connection.resets

    def output_ready(self, line: Line) -> None:
        """Flush a line before the loop waits again."""
        if not self._dirty:
            assert self._loop is not None
            self._loop.call_soon(self._flush)
        self._dirty.append(line)

    # The connections' application

    def read_head(self, fields: Fields) -> CallHead:
        """Return what a header list means."""
        return self._heads.read(fields)

    def oversized_head(self) -> CallHead:
        """Return the head of a call whose header list is too large."""
        return self._heads.oversized()

    def next_turn(self, callback: Callable[[], None]) -> None:
        """Call a function in the loop's next turn."""
        assert self._loop is not None
        self._loop.call_soon(callback)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for line in dirty:
            line.flush()

    def _sweep(self) -> None:
        now_ns = time.monotonic_ns()
        for line in list(self._lines):
            if line.connection.streams or line.next_sweep_ns <= now_ns:
                line.sweep(now_ns)
        if self._loop is not None:
            self._timer = self._loop.call_later(SWEEP_S, self._sweep)

    async def _until_closed(self, limit_s: float) -> None:
        """Wait until every connection is gone, moving them along."""
        end_ns = time.monotonic_ns() + int(limit_s * 1e9)
        while self._lines and (now_ns := time.monotonic_ns()) < end_ns:
            for line in list(self._lines):
                line.sweep(now_ns)
            await asyncio.sleep(STOP_POLL_S)
