"""Moves bytes between a socket and a connection; nothing more.

Knows asyncio's transports and the sans-IO connection; neither frames nor calls.

What is read lies in one buffer of the server (asyncio fills it and tells of it in one step, so
connections can share it), unless a large message is under way: then the socket is read into the
message itself. What is written is collected by the connection and flushed once per turn of the loop
(`Server.output_ready`). A peer that does not read its answers is not read from.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final, cast

from gateway.http2.connection import Connection
from gateway.http2.liveness import sweep

if TYPE_CHECKING:
    from gateway.grpc_transport.server import Server

WRITE_HIGH_BYTES: Final = 256 << 10
"""Unsent bytes in a transport at which nothing more is written to it."""
IDLE_SWEEP_NS: Final = 1_000_000_000
"""Connections without calls are looked at so often."""


class Line(asyncio.BufferedProtocol):
    """One accepted socket."""

    __slots__ = (
        "_full_bytes",
        "_full_ns",
        "_is_direct",
        "_server",
        "_transport",
        "connection",
        "next_sweep_ns",
    )

    _transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self._server = server
        self._is_direct = False
        self._full_ns = 0
        self._full_bytes = 0
        self.connection = Connection(server, self, server.limits, time.monotonic_ns())
        self.next_sweep_ns = 0

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless there are too many already, or TLS did not agree on HTTP/2."""
        self._transport = cast("asyncio.Transport", transport)
        tls = transport.get_extra_info("ssl_object")
        is_refused = tls is not None and tls.selected_alpn_protocol() != "h2"
        if not self._server.add(self) or is_refused:
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self.connection.start()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Say where to read to."""
        view = self.connection.body_view()
        self._is_direct = view is not None
        return self._server.scratch if view is None else view

    def buffer_updated(self, size: int) -> None:
        """Take what was read."""
        now_ns = time.monotonic_ns()
        if self._is_direct:
            self.connection.body_received(size, now_ns)
        else:
            scratch = self._server.scratch
            self.connection.receive(bytes(scratch[:size]), now_ns)
            if size == len(scratch):
                self._give_way()

    def _give_way(self) -> None:
        """Let others have their turn: there is more to read than the buffer holds.

        The event loop would go on reading here, for megabytes, before it looks at another socket.
        """
        if not self.connection.is_full and not self._transport.is_closing():
            self._transport.pause_reading()
            self._server.next_turn(self._go_on)

    def _go_on(self) -> None:
        if not self.connection.is_full and not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give up what is under way."""
        self.connection.lost()
        self._server.remove(self)

    def pause_writing(self) -> None:
        """Stop both ways: the peer does not read."""
        self._full_ns = time.monotonic_ns()
        self._full_bytes = self._transport.get_write_buffer_size()
        self.connection.socket_full()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        if not self._transport.is_closing():
            self._transport.resume_reading()
            self.connection.socket_drained()

    # The server's side

    def output_ready(self) -> None:
        """Have the output flushed in this turn of the loop."""
        self._server.output_ready(self)

    def flush(self) -> None:
        """Write what there is."""
        connection = self.connection
        connection.is_dirty = False
        out = connection.out
        if out and not self._transport.is_closing():
            if connection.is_bulky:
                connection.is_bulky = False
                self._transport.writelines(out)
                connection.out = []
            else:
                self._transport.write(b"".join(out))
                out.clear()
        if connection.is_ended:
            self._close()
        elif connection.ready:
            connection.flushed()

    def sweep(self, now_ns: int) -> None:
        """Let time pass."""
        connection = self.connection
        self.next_sweep_ns = 0 if connection.streams else now_ns + IDLE_SWEEP_NS
        if connection.is_ended:
            if now_ns - connection.ended_ns > connection.limits.drain_delay_s * 1e9:
                self._transport.abort()
            return
        sweep(connection, now_ns)
        if connection.is_full:
            self._watch_full(now_ns)

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def _watch_full(self, now_ns: int) -> None:
        """Give a peer up that reads nothing."""
        size = self._transport.get_write_buffer_size()
        if size != self._full_bytes:
            self._full_bytes = size
            self._full_ns = now_ns
        elif now_ns - self._full_ns > self.connection.limits.slow_peer_timeout_s * 1e9:
            self._transport.abort()

    def _close(self) -> None:
        """Close so that the peer can still read the last frame.

        Closing a socket with unread input would have the kernel reset the connection, and the peer
        lose what it has not read yet: so this side only says that it has ended. The rest comes by
        the peer's own close, or by the next sweep.
        """
        transport = self._transport
        if transport.is_closing():
            return
        if self.connection.is_served or not transport.can_write_eof():
            transport.close()
            return
        with contextlib.suppress(OSError):
            transport.write_eof()
