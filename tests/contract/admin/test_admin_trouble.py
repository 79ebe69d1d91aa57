"""The admin API while things are wrong: a corrupt store, a store that is away, a start, a stop."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from gateway import config as configuration
from gateway.app import App
from gateway.demo.redis_server import RedisServer
from gateway.http_api.admin import AdminEndpoints, make_app
from gateway.http_api.admin_routes import Access, RouteEndpoints
from gateway.route_control.redis_store import audit_key, doc_key, history_key
from tests.support.admin import Admin, administered, variants
from tests.support.gateway import LoopThread, metric, wait_until, with_free_ports
from tests.support.openapi import Contract, description
from tests.support.redis import running_redis

pytestmark = pytest.mark.redis
Json = Any  # Any: a JSON document


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """Run a Redis of the test's own."""
    with running_redis() as running:
        yield running


@pytest.fixture
def alone(loop_thread: LoopThread, digits_root: Path, server: RedisServer) -> Iterator[Admin]:
    """Connect to a gateway of the test's own, on that Redis."""
    config = {"redis": {"url": server.url}, "control": {"timeout_s": 0.5}}
    with administered(loop_thread, digits_root, config) as admin:
        yield admin


def conflict(admin: Admin, name: str, kind: str) -> bool:
    """Whether the metrics report a conflict of a route."""
    address = admin.gateway.at.metrics
    return metric(address, "sluice_route_conflict", route=name, kind=kind) == 1


def overwrite(server: RedisServer, name: str, revision: int, body: bytes, **fields: str) -> None:
    """Write a route into Redis behind the gateway's back."""
    document = {
        "generation": "1",
        "rev": str(revision),
        "digest": sha256(body).hexdigest(),
        "body": body,
        "audit": "0" * 64,
    }
    with redis.Redis.from_url(server.url) as client:
        client.hset(doc_key(name), mapping=document | fields)


def stored(server: RedisServer, name: str) -> Json:
    """Return the body that Redis has of a route."""
    with redis.Redis.from_url(server.url) as client:
        return json.loads(client.hget(doc_key(name), "body") or b"")


def changed(document: Json, revision: int, **fields: Json) -> bytes:
    """Return a stored body with some keys changed."""
    return json.dumps(document | {"revision": revision} | fields).encode()


CORRUPTIONS: dict[str, Callable[[Json], bytes]] = {
    "a body that is cut off": lambda good: changed(good, 2)[:-20],
    "no JSON": lambda good: b"\xff\x00",
    "another table": lambda good: b"{}",
    "weights of 99.9": lambda good: changed(good, 2, variants=variants(stable=89.9, canary=10)),
    "slots that contradict the weights": lambda good: changed(
        good, 2, derived=good["derived"] | {"slots": [[0, 1_000_000, "stable", 1]]}
    ),
    "another name": lambda good: changed(good, 2, name="another"),
    "another revision than the store says": lambda good: changed(good, 7),
    "an old revision under a new number": lambda good: changed(good, 1),
}


@pytest.mark.parametrize("what", CORRUPTIONS)
def test_a_corrupt_document_is_never_applied_and_reported(
    alone: Admin, server: RedisServer, what: str
) -> None:
    name = alone.create("victim")
    before = alone.of(name)
    with alone.http.stream("GET", "/v1/events", params={"route": name}) as response:
        overwrite(server, name, 2, CORRUPTIONS[what](stored(server, name)))
        lines = response.iter_lines()
        assert "event: conflict" in lines
        told = json.loads(next(lines).removeprefix("data: "))
    assert (told["route"], told["conflict"]) == (name, "corrupt")
    assert conflict(alone, name, "corrupt")
    assert alone.of(name) == before
    assert alone.shares(name, 10).keys() <= {"stable", "canary"}
    refused = alone.write("PATCH", name, {"rollback_window_s": 1})
    assert refused.status_code == 409
    assert "restore" in refused.json()["error"]
    mended = alone.send("POST", f"{name}:restore", {})
    assert mended.status_code == 200
    assert mended.headers["etag"] == '"g2-3"'
    wait_until(lambda: not conflict(alone, name, "corrupt"), "the conflict is over")
    assert alone.of(name)["variants"] == before["variants"]
    assert alone.patch(name, {"rollback_window_s": 1})["changed"] is True


