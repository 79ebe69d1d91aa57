"""Abort at any moment: all traffic on the stable variant at once, and nobody is failed by it.

What is measured is an upper bound: from the moment at which the operator's client begins to send
the abort, to the last answer of the canary that any caller has received. Its admission came before
that by the time in which it was served.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import pytest

from gateway.demo.redis_server import RedisServer
from tests.support.gateway import GatewayProcess, wait_until
from tests.support.models import write_fake
from tests.support.redis import running_redis
from tests.support.traffic import CONCURRENCY, Operator, Seen, Traffic, timed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

ROUTE: Final = "split"
MODEL: Final = "echo"
STABLE, CANARY = "stable", "canary"
ABORTS: Final = 30
RACES: Final = 30
LIMIT_S: Final = 0.5
"""On the 99th percentile; of thirty aborts that is the slowest one."""
LONGEST_PAUSE_S: Final = 0.25
"""Between an undo and the next abort."""
SLOW_LOAD: Final = {"latency_ms": 400, "max_batch_size": 8}
"""A version whose four batches of warm-up take 1.6 s."""
SLOW_LOAD_S: Final = 1.6


class Abort(NamedTuple):
    """One abort, in monotonic ns."""

    sent_ns: int
    answered_ns: int
    revision: int
    until_ns: int
    """When the canary was given traffic again, or the load ended."""


def serve(folder: Path, **tables: Any) -> GatewayProcess:  # Any: what a TOML file holds
    """Serve a route of two versions at 50 % each."""
    for version in (1, 2):
        write_fake(folder / "models" / MODEL / str(version) / "model.json", max_batch_size=8)
    variants = {
        name: {"model": MODEL, "version": version, "weight": 50}
        for name, version in ((STABLE, "1"), (CANARY, "2"))
    }
    route = {"key": ["header:x-user-id"], "variants": variants, **tables.pop("route", {})}
    return GatewayProcess({"routes": {ROUTE: route}, **tables}, folder)


def abort(operator: Operator) -> Abort:
    """Abort; the abort counts until further notice."""
    sent_ns, answer, answered_ns = timed(lambda: operator.verb(ROUTE, "abort"))
    assert answer.status_code == 200, answer.text
    document = answer.json()["document"]
    assert document["variants"][STABLE]["weight"] == 100
    return Abort(sent_ns, answered_ns, document["revision"], sys.maxsize)


def weights(operator: Operator) -> dict[str, float]:
    """Return the weights in force."""
    variants = operator.get(f"/routes/{ROUTE}")["variants"]
    return {name: variant["weight"] for name, variant in variants.items()}


def seconds_to_the_last(seen: list[Seen], aborted: Abort) -> float:
    """Return how long after an abort was sent the last answer of the canary came."""
    late = [
        s.ended_ns
        for s in seen
        if s.variant == CANARY and aborted.sent_ns < s.ended_ns < aborted.until_ns
    ]
    return (max(late, default=aborted.sent_ns) - aborted.sent_ns) / 1e9


def assert_all_stable(traffic: Traffic, aborted: Abort) -> None:
    """Assert that from the answer of the abort on, requests were sent to the stable variant."""
    after = traffic.between(aborted.answered_ns, aborted.until_ns)
    assert len(after) >= CONCURRENCY
    assert {(s.variant, s.revision) for s in after} == {(STABLE, aborted.revision)}


def report(name: str, values_s: list[float]) -> None:
    """Show figures; pytest shows them with -s."""
    ordered = sorted(values_s)
    figures = f"p50 {ordered[len(ordered) // 2] * 1e3:.1f} ms, most {ordered[-1] * 1e3:.1f} ms"
    sys.stdout.write(f"\n{name}: {len(ordered)} aborts, {figures}\n")


def test_thirty_aborts_at_random_moments_stop_the_canary_at_once_and_fail_nobody(
    tmp_path: Path,
) -> None:
    draw = random.Random(5)
    aborts: list[Abort] = []
    with serve(tmp_path) as gateway, Operator(gateway.at) as operator:
        with Traffic(gateway.at, ROUTE) as traffic:
            for _ in range(ABORTS):
                traffic.flow(CONCURRENCY)
                time.sleep(draw.uniform(0, LONGEST_PAUSE_S))
                aborted = abort(operator)
                traffic.flow()
                until_ns = time.monotonic_ns()
                aborts.append(aborted._replace(until_ns=until_ns))
                undone = operator.verb(ROUTE, "undo")
                assert undone.status_code == 200, undone.text
                assert undone.json()["loads"] == []
            traffic.flow()
        traffic.assert_flawless()
        assert weights(operator) == {STABLE: 50, CANARY: 50}
        assert len(operator.get(f"/routes/{ROUTE}/revisions?limit=100")["revisions"]) == 61
        assert gateway.stop() == 0
    for aborted in aborts:
        assert_all_stable(traffic, aborted)
    for before, after in pairwise(aborts):
        again = traffic.between(before.until_ns, after.sent_ns)
        assert any(s.variant == CANARY for s in again)  # it had traffic to lose
    taken_s = [seconds_to_the_last(traffic.seen, aborted) for aborted in aborts]
    report("sent to the canary's last answer", taken_s)
    report("sent to its own answer", [(a.answered_ns - a.sent_ns) / 1e9 for a in aborts])
    assert max(taken_s) <= LIMIT_S


def test_an_abort_overtakes_a_write_that_is_under_way(tmp_path: Path) -> None:
    """The write waits for a version to load; the abort does not wait for the write, which is
    refused in the end, because it was made for another revision."""
    write_fake(tmp_path / "models" / MODEL / "3" / "model.json", **SLOW_LOAD)
    config = tmp_path / "models" / MODEL / "config.pbtxt"
    config.write_text("version_policy { specific { versions: [1, 2] } }\n")
    answers: list[httpx.Response] = []

    def write(operator: Operator) -> None:
        change = {"variants": {CANARY: {"version": "3"}}}
        answers.append(operator.patch(ROUTE, change))

    with serve(tmp_path) as gateway, Operator(gateway.at) as operator, ExitStack() as held:
        other = held.enter_context(Operator(gateway.at))
        with Traffic(gateway.at, ROUTE) as traffic:
            traffic.flow()
            writing = threading.Thread(target=write, args=(other,))
            writing.start()
            wait_until(
                lambda: operator.versions(MODEL).get("3", ("",))[0] == "LOADING", "3 is loading"
            )
            aborted = abort(operator)
            assert answers == []
            writing.join(10)
            assert [answer.status_code for answer in answers] == [412]
            assert answers[0].json()["current"]["meta"]["verb"] == "abort"
            traffic.flow()
        traffic.assert_flawless()
        assert weights(operator) == {STABLE: 100, CANARY: 0}
    assert_all_stable(traffic, aborted)
    taken_s = seconds_to_the_last(traffic.seen, aborted)
    report("while a write is under way", [taken_s])
    assert taken_s <= LIMIT_S < SLOW_LOAD_S


def test_an_abort_wins_every_race_against_a_change_of_weights(tmp_path: Path) -> None:
    """Whichever comes first: a write that names the revision before the abort is refused, and an
    abort that was overtaken by a write takes place after it."""
    codes: Counter[int] = Counter()

    def write(writer: Operator, pause_s: float, at: str, wanted: dict[str, int]) -> httpx.Response:
        time.sleep(pause_s)
        return writer.verb(ROUTE, "setWeights", at=at, weights=wanted)

    with (
        serve(tmp_path) as gateway,
        Operator(gateway.at) as operator,
        Operator(gateway.at) as other,
        ThreadPoolExecutor(1) as pool,
        Traffic(gateway.at, ROUTE) as traffic,
    ):
        for number in range(RACES):
            share = 50 - number % 2
            assert operator.verb(ROUTE, "setWeights", weights=even(share)).status_code == 200
            at = operator.etag(ROUTE)
            pause_s = 0.0005 * (number % 4)
            writing = pool.submit(write, other, pause_s, at, even(share - 10))
            aborted = abort(operator)
            codes[writing.result().status_code] += 1
            assert weights(operator) == {STABLE: 100, CANARY: 0}
            traffic.flow(CONCURRENCY)
            assert_all_stable(traffic, aborted._replace(until_ns=time.monotonic_ns()))
        traffic.stop()
        traffic.assert_flawless()
    assert set(codes) <= {200, 412}
    sys.stdout.write(f"\nwrites that were racing an abort: {dict(codes)}\n")


def even(share: int) -> dict[str, int]:
    return {STABLE: 100 - share, CANARY: share}


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.mark.redis
def test_an_abort_does_not_wait_for_the_load_of_a_revision_that_is_pending(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """Two replicas; a version that the one has in no time takes the other long to load."""
    folders = tmp_path / "quick", tmp_path / "slow"
    for folder, script in zip(folders, ({}, SLOW_LOAD), strict=True):
        write_fake(folder / "models" / MODEL / "3" / "model.json", **script)
        config = folder / "models" / MODEL / "config.pbtxt"
        config.write_text("version_policy { specific { versions: [1, 2] } }\n")
    tables = {"redis": {"url": redis_server.url}, "prediction_log": {"enabled": False}}
    with ExitStack() as held:
        quick, slow = (held.enter_context(serve(folder, **tables)) for folder in folders)
        at_quick, at_slow = (held.enter_context(Operator(g.at)) for g in (quick, slow))

        def pending() -> str:
            rows = at_slow.get(f"/routes/{ROUTE}/convergence")["replicas"]
            return "; ".join(row["pending"] for row in rows)

        with Traffic(slow.at, ROUTE) as traffic:
            traffic.flow()
            change = {"variants": {CANARY: {"version": "3"}}}
            written = at_quick.patch(ROUTE, change)
            assert written.status_code == 200, written.text
            wait_until(lambda: f"loading {MODEL}/3" in pending(), "the slow one loads")
            traffic.flow(CONCURRENCY)
            aborted = abort(at_slow)
            assert aborted.revision == written.json()["document"]["revision"] + 1
            assert not at_slow.is_ready(MODEL, "3")
            traffic.flow()
            wait_until(lambda: weights(at_quick)[STABLE] == 100, "the other replica follows")
            wait_until(lambda: at_slow.is_ready(MODEL, "3"), "it is loaded all the same")
            traffic.flow()
        traffic.assert_flawless()
    assert_all_stable(traffic, aborted)
    pending_revision = aborted.revision - 1
    assert pending_revision not in {s.revision for s in traffic.seen}  # it never came into force
    taken_s = seconds_to_the_last(traffic.seen, aborted)
    report("while a revision is pending", [taken_s])
    assert taken_s <= LIMIT_S < SLOW_LOAD_S


def test_an_abort_also_takes_back_the_traffic_that_rules_send_elsewhere(tmp_path: Path) -> None:
    rules = {
        "rules": [{"name": "beta", "when": {"header": {"x-plan": "beta"}}, "to": CANARY}],
        "variants": {
            name: {"model": MODEL, "version": version, "weight": weight}
            for name, version, weight in ((STABLE, "1", 100), (CANARY, "2", 0))
        },
    }
    with serve(tmp_path, control={"poll_ms": 100}) as gateway, Operator(gateway.at) as operator:
        ruled = operator.patch(ROUTE, rules)
        assert ruled.status_code == 200, ruled.text
        with Traffic(gateway.at, ROUTE, headers={"x-plan": "beta"}) as traffic:
            traffic.flow()
            first_ns = time.monotonic_ns()
            aborted = abort(operator)
            traffic.flow()
            until_ns = time.monotonic_ns()
            assert operator.get(f"/routes/{ROUTE}")["rules"][0]["enabled"] is False
            undone = operator.verb(ROUTE, "undo")
            assert undone.status_code == 200, undone.text
            again_ns = time.monotonic_ns()
            traffic.flow()
        traffic.assert_flawless()
        assert operator.verb(ROUTE, "abort").json()["changed"] is True
        assert operator.verb(ROUTE, "abort").json()["changed"] is False
    aborted = aborted._replace(until_ns=until_ns)
    assert {s.variant for s in traffic.between(0, first_ns)} == {CANARY}
    assert_all_stable(traffic, aborted)
    assert {s.variant for s in traffic.between(again_ns, time.monotonic_ns())} == {CANARY}
    taken_s = seconds_to_the_last(traffic.seen, aborted)
    report("of what a rule sends", [taken_s])
    assert taken_s <= LIMIT_S


@pytest.mark.redis
def test_an_abort_does_not_wait_for_a_store_that_does_not_answer(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """Redis is stopped, not killed: connections stay open, and nothing comes back on them."""
    tables = {"redis": {"url": redis_server.url}, "prediction_log": {"enabled": False}}
    with serve(tmp_path, **tables) as gateway, Operator(gateway.at) as operator:
        with Traffic(gateway.at, ROUTE) as traffic:
            traffic.flow()
            os.kill(redis_server.pid, signal.SIGSTOP)
            try:
                sent_ns, answer, answered_ns = timed(lambda: operator.verb(ROUTE, "abort"))
                traffic.flow()
            finally:
                os.kill(redis_server.pid, signal.SIGCONT)
            assert answer.status_code == 202, answer.text
            assert answer.json()["emergency"] is True

            def is_known() -> bool:
                return bool(operator.get(f"/routes/{ROUTE}")["meta"]["verb"] == "abort")

            wait_until(is_known, "the store is told")
            wait_until(lambda: "emergency" not in operator.get(f"/routes/{ROUTE}"), "it is over")
            traffic.flow()
        traffic.assert_flawless()
        assert weights(operator) == {STABLE: 100, CANARY: 0}
    aborted = Abort(sent_ns, answered_ns, 0, sys.maxsize)
    after = traffic.between(answered_ns, sys.maxsize)
    assert len(after) >= CONCURRENCY
    assert {s.variant for s in after} == {STABLE}
    taken_s = seconds_to_the_last(traffic.seen, aborted)
    report("while the store does not answer", [taken_s])
    assert taken_s <= LIMIT_S
