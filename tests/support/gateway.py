"""Running gateways for tests: a process of its own, or an App on an event loop in a thread.

The process is what users run: e2e tests start, signal and kill it. The App in this process is the
same composition without the command line: quick to start, seen by coverage and by caplog. Both
listen on free ports, unless the configuration names some.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import httpx
import uvloop

from gateway import config as configuration
from gateway.app import App

HOST: Final = "127.0.0.1"
READY_LIMIT_S: Final = 30.0
STOP_LIMIT_S: Final = 30.0
_POLL_S: Final = 0.02
GRPC_TRANSPORT: Final = os.environ.get("TEST_GRPC_TRANSPORT", "")
"""Of gateways whose configuration names none: the contract suite runs on either."""
_ROOT: Final = Path(__file__).parents[2]
_LISTENERS: Final = ("http", "grpc", "metrics", "admin")

_T = TypeVar("_T")
Document = Mapping[str, Any]  # Any: what a TOML file holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where a gateway listens, as host:port."""

    http: str
    grpc: str
    metrics: str
    admin: str

    @classmethod
    def of_ports(cls, ports: Mapping[str, int]) -> Addresses:
        """Return the addresses of ports on the loopback."""
        return cls(**{name: f"{HOST}:{ports[name]}" for name in _LISTENERS})


def free_port() -> int:
    """Return a port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def with_free_ports(document: Document) -> dict[str, Any]:  # Any: as Document
    """Return a configuration whose listeners, where it names none, take any port."""
    server = dict.fromkeys(_LISTENERS, f"{HOST}:0") | document.get("server", {})
    if GRPC_TRANSPORT:
        server.setdefault("grpc_transport", GRPC_TRANSPORT)
    return {**document, "server": server}


def toml(document: Document, path: tuple[str, ...] = ()) -> str:
    """Return a configuration as TOML text; strings, numbers and lists are written as in JSON."""
    lines = [f"[{'.'.join(json.dumps(key) for key in path)}]"] if path else []
    values = {key: value for key, value in document.items() if not isinstance(value, Mapping)}
    lines += [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in values.items()]
    tables = [toml(value, (*path, key)) for key, value in document.items() if key not in values]
    return "\n".join([*lines, *tables])


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = 10.0) -> None:
    """Return when a condition holds; AssertionError if it does not within the limit."""
    limit = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < limit, f"not within {limit_s:g} s: {what}"
        time.sleep(_POLL_S)


def metric(address: str, name: str, **labels: str) -> float:
    """Return the sum of a metric's samples that carry these labels."""
    total = 0.0
    for line in httpx.get(f"http://{address}/metrics").text.splitlines():
        series, _, value = line.rpartition(" ")
        found, _, rest = series.partition("{")
        if found == name and all(f'{key}="{text}"' in rest for key, text in labels.items()):
            total += float(value)
    return total


class GatewayProcess:
    """`python -m gateway serve` on a configuration, in a process of its own.

    Args:
        config: the configuration, or the text of the file.
        folder: takes the file and the log.
        environ: added to the environment.
    """

    def __init__(
        self, config: Document | str, folder: Path, *, environ: Mapping[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        text = config if isinstance(config, str) else toml(with_free_ports(config))
        self.config_path = folder / "sluice.toml"
        self.config_path.write_text(text)
        self._log_path = folder / "gateway.log"
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gateway", "serve", "--config", str(self.config_path)],
                cwd=_ROOT,
                env={**os.environ, **(environ or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._addresses: Addresses | None = None

    @property
    def log(self) -> str:
        """All that the process has written."""
        return self._log_path.read_text(errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:  # Any: JSON
        """Return the log's entries of one event."""
        found = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return [entry for entry in found if entry["event"] == name]

    @property
    def at(self) -> Addresses:
        """Where it listens; known once it is ready."""
        if self._addresses is None:
            raise RuntimeError("wait_ready was not called")
        return self._addresses

    def wait_ready(self, limit_s: float = READY_LIMIT_S) -> Self:
        """Return when it serves; AssertionError with its log if it ends or takes too long."""
        limit = time.monotonic() + limit_s
        while not (serving := self.events("serving")):
            assert self._process.poll() is None, f"the gateway has ended:\n{self.log}"
            assert time.monotonic() < limit, f"the gateway is not ready:\n{self.log}"
            time.sleep(_POLL_S)
        self._addresses = Addresses.of_ports(serving[0])
        return self

    def signal(self, number: int) -> None:
        """Send a signal and return at once."""
        self._process.send_signal(number)

    @property
    def code(self) -> int | None:
        """The exit code; None: it runs."""
        return self._process.poll()

    def wait(self, limit_s: float = STOP_LIMIT_S) -> int:
        """Return the exit code once it has ended; AssertionError with its log if it does not."""
        try:
            return self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the gateway does not end:\n{self.log}") from None

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """End it as a crash would; nothing if it has ended already."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        try:
            return self.wait_ready()
        except BaseException:
            self.kill()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self.kill()


class LoopThread:
    """An event loop in a thread, shared by every App of the test process.

    One loop for all, because grpcio's asynchronous server is made for one.
    """

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="test-loop")
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _T], limit_s: float = READY_LIMIT_S) -> _T:
        """Run a coroutine on the loop and return its result. Any: what asyncio's own types say."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(limit_s)

    def call(self, function: Callable[[], _T]) -> _T:
        """Call a function on the loop and return its result."""

        async def work() -> _T:
            return function()

        return self.run(work())

    def close(self) -> None:
        """End the loop and its thread."""
        self.run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class GatewayInProcess:
    """An App that serves from this process."""

    def __init__(self, loop: LoopThread, config: Document, root: Path) -> None:
        self.loop = loop
        self._is_stopped = False
        self._base = tempfile.TemporaryDirectory(prefix="sluice-state-")
        checked = configuration.parse(with_free_ports(config))
        self.app = loop.run(self._start(App, checked, root, Path(self._base.name)))
        ports = {name: getattr(self.app.ports, name) for name in _LISTENERS}
        self.at = Addresses.of_ports(ports)

    @staticmethod
    async def _start(make: type[App], config: configuration.Config, root: Path, base: Path) -> App:
        app = make(config, root, base)
        await app.start()
        return app

    def busy(self, model: str, version: str = "1") -> tuple[int, int]:
        """Return how many requests of a version are queued, and how many instances execute."""

        def look() -> tuple[int, int]:
            statistics = self.app.repository.get(model, version).batcher.statistics()
            return statistics.queue.queued_requests, statistics.busy_instances

        return self.loop.call(look)

    def stop(self) -> None:
        """Drain and close. Idempotent."""
        if not self._is_stopped:
            self._is_stopped = True
            self.loop.run(self.app.stop())
            self._base.cleanup()


@contextmanager
def in_process(loop: LoopThread, config: Document, root: Path) -> Iterator[GatewayInProcess]:
    """Serve for the length of a block."""
    gateway = GatewayInProcess(loop, config, root)
    try:
        yield gateway
    finally:
        gateway.stop()
