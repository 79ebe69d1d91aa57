"""The engine process: the gateway as it is in one process, but for the predict listeners.

Started by the supervisor, never by hand. Metrics and admin listeners are here. It ends with the
same exit codes as `sluice serve`.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Final

from gateway import logs
from gateway.app import App
from gateway.config_fields import ConfigError
from gateway.event_loop import run_loop
from gateway.garbage import spare_the_collector
from gateway.prediction_log.spool.lock import SpoolInUse
from gateway.route_control.file_store import StoreLocked
from gateway.sockets import AddressInUse
from gateway.workers import control
from gateway.workers.control import Reports
from gateway.workers.engine_end import EngineEnd
from gateway.workers.settings import EngineSettings

logger = logging.getLogger(__name__)

LAST_ANSWERS_S: Final = 2.0
"""Longest wait for fronts to close their links once they have nothing under way."""


def main() -> int:
    """Run until the supervisor says otherwise."""
    control.ignore_signals()
    sock, settings = control.inherited(sys.argv[1])
    logs.configure()
    control.name_in_log("engine")
    try:
        run_loop(serve(settings, sock))
    except (AddressInUse, StoreLocked, SpoolInUse, ConfigError) as exc:
        logger.error("cannot start", extra={"reason": str(exc)})
        return 1
    return 0


async def serve(settings: EngineSettings, sock: socket.socket) -> None:
    """Serve the fronts until the supervisor says otherwise or has ended, then stop in order."""
    reports = Reports(sock)
    reports.start()
    listening = socket.socket(fileno=settings.socket_fd)
    listening.setblocking(False)
    app = App(settings.config, settings.root, settings.base, has_front_door=False)
    end = EngineEnd(
        pipeline=app.pipeline,
        service=app.service,
        app=app.predict,
        catalog=app.catalog,
        lifecycle=app.lifecycle,
        statuses=app.statuses,
    )
    accepting = asyncio.create_task(end.serve(listening))
    starting = asyncio.create_task(app.start())
    waiting = asyncio.create_task(reports.drain_asked.wait())
    await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        await starting  # an error while starting ends the process here
        spare_the_collector()
        end.announce()
        ports = app.ports
        reports.say(
            "ready", metrics=ports.metrics, admin=ports.admin, routes=sorted(app.routes.snapshot)
        )
    await waiting
    if reports.is_alone:
        await _fronts_gone(end, settings.config.server.drain_timeout_s + LAST_ANSWERS_S)
    if not starting.done():
        app.lifecycle.drain()
        await starting
    await app.stop()
    accepting.cancel()
    if reports.is_alone:  # nobody else is left to clean up
        shutil.rmtree(Path(listening.getsockname()).parent, ignore_errors=True)


async def _fronts_gone(end: EngineEnd, limit_s: float) -> None:
    """Without a supervisor, wait until the fronts, which drain by themselves, have ended."""
    try:
        async with asyncio.timeout(limit_s):
            await end.fronts_gone()
    except TimeoutError:
        logger.error("fronts have not ended", extra={"fronts": end.fronts})


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    sys.exit(main())
