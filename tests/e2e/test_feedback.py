"""Feedback end to end: real processes, a real Redis; what was accepted outlives a kill -9."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from gateway.demo.redis_server import RedisServer
from gateway.prediction_log.record import LoggedLabel
from tests.support.feedback_senders import SENDERS, Sent, fresh_id, labels
from tests.support.gateway import GatewayProcess, metric, wait_until
from tests.support.models import write_fake
from tests.support.redis import running_redis
from tests.support.transports import TRANSPORTS, Ask, Given, Outcome
from tests.support.workers import ENGINE, kill, wait_replaced

pytestmark = pytest.mark.redis

ROW: Final = Given(name="x", datatype="FP32", shape=(1, 4), elements=[1.0, 2.0, 3.0, 4.0])
MODEL: Final = "fast"
REPLICA: Final = "gw-1"


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """Run a Redis."""
    with running_redis() as server:
        yield server


def serve(
    folder: Path,
    url: str,
    *,
    spool_bytes: int = 8 << 20,
    **server: Any,  # Any: TOML
) -> GatewayProcess:
    """Start a gateway with a prediction log; wait for it with `with`."""
    write_fake(folder / "models" / MODEL / "1" / "model.json")
    spool = {"segment_bytes": min(spool_bytes // 2, 1 << 20), "max_bytes": spool_bytes}
    config: dict[str, Any] = {  # Any: TOML
        "redis": {"url": url},
        "prediction_log": {"linger_ms": 1, "spool": spool},
        "server": {"replica": REPLICA, **server},
    }
    return GatewayProcess(config, folder)


def predict(gateway: GatewayProcess, transport: str) -> str:
    """Ask for a prediction and return its x-request-id."""
    client = TRANSPORTS[transport](gateway.at)
    answer = client.infer(Ask(model=MODEL, inputs=(ROW,)))
    client.close()
    assert answer.came_to(Outcome.OK), answer.error
    return answer.headers["x-request-id"]


def wait_labels(server: RedisServer, count: int) -> list[LoggedLabel]:
    """Return the model's labels once Redis has so many."""
    with redis.Redis.from_url(server.url) as client:
        wait_until(lambda: len(labels(client, MODEL)) >= count, f"{count} labels in Redis")
        return labels(client, MODEL)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_prediction_gets_its_label_over_either_protocol(
    tmp_path: Path, redis_server: RedisServer, workers: int
) -> None:
    with serve(tmp_path, redis_server.url, workers=workers) as gateway:
        asked = [predict(gateway, transport) for transport in ("http-json", "grpc-raw")]
        for rid, (name, make) in zip(asked, SENDERS.items(), strict=True):
            with make(gateway.at) as sender:
                given = Sent(request_id=rid, target=name)
                assert sender.send(MODEL, [given]).results == [("accepted", "")]
                (again,) = sender.send(MODEL, [given]).results
                assert again[0] == "duplicate"
                assert sender.send("nobody", [given]).came_to(Outcome.NOT_FOUND)
        found = wait_labels(redis_server, 2)
        assert [str(label.target) for label in found] == list(SENDERS)
        assert [label.rid.hex() for label in found] == [rid.replace("-", "") for rid in asked]
        assert [label.seq for label in found] == [1, 2]
        assert metric(gateway.at.metrics, "sluice_feedback_items_total", result="accepted") == 2
        assert gateway.stop() == 0


def test_accepted_labels_outlive_a_kill_of_the_gateway_while_redis_is_away(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    redis_server.stop()
    targets: list[int] = []
    with serve(tmp_path, redis_server.url) as gateway:
        for number, make in enumerate([*SENDERS.values()] * 5):
            items = [
                Sent(request_id=predict(gateway, "http-json"), target=number * 3 + n)
                for n in range(3)
            ]
            with make(gateway.at) as sender:
                assert sender.send(MODEL, items).results == [("accepted", "")] * 3
            targets += [item.target for item in items]
        gateway.kill()
    redis_server.start()
    with serve(tmp_path, redis_server.url):
        found = wait_labels(redis_server, len(targets))
    assert [label.target for label in found] == targets


def test_labels_are_taken_again_when_the_engine_process_was_replaced(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    with serve(tmp_path, redis_server.url, workers=2) as gateway:
        rid = predict(gateway, "http-json")
        for make in SENDERS.values():
            with make(gateway.at) as sender:
                assert sender.send(MODEL, [Sent(request_id=rid)]).came_to(Outcome.OK)
        pid = kill(gateway, ENGINE)
        wait_replaced(gateway, ENGINE, pid)
        rid = predict(gateway, "http-json")
        for (name, make), expected in zip(SENDERS.items(), ("accepted", "duplicate"), strict=True):
            with make(gateway.at) as sender:
                given = Sent(request_id=rid, target="after")
                (result,) = sender.send(MODEL, [given]).results
                assert result[0] == expected, name
        found = wait_labels(redis_server, 2)
        assert [label.target for label in found] == [7, "after"]


def test_labels_that_the_log_has_no_room_for_are_refused_until_there_is(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    redis_server.stop()
    items = [Sent(target=str(number) * 40_000, request_id=fresh_id()) for number in range(1, 9)]
    with serve(tmp_path, redis_server.url, spool_bytes=1 << 18) as gateway:
        for name, make in SENDERS.items():
            with make(gateway.at) as sender:
                answers = [sender.send(MODEL, [item]) for item in items]
                assert answers[-1].came_to(Outcome.UNAVAILABLE), answers[-1]
                assert "no room" in answers[-1].error
                first = answers[0].results[0][0]
                assert first == ("accepted" if name == "http" else "duplicate")
        redis_server.start()
        with SENDERS["grpc"](gateway.at) as sender:
            wait_until(lambda: sender.send(MODEL, items).came_to(Outcome.OK), "there is room", 15.0)
            assert {result[0] for result in sender.send(MODEL, items).results} == {"duplicate"}
        found = wait_labels(redis_server, len(items))
    # What was refused was not written: no label is there twice.
    assert sorted(label.target[0] for label in found) == [item.target[0] for item in items]