def test_an_abort_of_what_is_corrupt_works_here_and_a_restore_keeps_it(
    alone: Admin, server: RedisServer
) -> None:
    name = alone.create("victim", variants=variants(stable=50, canary=50))
    overwrite(server, name, 2, b"{}")
    answer = alone.send("POST", f"{name}:abort", {"reason": "fire"})
    assert answer.status_code == 202
    assert answer.json()["emergency"] is True
    assert alone.shares(name, 20) == {"stable": 20}
    restored = alone.send("POST", f"{name}:restore", {}).json()["document"]
    assert restored["variants"]["stable"]["weight"] == 100
    assert alone.shares(name, 20) == {"stable": 20}
    assert "emergency" not in alone.of(name)


def test_a_digest_that_contradicts_its_body_is_never_applied(
    alone: Admin, server: RedisServer
) -> None:
    name = alone.create("victim")
    body = changed(stored(server, name), 2, rollback_window_s=1)
    overwrite(server, name, 2, body, digest="0" * 64)
    wait_until(lambda: conflict(alone, name, "corrupt"), "the conflict is reported")
    assert alone.of(name)["revision"] == 1
    assert alone.infer(name, "somebody").status_code == 200


def test_a_store_that_went_back_or_split_is_reported_and_not_followed(
    alone: Admin, server: RedisServer
) -> None:
    name = alone.create("victim")
    first = stored(server, name)
    for seconds in (1, 2):
        alone.patch(name, {"rollback_window_s": seconds})
    before = alone.of(name)
    overwrite(server, name, 1, changed(first, 1))
    wait_until(lambda: conflict(alone, name, "older"), "going back is reported")
    overwrite(server, name, 3, changed(first, 3, rollback_window_s=99))
    wait_until(lambda: conflict(alone, name, "split"), "the split is reported")
    assert alone.of(name) == before
    assert alone.send("POST", f"{name}:restore", {}).status_code == 200
    wait_until(lambda: not conflict(alone, name, "split"), "the conflict is over")


def test_a_key_that_holds_something_else_is_409_and_what_is_served_stays(
    alone: Admin, server: RedisServer
) -> None:
    name = alone.create("victim")
    with redis.Redis.from_url(server.url) as client:
        client.delete(history_key(name))
        client.set(history_key(name), "something else")
    answers = [
        alone.http.get(f"/v1/routes/{name}/revisions"),
        alone.http.get(f"/v1/routes/{name}/revisions/1"),
        alone.write("PATCH", name, {"rollback_window_s": 1}),
        alone.write("PUT", name, {"variants": variants(stable=100)}),
        alone.write("DELETE", name),
        alone.write("POST", f"{name}:promote", {}),
        alone.send("POST", f"{name}:restore", {}),
    ]
    assert {answer.status_code for answer in answers} == {409}
    assert alone.of(name)["revision"] == 1
    assert alone.infer(name, "somebody").status_code == 200


def test_what_somebody_put_into_the_audit_does_not_hide_the_rest(
    alone: Admin, server: RedisServer
) -> None:
    name = alone.create("victim")
    with redis.Redis.from_url(server.url) as client:
        for entry in (b"\xff", b"[]", b'{"ts": 7}', b'{"ts": "yesterday"}', b"{}"):
            client.xadd(audit_key(name), {"e": entry})
    alone.patch(name, {"rollback_window_s": 1})
    entries = alone.get("/v1/audit", route=name)["entries"]
    assert [entry["to_revision"] for entry in entries] == [1, 2]


