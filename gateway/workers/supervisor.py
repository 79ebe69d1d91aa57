"""`sluice serve` with several workers: starts the processes, replaces those that end, stops them.

The supervisor serves nothing. It binds the predict sockets, one per front and port, all with
SO_REUSEPORT: the kernel spreads new connections over the fronts. The sockets stay open here, so
that those of a front that has ended go on taking connections for its successor.

Start: bind, so that a taken port is an error at once; engine process and fronts start side by side.
An engine process that ends before it was ever ready ends the command with its exit code, since its
reason (a taken port, a locked folder) would be the same again; so do fronts that never come up.
Afterwards whatever ends is replaced, at once if it lived for STEADY_S, else after a pause that
doubles up to PAUSE_S.
Stop, on SIGTERM or SIGINT: first the fronts drain and end, then the engine process, which has
nothing under way by then, flushes its log and ends. What does not end in time is killed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway import config as configuration
from gateway import tls
from gateway.config import Config
from gateway.sockets import AddressInUse
from gateway.workers.control import DRAIN, Child, spawn
from gateway.workers.settings import EngineSettings, FrontSettings, takes_socket
from gateway.workers.shared_sockets import bind_shared

logger = logging.getLogger(__name__)

STEADY_S: Final = 10.0
FIRST_PAUSE_S: Final = 0.1
PAUSE_S: Final = 5.0
EARLY_ENDS: Final = 5
"""A front that ends this often before it was ever ready will not come up."""
MARGIN_S: Final = 15.0
"""Beyond the drain timeout: for sending answers, closing engines, flushing the log."""
LINKS: Final = 1_024
"""Links that wait to be accepted."""
ENGINE: Final = "engine"
_CANNOT_START: Final = 1
_LONGEST_PARENT: Final = 70
"""Characters; the path of a unix socket has at most about a hundred."""


def run(config: Config, root: Path, base: Path) -> int:
    """Serve until SIGTERM or Ctrl-C; return the exit code.

    Raises:
        ConfigError: a file of TLS is not what it should be.
    """
    if config.server.tls is not None:
        tls.server_context(config.server.tls, base, ("h2",))  # fronts would only find it one by one
    try:
        return asyncio.run(_run(config, root, base))
    except AddressInUse as exc:
        logger.error("cannot start", extra={"reason": str(exc)})
        return _CANNOT_START


async def _run(config: Config, root: Path, base: Path) -> int:
    parent = None if len(tempfile.gettempdir()) <= _LONGEST_PARENT else "/tmp"
    with tempfile.TemporaryDirectory(prefix="sluice-", dir=parent) as folder:
        supervisor = Supervisor(config, root, base, Path(folder))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, supervisor.stop_asked.set)
        try:
            return await supervisor.run()
        finally:
            supervisor.close()


class Supervisor:
    """The processes of one gateway. Make it on a running event loop.

    Args:
        config: checked, with several workers.
        root: the model repository's folder.
        base: the configuration file's folder.
        folder: private; takes the unix socket.

    Raises:
        AddressInUse: a predict port cannot be bound.
    """

    def __init__(self, config: Config, root: Path, base: Path, folder: Path) -> None:
        self.stop_asked = asyncio.Event()
        self._failed = asyncio.Event()
        self._exit_code = 0
        self._is_stopping = False
        server = config.server
        count = server.workers
        self._sockets = {
            name: bind_shared(
                name,
                *configuration.address(getattr(server, name), path=f"$.server.{name}"),
                count,
                is_listening=name == "http" or takes_socket(server),
            )
            for name in ("http", "grpc")
        }
        self.ports = {name: socks[0].getsockname()[1] for name, socks in self._sockets.items()}
        self._config = _settled(config, self.ports)
        self._root, self._base = root, base
        self._socket_path = str(folder / "engine.sock")
        self._links = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._links.bind(self._socket_path)
        os.chmod(self._socket_path, 0o600)
        self._links.listen(LINKS)
        self._children: dict[str, Child] = {}
        self._ready: dict[str, asyncio.Event] = {
            name: asyncio.Event() for name in (ENGINE, *map(_front, range(1, count + 1)))
        }
        self._came_up: set[str] = set()
        """Processes that reported something: what they need to start is there."""
        self._engine_says: Mapping[str, Any] = {}  # Any: JSON

    async def run(self) -> int:
        """Start, watch, stop; return the exit code."""
        fronts = [_front(n) for n in range(1, self._config.server.workers + 1)]
        keepers = {ENGINE: asyncio.create_task(self._keep(ENGINE, self._spawn_engine))}
        for index, name in enumerate(fronts, 1):
            keepers[name] = asyncio.create_task(self._keep(name, self._front_spawner(index)))
        announcing = asyncio.create_task(self._announce())
        ends = [asyncio.create_task(e.wait()) for e in (self.stop_asked, self._failed)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for task in (announcing, *ends):
            task.cancel()
        self._is_stopping = True
        logger.info("draining")
        limit_s = self._config.server.drain_timeout_s + MARGIN_S
        await self._end([(name, keepers[name]) for name in fronts], limit_s)
        self._close_doors()  # from now on connections are refused, not left to wait
        await self._end([(ENGINE, keepers[ENGINE])], limit_s)
        logger.info("stopped")
        return self._exit_code

    def close(self) -> None:
        """Close the sockets."""
        self._links.close()
        self._close_doors()

    def _close_doors(self) -> None:
        for sock in (*self._sockets["http"], *self._sockets["grpc"]):
            sock.close()

    # --- keeping one process ----------------------------------------------------------------------

    async def _keep(self, name: str, start: Callable[[], Any]) -> None:  # Any: an awaitable Child
        """Keep a process running until the gateway stops."""
        ended_early, pause_s = 0, FIRST_PAUSE_S
        while not self._is_stopping:
            started_s = time.monotonic()
            try:
                child: Child = await start()
            except OSError as exc:  # no process or no memory to be had: it may pass
                logger.error("a process cannot be made", extra={"name_": name, "reason": str(exc)})
                await self._pause(PAUSE_S)
                continue
            self._children[name] = child
            if self._is_stopping:
                child.say(DRAIN)
            listening = asyncio.create_task(self._listen(child))
            code = await child.wait()
            await listening
            if self._is_stopping:
                return
            lived_s = time.monotonic() - started_s
            extra = {
                "name_": name,
                "pid": child.pid,
                "exit_code": code,
                "lived_s": round(lived_s, 3),
            }
            if name not in self._came_up:
                ended_early += 1
                if name == ENGINE or ended_early >= EARLY_ENDS:
                    logger.error("a process cannot start", extra=extra)
                    self._fail(code)
                    return
            logger.error("a process has ended and is replaced", extra=extra)
            pause_s = 0.0 if lived_s >= STEADY_S else min(PAUSE_S, pause_s * 2 or FIRST_PAUSE_S)
            await self._pause(pause_s)

    async def _listen(self, child: Child) -> None:
        """Take a process's reports until it says nothing more."""
        while (report := await child.reports.get()) is not None:
            self._came_up.add(child.name)
            if report["event"] == "ready":
                if child.name == ENGINE:
                    self._engine_says = report
                if self._ready[child.name].is_set():
                    logger.info(
                        "a process was replaced", extra={"name_": child.name, "pid": child.pid}
                    )
                self._ready[child.name].set()

    def _fail(self, code: int) -> None:
        self._exit_code = code if code > 0 else _CANNOT_START
        self._failed.set()

    async def _pause(self, pause_s: float) -> None:
        """Wait, but not for longer than the gateway runs."""
        try:
            async with asyncio.timeout(pause_s):
                await self.stop_asked.wait()
        except TimeoutError:
            return

    async def _announce(self) -> None:
        """Say once that everything serves."""
        for ready in self._ready.values():
            await ready.wait()
        says = self._engine_says
        pids = {name.replace(" ", "_"): child.pid for name, child in self._children.items()}
        ports = {**self.ports, "metrics": says["metrics"], "admin": says["admin"]}
        logger.info("serving", extra={"routes": says["routes"], **ports, "processes": pids})

    async def _end(self, keepers: list[tuple[str, asyncio.Task[None]]], limit_s: float) -> None:
        """Ask processes to end, and see that they do."""
        for name, _ in keepers:
            if name in self._children:
                self._children[name].say(DRAIN)
        _, late = await asyncio.wait([task for _, task in keepers], timeout=limit_s)
        for name, task in keepers:
            if task in late:
                logger.error("a process does not end and is killed", extra={"name_": name})
                if name in self._children:
                    self._children[name].kill()
        if late:
            await asyncio.wait(late, timeout=MARGIN_S)
        for _, task in keepers:
            if task.done() and not task.cancelled() and (exc := task.exception()):
                logger.error("a process could not be kept", exc_info=exc)

    # --- starting one process ---------------------------------------------------------------------

    async def _spawn_engine(self) -> Child:
        fd = self._links.fileno()
        settings = EngineSettings(
            config=self._config, root=self._root, base=self._base, socket_fd=fd
        )
        return await spawn(ENGINE, "gateway.workers.engine_process", settings, fd)

    def _front_spawner(self, index: int) -> Callable[[], Any]:  # Any: an awaitable Child
        http, grpc = (self._sockets[name][index - 1].fileno() for name in ("http", "grpc"))

        async def start() -> Child:
            settings = FrontSettings(
                index=index,
                server=self._config.server,
                base=self._base,
                socket_path=self._socket_path,
                http_fd=http,
                grpc_fd=grpc,
                has_served=self._ready[ENGINE].is_set(),
            )
            return await spawn(_front(index), "gateway.workers.front_process", settings, http, grpc)

        return start


def _front(index: int) -> str:
    return f"front {index}"


def _settled(config: Config, ports: Mapping[str, int]) -> Config:
    """Return the configuration with the ports that were bound, and a name that outlives processes.

    The name is the one that a single process would have.
    """
    server = config.server
    hosts = {
        name: configuration.address(getattr(server, name), path=f"$.server.{name}")[0]
        for name in ports
    }
    addresses = {
        name: f"[{host}]:{ports[name]}" if ":" in host else f"{host}:{ports[name]}"
        for name, host in hosts.items()
    }
    replica = server.replica or f"{socket.gethostname()}-{ports['http']}"
    return msgspec.structs.replace(
        config, server=msgspec.structs.replace(server, replica=replica, **addresses)
    )
