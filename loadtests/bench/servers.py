"""Starts what is measured, asks it how much it answered, stops it.

A gateway (loadtests/gateway_process.py), the floors (floors/), other projects' servers
(loadtests/peers). All on loopback, on free ports, each in a process group of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from loadtests import asking, gateway_process
from loadtests.bench import content, peers, verify
from loadtests.bench.cases import Protocol, Server
from loadtests.bench.content import Target
from loadtests.bench.generator import Where
from loadtests.bench.questions import WrongAnswer
from loadtests.gateway_process import RunningGateway

ROOT: Final = Path(__file__).parents[2]
_FLOORS: Final[Mapping[str, tuple[str, ...]]] = {
    "raw grpc.aio": ("grpc_aio",),
    "starlette": ("starlette_json",),
    "starlette batching": ("starlette_json", "--batching"),
}
"""Module and options."""
_START_LIMIT_S: Final = 60.0
_PEER_START_LIMIT_S: Final = 120.0
_STOP_LIMIT_S: Final = 15.0


class NotStarted(Exception):
    """A server did not come up; the sentence ends with what it said."""


class Counts(NamedTuple):
    """What a server says it did; every number only grows."""

    requests: int
    """Answered with success."""
    failures: int
    rows: int
    batches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server that serves."""

    pid: int
    http: Where | None
    grpc: Where | None
    count: Callable[[Target], Counts] | None
    """None: only the load generator counts."""
    start_s: float

    def where(self, protocol: Protocol) -> Where:
        """Return the listener for a protocol; raises NotStarted where there is none."""
        found = self.grpc if protocol in ("grpc", "stream") else self.http
        if found is None:
            raise NotStarted(f"this server does not speak {protocol}")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What every server of a run stands on."""

    folder: Path
    models: Path
    redis_url: str | None
    certificate: Path
    """For those with TLS: its key lies beside it, as key.pem."""


class Servers:
    """The servers of one group of cases, each started when it is first asked for."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._stack = contextlib.ExitStack()
        self._running: dict[Server, Running] = {}
        self._failed: dict[Server, str] = {}

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        self._running.clear()
        self._stack.close()

    def get(self, server: Server) -> Running:
        """Return a running server; raises NotStarted."""
        if server in self._failed:
            raise NotStarted(self._failed[server])
        if server not in self._running:
            try:
                self._running[server] = self._stack.enter_context(start(server, self._ground))
            except Exception as exc:
                self._failed[server] = str(exc)
                raise
        return self._running[server]


@contextlib.contextmanager
def start(server: Server, ground: Ground) -> Iterator[Running]:
    """Run a server until the context ends; it answers when this is entered."""
    name = server.shown.replace(" ", "-").replace(",", "") or "sluice"
    folder = ground.folder / f"{name}-{time.monotonic_ns():x}"
    folder.mkdir(parents=True)
    if server.kind == "sluice":
        with _gateway(server, ground, folder) as running:
            yield running
    elif server.kind == "peer":
        with _peer(peers.PEERS[server.peer], ground, folder) as running:
            yield running
    else:
        with _floor(server.kind, ground, folder) as running:
            yield running


@contextlib.contextmanager
def _gateway(server: Server, ground: Ground, folder: Path) -> Iterator[Running]:
    tables = content.tables()
    if server.has_tls:
        key = ground.certificate.with_name("key.pem")
        tables += (
            f"[server.tls]\ncertificate = {json.dumps(str(ground.certificate))}\n"
            f"key = {json.dumps(str(key))}\n"
        )
    settings: dict[str, str | int] = {"grpc_transport": server.transport}
    if server.workers > 1:
        settings["workers"] = server.workers
    redis_url = ground.redis_url if server.has_log else None
    with gateway_process.running(
        folder, ground.models, tables, redis_url=redis_url, server=settings
    ) as gateway:
        certificate = ground.certificate if server.has_tls else None
        yield Running(
            pid=gateway.pid,
            http=Where(address=gateway.addresses.http, certificate=certificate),
            grpc=Where(address=gateway.addresses.grpc, certificate=certificate),
            count=lambda asked: read_counts(gateway, asked),
            start_s=gateway.start_s,
        )


