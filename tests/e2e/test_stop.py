"""Stopping a real process under load: what was accepted is answered and logged, then it exits 0."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.demo.redis_server import RedisServer
from gateway.prediction_log import reader
from tests.support.gateway import GatewayProcess, metric, wait_until
from tests.support.load import Load
from tests.support.models import write_fake
from tests.support.redis import running_redis
from tests.support.transports import RAW, UNLIMITED, Ask, Given, Outcome, connected

pytestmark = pytest.mark.redis

ROW: Final = Given(name="x", datatype="FP32", shape=(1, 4), elements=[1.0] * 4)
SLOW_MS: Final = 1_000


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def gateway(tmp_path: Path, redis_server: RedisServer) -> Iterator[GatewayProcess]:
    """Serve a fast fake, and one that takes a while, with a prediction log."""
    write_fake(tmp_path / "models" / "fast" / "1" / "model.json", latency_ms=2)
    write_fake(
        tmp_path / "models" / "slow" / "1" / "model.json", latency_ms=SLOW_MS, max_batch_size=8
    )
    (tmp_path / "models" / "slow" / "config.pbtxt").write_text(_WARMED_ONCE)
    config: dict[str, Any] = {  # Any: what a TOML file holds
        "server": {"drain_timeout_s": 10},
        "redis": {"url": redis_server.url},
        "prediction_log": {"linger_ms": 1_000},
    }
    with GatewayProcess(config, tmp_path) as running:
        yield running


_WARMED_ONCE: Final = """
max_batch_size: 8
dynamic_batching {}
model_warmup { name: "one" batch_size: 1
  inputs { key: "x" value { data_type: TYPE_FP32 dims: 4 zero_data: true } } }
"""


def test_a_drain_is_live_not_ready_answers_what_it_accepted_and_flushes_the_log(
    gateway: GatewayProcess, redis_server: RedisServer
) -> None:
    at = gateway.at
    ask = Ask(model="slow", inputs=(ROW,))
    with ThreadPoolExecutor(8) as threads, connected(at, RAW) as connections:
        accepted = [threads.submit(connections[n % 2].infer, ask) for n in range(8)]
        wait_until(lambda: _value(gateway, "sluice_busy_instances") == 1, "one executes")
        with (
            httpx.Client(base_url=f"http://{at.http}") as client,
            grpc.insecure_channel(at.grpc, options=UNLIMITED) as channel,
        ):
            stub: Any = health_pb2_grpc.HealthStub(channel)  # Any: generated without types
            watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=20)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            gateway.signal(signal.SIGTERM)
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert client.get("/v2/health/ready").status_code == 503
            assert client.get("/v2/health/live").json() == {"live": True}
            assert client.get("/v2/models/slow/ready").status_code == 503
            admin = f"http://{at.admin}/v1/health"
            assert httpx.get(f"{admin}/live").status_code == 200
            assert httpx.get(f"{admin}/ready").status_code == 503
            for connection in connections:
                refused = connection.infer(ask)
                assert refused.came_to(Outcome.UNAVAILABLE)
                assert refused.error == "the server is shutting down"
            assert not all(future.done() for future in accepted)  # all that was during the drain
            for future in accepted:
                answer = future.result()
                assert answer.came_to(Outcome.OK), answer.error
            assert gateway.wait() == 0  # though somebody still watches its health
    assert sorted(_statuses(redis_server, "slow")) == [200] * 8 + [503] * 2
    assert len(gateway.events("stopped")) == 1
    assert "Traceback" not in gateway.log


def _value(gateway: GatewayProcess, name: str) -> float:
    return metric(gateway.at.metrics, name, model="slow")


def test_under_load_no_accepted_request_is_lost_and_every_one_is_logged(
    gateway: GatewayProcess, redis_server: RedisServer
) -> None:
    with Load(gateway.at, Ask(model="fast", inputs=(ROW,))) as load:
        wait_until(lambda: load.total > 300, "the load runs")
        gateway.signal(signal.SIGTERM)
        assert gateway.wait() == 0
    served = load.count(200, "OK")
    # CANCELLED is what grpcio itself tells calls that it has not yet handed to us when it stops.
    refused = load.count(503, "UNAVAILABLE", "CANCELLED")
    assert served + refused == load.total, load.answers
    # What the gateway served, each client got: nothing was lost on the way out.
    statuses = _statuses(redis_server, "fast")
    assert statuses.count(200) == served
    assert set(statuses) <= {200, 503}
    assert "Traceback" not in gateway.log


def _statuses(server: RedisServer, name: str) -> list[int]:
    client = reader.connect(server.url)
    try:
        found = reader.tail(client, names=[name], from_start=True, follow=False, count=None)
        return [prediction.status for prediction in found]
    finally:
        client.close()


def test_what_is_left_at_the_drain_timeout_is_answered_and_does_not_keep_the_process(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """A row takes 0.1 s: the warm-up one row, the request ten seconds."""
    write_fake(tmp_path / "models" / "slow" / "1" / "model.json", per_row_ms=100)
    config_file = tmp_path / "models" / "slow" / "config.pbtxt"
    config_file.write_text(_WARMED_ONCE.replace("max_batch_size: 8", "max_batch_size: 100"))
    config = {"server": {"drain_timeout_s": 1}, "redis": {"url": redis_server.url}}
    long = Given(name="x", datatype="FP32", shape=(100, 4), elements=[1.0] * 400)
    with (
        GatewayProcess(config, tmp_path) as gateway,
        ThreadPoolExecutor(2) as threads,
        connected(gateway.at, RAW) as transports,
    ):
        futures = [
            threads.submit(transport.infer, Ask(model="slow", inputs=(long,)))
            for transport in transports
        ]
        wait_until(lambda: _value(gateway, "sluice_busy_instances") == 1, "one executes")
        wait_until(lambda: _value(gateway, "sluice_queued_rows") == 100, "one is queued")
        started = time.monotonic()
        gateway.signal(signal.SIGTERM)
        for future in futures:
            answer = future.result()
            assert answer.came_to(Outcome.UNAVAILABLE)
            assert answer.error == "the server is shutting down"
        assert gateway.wait() == 0
        assert time.monotonic() - started < 8
        (entry,) = gateway.events("drain timeout passed")
        assert entry["requests"] == 2
        assert len(gateway.events("stopped")) == 1
        assert "Traceback" not in gateway.log
    assert _statuses(redis_server, "slow") == [503, 503]
