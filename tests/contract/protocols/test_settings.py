"""Settings that change answers: overload codes as Triton's, and compressed gRPC messages."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.gateway import (
    GRPC_TRANSPORT,
    GatewayInProcess,
    LoopThread,
    in_process,
    metric,
    wait_until,
)
from tests.support.models import write_fake
from tests.support.transports import TRANSPORTS, Ask, Given, connected

ROW = Given(name="x", datatype="FP32", shape=(1, 4), elements=[1.0] * 4)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a repository with a model that queues one request."""
    write_fake(tmp_path / "narrow" / "1" / "model.json", latency_ms=300)
    (tmp_path / "narrow" / "config.pbtxt").write_text(
        "max_batch_size: 1 dynamic_batching { default_queue_policy { max_queue_size: 1 } }"
    )
    return tmp_path


@pytest.fixture
def triton(loop_thread: LoopThread, root: Path) -> Iterator[GatewayInProcess]:
    """Serve with overload_codes = triton."""
    with in_process(loop_thread, {"server": {"overload_codes": "triton"}}, root) as running:
        yield running


def test_a_full_queue_may_look_as_tritons_does(triton: GatewayInProcess) -> None:
    ask = Ask(model="narrow", inputs=(ROW,))
    with ThreadPoolExecutor(2) as threads, connected(triton.at) as transports:
        accepted = [threads.submit(transports[0].infer, ask)]
        wait_until(lambda: triton.busy("narrow") == (0, 1), "one executes")
        accepted.append(threads.submit(transports[-1].infer, ask))
        wait_until(lambda: triton.busy("narrow") == (1, 1), "one is queued")
        refused = [transport.infer(ask) for transport in transports]
        assert triton.busy("narrow") == (1, 1)
        codes = ["503" if name.startswith("http") else "UNAVAILABLE" for name in TRANSPORTS]
        assert [str(answer.code) for answer in refused] == codes
        sentence = "the queue of model 'narrow' version 1 is full: its limit is 1 requests"
        assert {answer.error for answer in refused} == {sentence}
        assert all(future.result().code in (200, "OK") for future in accepted)


def test_open_connections_are_a_metric_of_each_listener(triton: GatewayInProcess) -> None:
    if GRPC_TRANSPORT == "grpcio":
        pytest.skip("grpcio keeps its connections to itself")
    ask = Ask(model="narrow", inputs=(ROW,))
    with connected(triton.at) as transports:
        for transport in transports:
            transport.infer(ask)
        for listener in ("http", "grpc"):
            assert metric(triton.at.metrics, "sluice_connections", listener=listener) >= 1
            refused = metric(
                triton.at.metrics, "sluice_connections_refused_total", listener=listener
            )
            assert refused == 0


class Relay:
    """A port that forwards to another and counts the bytes that come back."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.partition(":")
        self._port = int(port)
        self.received_bytes = 0
        self._pumps: list[asyncio.Task[None]] = []

    async def start(self) -> int:
        """Listen, and return the port."""
        self._server = await asyncio.start_server(self._on_connection, self._host, 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _on_connection(
        self, near: asyncio.StreamReader, near_out: asyncio.StreamWriter
    ) -> None:
        far, far_out = await asyncio.open_connection(self._host, self._port)
        self._pumps += [
            asyncio.create_task(self._pump(near, far_out, is_answer=False)),
            asyncio.create_task(self._pump(far, near_out, is_answer=True)),
        ]

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, is_answer: bool
    ) -> None:
        while data := await source.read(65_536):
            self.received_bytes += len(data) if is_answer else 0
            sink.write(data)
            await sink.drain()
        sink.close()

    async def stop(self) -> None:
        """Close the port and wait for the connections to end."""
        self._server.close()
        await asyncio.gather(*self._pumps, return_exceptions=True)


@pytest.mark.parametrize(
    ("compression", "most_bytes"), [("none", 50_000), ("gzip", 5_000), ("deflate", 5_000)]
)
def test_grpc_answers_are_compressed_where_that_is_configured(
    loop_thread: LoopThread, tmp_path: Path, compression: str, most_bytes: int
) -> None:
    side = {"datatype": "FP32", "shape": [-1, -1]}
    write_fake(
        tmp_path / "echo" / "1" / "model.json",
        inputs=[{"name": "x", **side}],
        outputs=[{"name": "y", **side}],
    )
    big = Given(name="x", datatype="FP32", shape=(1, 10_000), elements=[1.0] * 10_000)
    config = {"server": {"grpc_compression": compression}}
    with in_process(loop_thread, config, tmp_path) as running:
        relay = Relay(running.at.grpc)
        port = loop_thread.run(relay.start())
        at = replace(running.at, grpc=f"127.0.0.1:{port}")
        with connected(at, ["grpc-raw"]) as (transport,):
            answer = transport.infer(Ask(model="echo", inputs=(big,)))
        loop_thread.run(relay.stop())
        assert answer.outputs["y"].elements == [1.0] * 10_000
        assert relay.received_bytes < most_bytes
        assert (relay.received_bytes > 40_000) == (compression == "none")