def read_counts(gateway: RunningGateway, asked: Target) -> Counts:
    """Return the counts of a route, or of one version of a model."""
    document = asking.get_json(f"{gateway.http_url}{asked.path}/stats")
    (row,) = document["model_stats"]
    stages = row["inference_stats"]
    return Counts(
        stages["success"]["count"],
        stages["fail"]["count"],
        row["inference_count"],
        row["execution_count"],
    )


@contextlib.contextmanager
def _floor(kind: str, ground: Ground, folder: Path) -> Iterator[Running]:
    model = content.model_file(ground.models, "tiny")
    module, *options = _FLOORS[kind]
    command = [sys.executable, "-m", f"loadtests.bench.floors.{module}", str(model), *options]
    started_s = time.monotonic()
    with child(command, folder / "floor.log", pipe=True) as process:
        where = Where(address=("127.0.0.1", _printed_port(process, folder / "floor.log")))
        is_grpc = kind == "raw grpc.aio"

        def count(_: Target) -> Counts:
            return _count_grpc(where) if is_grpc else _count_http(where)

        yield Running(
            pid=process.pid,
            http=None if is_grpc else where,
            grpc=where if is_grpc else None,
            count=count,
            start_s=time.monotonic() - started_s,
        )


def _count_grpc(where: Where) -> Counts:
    with verify.channel(where) as channel:
        # Any: bytes in, bytes out; grpcio's types want a serializer to tell.
        method: Any = channel.unary_unary("/inference.GRPCInferenceService/Answered")
        answered = int(method(b"", timeout=_START_LIMIT_S, wait_for_ready=True))
    return Counts(answered, 0, answered, answered)


def _count_http(where: Where) -> Counts:
    document = asking.get_json(f"{where.url}/answered")
    return Counts(document["answered"], 0, document["answered"], document["batches"])


@contextlib.contextmanager
def _peer(peer: peers.Peer, ground: Ground, folder: Path) -> Iterator[Running]:
    if not peer.python.exists():
        raise NotStarted(f"{peer.name} is not installed (make bench-peers)")
    port = free_port()
    model = content.model_file(ground.models, "tiny")
    command = [str(peer.python), str(peer.script), str(model.resolve()), str(port)]
    log = folder / "peer.log"
    started_s = time.monotonic()
    with child(command, log, cwd=folder) as process:
        where = Where(address=("127.0.0.1", port))
        _wait_for_answer(peer, where, process, log)
        yield Running(
            pid=process.pid,
            http=where,
            grpc=None,
            count=None,
            start_s=time.monotonic() - started_s,
        )


def _wait_for_answer(
    peer: peers.Peer, where: Where, process: subprocess.Popen[str], log: Path
) -> None:
    until_s = time.monotonic() + _PEER_START_LIMIT_S
    while True:
        try:
            peers.check(peer, where)
        except WrongAnswer as exc:
            if process.poll() is not None or time.monotonic() > until_s:
                raise NotStarted(f"{peer.name}: {exc}\n{_tail(log)}") from exc
            time.sleep(0.2)
        else:
            return


@contextlib.contextmanager
def child(
    command: Sequence[str], log: Path, *, pipe: bool = False, cwd: Path = ROOT
) -> Iterator[subprocess.Popen[str]]:
    """Run a program in a process group of its own; end the whole group with the context."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipe else output,
            stderr=output,
            text=True,
            cwd=cwd,
            process_group=0,
        )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_LIMIT_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()
    with contextlib.suppress(ProcessLookupError):  # what it left behind: workers, daemons
        os.killpg(process.pid, 9)
    if process.stdout is not None:
        process.stdout.close()


def _printed_port(process: subprocess.Popen[str], log: Path) -> int:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], _START_LIMIT_S)
    line = process.stdout.readline() if ready else ""
    if not line.strip().isdecimal():
        raise NotStarted(f"a floor did not start:\n{_tail(log)}")
    return int(line)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-12:])


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def write_certificate(folder: Path) -> Path:
    """Make a certificate of our own for loopback, and its key beside it, with openssl."""
    certificate = folder / "certificate.pem"
    command = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
        *("-nodes", "-days", "30", "-subj", "/CN=localhost"),
        *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
        *("-keyout", str(folder / "key.pem"), "-out", str(certificate)),
    ]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        raise NotStarted(f"openssl made no certificate: {exc}") from exc
    return certificate
