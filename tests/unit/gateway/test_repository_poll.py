"""Watching the repository's folder: what counts as a change, when it is acted on, and trouble."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from shutil import rmtree

import pytest

from engines.errors import UnknownModel
from gateway.repository_poll import Fingerprint, RepositoryPoll, Watch, fingerprint
from tests.support.batching import HANG_S
from tests.support.repositories import Shelf, ask, open_repository


def write(path: Path, text: str = "", *, mtime_ns: int = 1_000) -> Path:
    """Write a file with a time of its own, so that no clock decides what is newer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


def test_a_fingerprint_holds_the_configuration_and_every_file_of_every_version(
    tmp_path: Path,
) -> None:
    echo = tmp_path / "echo"
    write(echo / "config.pbtxt", "abc", mtime_ns=1)
    write(echo / "2" / "model.onnx", "ab", mtime_ns=2)
    write(echo / "10" / "weights" / "part-0", "a", mtime_ns=3)
    for ignored in ("labels.txt", "draft/model.onnx", "01/model.onnx", "2/.nfs01", "2/.d/x"):
        write(echo / ignored)
    write(tmp_path / ".git" / "1" / "model.onnx")
    (tmp_path / "empty").mkdir()
    assert fingerprint(tmp_path) == {
        "echo": (("10/weights/part-0", 1, 3), ("2/model.onnx", 2, 2), ("config.pbtxt", 3, 1)),
        "empty": (),
    }


def test_links_are_followed_to_what_they_point_at(tmp_path: Path) -> None:
    target = write(tmp_path / "elsewhere" / "7" / "model.onnx", "abc", mtime_ns=5)
    (tmp_path / "root" / "echo").mkdir(parents=True)
    (tmp_path / "root" / "echo" / "1").symlink_to(target.parent)
    (tmp_path / "root" / "echo" / "config.pbtxt").symlink_to("nowhere")
    assert fingerprint(tmp_path / "root") == {"echo": (("1/model.onnx", 3, 5),)}


