"""All connections of the predict port: bound, served, swept once a tick, drained.

One timer per listener: a tick of at most a second refreshes the date, and lets every connection
count how long it has been quiet.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass
from typing import Final

from starlette.types import ASGIApp

from gateway.config import LimitsConfig
from gateway.http_api.fast.connection import Connection
from gateway.http_api.fast.exchange import Service
from gateway.http_api.fast.shared import Shared, bounds_of
from gateway.http_api.fast.slow import Application
from gateway.sockets import BACKLOG

KEEP_ALIVE_S: Final = 75.0
"""A connection without a request is closed after this."""
_MAX_TICK_S: Final = 1.0
_TICKS_PER_TIMEOUT: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerStatistics:
    """A listener's connections now, and what it closed since its start."""

    connections: int
    refused_connections: int
    bad_requests: int
    timeouts: int
    overflows: int


class PredictListener:
    """The predict port over HTTP.

    Args:
        service: answers the infer calls.
        app: ASGI application, answers everything else.
        sock: bound and listening; it belongs to the listener from now on.
        limits: of the configuration.
        ssl_context: None: plain text.
        keep_alive_s: longest time between two requests of a connection.
    """

    def __init__(
        self,
        service: Service,
        app: ASGIApp,
        sock: socket.socket,
        *,
        limits: LimitsConfig,
        ssl_context: ssl.SSLContext | None = None,
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        self.port: int = sock.getsockname()[1]
        self._socket = sock
        self._ssl = ssl_context
        self._limits = limits
        self._application = Application(app=app)
        least_s = min(keep_alive_s, limits.handshake_timeout_s, limits.slow_peer_timeout_s)
        self._tick_s = min(_MAX_TICK_S, least_s / _TICKS_PER_TIMEOUT)
        bounds = bounds_of(limits, keep_alive_s=keep_alive_s, tick_s=self._tick_s)
        self._shared = Shared(service=service, application=self._application, bounds=bounds)
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None

    def statistics(self) -> ListenerStatistics:
        """Return counts."""
        books = self._shared.books
        return ListenerStatistics(
            connections=len(self._shared.connections),
            refused_connections=books.refused_connections,
            bad_requests=books.bad_requests,
            timeouts=books.timeouts,
            overflows=books.overflows,
        )

    async def start(self) -> None:
        """Serve; returns when connections are accepted."""
        loop = asyncio.get_running_loop()
        self._tick()
        self._server = await loop.create_server(
            lambda: Connection(self._shared, loop),
            sock=self._socket,
            backlog=BACKLOG,
            ssl=self._ssl,
            ssl_handshake_timeout=self._limits.handshake_timeout_s if self._ssl else None,
        )

    async def stop(self, limit_s: float) -> None:
        """Accept no more, let what was begun finish within the limit, close."""
        if self._server is not None:
            self._server.close()
        self._socket.close()
        for connection in list(self._shared.connections):
            connection.drain()
        try:
            async with asyncio.timeout(limit_s):
                await self._all_closed()
        except TimeoutError:
            await self._abort()
        if self._timer is not None:
            self._timer.cancel()

    async def _all_closed(self) -> None:
        while self._shared.connections:
            self._shared.emptied.clear()
            await self._shared.emptied.wait()
        if self._application.tasks:
            await asyncio.wait(set(self._application.tasks))

    async def _abort(self) -> None:
        """Close what is left, and end what answers it."""
        for connection in list(self._shared.connections):
            connection.abort()
        tasks = set(self._application.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._tick)
        self._shared.service.answers.refresh()
        for connection in list(self._shared.connections):
            connection.tick()
