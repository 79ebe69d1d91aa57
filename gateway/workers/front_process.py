"""A front process: the predict listeners, and a link to the engine process.

Started by the supervisor, never by hand. Its listening sockets are the supervisor's: when it ends,
however that is, connections go on gathering in them for its successor.

Stop, in this order: refuse (not ready, still live); wait, at most drain_timeout_s, until every
accepted request is answered; past the limit answer what is left with UNAVAILABLE/503; close the
listeners, then the link.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import time
from typing import Final

from gateway import logs
from gateway.errors import StatusTable
from gateway.event_loop import run_loop
from gateway.front_door import FrontDoor, Sockets
from gateway.garbage import spare_the_collector
from gateway.http_api.fast.exchange import Service
from gateway.workers import control, remote_service
from gateway.workers.control import Reports
from gateway.workers.remote_engine import RemoteEngine
from gateway.workers.remote_pipeline import RemotePipeline
from gateway.workers.remote_service import FrontCatalog, PassedOn, RemoteService
from gateway.workers.settings import FrontSettings, takes_socket

logger = logging.getLogger(__name__)

CLOSE_S: Final = 2.0
"""Least time for answers to be sent."""
HEAR_S: Final = 5.0
"""Longest wait for the engine process before connections are accepted."""
SETTLE_S: Final = 0.05
"""What was sent to the engine process before a link is closed gets there within this time."""


def main() -> int:
    """Run until the supervisor says otherwise."""
    control.ignore_signals()
    sock, settings = control.inherited(sys.argv[1])
    logs.configure()
    control.name_in_log(f"front {settings.index}")
    run_loop(serve(settings, sock))
    return 0


class Front:
    """One front process. Make it on a running event loop."""

    def __init__(self, settings: FrontSettings, reports: Reports) -> None:
        self._settings = settings
        self._reports = reports
        server = settings.server
        statuses = StatusTable(server.overload_codes)
        self._engine = RemoteEngine(
            settings.socket_path,
            settings.index,
            self._ready_changed,
            has_served=settings.has_served,
        )
        self._catalog = FrontCatalog(self._engine)
        self._pipeline = RemotePipeline(self._engine, statuses, settings.index)
        app = remote_service.make_app(
            catalog=self._catalog,
            passed_on=PassedOn(self._engine, statuses, server.max_body_bytes),
            statuses=statuses,
        )
        service = RemoteService(
            pipeline=self._pipeline,
            catalog=self._catalog,
            engine=self._engine,
            statuses=statuses,
        )
        http = Service(
            pipeline=self._pipeline,
            catalog=self._catalog,
            statuses=statuses,
            limit_bytes=server.max_body_bytes,
        )
        self._door = FrontDoor(
            server,
            settings.base,
            http=http,
            app=app,
            service=service,
            statuses=statuses,
            sockets=_sockets(settings),
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_listening = False
        self._was_ready = False

    async def start(self) -> None:
        """Accept connections; ready once the engine process is.

        Connections wait until the engine process has said where it is, so that nobody is told that
        it starts who comes to a front that does; if it is away, callers wait here instead.
        """
        self._tasks.add(asyncio.create_task(self._engine.run(self._pipeline)))
        self._tasks.add(asyncio.create_task(self._pipeline.watch()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEAR_S):
                await self._engine.heard.wait()
        await self._door.start()
        self._is_listening = True
        self._ready_changed(self._engine.is_ready)

    async def stop(self) -> None:
        """Refuse, wait, close: the order in the module's documentation."""
        limit_s = time.monotonic() + self._settings.server.drain_timeout_s
        self._catalog.is_draining = True
        self._pipeline.drain()
        await self._door.set_ready(is_ready=False)
        try:
            async with asyncio.timeout(max(0.0, limit_s - time.monotonic())):
                await self._pipeline.idle()
        except TimeoutError:
            requests = self._pipeline.in_flight
            logger.error("drain timeout passed", extra={"requests": requests})
            self._pipeline.abandon()
        await self._door.stop(max(CLOSE_S, limit_s - time.monotonic()))
        for task in self._tasks:
            task.cancel()
        self._engine.close()
        await asyncio.sleep(SETTLE_S)

    def _ready_changed(self, is_ready: bool) -> None:
        if not self._is_listening:
            return
        if is_ready and not self._was_ready:
            self._was_ready = True
            self._reports.say("ready")
        is_ready = is_ready and not self._catalog.is_draining
        task = asyncio.create_task(self._door.set_ready(is_ready=is_ready))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _sockets(settings: FrontSettings) -> Sockets:
    takes_grpc = takes_socket(settings.server)
    return Sockets(
        http=socket.socket(fileno=settings.http_fd),
        grpc=socket.socket(fileno=settings.grpc_fd) if takes_grpc else None,
        shares_grpc_port=not takes_grpc,
    )


async def serve(settings: FrontSettings, sock: socket.socket) -> None:
    """Serve until the supervisor says otherwise or has ended, then stop in order."""
    reports = Reports(sock)
    reports.start()
    front = Front(settings, reports)
    starting = asyncio.create_task(front.start())
    waiting = asyncio.create_task(reports.drain_asked.wait())
    await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():  # nobody was let in yet
        return
    await starting
    spare_the_collector()
    reports.say("up")
    await waiting
    await front.stop()


if __name__ == "__main__":
    with contextlib.suppress(AttributeError):
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    sys.exit(main())
