"""Shadows whose engine hangs, raises or takes a second per batch: nothing of it shows to callers.

A real gateway, a real Redis. Every live request is eligible; what became of each copy is counted,
and the counts must come out to the unit, while it runs and afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.prediction_log import reader
from gateway.prediction_log.record import LoggedPrediction
from tests.support.gateway import Addresses, GatewayProcess, metric, wait_until
from tests.support.models import write_fake
from tests.support.redis import running_redis
from tests.support.traffic import Operator, Traffic, timed

pytestmark = [pytest.mark.slow, pytest.mark.redis, pytest.mark.timeout(60)]

ROUTE: Final = "split"
SHADOW: Final = "next"
ROWS: Final = 8
WARM_UP_BATCHES: Final = 4
"""Of ROWS."""
LOAD_S: Final = 2.0
STOP_S: Final = 5.0


class Fault(NamedTuple):
    """What is wrong with the shadow's engine, and how long its copies may take."""

    script: Mapping[str, float]
    deadline_ms: int


HANGS: Final = Fault({"hang_after": WARM_UP_BATCHES}, 500)
RAISES: Final = Fault({"fail_after": WARM_UP_BATCHES}, 500)
SLEEPS: Final = Fault({"latency_ms": 1_000}, 2_500)


@pytest.fixture
def redis_url() -> Iterator[str]:
    with running_redis() as server:
        yield server.url


def serve(folder: Path, redis_url: str, fault: Fault) -> GatewayProcess:
    """Serve a route with two variants, mirrored whole to a shadow with a fault."""
    models = folder / "models"
    for version in (1, 2):
        write_fake(models / "echo" / str(version) / "model.json", max_batch_size=ROWS)
    write_fake(models / "faulty" / "1" / "model.json", max_batch_size=ROWS, **fault.script)
    # As a model of its own it would be asked by nobody; it is not loaded but for the shadow.
    policy = "version_policy { specific { versions: [2] } }\n"
    (models / "faulty" / "config.pbtxt").write_text(policy)
    variants = {
        name: {"model": "echo", "version": version, "weight": weight}
        for name, version, weight in (("stable", "1", 70), ("canary", "2", 30))
    }
    route = {
        "key": ["header:x-user-id"],
        "variants": variants,
        "shadows": {SHADOW: mirrored_to(fault)},
    }
    return GatewayProcess({"redis": {"url": redis_url}, "routes": {ROUTE: route}}, folder)


