"""Several gateway processes on one Redis: a change reaches all of them, and no request sees half.

The measurement is loadtests/propagation.py, which takes the figures on a quiet machine; the bounds
here are wide enough for a busy one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from gateway.demo.gateway_process import url
from gateway.demo.redis_server import RedisServer
from loadtests import asking, propagation
from loadtests.propagation import Replica, Round
from tests.support.redis import running_redis

REPLICAS: Final = 3

pytestmark = [pytest.mark.redis, pytest.mark.slow]


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """Run a Redis of our own."""
    with running_redis() as server:
        yield server


def change_under_load(
    folder: Path, server: RedisServer, *, changes: int, pubsub: bool
) -> tuple[Round, list[str]]:
    """Return what was measured, and which replicas had the last revision as they said at the end.

    The gateways' logs are checked for traces of bugs.
    """
    propagation.write_models(folder / "models")
    with propagation.running(folder, REPLICAS, server.url, pubsub=pubsub) as replicas:
        measured = asyncio.run(propagation.measure(replicas, changes=changes, pubsub=pubsub))
        told = converged(replicas[0])
    logs = [path.read_text() for path in folder.glob("replica-*/gateway.log")]
    assert len(logs) == REPLICAS
    assert not any("Traceback" in log for log in logs)
    return measured, told


def converged(replica: Replica) -> list[str]:
    """Return the replicas that have the newest revision, as one of them tells."""
    told = asking.get_json(f"{url(replica.admin)}/v1/routes/{propagation.ROUTE}/convergence")
    return [each["replica"] for each in told["replicas"] if each["converged"]]


def check(measured: Round, changes: int) -> None:
    """Check that nothing failed, and that the load was there for it."""
    assert measured.first_failures == []
    assert measured.is_clean, propagation.shown(measured)
    assert [sample.revision for sample in measured.samples] == [*range(2, changes + 2)]
    assert {sample.via for sample in measured.samples} == {*range(REPLICAS)}
    assert measured.requests > changes * REPLICAS * 2


def test_a_change_reaches_every_replica_at_once_and_fails_no_request(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    measured, told = change_under_load(tmp_path, redis_server, changes=20, pubsub=True)
    check(measured, 20)
    assert measured.sent_to_last_ms.p99 <= 1_000, propagation.shown(measured)
    assert told == [f"replica-{n}" for n in range(REPLICAS)]


def test_without_pubsub_a_change_reaches_every_replica_with_its_next_poll(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    measured, _ = change_under_load(tmp_path, redis_server, changes=8, pubsub=False)
    check(measured, 8)
    assert measured.sent_to_last_ms.max <= 2_500, propagation.shown(measured)
    # It was the poll that brought them: most changes had to wait for one.
    assert measured.sent_to_last_ms.p50 > 100, propagation.shown(measured)
