"""What the repository makes of the folders it finds: selection, states, reasons, the index."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engines.base import (
    BatchPolicy,
    EngineConfig,
    ModelMetadata,
    ModelSpec,
    VersionPolicy,
)
from engines.errors import UnknownModel, VersionNotReady
from engines.loading import batch_policy
from engines.repository import Repository
from engines.served import ServedVersion, VersionState
from tests.support.repositories import Shelf, ask, open_repository


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def rows(repository: Repository) -> list[tuple[str, str, str, str]]:
    return [(e.model, e.version, e.state.value, e.reason) for e in repository.index()]


def test_every_model_and_version_found_is_loaded_and_indexed_in_numeric_order(
    shelf: Shelf,
) -> None:
    for version in ("9", "10", "1"):
        shelf.add_onnx("digits", version)
    shelf.add_fake("echo", "3")

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            assert rows(repository) == [
                ("digits", "1", "READY", ""),
                ("digits", "9", "READY", ""),
                ("digits", "10", "READY", ""),
                ("echo", "3", "READY", ""),
            ]
            assert repository.highest_ready("digits").version == "10"
            assert [s.version for s in repository.ready_versions("digits")] == ["1", "9", "10"]
            assert [(s.model, s.version) for s in repository.versions()] == [
                ("digits", "1"),
                ("digits", "9"),
                ("digits", "10"),
                ("echo", "3"),
            ]
            assert repository.has_model("echo")
            assert not repository.has_model("ECHO")
            served = repository.get("digits", "9")
            assert await ask(served, 1.0, 2.0).values() == [1.0, 2.0]
            assert served.metadata.platform == "onnxruntime_onnx"
            assert repr(served) == "<ServedVersion digits/9 READY>"

    asyncio.run(scenario())


def test_only_folders_named_by_positive_integers_are_versions(shelf: Shelf) -> None:
    shelf.add_onnx("digits", "2")
    for name in ("0", "01", "v1", "-1", "1.0", ".3"):
        shelf.add_onnx("digits", name)
    (shelf.root / "digits" / "5").write_text("a file")
    (shelf.root / "README.md").write_text("a file")
    shelf.add_onnx(".git", "1")

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            assert rows(repository) == [("digits", "2", "READY", "")]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("policy", "pinned", "expected"),
    [
        (VersionPolicy(), [], ["1", "2", "10"]),
        (VersionPolicy(latest=1), [], ["10"]),
        (VersionPolicy(latest=2), [], ["2", "10"]),
        (VersionPolicy(specific=("1", "7")), [], ["1"]),
        (VersionPolicy(latest=1), ["1"], ["1", "10"]),
        (VersionPolicy(latest=1), ["7"], ["10"]),
        (VersionPolicy(specific=("2",)), ["10"], ["2", "10"]),
    ],
)
def test_the_version_policy_selects_and_pinned_versions_are_served_besides(
    shelf: Shelf, policy: VersionPolicy, pinned: list[str], expected: list[str]
) -> None:
    for version in ("1", "2", "10"):
        shelf.add_fake("echo", version)
    shelf.configure("echo", versions=policy)

    async def scenario() -> None:
        async with open_repository(shelf, echo=pinned) as repository:
            assert [s.version for s in repository.versions()] == expected

    asyncio.run(scenario())


def test_a_model_without_a_selected_version_says_so(shelf: Shelf) -> None:
    (shelf.root / "empty").mkdir()

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            reason = "no version folder is selected"
            assert rows(repository) == [("empty", "", "UNAVAILABLE", reason)]
            with pytest.raises(VersionNotReady, match=reason):
                repository.highest_ready("empty")
            with pytest.raises(UnknownModel, match=reason):
                repository.get("empty", "1")

    asyncio.run(scenario())


def test_unknown_models_and_versions_are_refused_by_name(shelf: Shelf) -> None:
    shelf.add_fake("echo", "1")

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            with pytest.raises(UnknownModel, match="model 'digits' is not known"):
                repository.get("digits", "1")
            with pytest.raises(UnknownModel, match="version '2' of model 'echo' is not known"):
                repository.get("echo", "2")
            with pytest.raises(UnknownModel, match="model 'digits' is not known"):
                repository.highest_ready("digits")

    asyncio.run(scenario())


def test_a_version_is_warmed_up_over_its_sizes_on_every_instance_before_it_is_ready(
    shelf: Shelf,
) -> None:
    shelf.add_fake("echo", "1", max_batch_size=4)
    shelf.configure("echo", instances=2)

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            assert [engine.batches_run for engine in shelf.fakes] == [3, 3]
            assert repository.get("echo", "1").batcher.statistics().instances == 2

    asyncio.run(scenario())


def test_a_version_that_is_loading_is_not_ready_and_says_so(shelf: Shelf) -> None:
    shelf.add_fake("echo", "1")
    shelf.may_load.clear()

    async def scenario() -> None:
        repository = Repository(
            root=shelf.root, read_spec=shelf.read_spec, loaders={"fake": shelf.load_fake}
        )
        start = asyncio.create_task(repository.start({}))
        await asyncio.to_thread(shelf.is_loading.wait)
        assert rows(repository) == [("echo", "1", "LOADING", "")]
        with pytest.raises(VersionNotReady, match="version 1 is not ready: loading"):
            _ = repository.get("echo", "1").metadata
        shelf.may_load.set()
        await start
        assert repository.get("echo", "1").is_ready
        await repository.close()

    asyncio.run(scenario())


def test_finished_batches_are_reported_with_the_version_that_ran_them(shelf: Shelf) -> None:
    shelf.add_fake("echo", "1")
    shelf.add_fake("echo", "2")

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            served = repository.get("echo", "2")
            await ask(served, 1.0, 2.0).executed()
            assert [(s, r.rows) for s, r in shelf.reports] == [(served, 2)]

    asyncio.run(scenario())


def test_the_states_move_only_along_their_table() -> None:
    spec = ModelSpec(
        name="m",
        directory=Path(),
        backend="fake",
        filename="f",
        instances=1,
        engine=EngineConfig(),
        batching=None,
        versions=VersionPolicy(),
    )
    allowed = {
        ("LOADING", "READY"),
        ("LOADING", "UNAVAILABLE"),
        ("LOADING", "UNLOADING"),
        ("READY", "LOADING"),
        ("READY", "UNLOADING"),
        ("UNLOADING", "UNAVAILABLE"),
    }
    for origin in VersionState:
        for target in VersionState:
            served = ServedVersion(model="m", version="1", spec=spec)
            served.state = origin
            if (origin.value, target.value) in allowed:
                served.move(target)
                assert served.state is target
            else:
                with pytest.raises(ValueError, match=f"cannot become {target.value}"):
                    served.move(target)


def policy_for(max_batch_size: int, batching: BatchPolicy | None) -> BatchPolicy:
    spec = ModelSpec(
        name="m",
        directory=Path(),
        backend="fake",
        filename="f",
        instances=1,
        engine=EngineConfig(),
        batching=batching,
        versions=VersionPolicy(),
        max_queue_rows=7,
    )
    metadata = ModelMetadata(
        inputs=(), outputs=(), max_batch_size=max_batch_size, platform="", engine="", device="cpu"
    )
    return batch_policy(spec, metadata)


def test_a_model_with_a_batch_axis_is_batched_without_being_asked() -> None:
    assert policy_for(16, None) == BatchPolicy(max_batch_size=16, max_queue_rows=7)


def test_a_model_without_a_batch_axis_runs_one_request_at_a_time() -> None:
    single = BatchPolicy(max_batch_size=1, dynamic=False, max_queue_rows=7)
    assert policy_for(0, None) == single
    configured = policy_for(0, BatchPolicy(max_batch_size=8, max_queue_rows=9))
    assert configured == BatchPolicy(max_batch_size=1, dynamic=False, max_queue_rows=9)


def test_batches_are_as_large_as_the_engine_takes_them_whatever_the_policy_says() -> None:
    configured = BatchPolicy(max_batch_size=4, max_queue_delay_us=5, preferred_batch_sizes=(2,))
    found = policy_for(16, configured)
    assert found.max_batch_size == 16
    assert (found.max_queue_delay_us, found.preferred_batch_sizes) == (5, (2,))
