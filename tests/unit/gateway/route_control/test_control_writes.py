"""Writes: one of two writers wins, nothing unchecked comes in, nothing is written twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.errors import Conflict, StoreUnavailable, UnknownName
from gateway.route_control.revision import digest_of
from gateway.route_control.write import Condition, RevisionMismatch, Written
from router.faults import RouteError
from tests.support.replicas import (
    MODEL,
    NAME,
    NEW,
    Replica,
    body,
    intent,
    open_scene,
    route,
    write_row,
)
from tests.support.route_stores import change

EVERYTHING: Final = 1_000


async def numbers(replica: Replica, name: str = NAME) -> list[int]:
    """Return the numbers of the history, oldest first."""
    found = await replica.questions.history(name, EVERYTHING)
    return [h.revision.route.revision for h in reversed(found)]


async def entries(replica: Replica, name: str = NAME) -> list[dict[str, Any]]:
    """Return the audit of a route, whose entries must vouch for each other."""
    raw = await replica.store.audit(name, limit=EVERYTHING)
    found = [json.loads(entry) for entry in raw]
    previous = ["", *(digest_of(entry) for entry in raw[:-1])]
    assert [entry["previous"] for entry in found] == previous
    return found


def run(folder: Path, scenario: Callable[[Replica], Awaitable[None]]) -> None:
    """Run a scenario with one replica on an empty store."""

    async def in_scene() -> None:
        async with open_scene(folder) as scene:
            await scenario(scene.replica())

    asyncio.run(in_scene())


def test_what_is_written_is_in_force_stored_and_audited(tmp_path: Path) -> None:
    async def scenario(replica: Replica) -> None:
        written = await replica.create(10)
        assert (written.before, written.is_changed, written.is_dry_run) == (None, True, False)
        assert written.loads == ((MODEL, "2"),)
        assert (replica.position(), replica.canary()) == ((1, 1), 10)
        await replica.change(20)
        stored = await replica.store.read(NAME)
        assert stored is not None
        assert replica.in_force.held[NAME].stored() == stored
        one, two = await entries(replica)
        assert (one["verb"], one["from_revision"], one["to_revision"]) == ("create", 0, 1)
        assert (two["verb"], two["from_revision"], two["to_revision"]) == ("replace", 1, 2)
        assert (two["actor"], two["auth"], two["source"]) == ("ann", "token", "here")
        assert (two["reason"], two["digest"]) == ("change", stored.digest)
        assert two["moved_share_percent"] == 10
        assert {change["path"] for change in two["diff"]} == {
            "/variants/canary/weight",
            "/variants/stable/weight",
        }

    run(tmp_path, scenario)


def test_of_two_writers_from_one_revision_one_wins_and_the_other_is_shown_what_is_there(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            one, two = scene.replica("one"), scene.replica("two")
            await one.create(10)
            await two.sync.look()
            outcomes = await asyncio.gather(one.change(20), two.change(30), return_exceptions=True)
            (won,) = [o for o in outcomes if isinstance(o, Written)]
            (lost,) = [o for o in outcomes if isinstance(o, RevisionMismatch)]
            assert lost.current is not None
            assert lost.current.position == (1, 2)
            assert lost.current.revision == won.after
            assert await numbers(one) == [1, 2]
            assert len(await entries(one)) == 2
            for replica in (one, two):
                await replica.sync.look()
                assert replica.in_force.held[NAME].revision == won.after

    asyncio.run(scenario())


def test_many_writers_at_once_leave_a_history_without_gaps(tmp_path: Path) -> None:
    async def scenario(replica: Replica) -> None:
        await replica.create(10)
        at = replica.here()
        weights = [20 + Decimal(n) / 4 for n in range(50)]
        outcomes = await asyncio.gather(
            *(
                replica.control.set_weights(NAME, {"canary": weight}, "stable", at, intent())
                for weight in weights
            ),
            return_exceptions=True,
        )
        assert sum(isinstance(o, Written) for o in outcomes) == 1
        assert sum(isinstance(o, RevisionMismatch) for o in outcomes) == 49
        assert await numbers(replica) == [1, 2]
        assert [entry["to_revision"] for entry in await entries(replica)] == [1, 2]

    run(tmp_path, scenario)


def test_a_write_whose_reply_is_lost_is_found_by_the_next_look_and_made_once(
    tmp_path: Path,
) -> None:
    async def scenario(replica: Replica) -> None:
        await replica.create(10)
        replica.store.loses_replies = True
        with pytest.raises(StoreUnavailable, match="cannot be changed"):
            await replica.change(20)
        assert replica.position() == (1, 1)
        replica.store.loses_replies = False
        with pytest.raises(RevisionMismatch):  # the writer tries again from what it knows
            await replica.change(20)
        await replica.sync.look()
        assert (replica.position(), replica.canary()) == ((1, 2), 20)
        assert await numbers(replica) == [1, 2]
        assert len(await entries(replica)) == 2

    run(tmp_path, scenario)


def test_without_the_store_nothing_can_be_written_and_what_is_served_stays(tmp_path: Path) -> None:
    async def scenario(replica: Replica) -> None:
        await replica.create(10)
        replica.store.down = {"*"}
        with pytest.raises(StoreUnavailable):
            await replica.change(20)
        with pytest.raises(StoreUnavailable):
            await replica.control.restore(NAME, intent())
        with pytest.raises(StoreUnavailable):
            await replica.control.undo(NAME, 0, replica.here(), intent())
        assert replica.canary() == 10

    run(tmp_path, scenario)


def test_a_write_that_changes_nothing_is_not_written(tmp_path: Path) -> None:
    async def scenario(replica: Replica) -> None:
        await replica.create(10)
        replica.store.calls.clear()
        written = await replica.change(10)
        assert not written.is_changed
        assert written.diff == []
        assert written.after.route.revision == 1
        assert written.document()["document"] == replica.in_force.held[NAME].revision.document()
        assert replica.store.calls == ["read"]
        assert await numbers(replica) == [1]

    run(tmp_path, scenario)


def test_a_dry_run_says_what_would_happen_and_does_nothing(tmp_path: Path) -> None:
    async def scenario(replica: Replica) -> None:
        await replica.create(0)
        await replica.change(0, version="3")
        replica.store.calls.clear()
        changed = body(25, version="2", shadows={"s": shadow("3")})
        written = await replica.control.put(NAME, changed, replica.here(), intent(is_dry_run=True))
        assert (written.is_changed, written.is_dry_run) == (True, True)
        answer = written.document()
        assert answer["dry_run"]
        assert answer["moved_share_percent"] == 25
        assert answer["loads"] == [{"model": MODEL, "version": "3"}]
        assert replica.store.calls == ["read"]
        assert replica.position() == (1, 2)

    run(tmp_path, scenario)


def shadow(version: str) -> dict[str, object]:
    return {"model": MODEL, "version": version, "sample": 10}


@pytest.mark.parametrize(
    ("condition", "is_there"),
    [(Condition(at=(1, 7)), True), (Condition(at=(2, 1)), True), (NEW, True)],
    ids=["another revision", "another generation", "must not exist"],
)
def test_a_write_on_a_wrong_condition_is_shown_what_is_there(
    tmp_path: Path, condition: Condition, is_there: bool
) -> None:
    async def scenario(replica: Replica) -> None:
        await replica.create(10)
        with pytest.raises(RevisionMismatch) as caught:
            await replica.control.put(NAME, body(20), condition, intent())
        assert caught.value.current is not None
        assert caught.value.current.position == (1, 1)
        assert "g1-1" in str(caught.value)
        assert replica.canary() == 10

    run(tmp_path, scenario)


def test_what_is_not_there_can_only_be_created(tmp_path: Path) -> None:
    async def scenario(replica: Replica) -> None:
        at = Condition(at=(1, 1))
        control = replica.control
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: control.put(NAME, body(), at, intent()),
            lambda: control.patch(NAME, {}, at, intent()),
            lambda: control.set_weights(NAME, {}, "", at, intent()),
            lambda: control.promote(NAME, "", at, intent()),
            lambda: control.abort(NAME, intent()),
            lambda: control.undo(NAME, 0, at, intent()),
            lambda: control.delete(NAME, at, intent()),
            lambda: control.restore(NAME, intent()),
        ]
        for call in calls:
            with pytest.raises(UnknownName):
                await call()
        assert replica.store.calls.count("write") == 0

    run(tmp_path, scenario)


def test_a_version_that_is_not_on_disk_or_does_not_load_never_comes_into_force(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = scene.replica()
            await replica.create(0)
            with pytest.raises(RouteError) as caught:
                await replica.change(10, version="99")
            assert [fault.pointer for fault in caught.value.faults] == ["/variants/canary/version"]
            (scene.shelf.root / MODEL / "3" / "model.json").write_text("no script")
            with pytest.raises(RouteError) as caught:
                await replica.change(10, version="3")
            assert [fault.pointer for fault in caught.value.faults] == ["/variants/canary/version"]
            assert replica.position() == (1, 1)
            assert await numbers(replica) == [1]

    asyncio.run(scenario())


def test_a_version_is_warm_before_its_first_weight_is_stored(tmp_path: Path) -> None:
    async def scenario(replica: Replica) -> None:
        await replica.create(0, version="1")
        ready: list[bool] = []

        async def look() -> None:
            ready.append(replica.targets.is_ready(MODEL, "3"))

        replica.store.before["write"] = look
        await replica.change(10, version="3")
        assert ready == [True]

    run(tmp_path, scenario)


def test_a_deleted_route_is_gone_keeps_its_number_and_comes_back_by_an_undo(
    tmp_path: Path,
) -> None:
    async def scenario(replica: Replica) -> None:
        await replica.create(10)
        await replica.change(20)
        written = await replica.control.delete(NAME, replica.here(), intent())
        assert written.diff == [{"path": "/deleted", "from": False, "to": True}]
        assert (replica.position(), replica.weights()) == ((1, 3), {})
        with pytest.raises(UnknownName):
            await replica.control.abort(NAME, intent())
        with pytest.raises(UnknownName):
            await replica.change(30)
        back = await replica.control.undo(NAME, 0, replica.here(), intent())
        assert back.is_changed
        assert (replica.position(), replica.canary()) == ((1, 4), 20)
        assert await numbers(replica) == [1, 2, 3, 4]

    run(tmp_path, scenario)


def test_a_route_made_anew_after_its_deletion_goes_on_counting(tmp_path: Path) -> None:
    async def scenario(replica: Replica) -> None:
        await replica.create(10)
        await replica.control.delete(NAME, replica.here(), intent())
        await replica.create(30)
        assert (replica.position(), replica.canary()) == ((1, 3), 30)
        assert [e["verb"] for e in await entries(replica)] == ["create", "delete", "create"]

    run(tmp_path, scenario)


def test_an_undo_goes_back_to_the_very_slots(tmp_path: Path) -> None:
    async def scenario(replica: Replica) -> None:
        await replica.create(10)
        first = replica.in_force.held[NAME].revision
        await replica.change(60)
        await replica.change(0)
        await replica.control.undo(NAME, 1, replica.here(), intent())
        assert replica.in_force.held[NAME].revision.slots == first.slots
        assert replica.position() == (1, 4)

    run(tmp_path, scenario)


def test_of_a_first_revision_nothing_can_be_undone(tmp_path: Path) -> None:
    async def scenario(replica: Replica) -> None:
        await replica.create(10)
        with pytest.raises(Conflict, match="nothing to go back to"):
            await replica.control.undo(NAME, 0, replica.here(), intent())
        with pytest.raises(UnknownName, match="no revision 7"):
            await replica.control.undo(NAME, 7, replica.here(), intent())

    run(tmp_path, scenario)


def test_the_weights_of_an_experiment_are_locked_unless_the_writer_says_what_that_means(
    tmp_path: Path,
) -> None:
    async def scenario(replica: Replica) -> None:
        await replica.create(50, kind="experiment")
        with pytest.raises(Conflict, match="reseed"):
            await replica.change(60, kind="experiment")
        document = body(60, kind="experiment")
        carried = intent(accepts_carryover=True)
        await replica.control.put(NAME, document, replica.here(), carried)
        assert replica.in_force.held[NAME].revision.carryover == (2,)
        document = body(70, kind="experiment")
        await replica.control.put(NAME, document, replica.here(), intent(wants_reseed=True))
        revision = replica.in_force.held[NAME].revision
        assert (revision.carryover, revision.epoch) == ((), 3)
        assert revision.route.salt not in ("", NAME)

    run(tmp_path, scenario)


def test_what_the_store_holds_and_is_no_route_is_a_conflict_for_writers(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await scene.serving(10)
            await scene.store.write(change(2, expected=(1, 1), body=b"{}"))
            with pytest.raises(Conflict, match="restore writes what this replica serves"):
                await replica.change(20)

    asyncio.run(scenario())


def test_a_restore_writes_what_is_served_here_above_what_the_store_has(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await scene.serving(10)
            other = await scene.another_store("other")
            await write_row(other, route(50), route(60), route(70))
            written = await replica.control.restore(NAME, intent())
            assert written.is_changed
            assert (replica.position(), replica.canary()) == ((2, 4), 10)
            stored = await other.read(NAME)
            assert stored is not None
            assert stored.position == (2, 4)
            late = scene.replica("late")
            await late.sync.look()
            await replica.sync.look()
            assert not replica.sync.statistics().conflicts

    asyncio.run(scenario())


def test_a_restore_repairs_a_route_that_the_store_cannot_show(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await scene.serving(10)
            await scene.store.write(change(2, expected=(1, 1), body=b"not json"))
            await replica.sync.look()
            assert replica.sync.statistics().conflicts == {NAME: "corrupt"}
            await replica.control.restore(NAME, intent())
            await replica.sync.look()
            assert replica.sync.statistics().conflicts == {}
            assert replica.position() == (2, 3)

    asyncio.run(scenario())
