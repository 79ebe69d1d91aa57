"""Versions and models that cannot be loaded: each says why, and all others serve."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engines.base import Engine, EngineConfig, ModelSpec, TensorSpec
from engines.batch_queue import CallbackRequest
from engines.errors import InstanceFailed, VersionNotReady
from engines.repository import Repository
from engines.served import IndexEntry, VersionState
from engines.tensors import from_array
from tests.support.batching import Reply
from tests.support.repositories import Shelf, ask, open_repository


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def rows(repository: Repository) -> list[tuple[str, str, str, str]]:
    return [(e.model, e.version, e.state.value, e.reason) for e in repository.index()]


def broken_file(shelf: Shelf) -> str:
    shelf.add_onnx("bad", "1").write_bytes(b"this is no protobuf")
    return "model.onnx does not load: "


def contradicting_shape(shelf: Shelf) -> str:
    shelf.add_onnx("bad", "1", width=4)
    declared = (TensorSpec(name="x", datatype="FP32", shape=(5,)),)
    shelf.configure("bad", engine=EngineConfig(max_batch_size=8, inputs=declared))
    return "input 'x' is declared with the shape [-1, 5], the model has [-1, 4]"


def missing_file(shelf: Shelf) -> str:
    (shelf.root / "bad" / "1").mkdir(parents=True)
    return "1/model.onnx does not exist"


def folder_for_file(shelf: Shelf) -> str:
    (shelf.root / "bad" / "1" / "model.onnx").mkdir(parents=True)
    return "model.onnx does not load: "


def unknown_backend(shelf: Shelf) -> str:
    shelf.add_onnx("bad", "1")
    shelf.configure("bad", backend="pytorch")
    return "backend 'pytorch' is not one of fake, onnxruntime"


def missing_device(shelf: Shelf) -> str:
    shelf.add_fake("bad", "1")
    shelf.configure("bad", engine=EngineConfig(device="cuda:0"))
    return "device 'cuda:0' was asked for, the fake has only a cpu"


def failing_warm_up(shelf: Shelf) -> str:
    shelf.add_fake("bad", "1", fail_on=0, max_batch_size=1)
    return "warm-up with 1 rows failed: scripted failure"


@pytest.mark.parametrize(
    "damage",
    [
        broken_file,
        contradicting_shape,
        missing_file,
        folder_for_file,
        unknown_backend,
        missing_device,
        failing_warm_up,
    ],
)
def test_a_version_that_cannot_serve_says_why_and_all_others_serve(
    shelf: Shelf,
    damage: Callable[[Shelf], str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    reason = damage(shelf)
    shelf.add_onnx("good", "1")

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            bad, good = repository.index()
            assert (bad.model, bad.version, bad.state) == ("bad", "1", VersionState.UNAVAILABLE)
            assert bad.reason.startswith(reason)
            assert good == IndexEntry(
                model="good", version="1", state=VersionState.READY, reason=""
            )
            assert await ask(repository.get("good", "1"), 5.0).values() == [5.0]
            assert not repository.get("bad", "1").is_ready
            with pytest.raises(VersionNotReady) as refused:
                ask(repository.get("bad", "1"), 5.0)
            assert bad.reason in str(refused.value)
            with pytest.raises(VersionNotReady, match="none of its versions is ready") as none_is:
                repository.highest_ready("bad")
            assert str(none_is.value).endswith(f"; version 1: {bad.reason}")

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    (record,) = caplog.records
    assert record.getMessage() == "version unavailable"
    assert vars(record)["reason"].startswith(reason)


def test_an_exception_that_no_loader_should_raise_is_a_reason_too(shelf: Shelf) -> None:
    shelf.add_fake("bad", "1")

    def surprise(path: Path, config: EngineConfig) -> Engine:
        raise LookupError("a fault in a loader")

    async def scenario() -> None:
        repository = Repository(
            root=shelf.root, read_spec=shelf.read_spec, loaders={"fake": surprise}
        )
        await repository.start({})
        assert rows(repository) == [
            (
                "bad",
                "1",
                "UNAVAILABLE",
                "1/model.json does not load: LookupError('a fault in a loader')",
            )
        ]
        await repository.close()

    asyncio.run(scenario())


def test_a_version_for_which_the_machine_has_no_thread_left_is_unavailable_and_not_loading_for_ever(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.add_fake("echo", "1")
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("sluice-echo"):
            raise RuntimeError("can't start new thread")
        start(thread)

    async def scenario() -> None:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        async with open_repository(shelf) as repository:
            reason = '1: RuntimeError("can\'t start new thread")'
            assert rows(repository) == [("echo", "1", "UNAVAILABLE", reason)]
            monkeypatch.undo()
            await repository.load("echo")
            assert rows(repository) == [("echo", "1", "READY", "")]

    asyncio.run(scenario())


def test_a_folder_that_cannot_be_read_leaves_what_serves_serving(shelf: Shelf) -> None:
    shelf.add_fake("echo", "1")
    is_lost = False

    def read_spec(directory: Path) -> ModelSpec:
        if is_lost:
            raise PermissionError(13, "Permission denied")
        return shelf.read_spec(directory)

    async def scenario() -> None:
        nonlocal is_lost
        repository = Repository(
            root=shelf.root, read_spec=read_spec, loaders={"fake": shelf.load_fake}
        )
        await repository.start({})
        is_lost = True
        await repository.load("echo")
        reason = "the last reload failed: echo cannot be read: Permission denied"
        assert rows(repository) == [("echo", "1", "READY", reason)]
        await repository.close()

    asyncio.run(scenario())


def test_a_broken_version_leaves_its_siblings_serving(shelf: Shelf) -> None:
    shelf.add_onnx("digits", "1")
    shelf.add_onnx("digits", "2").write_bytes(b"")

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            assert repository.highest_ready("digits").version == "1"
            assert [e.state.value for e in repository.index()] == ["READY", "UNAVAILABLE"]

    asyncio.run(scenario())


def test_a_model_whose_configuration_is_broken_says_why_and_all_others_serve(
    shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.add_onnx("bad", "1")
    shelf.add_onnx("good", "1")
    shelf.broken["bad"] = "config.pbtxt line 3: no such field"

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            assert rows(repository) == [
                ("bad", "", "UNAVAILABLE", "config.pbtxt line 3: no such field"),
                ("good", "1", "READY", ""),
            ]
            with pytest.raises(VersionNotReady, match="no such field"):
                repository.highest_ready("bad")

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert [record.getMessage() for record in caplog.records] == ["model unavailable"]


def test_when_one_instance_fails_to_load_those_before_it_are_closed(shelf: Shelf) -> None:
    shelf.add_fake("echo", "1")
    shelf.configure("echo", instances=2)

    def load_one(path: Path, config: EngineConfig) -> Engine:
        if shelf.fakes:
            raise MemoryError
        return shelf.load_fake(path, config)

    async def scenario() -> None:
        repository = Repository(
            root=shelf.root, read_spec=shelf.read_spec, loaders={"fake": load_one}
        )
        await repository.start({})
        assert not repository.get("echo", "1").is_ready
        assert [engine.is_closed for engine in shelf.fakes] == [True]
        await repository.close()

    asyncio.run(scenario())


def test_in_a_real_runtime_too_one_bad_index_fails_only_its_request(shelf: Shelf) -> None:
    shelf.add_lookup("table", "1", 0.5, 1.5, 2.5)

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            replies = []
            for index in (1, 99, 2):
                reply = Reply()
                tensor = from_array("x", "INT64", np.array([[index]], np.int64))
                repository.get("table", "1").batcher.submit(
                    CallbackRequest(
                        inputs=(tensor,), rows=1, shape_key=(), enqueued_ns=0, on_done=reply
                    )
                )
                replies.append(reply)
            assert [await replies[0].values(), await replies[2].values()] == [[1.5], [2.5]]
            assert isinstance(await replies[1].error(), InstanceFailed)
            assert [(r.rows, r.isolated) for _, r in shelf.reports] == [(3, True)]

    asyncio.run(scenario())
