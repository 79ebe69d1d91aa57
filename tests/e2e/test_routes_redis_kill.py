"""Redis dies and comes back while routes change: no prediction fails, no confirmed change is lost.

What a replica serves is read from the answers to real requests (loadtests/paced.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
import redis

from gateway.demo.redis_server import RedisServer
from gateway.route_control.redis_store import doc_key
from loadtests import paced, propagation
from loadtests.paced import Seen, Traffic
from loadtests.propagation import ROUTE
from tests.support.gateway import wait_until
from tests.support.gateways import (
    REPLICAS,
    RETURN_S,
    Document,
    Gateways,
    address,
    ask_for,
    audit,
    patch,
    verb,
)
from tests.support.redis import redis_binaries

pytestmark = [pytest.mark.redis, pytest.mark.slow]

DOWN_S: Final = 1.0
CANARY: Final[Document] = {
    "variants": {
        "stable": {"model": propagation.MODEL, "version": "1", "weight": 60},
        "canary": {"model": propagation.MODEL, "version": "2", "weight": 40},
    }
}


@pytest.fixture
def redis_folder(tmp_path: Path) -> Path:
    """Return the folder in which Redis keeps its data."""
    return tmp_path / "redis"


@pytest.fixture
def redis_server(redis_folder: Path) -> Iterator[RedisServer]:
    """Run a Redis whose confirmed writes survive a kill; see RedisServer on `append_fsync`."""
    with RedisServer(redis_binaries()[0], redis_folder, append_fsync="no") as server:
        yield server


class Operator:
    """Changes the route all the time, through one replica after the other, come what may."""

    def __init__(self, replicas: Gateways) -> None:
        self._replicas = replicas
        self._asked = 0
        self._news = asyncio.Event()
        self.revision = 1
        self.confirmed: dict[str, tuple[int, str]] = {}
        """Reason -> revision and digest of what was answered with 200."""
        self.refused: list[str] = []
        """Reasons of what was answered with 503."""

    async def work(self, is_over: asyncio.Event) -> None:
        """Change until it is over."""
        while not is_over.is_set():
            await asyncio.to_thread(self._change)
            self._news.set()
            await asyncio.sleep(0.02)

    async def changed(self) -> int:
        """Return the revision of the next change that is confirmed."""
        count = len(self.confirmed)
        while len(self.confirmed) == count:
            self._news.clear()
            await self._news.wait()
        return self.revision

    def _change(self) -> None:
        self._asked += 1
        reason = f"change {self._asked}"
        answer = ask_for(self._replicas.route_url(self._asked), self.revision + 1, reason)
        if answer.status_code == 200:
            self.revision += 1
            digest = answer.json()["document"]["meta"]["digest"]
            self.confirmed[reason] = (self.revision, digest)
        elif answer.status_code == 412:  # one that was answered with 503 had been made after all
            current = answer.json()["current"]
            assert current["meta"]["reason"] in self.refused
            self.revision = current["revision"]
        else:
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["retry-after"]) >= 1
            self.refused.append(reason)


async def kill_twice(replicas: Gateways, server: RedisServer) -> tuple[Traffic, Operator]:
    """Kill and restart Redis twice under load and changes."""
    operator, is_over = Operator(replicas), asyncio.Event()
    async with (
        Traffic(replicas.http, propagation.request()) as traffic,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(operator.work(is_over))
        for _ in range(2):
            await traffic.reached(operator.revision + 5, within_s=10)
            await asyncio.to_thread(server.kill)
            refused, answered = len(operator.refused), traffic.total
            await asyncio.sleep(DOWN_S)
            assert len(operator.refused) > refused
            assert traffic.total > answered
            await asyncio.to_thread(server.start)
            up_s = time.monotonic()
            revision = await operator.changed()
            assert max(await traffic.reached(revision, within_s=10)) - up_s <= RETURN_S
        await traffic.reached(operator.revision + 5, within_s=10)
        is_over.set()
    return traffic, operator


def test_a_redis_killed_twice_loses_no_change_and_fails_no_prediction(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    with Gateways(tmp_path, propagation.route(), redis_server.url) as replicas:
        traffic, operator = asyncio.run(kill_twice(replicas, redis_server))
        history = replicas.history()
        assert traffic.failed == traffic.decreased == []
        assert len(traffic.answers) > 10
        allowed = propagation.history(address(replicas.live[0].at.admin))
        assert paced.mixed(traffic.answers, allowed) == []

        numbers = [row["revision"] for row in history]
        assert numbers == [*range(1, len(history) + 1)]
        made = {row["reason"]: (row["revision"], row["digest"]) for row in history}
        assert len(made) == len(history)
        assert operator.confirmed.items() <= made.items()
        assert made.keys() - operator.confirmed.keys() <= {"configured", *operator.refused}

        entries = audit(redis_server)
        assert entries[0]["previous"] == ""
        assert [entry["to_revision"] for entry in entries] == numbers
        assert [entry["digest"] for entry in entries] == [row["digest"] for row in history]
        wait_until(lambda: replicas.is_served(numbers[-1]), "all have the last", limit_s=RETURN_S)
        assert not any("Traceback" in gateway.log for gateway in replicas.live)


async def watched(replicas: Gateways, work: Callable[[], None], *only: int) -> Traffic:
    """Do some work under load on all replicas, or on some; return what callers saw."""
    asked = [replicas.http[n] for n in only or range(REPLICAS)]
    async with Traffic(asked, propagation.request()) as traffic:
        await traffic.flow(100)
        await asyncio.to_thread(work)
        await traffic.flow(100)
    return traffic


def test_a_gateway_restarted_without_redis_serves_the_last_known_good_revision(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    with Gateways(tmp_path, propagation.route(), redis_server.url) as replicas:
        replicas.change_to(4)
        redis_server.kill()
        replicas.restart(0)
        assert replicas.live[1].stop() == 0
        replicas.restart(1)
        for n in (0, 1):
            assert replicas.seen(n) == {Seen(4, "even", "1")}
            refused = ask_for(replicas.route_url(n), 5, "while Redis is away")
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
        redis_server.start()
        replicas.change_to(6, first=5)
        assert [row["revision"] for row in replicas.history()] == [*range(1, 7)]


def test_an_abort_without_redis_holds_at_once_on_its_replica_and_everywhere_after(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    with Gateways(tmp_path, CANARY, redis_server.url) as replicas:
        assert replicas.variants(0) == {"stable", "canary"}
        redis_server.kill()
        asked = {"reason": "the canary fails"}
        answer = verb(replicas.route_url(0), "abort", asked, x_actor="ann")
        assert answer.status_code == 202, answer.text
        assert answer.json()["emergency"] is True
        assert replicas.variants(0) == {"stable"}
        assert replicas.variants(1) == {"stable", "canary"}
        assert replicas.gauges("sluice_route_emergencies") == [1, 0, 0]
        replicas.restart(0)

        def come_back() -> None:
            for up_s in (0.02, 0.1, 0.3):  # gone again while the abort is being made known
                redis_server.start()
                time.sleep(up_s)
                redis_server.kill()
            redis_server.start()
            wait_until(lambda: replicas.is_served(2), "all have the abort", limit_s=RETURN_S)

        traffic = asyncio.run(watched(replicas, come_back, 0))
        assert traffic.failed == traffic.decreased == []
        assert {seen.variant for seen in traffic.answers} == {"stable"}
        assert [replicas.variants(n) for n in range(REPLICAS)] == [{"stable"}] * REPLICAS
        assert replicas.gauges("sluice_route_emergencies") == [0, 0, 0]
        history = replicas.history(1)
        assert [row["verb"] for row in history] == ["create", "abort"]
        assert history[-1]["weights"] == {"stable": 100, "canary": 0}
        entry = audit(redis_server)[-1]
        assert (entry["verb"], entry["actor"], entry["to_revision"]) == ("abort", "ann", 2)
        assert entry["reason"].startswith("the canary fails (emergency abort of replica-0 at ")

        # It is over: a later decision holds, also after a restart of the replica that aborted.
        again = {"weights": {"stable": 50, "canary": 50}, "reason": "mended"}
        verb(replicas.route_url(1), "setWeights", again, if_match='"g1-2"').raise_for_status()
        replicas.restart(0)
        assert replicas.variants(0) == {"stable", "canary"}


def conflicts(replicas: Gateways, kind: str) -> list[float]:
    """Return what each replica's metrics say about a conflict."""
    return replicas.gauges("sluice_route_conflict", route=ROUTE, kind=kind)


