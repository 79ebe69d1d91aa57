"""What a reader may conclude from the log: how many requests there were, and what is missing.

Real gateways, a real Redis, plain clients over both protocols. Sampling: the records' weights are
held against the answers that clients counted. Gaps: entries are deleted on purpose, with a kill -9
of the gateway in between, and the report has to name these and no others.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from gateway.prediction_log import reader
from gateway.prediction_log.reader.completeness import NOT_IN_STREAM, Completeness, End
from gateway.prediction_log.record import BASE, ERROR, SLOW, LoggedPrediction, decode_any
from gateway.prediction_log.spool import offsets
from tests.support.gateway import metric, wait_until
from tests.support.log_sites import ASK, Site, assert_balanced, counted, settled
from tests.support.models import write_fake
from tests.support.redis import running_redis
from tests.support.transports import Ask, Given
from tests.support.witness import OK, Witness, found, keys

pytestmark = [pytest.mark.redis, pytest.mark.slow]

ROUTE: Final = "split"
SHARE: Final = 0.1
SIGMAS: Final = 5.0
"""An honest sampling is further off once in 1.7 million runs."""
REQUESTS: Final = 6_000
SLOWER_THAN_MS: Final = 50
SLEEP_MS: Final = 60
FAILING: Final = 13.0

Gap = tuple[str, int, int, str]
"""Worker, first and last number, cause."""


def asking(*values: float) -> Ask:
    row = Given(name="x", datatype="FP32", shape=(1, len(values)), elements=values)
    return Ask(model=ROUTE, inputs=(row,))


def sampled_site(folder: Path, url: str) -> Site:
    """Return a site whose slow variant answers some requests, and which logs a tenth of the rest.

    Requests are executed one by one, so that one that fails takes no other with it.
    """
    site = Site(folder, url, sampling={"share": SHARE, "slower_than_ms": SLOWER_THAN_MS})
    models = folder / "models"
    write_fake(models / "echo" / "1" / "model.json", max_batch_size=1, fail_on=FAILING)
    write_fake(models / "sleeper" / "1" / "model.json", max_batch_size=8, latency_ms=SLEEP_MS)
    variants = {
        "stable": {"model": "echo", "version": "1", "weight": 97},
        "slow": {"model": "sleeper", "version": "1", "weight": 3},
    }
    site.config["routes"] = {ROUTE: {"variants": variants}}
    return site


def test_the_weights_of_a_sampled_log_sum_to_the_true_traffic(tmp_path: Path) -> None:
    """Of n requests that are neither errors nor slow each is logged with probability p and weight
    1/p, so the sum of their weights has mean n and standard deviation sqrt(n (1 - p) / p)."""
    with running_redis() as server:
        site = sampled_site(tmp_path, server.url)
        with (
            site.serve() as gateway,
            Witness(site.at, asking(1.0, 2.0, 3.0, 4.0)) as good,
            Witness(site.at, asking(1.0, 2.0, 3.0), threads_per_protocol=1) as refused,
            Witness(site.at, asking(1.0, 2.0, 3.0, FAILING), threads_per_protocol=1) as failing,
        ):
            good.flow(REQUESTS, limit_s=45)
            for witness in (good, refused, failing):
                witness.stop()
                assert witness.broken == 0
            settled(site.at)
            assert_balanced(site.at)
            codes = good.codes + refused.codes + failing.codes
            assert counted(site.at, "answered") == codes.total()
            with redis.Redis.from_url(server.url) as client:
                logged = found(client, ROUTE)
                frame = reader.read_frame(client, ROUTE)
            assert counted(site.at, "sampled_out") == codes.total() - len(logged)
            assert counted(site.at, "dropped") == 0
            slept = metric(site.at.metrics, "sluice_requests_total", model="sleeper", code="OK")
            assert gateway.stop() == 0
    assert set(codes) > set(OK)  # both protocols, and errors
    by_reason: dict[str, list[LoggedPrediction]] = {BASE: [], ERROR: [], SLOW: []}
    for record in logged:
        by_reason[record.sampled_as].append(record)
    errors = [record for record in logged if record.status >= 400]
    assert errors == by_reason[ERROR]
    assert len(errors) == codes.total() - codes[200] - codes["OK"]
    slow = by_reason[SLOW]
    assert sum(record.served == "slow" for record in slow) == slept > 0
    assert all(record.total_us > SLOWER_THAN_MS * 1e3 for record in slow)
    assert {record.weight for record in (*errors, *slow)} == {1.0}
    assert {record.weight for record in by_reason[BASE]} == {1 / SHARE}
    drawn = codes.total() - len(errors) - len(slow)
    assert drawn > 0.9 * REQUESTS
    bound = SIGMAS * math.sqrt(drawn * (1 - SHARE) / SHARE)
    assert bound < 0.2 * codes.total()
    total = sum(record.weight for record in logged)
    assert abs(total - codes.total()) <= bound
    assert float(frame.columns["weight"].sum()) == pytest.approx(total)
    assert frame.completeness.is_complete  # what was sampled out is no gap


def completeness(client: redis.Redis) -> Completeness:
    return reader.read_frame(client, ROUTE).completeness


def workers(client: redis.Redis) -> list[str]:
    """Return the lives of the gateway, oldest first."""
    return list(Counter(record.worker for record in found(client, ROUTE)))


def delete(client: redis.Redis, worker: str, first: int, last: int) -> Gap:
    """Delete the records of a worker with these numbers; return the gap that this makes."""
    (key,) = keys(client, ROUTE)
    entries: Any = client.xrange(key)  # Any: redis-py's reply
    doomed = []
    for entry_id, fields in entries:
        logged = decode_any(fields[b"r"])
        if isinstance(logged, LoggedPrediction) and logged.worker == worker:
            doomed += [entry_id] * (first <= logged.seq <= last)
    assert client.xdel(key, *doomed) == last - first + 1
    return worker, first, last, NOT_IN_STREAM


def offsets_are_written(folder: Path) -> None:
    """Return when the gateway's files say of everything that Redis has by now that it has it.

    What they do not say is sent again by the next start, and what was deleted comes back by that.
    """
    file = folder / "spool" / "gw-1" / offsets.FILE

    def stamp() -> tuple[int, int]:
        if not file.exists():
            return 0, 0
        found = file.stat()
        return found.st_ino, found.st_mtime_ns

    for _ in range(2):  # the first one may have been begun before
        before = stamp()
        wait_until(partial(_differs, stamp, before), "the offsets are written")


def _differs(look: Callable[[], tuple[int, int]], before: tuple[int, int]) -> bool:
    return look() != before


def gaps(report: Completeness) -> set[Gap]:
    return {
        (worker.worker, gap.numbers.first, gap.numbers.last, gap.cause)
        for worker in report.workers
        for gap in worker.gaps
    }


def test_gaps_made_on_purpose_are_named_and_a_killed_gateway_makes_none(tmp_path: Path) -> None:
    with running_redis() as server, redis.Redis.from_url(server.url) as client:
        site = Site(tmp_path, server.url, audit_s=0.5)
        with Witness(site.at, ASK) as witness:
            with site.serve() as gateway:
                witness.flow(300)
                report = completeness(client)
                (first_life,) = workers(client)
                assert gaps(report) == set()
                assert report.is_complete
                assert report.percent == 100
                assert report.unknown_ends == (first_life,)  # it runs still
                offsets_are_written(tmp_path)
                made = {delete(client, first_life, 10, 19)}
                witness.flow(50)
                gateway.kill()
            with site.serve() as gateway:
                witness.flow(400)
                witness.stop()
                settled(site.at)
                report = completeness(client)
                _, second_life = workers(client)
                assert gaps(report) == made
                ends = {worker.worker: worker.end for worker in report.of(report.kind)}
                assert ends == {first_life: End.FINAL, second_life: End.UNKNOWN}
                made.add(delete(client, second_life, 1, 5))
                made.add(delete(client, second_life, 100, 149))
                assert gaps(completeness(client)) == made
                assert gateway.stop() == 0
        report = completeness(client)
        there = found(client, ROUTE)
    assert gaps(report) == made
    assert report.unknown_ends == ()
    assert (report.seen, report.missing) == (len(there), 10 + 5 + 50)
    # One whose answer never left may be there as well: the gateway was killed.
    assert report.expected >= witness.total
    assert report.percent == pytest.approx(100 * len(there) / report.expected)
    for _, first, last, _ in made:
        assert f"{first}-{last}, {NOT_IN_STREAM}" in report.text()
