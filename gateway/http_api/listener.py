"""A uvicorn server for one address, started and stopped by the composition root.

Knows sockets and uvicorn. The socket is bound before anything is served, so that a taken port is a
start-up error with the port's name in it. uvicorn keeps its hands off the process's signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Iterator
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from gateway.sockets import BACKLOG, bind

KEEP_ALIVE_S: Final = 75


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpListener:
    """One application on one socket."""

    def __init__(self, name: str, app: ASGIApp, host: str, port: int) -> None:
        self._socket = bind(name, host, port)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Serve; returns when connections are accepted."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started:
            if self._task.done():
                await self._task
            await asyncio.sleep(0.005)  # uvicorn offers no event for this moment

    async def stop(self, limit_s: float) -> None:
        """Accept no more, let running requests finish within the limit, close."""
        self._server.config.timeout_graceful_shutdown = math.ceil(limit_s)
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        self._socket.close()
