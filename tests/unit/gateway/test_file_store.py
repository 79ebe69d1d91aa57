"""Routes in files: what a crash leaves, what damage does, who has the folder, what is compacted."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from gateway.route_control import frame
from gateway.route_control.file_store import FileRouteStore, InProcessBoard, NoHints, StoreLocked
from gateway.route_control.journal import file_name
from gateway.route_control.revision import Change, StoredRevision
from gateway.route_control.store import (
    FORGOTTEN_AFTER_S,
    CorruptRevision,
    Head,
    Stale,
    StoreDown,
)
from tests.support.route_stores import (
    NAME,
    FilePlace,
    change,
    no_file_longer_than,
    opened,
    write_row,
)

FILE: Final = file_name(NAME)
DROPPED: Final = "half-written route revision dropped"
DAMAGED: Final = "route journal is damaged"


def journal_of(*changes: Change) -> bytes:
    """Return what the file holds after these changes."""
    return b"".join(frame.encode(each.after, audit=each.audit) for each in changes)


def row(last: int) -> list[Change]:
    """Return the changes to revisions 1 to `last`."""
    return [change(n, expected=(1, n - 1) if n > 1 else None) for n in range(1, last + 1)]


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def reopened(folder: Path) -> tuple[StoredRevision | None, list[StoredRevision], list[bytes]]:
    """Open a store on a folder; return the current revision, the history and the audit."""

    async def scenario() -> tuple[StoredRevision | None, list[StoredRevision], list[bytes]]:
        async with opened(FilePlace(folder)) as store:
            return (
                await store.read(NAME),
                await store.history(NAME, 100),
                await store.audit(NAME, limit=100),
            )

    return asyncio.run(scenario())


def test_the_file_of_a_route_is_what_the_changes_say(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(FilePlace(tmp_path)) as store:
            await write_row(store, 3)

    asyncio.run(scenario())
    assert (tmp_path / FILE).read_bytes() == journal_of(*row(3))


def test_the_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "routes"
    assert reopened(folder) == (None, [], [])
    assert folder.is_dir()


def test_a_half_written_last_entry_is_dropped_wherever_it_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = row(3)
    whole, torn = journal_of(first, second), journal_of(third)
    path = tmp_path / FILE

    async def scenario() -> None:
        for length in range(1, len(torn)):
            path.write_bytes(whole + torn[:length])
            caplog.clear()
            async with opened(FilePlace(tmp_path)) as store:
                assert await store.read(NAME) == second.after
                assert messages(caplog) == [DROPPED]
                assert vars(caplog.records[0])["bytes"] == length
                assert path.read_bytes() == whole
                await store.write(third)
            assert path.read_bytes() == whole + torn

    asyncio.run(scenario())


def test_a_first_entry_that_was_half_written_leaves_no_route(tmp_path: Path) -> None:
    data = journal_of(change(1))
    for length in range(len(data)):
        (tmp_path / FILE).write_bytes(data[:length])
        assert reopened(tmp_path) == (None, [], [])


@pytest.mark.parametrize("size", [1, 100, 511, 512, 5_000])
@pytest.mark.parametrize("written", [0, 1, 100, -1])
def test_zero_bytes_that_a_lost_write_left_at_the_end_are_dropped(
    tmp_path: Path, size: int, written: int, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = row(2)
    # The file has grown, and only the beginning of what was written, or nothing, reached the disk.
    lost = journal_of(second)[:written] + b"\0" * size
    (tmp_path / FILE).write_bytes(journal_of(first) + lost)
    assert reopened(tmp_path) == (first.after, [first.after], [first.audit])
    assert DROPPED in messages(caplog)
    assert (tmp_path / FILE).read_bytes() == journal_of(first)


def test_damage_to_the_newest_entry_is_never_taken_for_an_older_revision(tmp_path: Path) -> None:
    first, second = row(2)
    before, data = journal_of(first), journal_of(second)

    async def scenario() -> None:
        for at in range(len(data)):
            harmed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            (tmp_path / FILE).write_bytes(before + harmed)
            async with opened(FilePlace(tmp_path)) as store:
                with pytest.raises(CorruptRevision):
                    await store.read(NAME)
                assert set(await store.heads()) == {NAME}
                assert (await store.history(NAME, 9))[-1] == first.after
            # Nobody cleans up the evidence.
            assert (tmp_path / FILE).read_bytes() == before + harmed

    asyncio.run(scenario())


def test_damage_to_an_older_entry_hides_only_that_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = row(3)
    before, data, after = journal_of(first), journal_of(second), journal_of(third)
    for at in range(len(data) - 1):
        harmed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        (tmp_path / FILE).write_bytes(before + harmed + after)
        caplog.clear()
        current, history, audit = reopened(tmp_path)
        assert current == third.after
        assert history == [third.after, first.after]
        assert audit == [first.audit, third.audit]
        assert messages(caplog)


def test_a_route_whose_newest_line_is_damaged_is_repaired_from_position_zero(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = journal_of(*row(2))
    at = data.rindex(b"sluice-route/1 ")
    (tmp_path / FILE).write_bytes(data[:at] + b"S" + data[at + 1 :])

    async def scenario() -> None:
        async with opened(FilePlace(tmp_path)) as store:
            assert messages(caplog) == [DAMAGED]
            assert await store.heads() == {NAME: Head(generation=0, revision=0, digest="")}
            for refused in (change(3, expected=(1, 2)), change(2, expected=None)):
                with pytest.raises(CorruptRevision, match="damaged"):
                    await store.write(refused)
            with pytest.raises(CorruptRevision, match="after"):
                await store.write(change(1, expected=(0, 0), by="bob"))
            await store.write(change(1, generation=2, expected=(0, 0)))
            assert await store.read(NAME) == change(1, generation=2).after
        async with opened(FilePlace(tmp_path)) as store:
            assert (await store.heads())[NAME].position == (2, 1)
            history = await store.history(NAME, 9)
            assert [r.position for r in history] == [(2, 1), (1, 1)]

    asyncio.run(scenario())


def test_an_entry_of_another_route_or_out_of_order_is_damage(tmp_path: Path) -> None:
    first, second = row(2)
    for foreign in (change(2, name="other"), first, change(1, generation=1, by="bob")):
        (tmp_path / FILE).write_bytes(journal_of(first, foreign))

        async def scenario() -> None:
            async with opened(FilePlace(tmp_path)) as store:
                with pytest.raises(CorruptRevision, match="damaged"):
                    await store.read(NAME)

        asyncio.run(scenario())
    assert second.after.position > first.after.position


def test_other_files_in_the_folder_are_no_routes(tmp_path: Path) -> None:
    for name in ("notes.txt", "digits.journal", "digits.00000000.journal", ".journal", "x.partial"):
        (tmp_path / name).write_bytes(b"something")

    async def scenario() -> None:
        async with opened(FilePlace(tmp_path)) as store:
            assert await store.heads() == {}

    asyncio.run(scenario())
    assert not (tmp_path / "x.partial").exists()
    assert (tmp_path / "notes.txt").read_bytes() == b"something"


def test_two_stores_cannot_have_one_folder(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(FilePlace(tmp_path)) as store:
            with pytest.raises(StoreLocked, match=f"process {os.getpid()}") as refused:
                await FileRouteStore.open(tmp_path)
            assert refused.value.folder == tmp_path
            await write_row(store, 1)  # the refused one has changed nothing for the first
        async with opened(FilePlace(tmp_path)) as store:
            assert await store.read(NAME) == change(1).after

    asyncio.run(scenario())


def test_another_process_is_refused_and_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    program = f"""
import asyncio, pathlib, sys
from gateway.route_control.file_store import FileRouteStore, StoreLocked
async def main():
    try:
        await FileRouteStore.open(pathlib.Path({str(tmp_path)!r}))
    except StoreLocked as exc:
        print("refused", exc)
    else:
        print("opened", flush=True)
        sys.stdin.read()
