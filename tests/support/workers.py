"""Gateways with front processes: which process is which, who holds a connection, what they hold.

Everything is read from /proc and from the gateway's log: the processes are asked nothing.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx

from tests.support.gateway import GatewayProcess, wait_until
from tests.support.transports import TRANSPORTS, Ask, Transport

ENGINE: Final = "engine"
_ESTABLISHED: Final = "01"
_JOIN_LIMIT_S: Final = 30.0


def processes(gateway: GatewayProcess) -> dict[str, int]:
    """Return the processes that run now, by name: engine, front 1, front 2 ..."""
    (serving,) = gateway.events("serving")
    found = {name.replace("_", " "): pid for name, pid in serving["processes"].items()}
    for event in gateway.events("a process was replaced"):
        found[event["name"]] = event["pid"]
    return found


def fronts(gateway: GatewayProcess) -> dict[str, int]:
    """Return the front processes that run now."""
    return {name: pid for name, pid in processes(gateway).items() if name != ENGINE}


def kill(gateway: GatewayProcess, name: str) -> int:
    """End a process as a crash would; return its pid."""
    pid = processes(gateway)[name]
    os.kill(pid, signal.SIGKILL)
    return pid


def wait_replaced(gateway: GatewayProcess, name: str, pid: int, limit_s: float = 15.0) -> None:
    """Return when another process of that name is ready."""
    wait_until(lambda: processes(gateway)[name] != pid, f"{name} was replaced", limit_s)


def is_running(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def descriptors(pid: int) -> int:
    """Return how many file descriptors a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def arenas(pid: int) -> int:
    """Return how many arenas a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return sum("memfd:sluice" in line for line in lines)


def connections(port: int, pids: Mapping[str, int]) -> dict[int, str]:
    """Return the established connections to a port: the client's port, and who holds them."""
    by_inode = {}
    for name, pid in pids.items():
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            try:
                by_inode[os.readlink(fd)] = name
            except FileNotFoundError:
                continue
    found = {}
    tables = [Path(f"/proc/net/{table}").read_text() for table in ("tcp", "tcp6")]
    for line in [line for table in tables for line in table.splitlines()[1:]]:
        _, local, remote, state, *rest = line.split()
        holder = by_inode.get(f"socket:[{rest[5]}]")
        if state == _ESTABLISHED and int(local.split(":")[1], 16) == port and holder:
            found[int(remote.split(":")[1], 16)] = holder
    return found


class Caller:
    """A connection to one front, and a thread that calls over it without a pause."""

    def __init__(self, gateway: GatewayProcess, name: str, ask: Ask) -> None:
        self.transport: Transport = TRANSPORTS[name](gateway.at)
        port = int((gateway.at.http if "http" in name else gateway.at.grpc).rpartition(":")[2])
        before = connections(port, fronts(gateway))
        first = self.transport.infer(ask)
        assert first.code in (200, "OK"), first
        (client_port,) = connections(port, fronts(gateway)).keys() - before.keys()
        self.front = connections(port, fronts(gateway))[client_port]
        """The front that accepted the connection."""
        self.answers: Counter[int | str] = Counter()
        self.broken: list[str] = []
        self.longest_s = 0.0
        self._ask = ask
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._call, name=f"caller-{name}")

    def _call(self) -> None:
        while not self._is_over.is_set():
            started_s = time.monotonic()
            try:
                answer = self.transport.infer(self._ask)
            except httpx.HTTPError as exc:
                self.broken.append(repr(exc))
                continue
            # What the channel itself says, not the gateway.
            if answer.code == "UNAVAILABLE" and not answer.headers.get("x-request-id"):
                self.broken.append(answer.error)
                self._is_over.wait(0.02)
                continue
            self.answers[answer.code] += 1
            self.longest_s = max(self.longest_s, time.monotonic() - started_s)
        self.transport.close()

    def start(self) -> None:
        """Begin to call."""
        self._thread.start()

    def stop(self) -> None:
        """End the calls and wait for the answer under way."""
        self._is_over.set()
        self._thread.join(_JOIN_LIMIT_S)
        assert not self._thread.is_alive(), f"{self._thread.name} hangs"


class Callers:
    """Some callers at once, for the length of a block."""

    def __init__(
        self, gateway: GatewayProcess, names: tuple[str, ...], ask: Ask, *, count: int
    ) -> None:
        self.all = [Caller(gateway, names[n % len(names)], ask) for n in range(count)]

    @property
    def answers(self) -> Counter[int | str]:
        """What came back, by code."""
        return sum((caller.answers for caller in self.all), Counter())

    @property
    def broken(self) -> list[str]:
        """What ended without an answer of the gateway's."""
        return [text for caller in self.all for text in caller.broken]

    def wait_for(self, more: int) -> None:
        """Return when there are that many more answers."""
        goal = self.answers.total() + more
        wait_until(lambda: self.answers.total() >= goal, f"{more} more answers", 20.0)

    def __enter__(self) -> Self:
        for caller in self.all:
            caller.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for caller in self.all:
            caller.stop()
