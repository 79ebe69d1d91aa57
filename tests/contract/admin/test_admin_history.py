"""What was, over the admin API: revisions, differences, the audit and its chain; many writers."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import httpx
import pytest

from tests.support.admin import MERGE_PATCH, REASON, Admin, variants

WRITERS = 50
Json = Any  # Any: a JSON document


def busy_route(admin: Admin) -> str:
    """Make a route with seven revisions, of every verb that an operator has."""
    name = admin.create()
    admin.verb(name, "setWeights", {"weights": {"canary": 33.3333}, "take_from": "stable"})
    admin.patch(name, {"rollback_window_s": 7})
    admin.send("POST", f"{name}:abort", {"reason": "zu viele Fehler, «schnell»"})
    admin.verb(name, "undo", {"to_revision": 2})
    admin.verb(name, "promote")
    tag = {"if-match": admin.write("DELETE", name).headers["etag"]}
    assert admin.send("POST", f"{name}:undo", {}, headers=tag).status_code == 200
    return name


def test_every_revision_is_kept_with_its_verb_its_weights_and_its_parent(admin: Admin) -> None:
    name = busy_route(admin)
    rows = admin.of(name, "revisions")["revisions"]
    assert [row["revision"] for row in rows] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert [row["parent"] for row in rows] == [7, 6, 5, 4, 3, 2, 1, 0]
    assert [row["verb"] for row in reversed(rows)] == [
        *("create", "setWeights", "patch", "abort", "undo", "promote", "delete", "undo")
    ]
    assert rows[-2]["weights"] == {"stable": 66.6667, "canary": 33.3333}
    assert rows[4]["reason"] == "zu viele Fehler, «schnell»"
    assert admin.of(name, "revisions", limit=2)["revisions"] == rows[:2]
    for row in rows:
        document = admin.of(name, f"revisions/{row['revision']}")
        assert document["meta"]["digest"] == row["digest"]
        assert document["revision"] == row["revision"]
    assert admin.of(name, "revisions/8") == admin.of(name)


def test_a_difference_is_between_any_two_revisions_either_way(admin: Admin) -> None:
    name = busy_route(admin)
    assert admin.of(name, "revisions/1..2") == {
        "from": 1,
        "to": 2,
        "moved_share_percent": 23.3333,
        "reversioned_share_percent": 23.3333,
        "diff": [
            {"path": "/variants/canary/weight", "from": 10, "to": 33.3333},
            {"path": "/variants/stable/weight", "from": 90, "to": 66.6667},
        ],
    }
    back = admin.of(name, "revisions/2..1")
    assert back["moved_share_percent"] == 23.3333
    assert back["diff"][0] == {"path": "/variants/canary/weight", "from": 33.3333, "to": 10}
    assert admin.of(name, "revisions/2..5")["moved_share_percent"] == 0.0  # undone, to the slot
    assert admin.of(name, "revisions/2..2")["diff"] == []
    deleted = admin.of(name, "revisions/6..7")["diff"]
    assert deleted == [{"path": "/deleted", "from": False, "to": True}]


@pytest.mark.parametrize(
    ("which", "status"),
    [
        ("9", 404),
        ("1..9", 404),
        ("0", 404),
        ("999999999999999", 404),
        ("x", 400),
        ("1..", 400),
        ("1...2", 400),
        ("-1", 400),
        ("1.5", 400),
        ("٣", 400),
        ("9" * 5_000, 400),
    ],
)
def test_a_revision_that_is_none_is_refused(admin: Admin, which: str, status: int) -> None:
    name = admin.create()
    assert admin.http.get(f"/v1/routes/{name}/revisions/{which}").status_code == status


@pytest.mark.parametrize("limit", ["0", "-1", "x", "", "1001", "9" * 5_000, "1.0"])
def test_a_limit_that_is_none_is_400(admin: Admin, limit: str) -> None:
    name = admin.create()
    answer = admin.http.get(f"/v1/routes/{name}/revisions", params={"limit": limit})
    assert answer.status_code == 400
    assert "limit" in answer.json()["error"]


def test_each_audit_entry_vouches_for_the_one_before_it(admin: Admin) -> None:
    name = busy_route(admin)
    entries = admin.get("/v1/audit", route=name)["entries"]
    assert [entry["to_revision"] for entry in entries] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [entry["from_revision"] for entry in entries] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert chain_is_whole(entries)
    digests = {row["revision"]: row["digest"] for row in admin.of(name, "revisions")["revisions"]}
    assert {entry["to_revision"]: entry["digest"] for entry in entries} == digests
    changed = dict(entries[3], reason="nobody knows")
    assert not chain_is_whole([*entries[:3], changed, *entries[4:]])
    assert not chain_is_whole([*entries[:3], *entries[4:]])


def test_the_chain_is_over_the_bytes_that_the_store_has(admin: Admin) -> None:
    name = busy_route(admin)
    plane = admin.gateway.app.plane
    assert plane.sync is not None
    stored = admin.gateway.loop.run(plane.sync.stores.routes.audit(name, limit=100))
    entries = admin.get("/v1/audit", route=name)["entries"]
    assert [compact(entry) for entry in entries] == stored
    assert sha256(stored[-2]).hexdigest() == entries[-1]["previous"]


def test_the_audit_is_filtered_by_route_actor_and_time(admin: Admin) -> None:
    name = admin.create()
    for actor in ("ann", "bob", "ann"):
        body = {"rollback_window_s": len(admin.get("/v1/audit", route=name)["entries"])}
        admin.write("PATCH", name, body, headers={"x-actor": actor})
    entries = admin.get("/v1/audit", route=name, actor="ann")["entries"]
    assert [entry["to_revision"] for entry in entries] == [2, 4]
    everything = admin.get("/v1/audit")["entries"]
    moments = [datetime.fromisoformat(entry["ts"]) for entry in everything]
    assert moments == sorted(moments)
    assert {entry["route"] for entry in everything} > {name}
    assert admin.get("/v1/audit", limit=2)["entries"] == everything[-2:]
    assert admin.get("/v1/audit", route="nobody")["entries"] == []
    now = datetime.now(UTC)
    for since in ("1h", (now - timedelta(hours=1)).isoformat(), "1970-01-01T00:00:00Z"):
        assert len(admin.get("/v1/audit", route=name, since=since)["entries"]) == 4
    ahead = (now + timedelta(hours=1)).isoformat()
    assert admin.get("/v1/audit", route=name, since=ahead)["entries"] == []
    second = admin.get("/v1/audit", route=name)["entries"][1]["ts"]
    found = admin.get("/v1/audit", route=name, since=second)["entries"]
    assert [entry["to_revision"] for entry in found] == [2, 3, 4]


@pytest.mark.parametrize(
    "since",
    ["yesterday", "", "24", "2026-11-21T00:00:00", "999999999d", "0001-01-01T00:00:00+23:59x"],
)
def test_a_since_that_is_none_is_400(admin: Admin, since: str) -> None:
    answer = admin.http.get("/v1/audit", params={"since": since})
    assert answer.status_code == 400
    assert "since" in answer.json()["error"]


def test_a_since_at_the_end_of_all_calendars_is_just_a_moment(admin: Admin) -> None:
    name = admin.create()
    for since, count in (("0001-01-01T00:00:00+23:59", 1), ("9999-12-31T23:59:59-23:59", 0)):
        assert len(admin.get("/v1/audit", route=name, since=since)["entries"]) == count


def test_of_fifty_writers_with_one_tag_exactly_one_wins(admin: Admin) -> None:
    name = admin.create(variants=variants(stable=100, canary=0))
    tag = admin.etag(name)

    async def write(client: httpx.AsyncClient, number: int) -> httpx.Response:
        stable, canary = 99 - number, 1 + number
        body = {"variants": {"stable": {"weight": stable}, "canary": {"weight": canary}}}
        lines = {"if-match": tag, "x-reason": REASON, "content-type": MERGE_PATCH}
        path = f"/v1/routes/{name}"
        return await client.patch(path, content=json.dumps(body), headers=lines)

    async def write_all() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=WRITERS)
        async with httpx.AsyncClient(
            base_url=f"http://{admin.gateway.at.admin}", limits=limits, timeout=20
        ) as client:
            return await asyncio.gather(*(write(client, n) for n in range(WRITERS)))

    answers = asyncio.run(write_all())
    for answer in answers:
        admin.contract.check(answer)
    (won,) = [answer for answer in answers if answer.status_code == 200]
    lost = [answer for answer in answers if answer.status_code == 412]
    assert len(lost) == WRITERS - 1
    document = admin.of(name)
    assert document == won.json()["document"]
    assert all(answer.json()["current"] == document for answer in lost)
    assert [row["revision"] for row in admin.of(name, "revisions")["revisions"]] == [2, 1]
    entries = admin.get("/v1/audit", route=name)["entries"]
    assert [entry["to_revision"] for entry in entries] == [1, 2]
    assert chain_is_whole(entries)


def compact(entry: Json) -> bytes:
    """Return an entry as it was stored: in its order, without spaces."""
    return json.dumps(entry, separators=(",", ":"), ensure_ascii=False).encode()


def chain_is_whole(entries: list[Json]) -> bool:
    """Whether each entry names the digest of the one before it, and the first names none."""
    digests = ["", *(sha256(compact(entry)).hexdigest() for entry in entries[:-1])]
    return [entry["previous"] for entry in entries] == digests