asyncio.run(main())
"""
    command = [sys.executable, "-c", program]

    async def hold() -> None:
        async with opened(FilePlace(tmp_path)):
            found = await asyncio.to_thread(
                subprocess.run, command, capture_output=True, text=True, timeout=15, check=True
            )
            assert found.stdout.startswith("refused")
            assert f"process {os.getpid()}" in found.stdout

    asyncio.run(hold())
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "opened\n"
        with pytest.raises(StoreLocked, match=f"process {other.pid}"):
            reopened(tmp_path)
        other.kill()
        other.wait()
    assert reopened(tmp_path) == (None, [], [])


def test_a_folder_that_cannot_be_used_is_a_store_that_is_down(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    async def scenario() -> None:
        with pytest.raises(StoreDown, match="file"):
            await FileRouteStore.open(tmp_path / "file" / "routes")

    asyncio.run(scenario())


def test_a_closed_store_is_down(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await FileRouteStore.open(tmp_path)
        await store.close()
        with pytest.raises(StoreDown, match="closed"):
            await store.heads()
        with pytest.raises(StoreDown, match="closed"):
            await store.write(change(1))

    asyncio.run(scenario())


def test_a_disk_that_fills_up_in_the_middle_of_a_write_leaves_the_route_as_it_was(
    tmp_path: Path,
) -> None:
    first = change(1, body=b"x" * (4 << 20))  # longer than whatever else this process may write
    second = change(2, expected=(1, 1))

    async def scenario() -> None:
        async with opened(FilePlace(tmp_path)) as store:
            await store.write(first)
            size = (tmp_path / FILE).stat().st_size
            with no_file_longer_than(size + 100), pytest.raises(StoreDown, match=str(tmp_path)):
                await store.write(second)
            assert (tmp_path / FILE).stat().st_size == size
            assert await store.read(NAME) == first.after
            assert await store.audit(NAME, limit=9) == [first.audit]
            await store.write(second)
            assert await store.read(NAME) == second.after

    asyncio.run(scenario())
    assert (tmp_path / FILE).read_bytes() == journal_of(first, second)


def test_what_stands_behind_the_last_change_is_written_over(tmp_path: Path) -> None:
    first, second = row(2)

    async def scenario() -> None:
        async with opened(FilePlace(tmp_path)) as store:
            await store.write(first)
            # As an attempt leaves it that failed, and then could not be cut off either.
            (tmp_path / FILE).write_bytes(journal_of(first) + b"x" * 1_000)
            assert await store.read(NAME) == first.after
            await store.write(second)

    asyncio.run(scenario())
    assert (tmp_path / FILE).read_bytes() == journal_of(first, second)


def test_another_revision_in_the_place_of_the_one_that_was_there_is_not_handed_out(
    tmp_path: Path,
) -> None:
    first, second = row(2)
    foreign = change(2, expected=(1, 1), by="bob")

    async def scenario() -> None:
        async with opened(FilePlace(tmp_path)) as store:
            await write_row(store, 2)
            swapped = journal_of(first, foreign)
            assert len(swapped) == len(journal_of(first, second))
            (tmp_path / FILE).write_bytes(swapped)
            with pytest.raises(CorruptRevision, match="another one"):
                await store.read(NAME)

    asyncio.run(scenario())


def test_a_journal_that_somebody_shortened_or_took_away_takes_no_more_changes(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with opened(FilePlace(tmp_path)) as store:
            await write_row(store, 2)
            path = tmp_path / FILE
            data = path.read_bytes()
            path.write_bytes(data[:-1])
            with pytest.raises(StoreDown, match="shortened"):
                await store.write(change(3, expected=(1, 2)))
            path.unlink()
            for attempt in (store.write(change(3, expected=(1, 2))), store.read(NAME)):
                with pytest.raises(StoreDown):
                    await attempt
            assert not path.exists()
            path.write_bytes(data)
            await store.write(change(3, expected=(1, 2)))

    asyncio.run(scenario())
    assert (tmp_path / FILE).read_bytes() == journal_of(*row(3))


def test_a_long_journal_is_written_anew_without_the_bodies_that_are_not_kept(
    tmp_path: Path,
) -> None:
    place, path = FilePlace(tmp_path), tmp_path / FILE

    async def scenario() -> None:
        async with opened(place, kept_revisions=10, kept_audit_entries=25) as store:
            for number in range(1, 106):
                expected = (1, number - 1) if number > 1 else None
                await store.write(change(number, expected=expected, body=b"x" * 10_000))
                data = path.read_bytes()
                assert data.count(b"sluice-route/1 ") <= 25 + 10
                assert data.count(b"x" * 10_000) < 20
        async with opened(place, kept_revisions=10, kept_audit_entries=25) as store:
            history = await store.history(NAME, 1_000)
            assert [r.revision for r in history] == list(range(105, 95, -1))
            audit = await store.audit(NAME, limit=1_000)
            assert audit == [change(n).audit for n in range(81, 106)]
            assert await store.revision(NAME, 95) is None
            await store.write(change(106, expected=(1, 105)))

    asyncio.run(scenario())
    assert list(tmp_path.glob("*.partial")) == []


def test_a_journal_that_cannot_be_compacted_still_takes_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    in_the_way = tmp_path / f"{FILE}.partial"

    async def scenario() -> None:
        async with opened(FilePlace(tmp_path), kept_revisions=2) as store:
            in_the_way.mkdir()
            written = await write_row(store, 6)
            assert "route journal could not be compacted" in messages(caplog)
            assert await store.read(NAME) == written[-1].after
            in_the_way.rmdir()
            await store.write(change(7, expected=(1, 6)))
            assert [r.revision for r in await store.history(NAME, 9)] == [7, 6]

    asyncio.run(scenario())
    whole = journal_of(*row(7))
    assert (tmp_path / FILE).stat().st_size < len(whole)


def test_a_writer_that_is_cancelled_harms_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(FilePlace(tmp_path)) as store:
            await write_row(store, 1)
            for number in range(2, 30):
                write = asyncio.create_task(store.write(change(number, expected=(1, number - 1))))
                await asyncio.sleep(0)
                write.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await write
                try:  # made or not: repeating it is the way to know
                    await store.write(change(number, expected=(1, number - 1)))
                except Stale:
                    pytest.fail("a repeated change was taken for somebody else's")
            assert [r.revision for r in await store.history(NAME, 99)] == list(range(29, 0, -1))
            assert len(await store.audit(NAME, limit=99)) == 29

    asyncio.run(scenario())


def test_opening_that_is_cancelled_gives_the_folder_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        opening = asyncio.create_task(FileRouteStore.open(tmp_path))
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        store = await FileRouteStore.open(tmp_path)
        await store.close()

    asyncio.run(scenario())


def test_the_board_of_one_process_forgets_who_is_silent() -> None:
    now_s = 1_000.0

    async def scenario() -> None:
        nonlocal now_s
        board = InProcessBoard(clock=lambda: now_s)
        await board.report("a", b"1")
        now_s += FORGOTTEN_AFTER_S
        await board.report("b", b"2")
        assert await board.replicas() == {"a": (FORGOTTEN_AFTER_S, b"1"), "b": (0.0, b"2")}
        now_s += 0.5
        assert await board.replicas() == {"b": (0.5, b"2")}

    asyncio.run(scenario())


def test_hints_of_one_process_come_from_whoever_says_so() -> None:
    async def scenario() -> None:
        hints = NoHints()
        assert await hints.next(0.0) is False
        hints.notify()
        hints.notify()
        assert await hints.next(10.0) is True
        assert await hints.next(0.001) is False
        waiting = asyncio.create_task(hints.next(10.0))
        await asyncio.sleep(0)
        hints.notify()
        assert await waiting is True

    asyncio.run(scenario())
