"""What every route store does: in Redis, on each server that this machine has, and in files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from gateway.demo.redis_server import RedisServer
from gateway.route_control.file_store import InProcessBoard
from gateway.route_control.redis_store import RedisRouteStore
from gateway.route_control.revision import Change, StoredRevision, digest_of
from gateway.route_control.store import (
    CorruptRevision,
    Head,
    ReplicaBoard,
    RouteStore,
    Stale,
)
from tests.support.redis import redis_binaries, running_redis
from tests.support.route_stores import (
    NAME,
    FilePlace,
    Place,
    RedisPlace,
    change,
    following,
    opened,
    write_row,
)

pytestmark = pytest.mark.redis

FILE: Final = "files"
BINARIES: Final = {binary.source: binary for binary in redis_binaries()}


@pytest.fixture(scope="module")
def servers() -> Iterator[Callable[[str], RedisServer]]:
    """Start each server once, when it is first asked for."""
    running: dict[str, RedisServer] = {}
    with ExitStack() as stack:

        def server(source: str) -> RedisServer:
            if source not in running:
                running[source] = stack.enter_context(running_redis(BINARIES[source]))
            return running[source]

        yield server


@pytest.fixture(params=[*BINARIES, FILE])
def place(
    request: pytest.FixtureRequest, servers: Callable[[str], RedisServer], tmp_path: Path
) -> Place:
    kind: str = request.param
    if kind == FILE:
        return FilePlace(tmp_path / "routes")
    server = servers(kind)
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
    return RedisPlace(server)


def head_of(revision: StoredRevision) -> Head:
    return Head(generation=revision.generation, revision=revision.revision, digest=revision.digest)


async def stale(store: RouteStore, attempt: Change) -> StoredRevision | None:
    """Return what a refused change is told."""
    with pytest.raises(Stale) as refused:
        await store.write(attempt)
    return refused.value.current


async def facts(store: RouteStore) -> tuple[object, ...]:
    """Return everything that a store says about the route."""
    return (
        await store.heads(),
        await store.read(NAME),
        await store.history(NAME, 100),
        await store.audit(NAME, limit=100),
    )


def test_a_created_route_is_read_back_as_it_was_written(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as store:
            first = change(1)
            await store.write(first)
            assert await store.read(NAME) == first.after
            assert await store.heads() == {NAME: head_of(first.after)}
            assert await store.history(NAME, 10) == [first.after]
            assert await store.audit(NAME, limit=10) == [first.audit]

    asyncio.run(scenario())


def test_a_replaced_route_shows_the_new_revision_and_keeps_the_old_one(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as store:
            first, second = await write_row(store, 2)
            assert await store.read(NAME) == second.after
            assert await store.heads() == {NAME: head_of(second.after)}
            assert await store.history(NAME, 10) == [second.after, first.after]
            assert await store.audit(NAME, limit=10) == [first.audit, second.audit]

    asyncio.run(scenario())


@pytest.mark.parametrize("expected", [None, (1, 1), (2, 2), (1, 3), (0, 0)])
def test_a_change_that_expects_another_position_changes_nothing_and_is_told_the_right_one(
    place: Place, expected: tuple[int, int] | None
) -> None:
    async def scenario() -> None:
        async with opened(place) as store:
            _, second = await write_row(store, 2)
            before = await facts(store)
            refused = change(9, generation=3, expected=expected, by="bob")
            assert await stale(store, refused) == second.after
            assert await facts(store) == before

    asyncio.run(scenario())


def test_a_change_to_a_route_that_does_not_exist_is_stale_and_makes_no_route(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as store:
            for expected in ((1, 1), (0, 0)):
                assert await stale(store, change(2, expected=expected)) is None
            assert await facts(store) == ({}, None, [], [])

    asyncio.run(scenario())


def test_of_fifty_concurrent_changes_with_one_expected_position_exactly_one_wins(
    place: Place,
) -> None:
    async def scenario() -> None:
        async with opened(place) as store:
            first, *_ = await write_row(store, 1)
            rivals = [following(first.after, by=f"person {n}") for n in range(50)]
            outcomes = await asyncio.gather(
                *(store.write(rival) for rival in rivals), return_exceptions=True
            )
            won = [r for r, outcome in zip(rivals, outcomes, strict=True) if outcome is None]
            assert len(won) == 1
            assert await store.read(NAME) == won[0].after
            refusals = [outcome for outcome in outcomes if outcome is not None]
            assert len(refusals) == 49
            for refusal in refusals:
                assert isinstance(refusal, Stale)
                assert refusal.current == won[0].after
            assert await store.history(NAME, 100) == [won[0].after, first.after]
            assert await store.audit(NAME, limit=100) == [first.audit, won[0].audit]

    asyncio.run(scenario())


def test_writers_that_get_in_each_others_way_leave_history_and_audit_without_a_gap(
    place: Place,
) -> None:
    writers, changes_each = 5, 8

    async def write_some(store: RouteStore, who: str) -> None:
        done = 0
        while done < changes_each:
            current = await store.read(NAME)
            assert current is not None
            try:
                await store.write(following(current, by=f"{who} for the {done}th time"))
            except Stale:
                continue
            done += 1

    async def scenario() -> None:
        async with opened(place) as store:
            await write_row(store, 1)
            await asyncio.gather(*(write_some(store, f"writer {n}") for n in range(writers)))
            last = 1 + writers * changes_each
            history = await store.history(NAME, 1_000)
            assert [r.revision for r in history] == list(range(last, 0, -1))
            # The entry of each revision is the one that was written with it.
            audit = await store.audit(NAME, limit=1_000)
            assert [digest_of(e) for e in audit] == [r.audit_digest for r in reversed(history)]
            assert len(set(audit)) == last

    asyncio.run(scenario())


def test_routes_do_not_disturb_each_other(place: Place) -> None:
    names = ["a", "A", "a.b", "a-b", "_", "0", "x" * 128, "X" * 128, "routes.journal", "lock"]

    async def scenario() -> None:
        async with opened(place) as store:
            written = [change(n + 1, name=name) for n, name in enumerate(names)]
            await asyncio.gather(*(store.write(each) for each in written))
            for each in written:
                assert await store.read(each.after.name) == each.after
                assert await store.history(each.after.name, 5) == [each.after]
        async with opened(place) as store:
            assert await store.heads() == {w.after.name: head_of(w.after) for w in written}

    asyncio.run(scenario())


def test_what_was_written_is_there_when_the_store_is_opened_again(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as store:
            *_, last = await write_row(store, 3)
            before = await facts(store)
        async with opened(place) as store:
            assert await facts(store) == before
            await store.write(following(last.after))
            assert [r.revision for r in await store.history(NAME, 9)] == [4, 3, 2, 1]

    asyncio.run(scenario())


def test_heads_show_the_changes_and_the_new_routes_of_others(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as store:
            assert await store.heads() == {}
            first, second = await write_row(store, 2)
            assert await store.heads() == {NAME: head_of(second.after)}
            other = change(1, name="other")
            await store.write(other)
            third = following(second.after)
            await store.write(third)
            expected = {NAME: head_of(third.after), "other": head_of(other.after)}
            assert await store.heads() == expected
            assert first.after.position < (await store.heads())[NAME].position

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ["never", "", "../lock", "a/b", "{a}", "ä", "x" * 300])
def test_a_route_that_nobody_wrote_is_unknown_everywhere(place: Place, name: str) -> None:
    async def scenario() -> None:
        async with opened(place) as store:
            await write_row(store, 1)
            assert await store.read(name) is None
            assert await store.history(name, 5) == []
            assert await store.audit(name, limit=5) == []
            assert await store.revision(name, 1) is None

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n",
        b"\0" * 700,
        bytes(range(256)),
        "größer".encode(),
        b"\nsluice-route/1 digits 1 9 ",
        b"x" * 300_000,
    ],
    ids=["empty", "newline", "zeros", "every byte", "text", "like a frame", "large"],
)
def test_any_bytes_can_be_a_body_and_the_route_goes_on_after_it(place: Place, body: bytes) -> None:
    async def scenario() -> None:
        async with opened(place) as store:
            odd = change(1, body=body)
            await store.write(odd)
            await store.write(change(2, expected=(1, 1)))
        async with opened(place) as store:
            assert await store.revision(NAME, 1) == odd.after
            assert (await store.heads())[NAME].position == (1, 2)

    asyncio.run(scenario())


def test_the_same_change_written_again_succeeds_and_stands_there_once(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as store:
            first, second = await write_row(store, 2)
            before = await facts(store)
            await store.write(second)
            assert await facts(store) == before
            # Also when others have followed: it was made, whoever repeats it must learn that.
            await store.write(following(second.after))
            after = await facts(store)
            await store.write(second)
            await store.write(first)
            assert await facts(store) == after

    asyncio.run(scenario())


def test_the_same_document_from_somebody_else_is_not_taken_for_a_repeat(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as store:
            await write_row(store, 1)
            mine = change(2, expected=(1, 1), body=b"same", by="ann")
            theirs = change(2, expected=(1, 1), body=b"same", by="bob")
            await store.write(mine)
            assert await stale(store, theirs) == mine.after
            assert len(await store.audit(NAME, limit=10)) == 2

    asyncio.run(scenario())


def test_a_revision_is_found_by_its_number_and_the_newest_generation_counts(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as store:
            await write_row(store, 3)
            restored = change(2, generation=2, expected=(1, 3))
            await store.write(restored)
            tenth = change(2, generation=10, expected=(2, 2))
            await store.write(tenth)
            assert await store.revision(NAME, 2) == tenth.after
            assert await store.revision(NAME, 3) == change(3, expected=(1, 2)).after
            assert await store.revision(NAME, 4) is None
            history = await store.history(NAME, 10)
            assert [r.position for r in history] == [(10, 2), (2, 2), (1, 3), (1, 2), (1, 1)]

    asyncio.run(scenario())


def test_history_and_audit_give_the_newest_that_were_asked_for(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as store:
            written = await write_row(store, 12)
            assert [r.revision for r in await store.history(NAME, 3)] == [12, 11, 10]
            assert await store.audit(NAME, limit=3) == [w.audit for w in written[-3:]]
            assert await store.history(NAME, 0) == []
            assert await store.audit(NAME, limit=0) == []

    asyncio.run(scenario())


def test_only_the_newest_revisions_are_kept_and_all_of_the_audit(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place, kept_revisions=5) as store:
            written = await write_row(store, 12)
            # A new generation is newer than every earlier revision, however small its number.
            written.append(change(1, generation=2, expected=(1, 12)))
            await store.write(written[-1])
            for limit in (5, 100):
                history = await store.history(NAME, limit)
                assert [r.position for r in history] == [(2, 1), (1, 12), (1, 11), (1, 10), (1, 9)]
            assert await store.revision(NAME, 8) is None
            assert await store.revision(NAME, 9) == written[8].after
            assert await store.audit(NAME, limit=100) == [w.audit for w in written]
        async with opened(place, kept_revisions=5) as store:
            assert await store.read(NAME) == written[-1].after
            assert len(await store.audit(NAME, limit=100)) == 13

    asyncio.run(scenario())


def test_a_body_that_contradicts_its_digest_is_never_handed_out(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as store:
            _, second = await write_row(store, 2)
            await write_row(store, 1, name="other")
            place.damage(NAME)
            with pytest.raises(CorruptRevision, match=NAME):
                await store.read(NAME)
            # The other routes are not held up, and the corrupt one shows where it stands.
            assert await store.heads() == {
                NAME: head_of(second.after),
                "other": head_of(change(1, name="other").after),
            }
            assert await store.read("other") == change(1, name="other").after

    asyncio.run(scenario())


def test_a_corrupt_route_is_repaired_by_a_change_that_expects_its_head(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as store:
            await write_row(store, 2)
            place.damage(NAME)
            with pytest.raises(CorruptRevision):
                await store.write(change(2, expected=(1, 1), by="bob"))
            head = (await store.heads())[NAME]
            repair = change(3, expected=head.position)
            await store.write(repair)
            assert await store.read(NAME) == repair.after
            assert (await store.history(NAME, 1)) == [repair.after]
        async with opened(place) as store:
            assert await store.read(NAME) == repair.after

    asyncio.run(scenario())


def test_a_closed_store_can_be_closed_again(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as store:
            await write_row(store, 1)
            closing: Any = store  # Any: close is not part of what route control asks for
            await closing.close()
            await closing.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", [*BINARIES, FILE])
def test_a_board_shows_who_reported_what_until_it_withdraws(
    kind: str, servers: Callable[[str], RedisServer]
) -> None:
    async def scenario() -> None:
        redis_store = None if kind == FILE else RedisRouteStore(servers(kind).url)
        board: ReplicaBoard = redis_store or InProcessBoard()
        try:
            assert await board.replicas() == {}
            report = b'two\nlines \0 and "' + bytes(range(256))
            await board.report("replica one", b"old")
            await board.report("replica one", report)
            await board.report("two", b"")
            found = await board.replicas()
            assert {who: what for who, (_, what) in found.items()} == {
                "replica one": report,
                "two": b"",
            }
            assert all(0 <= age_s < 5 for age_s, _ in found.values())
            await board.withdraw("replica one")
            await board.withdraw("never there")
            assert set(await board.replicas()) == {"two"}
            await board.withdraw("two")
        finally:
            if redis_store is not None:
                await redis_store.close()

    asyncio.run(scenario())
