"""`kill -9` of Redis under a log that is kept in memory: what does not fit is counted, to the unit.

Durability process, the default, loses nothing: test_log_chaos.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.demo.redis_server import RedisServer
from gateway.prediction_log import reader
from tests.support.gateway import Addresses, GatewayProcess, metric, wait_until
from tests.support.load import Load
from tests.support.models import write_mlp
from tests.support.redis import running_redis
from tests.support.transports import Ask, Given

pytestmark = pytest.mark.redis

ROW: Final = Given(name="x", datatype="FP32", shape=(1, 4), elements=[1.0, 2.0, 3.0, 4.0])
STEP: Final = 300
"""Answers between one event and the next."""


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """Run a Redis whose confirmed writes survive a kill (tests/support/redis.py)."""
    with running_redis() as server:
        yield server


def serve(folder: Path, url: str, **settings: int | str) -> GatewayProcess:
    """Serve a small network behind a route, with a prediction log."""
    for version in (1, 2):
        path = folder / "models" / "mlp" / str(version) / "model.onnx"
        write_mlp(path, [4, 8, 3], seed=version)
    variants = {
        "stable": {"model": "mlp", "version": "1", "weight": 90},
        "canary": {"model": "mlp", "version": "2", "weight": 10},
    }
    config: dict[str, Any] = {  # Any: what a TOML file holds
        "redis": {"url": url},
        "prediction_log": settings,
        "routes": {"split": {"variants": variants}},
    }
    return GatewayProcess(config, folder)


def counted(at: Addresses, result: str) -> int:
    """Return a counter of the prediction log."""
    return int(metric(at.metrics, "sluice_log_records_total", kind="live", result=result))


def spooled(at: Addresses) -> int:
    """Return the records that Redis is not known to have."""
    return int(metric(at.metrics, "sluice_log_spooled_records", kind="live"))


def written(at: Addresses) -> int:
    """Return the records that Redis confirmed."""
    return counted(at, "shipped")


def flow(load: Load) -> None:
    """Return when some more calls have been answered."""
    target = load.total + STEP
    wait_until(lambda: load.total >= target, f"{STEP} more answers", limit_s=20)


def entries(server: RedisServer) -> int:
    """Return how many different records are in Redis."""
    client = reader.connect(server.url)
    try:
        found = reader.tail(client, names=None, from_start=True, follow=False, count=None)
        rids = [prediction.rid for prediction in found]
        assert len(rids) == len(set(rids)), "a record is there twice"
        return len(rids)
    finally:
        client.close()


@pytest.mark.parametrize("buffer_records", [65_536, 50])
def test_a_killed_redis_fails_no_prediction_and_every_record_is_accounted_for(
    tmp_path: Path, redis_server: RedisServer, buffer_records: int
) -> None:
    """With room for all in the buffer, and with far too little."""
    settings: dict[str, int | str] = {"durability": "memory", "buffer_records": buffer_records}
    with serve(tmp_path, redis_server.url, **settings) as gateway:
        at = gateway.at
        with Load(at, Ask(model="split", inputs=(ROW,))) as load:
            flow(load)
            wait_until(lambda: written(at) > 0, "records are written")
            redis_server.kill()
            flow(load)
            at_kill = written(at)
            wait_until(lambda: metric(at.metrics, "sluice_log_sink_up") == 0, "the loss shows")
            flow(load)
            redis_server.start()
            wait_until(lambda: written(at) > at_kill, "writing resumes", limit_s=20)
            flow(load)
        assert load.broken == []
        assert load.count(200, "OK") == load.total  # zero failed predictions
        wait_until(lambda: spooled(at) == 0, "all is settled")
        dropped = counted(at, "dropped")
        assert load.total == counted(at, "answered") == written(at) + dropped
        assert entries(redis_server) == written(at)
        assert (dropped > 0) == (buffer_records == 50)
        assert gateway.stop() == 0
        assert "Traceback" not in gateway.log


def test_a_gateway_that_starts_without_its_redis_serves_and_writes_when_it_comes(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    redis_server.kill()
    with serve(tmp_path, redis_server.url) as gateway:
        with Load(gateway.at, Ask(model="split", inputs=(ROW,))) as load:
            flow(load)
        assert load.count(200, "OK") == load.total
        assert written(gateway.at) == 0
        redis_server.start()
        wait_until(lambda: written(gateway.at) == load.total, "all is written", limit_s=20)
        assert entries(redis_server) == load.total
        assert gateway.stop() == 0


def test_what_cannot_be_written_at_a_stop_is_counted_and_does_not_keep_the_process(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    with serve(tmp_path, redis_server.url, durability="memory") as gateway:
        with Load(gateway.at, Ask(model="split", inputs=(ROW,))) as load:
            flow(load)
            redis_server.kill()
            flow(load)
        left = spooled(gateway.at)
        assert left > 0
        assert gateway.stop() == 0
        (entry,) = gateway.events("prediction log closed with records in memory")
        assert entry["dropped"] == left
