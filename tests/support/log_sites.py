"""A gateway that is started again and again in one folder, and what its log's counters say."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import redis

from gateway.demo.redis_server import RedisServer
from tests.support.gateway import Addresses, GatewayProcess, free_port, metric, wait_until
from tests.support.models import write_mlp
from tests.support.transports import Ask, Given
from tests.support.witness import Witness, found, missing, rids

ROW: Final = Given(name="x", datatype="FP32", shape=(1, 4), elements=[1.0, 2.0, 3.0, 4.0])
ASK: Final = Ask(model="split", inputs=(ROW,))
LISTENERS: Final = ("http", "grpc", "metrics", "admin")


class Site:
    """A folder with a configuration, in which one gateway after the other serves."""

    def __init__(self, folder: Path, url: str, **settings: object) -> None:
        self.folder = folder
        for version in (1, 2):
            path = folder / "models" / "mlp" / str(version) / "model.onnx"
            write_mlp(path, [4, 8, 3], seed=version)
        server: dict[str, Any] = {name: f"127.0.0.1:{free_port()}" for name in LISTENERS}
        variants = {
            "stable": {"model": "mlp", "version": "1", "weight": 90},
            "canary": {"model": "mlp", "version": "2", "weight": 10},
        }
        spool = {"segment_bytes": 1 << 20, "max_bytes": 64 << 20, "min_free_bytes": 0}
        self.config: dict[str, Any] = {  # Any: what a TOML file holds
            "server": {**server, "replica": "gw-1"},
            "redis": {"url": url},
            "prediction_log": {"spool": spool, **settings},
            "routes": {"split": {"variants": variants}},
        }
        self.at = Addresses(**{name: str(server[name]) for name in LISTENERS})
        self._lives = 0

    def serve(self) -> GatewayProcess:
        """Start a gateway in this folder."""
        self._lives += 1
        return GatewayProcess(self.config, self.folder)


def spooled(at: Addresses) -> int:
    """Return the records that Redis is not known to have."""
    return int(metric(at.metrics, "sluice_log_spooled_records", kind="live"))


def counted(at: Addresses, result: str) -> int:
    """Return a counter of the live records."""
    return int(metric(at.metrics, "sluice_log_records_total", kind="live", result=result))


def settled(at: Addresses) -> None:
    """Return when everything is shipped."""
    wait_until(lambda: spooled(at) == 0, "all is shipped", limit_s=30)


def assert_balanced(at: Addresses) -> None:
    """Assert the invariant on the metrics of a gateway that is at rest."""
    parts = [counted(at, result) for result in ("sampled_out", "shipped", "dropped")]
    assert counted(at, "answered") + counted(at, "recovered") == sum(parts) + spooled(at)


def assert_complete(server: RedisServer, witness: Witness) -> None:
    """Assert that every promised record stands in Redis, once."""
    with redis.Redis.from_url(server.url) as client:
        there = rids(found(client, "split"))
    assert missing(witness, there) == set()


def is_complete(server: RedisServer, witness: Witness) -> bool:
    """Whether every promised record stands in Redis."""
    with redis.Redis.from_url(server.url) as client:
        return not missing(witness, rids(found(client, "split")))