def heal(replicas: Gateways, kind: str, revision: int) -> None:
    """Wait until all replicas report a conflict at a revision; restore that, and go on."""
    everywhere = [1] * REPLICAS
    wait_until(lambda: conflicts(replicas, kind) == everywhere, f"{kind} shows", limit_s=RETURN_S)
    assert replicas.is_served(revision)
    answer = verb(replicas.route_url(2), "restore", {"reason": "as it was"}, x_actor="ann")
    assert answer.status_code == 200, answer.text
    restored = answer.json()["document"]["revision"]
    assert restored > revision
    assert answer.headers["etag"] == f'"g2-{restored}"'
    wait_until(lambda: replicas.is_served(restored), "all have it again", limit_s=RETURN_S)
    wait_until(lambda: not any(conflicts(replicas, kind)), "no conflict is left")
    other = propagation.favoured(revision + 1)
    patch(replicas.route_url(0), restored + 1, "it goes on", generation=2, winner=other)
    wait_until(lambda: replicas.is_served(restored + 1), "all follow", limit_s=RETURN_S)


def test_a_redis_set_back_downgrades_nobody_and_a_restore_heals_it(
    tmp_path: Path, redis_server: RedisServer, redis_folder: Path
) -> None:
    with Gateways(tmp_path, propagation.route(), redis_server.url) as replicas:
        replicas.change_to(5)
        redis_server.kill()
        shutil.copytree(redis_folder, tmp_path / "backup")
        redis_server.start()
        replicas.change_to(8, first=6)

        def set_back_and_heal() -> None:
            redis_server.kill()
            shutil.rmtree(redis_folder)
            shutil.copytree(tmp_path / "backup", redis_folder)
            redis_server.start()
            heal(replicas, "older", 8)

        traffic = asyncio.run(watched(replicas, set_back_and_heal))
        assert traffic.failed == traffic.decreased == []
        # What is restored is the content that was served: an even one's.
        content = [Seen(8, "even", "1"), Seen(9, "even", "1"), Seen(10, "odd", "2")]
        assert sorted(traffic.answers) == content
        numbers = [(row["generation"], row["revision"]) for row in replicas.history()]
        assert numbers == [*((1, n) for n in range(1, 6)), (2, 9), (2, 10)]
        entry = audit(redis_server)[-2]
        assert (entry["verb"], entry["actor"], entry["reason"]) == ("restore", "ann", "as it was")
        for gateway in replicas.live:
            assert [entry["kind"] for entry in gateway.events("route_conflict")] == ["older"]