def mirrored_to(fault: Fault) -> dict[str, Any]:  # Any: a part of a route document
    limits = {"queue_items": 64, "deadline_ms": fault.deadline_ms}
    return {"model": "faulty", "version": "1", "sample": 100, "limits": limits}


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What became of the requests that the shadow was eligible for."""

    eligible: int
    sent: int
    in_flight: int
    dropped: Mapping[str, int]

    def assert_exact(self) -> None:
        assert self.eligible == self.sent + sum(self.dropped.values()) + self.in_flight, self

    def drops(self) -> set[str]:
        return {reason for reason, count in self.dropped.items() if count}


def in_statistics(operator: Operator) -> Counts:
    """Return the counts as the admin API tells them."""
    return Counts(**operator.get(f"/routes/{ROUTE}/stats")["shadows"][SHADOW])


def in_metrics(at: Addresses) -> Counts:
    """Return the counts of one scrape."""
    found: dict[str, int] = {}
    dropped: dict[str, int] = {}
    for family in text_string_to_metric_families(httpx.get(f"http://{at.metrics}/metrics").text):
        for sample in family.samples:
            if sample.name == "sluice_shadow_in_flight":
                found["in_flight"] = int(sample.value)
            elif sample.name == "sluice_shadow_requests_total":
                labels = sample.labels
                assert (labels["route"], labels["shadow"]) == (ROUTE, SHADOW)
                if labels["result"] == "dropped":
                    dropped[labels["reason"]] = int(sample.value)
                else:
                    found[labels["result"]] = int(sample.value)
    return Counts(dropped=dropped, **found)


def records(redis_url: str, *, shadows: bool) -> list[LoggedPrediction]:
    """Return all records of the route."""
    client = reader.connect(redis_url)
    try:
        found = reader.tail(
            client, names=[ROUTE], from_start=True, follow=False, count=None, shadows=shadows
        )
        return list(found)
    finally:
        client.close()


def wait_for_copies(gateway: GatewayProcess, number: int) -> None:
    """Return when the shadow has had so many copies of its version."""
    wait_until(lambda: len(gateway.events("shadow ready")) == number, f"copy {number} is loaded")


def wait_ready(operator: Operator, gateway: GatewayProcess) -> None:
    wait_for_copies(gateway, 1)
    assert SHADOW in operator.get(f"/routes/{ROUTE}/stats")["shadows"]


def load_and_watch(gateway: GatewayProcess, operator: Operator) -> Traffic:
    """Load for a while, and check the counts all the time."""
    with Traffic(gateway.at, ROUTE) as traffic:
        until_s = time.monotonic() + LOAD_S
        while time.monotonic() < until_s:
            in_statistics(operator).assert_exact()
            in_metrics(gateway.at).assert_exact()
        traffic.flow()
    return traffic


@pytest.mark.parametrize("fault", [HANGS, RAISES, SLEEPS], ids=["hangs", "raises", "sleeps"])
def test_a_faulty_shadow_fails_no_live_request_and_every_copy_is_accounted_for(
    tmp_path: Path, redis_url: str, fault: Fault
) -> None:
    with serve(tmp_path, redis_url, fault) as gateway, Operator(gateway.at) as operator:
        wait_ready(operator, gateway)
        traffic = load_and_watch(gateway, operator)
        traffic.assert_flawless()
        assert len(traffic.seen) > 200
        wait_until(lambda: in_statistics(operator).in_flight == 0, "no copy is in flight")
        counts = in_statistics(operator)
        counts.assert_exact()
        assert counts == in_metrics(gateway.at)
        assert counts.eligible == len(traffic.seen)
        check_fault(fault, counts)
        wait_until(lambda: metric(gateway.at.metrics, "sluice_log_spooled_records") == 0, "logged")
        check_records(
            live=records(redis_url, shadows=False),
            copied=records(redis_url, shadows=True),
            counts=counts,
            requests=len(traffic.seen),
        )
        assert gateway.stop() == 0
        assert gateway.log.count("Traceback") == gateway.log.count("RuntimeError: scripted failure")


def check_fault(fault: Fault, counts: Counts) -> None:
    """Check that the engine did what it was to do, and that nothing else was wrong."""
    if fault is HANGS:
        assert counts.sent == 0
        assert 1 <= counts.dropped["timeout"] <= ROWS  # the one batch that the engine has
        assert counts.drops() == {"timeout", "expired", "queue_full"}
    elif fault is RAISES:
        assert counts.sent == 0
        assert counts.dropped["engine_error"] > ROWS
        assert counts.drops() <= {"engine_error", "queue_full", "expired"}
    else:
        assert counts.sent > 1  # the first batch, and then some that were full
        assert counts.dropped["queue_full"] > 0
        assert counts.drops() <= {"timeout", "expired", "queue_full"}


def check_records(
    *,
    live: list[LoggedPrediction],
    copied: list[LoggedPrediction],
    counts: Counts,
    requests: int,
) -> None:
    """Check that the records tell the same, and that each shadow's joins that of its request."""
    assert len(live) == requests
    assert not any(record.is_shadow or record.error for record in live)
    assert len(copied) == counts.sent + counts.dropped["engine_error"]
    assert sum(bool(record.error) for record in copied) == counts.dropped["engine_error"]
    by_rid = {record.rid: record for record in live}
    assert len(by_rid) == requests
    assert len({record.parent_rid for record in copied}) == len(copied)  # one per request
    for record in copied:
        primary = by_rid[record.parent_rid]
        assert record.is_shadow
        assert (record.name, record.revision, record.variant, record.ts_us, record.cid) == (
            primary.name,
            primary.revision,
            primary.variant,
            primary.ts_us,
            primary.cid,
        )
        assert (record.model, record.served, record.reason) == ("faulty", SHADOW, "shadow")


def test_a_hung_shadow_does_not_delay_the_stop(tmp_path: Path, redis_url: str) -> None:
    """With the default drain timeout, which is six times as long."""
    patient = HANGS._replace(deadline_ms=60_000)
    with serve(tmp_path, redis_url, patient) as gateway, Operator(gateway.at) as operator:
        wait_ready(operator, gateway)
        with Traffic(gateway.at, ROUTE) as traffic:
            traffic.flow()
        traffic.assert_flawless()
        counts = in_statistics(operator)
        assert counts.in_flight == 64  # all that may be: none of them will ever be answered
        asked_s = time.monotonic()
        assert gateway.stop() == 0
        assert time.monotonic() - asked_s < STOP_S
        assert gateway.events("drain timeout passed") == []
        assert gateway.events("stopped")
    assert len(records(redis_url, shadows=False)) == len(traffic.seen)


def test_a_hung_shadow_can_be_removed_and_added_again_under_load(
    tmp_path: Path, redis_url: str
) -> None:
    with serve(tmp_path, redis_url, HANGS) as gateway, Operator(gateway.at) as operator:
        wait_ready(operator, gateway)
        with Traffic(gateway.at, ROUTE) as traffic:
            for number in range(1, 4):
                traffic.flow()
                assert in_statistics(operator).in_flight > 0
                sent_ns, removed, answered_ns = timed(
                    lambda: operator.patch(ROUTE, {"shadows": {SHADOW: None}})
                )
                assert removed.status_code == 200, removed.text
                assert answered_ns - sent_ns < 1e9  # it does not wait for the engine
                assert operator.get(f"/routes/{ROUTE}/stats")["shadows"] == {}
                traffic.flow()
                added = operator.patch(ROUTE, {"shadows": {SHADOW: mirrored_to(HANGS)}})
                assert added.status_code == 200, added.text
                wait_for_copies(gateway, number + 1)
                in_statistics(operator).assert_exact()
        traffic.assert_flawless()
        assert {seen.revision for seen in traffic.seen} == {1, 2, 3, 4, 5, 6, 7}
        asked_s = time.monotonic()
        assert gateway.stop() == 0  # four engines hang by now
        assert time.monotonic() - asked_s < STOP_S
