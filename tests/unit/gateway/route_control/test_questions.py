"""Questions: the past in order, who has what, and answers that one bad entry does not spoil."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.errors import Conflict, StoreUnavailable, UnknownName
from gateway.route_control.in_force import Held
from gateway.route_control.revision import Change, digest_of
from gateway.route_control.write import (
    Condition,
    RevisionMismatch,
    Written,
    audit_entry,
    difference,
)
from router import changes
from tests.support.batching import HANG_S
from tests.support.replicas import (
    NAME,
    Replica,
    Scene,
    held,
    intent,
    open_scene,
    origin,
    revisions,
    route,
    write_row,
)

AT_TWO: Final = held(route(10), route(20))
DELETED: Final = Held.of(changes.deleted(AT_TWO.revision, origin("delete")))


async def put_entries(scene: Scene, name: str, *stamps: str) -> None:
    """Write revisions whose audit entries carry these times; not a time: bytes of no entry."""
    at: tuple[int, int] | None = None
    for n, revision in enumerate(revisions(*[route(0, name=name)] * len(stamps)), start=1):
        stamp = stamps[n - 1]
        raw = json.dumps({"ts": stamp, "route": name, "n": n}) if stamp else f"<{n}>"
        after = Held.of(revision)
        await scene.store.write(
            Change.of(name, after.position, after.body, expected=at, audit=raw.encode())
        )
        at = after.position


def test_the_audit_of_all_routes_is_one_list_by_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = scene.replica()
            await put_entries(scene, "a", "2026-01-01T00:00:00Z", "2026-01-01T00:00:02Z")
            await put_entries(scene, "b", "2026-01-01T00:00:00.500Z", "2026-01-01T00:00:01Z")
            found = await replica.questions.audit([], 99)
            assert [(e["route"], e["n"]) for e in found] == [
                ("a", 1),
                ("b", 1),
                ("b", 2),
                ("a", 2),
            ]
            assert [e["n"] for e in await replica.questions.audit(["a"], 99)] == [1, 2]
            assert [e["n"] for e in await replica.questions.audit(["a"], 1)] == [2]
            assert await replica.questions.audit(["nobody"], 99) == []

    asyncio.run(scenario())


def test_entries_of_one_route_stay_in_their_order_whatever_the_clocks_said(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = scene.replica()
            await put_entries(scene, "a", "2026-01-01T00:00:09Z", "2026-01-01T00:00:01Z")
            await put_entries(scene, "b", "2026-01-01T00:00:05Z")
            found = await replica.questions.audit([], 99)
            assert [(e["route"], e["n"]) for e in found] == [("b", 1), ("a", 1), ("a", 2)]

    asyncio.run(scenario())


def test_an_audit_entry_that_nobody_can_read_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = scene.replica()
            await put_entries(scene, "a", "", "yesterday", "2026-01-01T00:00:01Z")
            found = await replica.questions.audit(["a"], 99)
            assert [entry["n"] for entry in found] == [3]

    asyncio.run(scenario())
    assert caplog.messages == ["unreadable audit entry left out"] * 2


def test_names_are_those_of_routes_that_are_in_force_and_not_deleted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = scene.replica()
            for name in ("b", "a", "c"):
                await replica.create(0, name=name)
            await replica.control.delete("c", replica.here("c"), intent())
            assert replica.questions.names() == ["a", "b"]
            with pytest.raises(UnknownName):
                replica.questions.newest("c")

    asyncio.run(scenario())


def test_the_newest_revision_is_told_before_it_is_in_force(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await scene.serving()
            scene.shelf.may_load.clear()
            await replica.hear(route(20))
            assert replica.questions.newest(NAME).position == (1, 2)
            assert replica.position() == (1, 1)

    asyncio.run(scenario())


def test_the_past_is_the_stores_and_the_newest_comes_first(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = scene.replica()
            await write_row(scene.store, route(10), route(20), route(30))
            found = await replica.questions.history(NAME, 2)
            assert [h.position for h in found] == [(1, 3), (1, 2)]
            second = await replica.questions.revision(NAME, 2)
            assert second == revisions(route(10), route(20))[1]
            with pytest.raises(UnknownName, match="no revision 9"):
                await replica.questions.revision(NAME, 9)
            with pytest.raises(UnknownName):
                await replica.questions.history("nobody", 2)
            replica.store.down = {"*"}
            with pytest.raises(StoreUnavailable):
                await replica.questions.history(NAME, 2)

    asyncio.run(scenario())


def test_a_stored_revision_that_is_no_route_is_a_conflict_that_names_the_repair(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = scene.replica()
            bad = Change.of(NAME, (1, 1), b"{}", expected=None, audit=b"x")
            await scene.store.write(bad)
            with pytest.raises(Conflict, match=r"as stored is invalid: .*; restore writes"):
                await replica.questions.current(NAME)

    asyncio.run(scenario())


def report(*row: Any) -> bytes:  # Any: JSON
    return json.dumps({"routes": {NAME: list(row)}}).encode()


async def states(replica: Replica, at: Held | None = None) -> dict[str, bool]:
    found = await replica.questions.convergence(NAME, at)
    return {state.replica: state.is_converged for state in found}


def test_a_replica_has_a_revision_if_it_serves_it_or_a_later_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = scene.replica()
            replica.sync.accept(held(route(0)))
            replica.sync.accept(held(route(0), route(0)))
            digest = replica.in_force.held[NAME].digest
            rows = {
                "same": report(1, 2, digest, ""),
                "later": report(1, 3, "f" * 64, ""),
                "restored": report(2, 1, "f" * 64, ""),
                "older": report(1, 1, "f" * 64, "loading digits/2"),
                "split": report(1, 2, "f" * 64, ""),
                "without it": json.dumps({"routes": {}}).encode(),
            }
            for name, row in rows.items():
                await scene.board.report(name, row)
            found = await states(replica)
            assert {name for name, is_converged in found.items() if is_converged} == {
                "same",
                "later",
                "restored",
            }
            assert set(found) == set(rows)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"routes": []}',
        b'{"routes": {"digits": 7}}',
        b'{"routes": {"digits": [1]}}',
        b'{"routes": {"digits": [null, null, null, null]}}',
        b'{"routes": {"digits": ["x", 1, "", ""]}}',
    ],
)
def test_a_report_in_another_form_counts_as_nothing_in_force(tmp_path: Path, raw: bytes) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = scene.replica()
            replica.sync.accept(held(route(0)))
            await scene.board.report("strange", raw)
            (state,) = await replica.questions.convergence(NAME)
            assert (state.generation, state.revision, state.is_converged) == (0, 0, False)

    asyncio.run(scenario())


def test_waiting_for_all_ends_as_soon_as_the_last_one_has_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            one, two = scene.replica("one"), scene.replica("two")
            await one.create(0)
            await two.sync.look()
            await one.change(0, salt="other")
            at = one.in_force.held[NAME]
            assert await one.questions.converged(NAME, at, 0) == ["two"]
            waiting = asyncio.ensure_future(one.questions.converged(NAME, at, HANG_S))
            await asyncio.sleep(0)
            await two.sync.look()
            assert await waiting == []

    asyncio.run(scenario())


CONDITIONS: Final[list[tuple[Condition, Held | None, bool]]] = [
    (Condition(at=(1, 2)), AT_TWO, True),
    (Condition(at=(1, 1)), AT_TWO, False),
    (Condition(at=(2, 2)), AT_TWO, False),
    (Condition(at=(1, 2)), None, False),
    (Condition(at=(1, 3)), DELETED, True),
    (Condition(must_not_exist=True), None, True),
    (Condition(must_not_exist=True), DELETED, True),
    (Condition(must_not_exist=True), AT_TWO, False),
    (Condition(is_any=True), AT_TWO, True),
    (Condition(is_any=True), DELETED, False),
    (Condition(is_any=True), None, False),
    (Condition(), AT_TWO, False),
]


@pytest.mark.parametrize(("condition", "current", "holds"), CONDITIONS)
def test_a_condition_holds_or_shows_what_is_there(
    condition: Condition, current: Held | None, holds: bool
) -> None:
    if holds:
        condition.check(NAME, current)
        return
    with pytest.raises(RevisionMismatch) as caught:
        condition.check(NAME, current)
    assert caught.value.current is current


def test_an_audit_entry_says_who_why_what_and_vouches_for_the_one_before() -> None:
    before, after = revisions(route(10), route(20))
    digest = digest_of(after.body())
    raw = audit_entry(before, after, intent("é"), digest=digest, previous="abc")
    entry = json.loads(raw)
    assert (entry["reason"], entry["previous"], entry["digest"]) == ("é", "abc", digest)
    assert (entry["generation"], entry["from_revision"], entry["to_revision"]) == (1, 1, 2)
    again = json.loads(audit_entry(before, after, intent("é"), digest=digest, previous="abc"))
    assert again["id"] != entry["id"]  # by this a repeated write is told from another one
    assert {k: v for k, v in again.items() if k != "id"} == {
        k: v for k, v in entry.items() if k != "id"
    }


def test_the_difference_of_a_deletion_is_that_it_is_gone() -> None:
    assert difference(AT_TWO.revision, DELETED.revision) == [
        {"path": "/deleted", "from": False, "to": True}
    ]
    assert difference(AT_TWO.revision, AT_TWO.revision) == []


def test_a_reseed_draws_a_new_salt_every_time() -> None:
    wanted = intent(wants_reseed=True)
    salts = {wanted.permission(NAME).new_salt for _ in range(20)}
    assert len(salts) == 20
    assert all(salt.startswith(f"{NAME}-") for salt in salts)
    assert intent().permission(NAME).new_salt == ""


def test_an_answer_tells_the_shares_that_move_and_that_get_another_version() -> None:
    before, after = revisions(route(10), changes.promoted(route(10)))
    written = Written(before=before, after=after, is_changed=True, is_dry_run=False)
    answer = written.document()
    assert answer["moved_share_percent"] == 10
    assert answer["reversioned_share_percent"] == 90
    assert "emergency" not in answer