def test_without_the_store_routes_are_served_and_writes_are_503(
    alone: Admin, server: RedisServer
) -> None:
    name = alone.create("kept")
    server.kill()
    tag = alone.http.get(f"/v1/routes/{name}").headers["etag"]
    at = {"if-match": tag}
    answers = [
        alone.send("PUT", "new", {"variants": variants(a=100)}, headers={"if-none-match": "*"}),
        alone.send("PUT", name, {"variants": variants(a=100)}, headers=at),
        alone.send("PATCH", name, {"rollback_window_s": 1}, headers=at),
        alone.send("DELETE", name, headers=at),
        alone.send("POST", f"{name}:setWeights", {"canary": 20, "stable": 80}, headers=at),
        alone.send("POST", f"{name}:promote", {}, headers=at),
        alone.send("POST", f"{name}:undo", {}, headers=at),
        alone.send("POST", f"{name}:restore", {}),
        alone.http.get(f"/v1/routes/{name}/revisions"),
        alone.http.get(f"/v1/routes/{name}/convergence"),
        alone.http.get("/v1/audit"),
    ]
    for answer in answers:
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
    assert alone.shares(name, 10).keys() <= {"stable", "canary"}
    assert alone.of(name)["revision"] == 1
    assert alone.of(name, "explain", key="u")["revision"] == 1
    assert alone.of(name, "stats")["revision"] == 1
    assert alone.get("/v1/health/ready") == {"ready": True}


def test_an_abort_without_the_store_works_here_and_is_made_known_later(
    alone: Admin, server: RedisServer
) -> None:
    name = alone.create("kept", variants=variants(stable=50, canary=50))
    server.kill()
    dry = alone.send("POST", f"{name}:abort?dry_run=true", {})
    assert dry.status_code == 202
    assert dry.json()["dry_run"] is True
    assert alone.shares(name, 20).keys() == {"stable", "canary"}
    answer = alone.send("POST", f"{name}:abort", {"reason": "fire"}, headers={"x-actor": "ann"})
    assert answer.status_code == 202
    assert answer.json()["emergency"] is True
    assert answer.headers["etag"] == '"g1-1"'  # what is stored: the abort is not, yet
    assert alone.shares(name, 20) == {"stable": 20}
    assert alone.of(name)["emergency"] == {"actor": "ann", "reason": "fire"}
    server.start()
    wait_until(lambda: alone.of(name)["revision"] == 2, "the store knows of the abort")
    document = alone.of(name)
    assert "emergency" not in document
    assert document["variants"]["stable"]["weight"] == 100
    (first, second) = alone.get("/v1/audit", route=name)["entries"]
    assert (second["verb"], second["actor"], second["auth"]) == ("abort", "ann", "journal")
    assert second["reason"].startswith("fire")
    assert first["verb"] == "create"


def test_a_store_that_goes_away_while_a_writer_waits_takes_nothing_back(
    alone: Admin, server: RedisServer
) -> None:
    name = alone.create("kept")
    with redis.Redis.from_url(server.url) as client:
        now_ms = time.time_ns() // 1_000_000
        client.hset("rt:replicas", "ghost", f'{now_ms} {{"routes": {{}}}}')
    killing = threading.Timer(0.5, server.kill)
    killing.start()
    try:
        answer = alone.write("PATCH", name, {"rollback_window_s": 1}, headers={"prefer": "wait=2"})
    finally:
        killing.join()
    assert answer.status_code == 202
    assert answer.json()["laggards"] == ["ghost"]
    assert alone.of(name)["revision"] == 2


def test_before_the_routes_are_known_calls_about_them_are_503(
    loop_thread: LoopThread, digits_root: Path, tmp_path: Path
) -> None:
    config = configuration.parse(with_free_ports({}))
    lines = {"if-none-match": "*", "x-reason": "early"}
    asked = [
        *(("GET", f"/v1/routes{rest}") for rest in ("", "/r", "/r/stats", "/r/explain")),
        ("GET", "/v1/audit"),
        ("GET", "/v1/events"),
        ("PUT", "/v1/routes/r"),
        ("POST", "/v1/routes/r:abort"),
        ("GET", "/v1/health/live"),
        ("GET", "/v1/health/ready"),
    ]

    async def ask() -> list[httpx.Response]:
        app = App(config, digits_root, tmp_path)
        access = Access(app.principals, is_required=False)
        asgi = make_app(
            AdminEndpoints(catalog=app.catalog, access=access),
            RouteEndpoints(plane=app.plane, access=access),
            app.statuses,
        )
        transport = httpx.ASGITransport(asgi)
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
                answers = [
                    await client.request(method, path, headers=lines, json={})
                    for method, path in asked
                ]
        finally:
            await app.stop()
        return answers

    *answers, live, ready = loop_thread.run(ask())
    contract = Contract(description())
    for answer in answers:
        contract.check(answer)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
    contract.check(ready)
    assert (live.status_code, ready.status_code) == (200, 503)