def test_a_root_that_cannot_be_read_is_an_error_and_no_empty_repository(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fingerprint(tmp_path / "missing")


def files(*sizes: int) -> Fingerprint:
    return tuple((f"{n}/model.onnx", size, 0) for n, size in enumerate(sizes, start=1))


def test_a_change_is_acted_on_once_when_it_was_seen_twice() -> None:
    watch = Watch({"a": files(1), "b": files(1)})
    assert watch.changes({"a": files(1), "b": files(1)}) == []
    assert watch.changes({"a": files(2), "b": files(1)}) == []
    assert watch.changes({"a": files(2), "b": files(1)}) == [("a", True)]
    assert watch.changes({"a": files(2), "b": files(1)}) == []


def test_a_file_that_still_grows_is_left_alone() -> None:
    watch = Watch({"a": files(1)})
    assert [watch.changes({"a": files(size)}) for size in (2, 3, 4, 5)] == [[], [], [], []]
    assert watch.changes({"a": files(5)}) == [("a", True)]


def test_a_change_that_is_taken_back_is_none() -> None:
    watch = Watch({"a": files(1)})
    assert [watch.changes({"a": files(size)}) for size in (2, 1, 1, 2, 1)] == [[]] * 5


def test_new_models_and_models_that_vanished_are_seen_twice_too() -> None:
    watch = Watch({"old": files(1), "stays": files(1)})
    stays = {"stays": files(1)}
    assert watch.changes(stays | {"new": files(1)}) == []
    assert watch.changes(stays | {"new": files(1)}) == [("new", True), ("old", False)]
    assert watch.changes(stays | {"new": files(1)}) == []
    assert watch.changes(stays | {"old": files(1), "new": files(1)}) == []
    assert watch.changes(stays | {"old": files(1), "new": files(1)}) == [("old", True)]


def test_a_model_that_is_away_for_one_look_is_not_unloaded() -> None:
    watch = Watch({"a": files(1), "b": files(1)})
    both = {"a": files(1), "b": files(1)}
    assert [watch.changes(found) for found in ({"b": files(1)}, both, both)] == [[], [], []]


class Ticks:
    """Stands in for asyncio.sleep: each look waits to be allowed."""

    def __init__(self) -> None:
        self.pauses: list[float] = []
        self._is_waiting = asyncio.Event()
        self._may_go = asyncio.Event()

    async def sleep(self, pause_s: float) -> None:
        self.pauses.append(pause_s)
        self._is_waiting.set()
        await self._may_go.wait()
        self._may_go.clear()

    async def pass_(self, looks: int = 1) -> None:
        """Let so many looks happen and return when the last is over."""
        for _ in range(looks):
            await asyncio.wait_for(self._is_waiting.wait(), HANG_S)
            self._is_waiting.clear()
            self._may_go.set()
        await asyncio.wait_for(self._is_waiting.wait(), HANG_S)
        await asyncio.sleep(0)


class Calls:
    """Records what is loaded and unloaded; raises or waits where it is told to."""

    def __init__(self) -> None:
        self.made: list[tuple[str, str]] = []
        self.trouble: dict[str, Exception] = {}
        self.stuck: set[str] = set()

    async def load(self, model: str) -> None:
        self.made.append(("load", model))
        if model in self.stuck:
            await asyncio.Event().wait()
        if model in self.trouble:
            raise self.trouble[model]

    async def unload(self, model: str) -> None:
        self.made.append(("unload", model))
        if model in self.trouble:
            raise self.trouble[model]


@asynccontextmanager
async def polling(
    root: Path, load: Callable[[str], Awaitable[None]], unload: Callable[[str], Awaitable[None]]
) -> AsyncIterator[Ticks]:
    """Run a poll whose looks are the test's; cancel it at the end."""
    ticks = Ticks()
    poll = RepositoryPoll(
        root, poll_s=7.5, loaded=fingerprint(root), load=load, unload=unload, sleep=ticks.sleep
    )
    running = asyncio.create_task(poll.run())
    try:
        yield ticks
        assert not running.done()
        assert set(ticks.pauses) <= {7.5}
    finally:
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


def test_changed_new_and_vanished_models_are_loaded_and_unloaded(tmp_path: Path) -> None:
    calls = Calls()
    for name in ("changed", "gone", "same"):
        write(tmp_path / name / "1" / "model.onnx")

    async def scenario() -> None:
        async with polling(tmp_path, calls.load, calls.unload) as ticks:
            await ticks.pass_(2)
            assert calls.made == []
            write(tmp_path / "changed" / "2" / "model.onnx")
            write(tmp_path / "new" / "1" / "model.onnx")
            rmtree(tmp_path / "gone")
            await ticks.pass_()
            assert calls.made == []
            await ticks.pass_(3)
            assert calls.made == [("load", "changed"), ("unload", "gone"), ("load", "new")]

    asyncio.run(scenario())


def test_what_fails_is_logged_and_not_tried_again_before_it_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls = Calls()
    calls.trouble = {"a": UnknownModel(model="a"), "b": ZeroDivisionError()}
    for name in ("a", "b"):
        write(tmp_path / name / "1" / "model.onnx")

    async def scenario() -> None:
        async with polling(tmp_path, calls.load, calls.unload) as ticks:
            for size in ("1", "22"):
                for name in ("a", "b"):
                    write(tmp_path / name / "1" / "model.onnx", size)
                await ticks.pass_(4)

    asyncio.run(scenario())
    assert calls.made == [("load", "a"), ("load", "b")] * 2
    reasons = [vars(record)["reason"] for record in caplog.records]
    assert reasons == ["model 'a' is not known", "ZeroDivisionError()"] * 2
    assert {record.getMessage() for record in caplog.records} == {"a changed model was not loaded"}


def test_a_load_that_hangs_keeps_nothing_else_from_being_noticed(tmp_path: Path) -> None:
    calls = Calls()
    calls.stuck = {"a"}
    for name in ("a", "b"):
        write(tmp_path / name / "1" / "model.onnx")

    async def scenario() -> None:
        async with polling(tmp_path, calls.load, calls.unload) as ticks:
            write(tmp_path / "a" / "1" / "model.onnx", "1")
            await ticks.pass_(2)
            write(tmp_path / "b" / "1" / "model.onnx", "1")
            await ticks.pass_(2)
            assert calls.made == [("load", "a"), ("load", "b")]

    asyncio.run(scenario())


def test_a_lost_folder_unloads_nothing_and_is_reported_once_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls = Calls()
    root, away = tmp_path / "root", tmp_path / "away"
    for name in ("a", "b"):
        write(root / name / "1" / "model.onnx")

    async def scenario() -> None:
        async with polling(root, calls.load, calls.unload) as ticks:
            root.rename(away)
            await ticks.pass_(3)
            root.mkdir()
            await ticks.pass_(3)
            root.rmdir()
            away.rename(root)
            await ticks.pass_(3)
            assert calls.made == []
            rmtree(root / "a")
            await ticks.pass_(3)
            assert calls.made == [("unload", "a")]
            rmtree(root / "b")
            await ticks.pass_(3)
            assert calls.made == [("unload", "a")]

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert [record.getMessage() for record in caplog.records] == [
        "the model repository cannot be polled"
    ] * 3
    reasons = [vars(record)["reason"] for record in caplog.records]
    assert "No such file or directory" in reasons[0]
    assert reasons[1:] == ["no model is left in it"] * 2


def test_a_repository_that_starts_empty_is_in_no_trouble(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls = Calls()

    async def scenario() -> None:
        async with polling(tmp_path, calls.load, calls.unload) as ticks:
            await ticks.pass_(2)
            write(tmp_path / "a" / "1" / "model.onnx")
            await ticks.pass_(2)
            assert calls.made == [("load", "a")]

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert caplog.records == []


def test_a_file_put_into_the_folder_of_a_real_repository_is_served(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    shelf.add_onnx("digits", "1")
    shelf.add_onnx("other", "1")

    async def scenario() -> None:
        async with (
            open_repository(shelf) as repository,
            polling(tmp_path, repository.load, repository.unload) as ticks,
        ):
            other = repository.get("other", "1")
            shelf.add_onnx("digits", "2")
            await ticks.pass_(2)
            async with asyncio.timeout(HANG_S):
                while len(repository.ready_versions("digits")) < 2:  # noqa: ASYNC110 - no event
                    await asyncio.sleep(0.001)
            assert await ask(repository.get("digits", "2"), 3.0).values() == [3.0]
            assert repository.get("other", "1") is other

    asyncio.run(scenario())
