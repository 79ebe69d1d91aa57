"""Clients that die with calls in flight, thousands of them, while others go on and check answers.

`python -m tests.conformance.disconnects [--count 2000]` runs it on both protocols and prints what
the server held before and after.
"""

from __future__ import annotations

import argparse
import random
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.conformance import attacks_h1, frames
from tests.conformance.attacks import settled
from tests.conformance.frames import frame
from tests.conformance.rpc import BASE, SERVICE, message
from tests.conformance.watch import (
    Client,
    GrpcAsking,
    Held,
    HttpAsking,
    held,
    http_body,
    pid_of,
    request,
)
from tests.support.gateway import GatewayProcess, metric
from tests.support.models import write_fake

MODEL: Final = "echo"
LATENCY_MS: Final = 15
_CALLS: Final = 4
"""In flight on each connection that dies."""
_THREADS: Final = 4
_CLIENTS: Final = 2
_HEAD: Final = frames.literals(BASE)
_STREAM_HEAD: Final = frames.literals(
    [*(pair for pair in BASE if pair[0] != ":path"), (":path", SERVICE + "ModelStreamInfer")]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What the deaths came to."""

    before: Held
    after: Held
    answered: int
    """Requests of the clients that lived, each answered with its own answer."""
    failures: list[str]
    queued_rows: float
    busy_instances: float


def write_model(root: Path) -> Path:
    """Write a model whose batches take long enough for calls to be in flight."""
    write_fake(
        root / MODEL / "1" / "model.json",
        latency_ms=LATENCY_MS,
        inputs=[{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        outputs=[{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
    )
    (root / MODEL / "config.pbtxt").write_text("max_batch_size: 16 dynamic_batching {}")
    return root


def grpc_calls(first: int) -> bytes:
    """Return a connection's opening and calls: unary ones, or a stream."""
    opening = frames.PREFACE + frames.settings()
    numbers = range(first, first + _CALLS)
    if first % (2 * _CALLS):
        head = frame(frames.HEADERS, frames.END_HEADERS, 1, _STREAM_HEAD)
        messages = b"".join(message(request(n, MODEL)) for n in numbers)
        return opening + head + frame(frames.DATA, 0, 1, messages)
    return opening + b"".join(
        frame(frames.HEADERS, frames.END_HEADERS, 2 * k + 1, _HEAD)
        + frame(frames.DATA, frames.END_STREAM, 2 * k + 1, message(request(n, MODEL)))
        for k, n in enumerate(numbers)
    )


def http_calls(first: int) -> bytes:
    """Return pipelined requests."""
    found = []
    for number in range(first, first + _CALLS):
        body = http_body(number)
        head = attacks_h1.head(f"Content-Length: {len(body)}").replace(b"echo_fp32", b"echo")
        found.append(head + b"\r\n" + body)
    return b"".join(found)


def die(address: str, data: bytes, rng: random.Random) -> None:
    """Send calls and go away without a word: by a reset, by a close, or in the middle of one."""
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    kind = rng.randrange(3)
    connection.sendall(data[: rng.randrange(1, len(data))] if kind == 2 else data)
    time.sleep(rng.random() * 1.5 * LATENCY_MS / 1e3)
    if kind == 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def run(gateway: GatewayProcess, protocol: str, count: int) -> Result:
    """Let clients die, some at a time, while others live."""
    address = gateway.at.grpc if protocol == "grpc" else gateway.at.http
    calls = grpc_calls if protocol == "grpc" else http_calls
    asking = GrpcAsking if protocol == "grpc" else HttpAsking
    _all_die(address, calls, count // 10)  # warms up: what is kept for later is no leak
    before = settled(gateway, lambda now: now.fds <= held(pid_of(gateway)).fds)
    with ExitStack() as ends:
        clients = [
            ends.enter_context(Client(asking(address, MODEL), first=1 << (24 + n)))
            for n in range(_CLIENTS)
        ]
        _all_die(address, calls, count)
    after = settled(gateway, lambda now: now.fds <= before.fds)
    return Result(
        before=before,
        after=after,
        answered=sum(len(client.latencies_s) for client in clients),
        failures=[failure for client in clients for failure in client.failures],
        queued_rows=metric(gateway.at.metrics, "sluice_queued_rows", model=MODEL),
        busy_instances=metric(gateway.at.metrics, "sluice_busy_instances", model=MODEL),
    )


def _all_die(address: str, calls: Callable[[int], bytes], count: int) -> None:
    def some(thread: int) -> None:
        rng = random.Random(thread)
        for n in range(thread, count, _THREADS):
            die(address, calls(n * _CALLS), rng)

    threads = [threading.Thread(target=some, args=(n,)) for n in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description="clients that die")
    parser.add_argument("--count", type=int, default=2_000)
    asked = parser.parse_args()
    for transport in ("sluice", "grpcio"):
        for protocol in ("grpc", "http"):
            with tempfile.TemporaryDirectory() as folder:
                models = {"repository": str(write_model(Path(folder) / "models"))}
                config = {"server": {"grpc_transport": transport}, "models": models}
                with GatewayProcess(config, Path(folder)) as gateway:
                    result = run(gateway, protocol, asked.count)
                    print(transport, protocol, result, gateway.stop())  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
