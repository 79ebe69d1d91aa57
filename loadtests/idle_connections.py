"""`python -m loadtests.idle_connections`: what an open connection without a request costs.

Starts a gateway for each protocol, opens many connections (HTTP/2: preface and SETTINGS exchanged,
as an idle gRPC channel; HTTP/1.1: one answered request, then keep-alive), and reports by how much
the memory of the server's process tree grew, per connection. Both ends are on this machine: the
kernel's socket buffers are in neither figure.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import selectors
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import msgspec

from gateway.demo.screen import DemoFailed
from loadtests import gateway_process
from loadtests.bench import content
from loadtests.bench.process_tree import tree_memory
from loadtests.bench.results import Idle

CONNECTIONS: Final = 10_000
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS: Final = b"\0\0\0\x04\0\0\0\0\0"
_SETTINGS_ACK: Final = b"\0\0\0\x04\x01\0\0\0\0"
_GET: Final = b"GET /v2/health/live HTTP/1.1\r\nHost: gateway\r\n\r\n"
_FRAME_HEAD: Final = 9
_LIMIT_S: Final = 60.0
_SETTLE_S: Final = 1.0
_AT_ONCE: Final = 256
"""Connections that are opened before the first of them is waited for; below the backlog."""
_SPARE_FILES: Final = 256
"""Files that are open besides the connections."""

Address = tuple[str, int]


class NotOpened(Exception):
    """The connections could not be made; the sentence says why."""


def open_files_needed(connections: int) -> None:
    """Raise this process's limit of open files, which the gateway inherits.

    Raises:
        NotOpened: the system does not allow so many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _SPARE_FILES
    if soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise NotOpened(f"{wanted} open files are needed, ulimit -Hn says {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def open_idle(address: Address, connections: int, *, is_http2: bool) -> list[socket.socket]:
    """Open connections, each with its first exchange done; return them.

    Raises:
        NotOpened: the server closed one, or did not answer.
    """
    made: list[socket.socket] = []
    try:
        while len(made) < connections:
            several = min(_AT_ONCE, connections - len(made))
            made += _open_several(address, several, is_http2=is_http2)
    except (OSError, NotOpened) as exc:
        close_all(made)
        raise NotOpened(f"after {len(made)} connections: {exc}") from exc
    return made


def _open_several(address: Address, several: int, *, is_http2: bool) -> list[socket.socket]:
    hello = _PREFACE + _SETTINGS if is_http2 else _GET
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        made = [stack.enter_context(socket.create_connection(address)) for _ in range(several)]
        for connection in made:
            connection.sendall(hello)
            selector.register(connection, selectors.EVENT_READ, bytearray())
        until_s = time.monotonic() + _LIMIT_S
        while selector.get_map():
            if time.monotonic() > until_s:
                raise NotOpened("the server does not answer")
            for key, _ in selector.select(1.0):
                one, received = key.fileobj, key.data
                assert isinstance(one, socket.socket)
                chunk = one.recv(65_536)
                if not chunk:
                    raise NotOpened("the server closed a connection")
                received += chunk
                if has_greeted(bytes(received), is_http2=is_http2):
                    selector.unregister(one)
        if is_http2:
            for one in made:
                one.sendall(_SETTINGS_ACK)
        stack.pop_all()
    return made


def has_greeted(received: bytes, *, is_http2: bool) -> bool:
    """Whether the first exchange is done: an answer's head, or SETTINGS and its acknowledgement."""
    if not is_http2:
        return b"\r\n\r\n" in received
    acknowledged, at = False, 0
    while at + _FRAME_HEAD <= len(received):
        length = int.from_bytes(received[at : at + 3], "big")
        acknowledged |= received[at + 3 : at + 5] == b"\x04\x01"
        at += _FRAME_HEAD + length
    return acknowledged


def close_all(connections: Sequence[socket.socket]) -> None:
    """Close them."""
    for connection in connections:
        connection.close()


def measure(pid: int, protocol: str, address: Address, connections: int) -> Idle:
    """Open, read the growth, close."""
    time.sleep(_SETTLE_S)
    before = tree_memory(pid).pss_bytes
    made = open_idle(address, connections, is_http2=protocol == "HTTP/2")
    try:
        time.sleep(_SETTLE_S)
        grown = tree_memory(pid).pss_bytes - before
        for connection in made[:: max(1, len(made) // 100)]:
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                if not connection.recv(1):
                    raise NotOpened(f"{protocol}: an idle connection was closed")
    finally:
        close_all(made)
    return Idle(protocol=protocol, connections=connections, bytes_each=grown / connections)


def measure_alone(protocol: str, connections: int, server: Mapping[str, str | int]) -> Idle:
    """Measure on a gateway of its own: no memory is there that others have given back."""
    with TemporaryDirectory(prefix="sluice-idle-") as name:
        folder = Path(name)
        content.write_models(folder / "models", threads=1)
        with gateway_process.running(
            folder, folder / "models", content.tables(), server=server
        ) as gateway:
            at = gateway.addresses
            address = at.grpc if protocol == "HTTP/2" else at.http
            return measure(gateway.pid, protocol, address, connections)


def main(arguments: Sequence[str]) -> int:
    """Measure both protocols; print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.idle_connections", description=__doc__
    )
    parser.add_argument("--connections", type=int, default=CONNECTIONS, help=f"{CONNECTIONS:,}")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--transport", choices=("sluice", "grpcio"), default="sluice")
    parser.add_argument("--output", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    server: dict[str, str | int] = {"grpc_transport": options.transport}
    if options.workers > 1:
        server["workers"] = options.workers
    found = []
    try:
        open_files_needed(options.connections)
        for protocol in ("HTTP/1.1", "HTTP/2"):
            row = measure_alone(protocol, options.connections, server)
            found.append(row)
            print(f"{protocol:9}{row.connections:>8,}{row.bytes_each:>10,.0f} bytes each")
    except (NotOpened, DemoFailed) as exc:
        print(f"idle connections: {exc}", file=sys.stderr)
        return 1
    if options.output is not None:
        options.output.write_bytes(msgspec.json.encode(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