def other_content(body: Document) -> None:
    """Make another history of the same number."""
    body["meta"]["reason"] = "somebody else's"


def no_variants(body: Document) -> None:
    """Make what is no route."""
    del body["variants"]
    body["revision"] += 1


@pytest.mark.parametrize(
    ("damage", "kind"),
    [(other_content, "split"), (no_variants, "corrupt")],
    ids=["split", "corrupt"],
)
def test_a_document_that_cannot_be_trusted_is_reported_not_served_and_a_restore_heals_it(
    tmp_path: Path, redis_server: RedisServer, damage: Callable[[Document], None], kind: str
) -> None:
    with Gateways(tmp_path, propagation.route(), redis_server.url) as replicas:
        replicas.change_to(3)

        def spoil_and_heal() -> None:
            with redis.Redis.from_url(redis_server.url) as client:
                body = json.loads(client.hget(doc_key(ROUTE), "body") or b"")
                damage(body)
                raw = json.dumps(body).encode()
                fields = {"rev": body["revision"], "body": raw}
                digest = hashlib.sha256(raw).hexdigest()
                client.hset(doc_key(ROUTE), mapping={**fields, "digest": digest})
            heal(replicas, kind, 3)

        traffic = asyncio.run(watched(replicas, spoil_and_heal))
        assert traffic.failed == traffic.decreased == []
        assert {(seen.variant, seen.version) for seen in traffic.answers if seen.revision == 3} == {
            ("odd", "2")
        }


def test_routes_are_written_back_into_a_redis_that_comes_back_empty(
    tmp_path: Path, redis_server: RedisServer, redis_folder: Path
) -> None:
    with Gateways(tmp_path, propagation.route(), redis_server.url) as replicas:
        replicas.change_to(4)

        def lose_everything() -> None:
            redis_server.kill()
            shutil.rmtree(redis_folder)
            redis_server.start()
            with redis.Redis.from_url(redis_server.url) as client:
                wait_until(
                    lambda: client.hget(doc_key(ROUTE), "rev") == b"4", "it is back", RETURN_S
                )
            replicas.change_to(6, first=5)

        traffic = asyncio.run(watched(replicas, lose_everything))
        assert traffic.failed == traffic.decreased == []
        content = [Seen(4, "even", "1"), Seen(5, "odd", "2"), Seen(6, "even", "1")]
        assert sorted(traffic.answers) == content
        assert [row["revision"] for row in replicas.history()] == [4, 5, 6]
        entries = audit(redis_server)
        assert [entry["to_revision"] for entry in entries] == [4, 5, 6]
        assert entries[0]["reason"] == "the store had no such route"
        for kind in ("older", "split", "corrupt"):
            assert conflicts(replicas, kind) == [0] * REPLICAS


@pytest.mark.parametrize("is_empty", [False, True], ids=["older", "empty"])
def test_a_restart_downgrades_nobody_whose_redis_has_lost_revisions(
    tmp_path: Path, redis_server: RedisServer, redis_folder: Path, is_empty: bool
) -> None:
    with Gateways(tmp_path, propagation.route(), redis_server.url) as replicas:
        replicas.change_to(3)
        redis_server.kill()
        shutil.copytree(redis_folder, tmp_path / "backup")
        redis_server.start()
        replicas.change_to(6, first=4)
        redis_server.kill()
        for gateway in replicas.live:
            gateway.kill()
        shutil.rmtree(redis_folder)
        if not is_empty:
            shutil.copytree(tmp_path / "backup", redis_folder)
        redis_server.start()
        for n in range(REPLICAS):
            replicas.restart(n)
            assert replicas.seen(n) == {Seen(6, "even", "1")}
        if is_empty:
            replicas.change_to(7, first=7)
            assert [row["revision"] for row in replicas.history()] == [6, 7]
        else:
            heal(replicas, "older", 6)
