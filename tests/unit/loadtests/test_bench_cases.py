from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines import ort
from engines.base import EngineConfig
from gateway import config as configuration
from gateway.config import ModelsConfig
from gateway.model_config import ModelConfigs
from loadtests.bench import cases, content, models, options, peers
from loadtests.bench.cases import CASES
from loadtests.bench.in_process import InProcess
from loadtests.bench.targets import GOALS


@pytest.fixture
def root(tmp_path: Path) -> Path:
    content.write_models(tmp_path / "models", threads=1)
    return tmp_path / "models"


def test_the_models_take_and_give_the_promised_shapes(root: Path) -> None:
    for name, version, given in (
        ("tiny", "1", models.TINY[-1]),
        ("tiny", "2", models.TINY[-1]),
        ("mid", "1", models.MEDIUM[-1]),
        ("image", "1", models.IMAGE[0]),
    ):
        shape = {"tiny": (30,), "mid": (256,), "image": (3, 224, 224)}[name]
        engine = ort.load(root / name / version / "model.onnx", EngineConfig(intra_op_threads=1))
        rows = np.random.default_rng(1).random((5, *shape), dtype=np.float32)
        (answer,) = engine.infer({models.INPUT: rows}).values()
        assert answer.shape == (5, given)
        if name == "image":
            np.testing.assert_allclose(answer, rows.mean(axis=(2, 3)), rtol=1e-4)
        engine.close()


def test_the_two_versions_behind_the_split_differ(root: Path) -> None:
    files = [content.model_file(root, "tiny", v).read_bytes() for v in ("1", "2")]
    assert files[0] != files[1]


def test_the_gateway_reads_batching_and_the_same_threads(root: Path) -> None:
    configs = ModelConfigs(settings=ModelsConfig(), usable_cores=8)
    for name in content.SHAPES:
        spec = configs.read_spec(root / name)
        assert spec.batching is not None
        assert spec.batching.dynamic
        assert spec.instances == 1
        assert spec.engine.intra_op_threads == 1
        assert spec.engine.max_batch_size == content.MAX_BATCH_SIZE


def test_every_route_that_a_case_asks_for_goes_to_versions_that_exist(root: Path) -> None:
    path = root.parent / "sluice.toml"
    path.write_text(f'[models]\nrepository = "models"\n{content.tables()}')
    config = configuration.load(path, {})
    configuration.check_targets(config, path.parent)
    routes = {route.name: route for route in configuration.routes(config)}
    assert {v.name: float(v.weight) for v in routes["split"].variants} == {
        "stable": 90,
        "canary": 10,
    }
    for case in CASES:
        if case.server.kind == "sluice":
            asked = content.target(case.model, case.asked)
            assert asked.version or asked.name in routes
    assert config.prediction_log.enabled


def test_no_two_cases_have_the_same_name() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)


def test_every_goal_is_made_of_cases_of_one_group_that_exist() -> None:
    names = {case.name for case in CASES}
    for goal in GOALS:
        assert set(goal.cases) <= names
        assert len({name.partition(":")[0] for name in goal.cases}) <= 1


def test_a_whole_run_measures_everything_and_alone_replaces_the_results() -> None:
    whole = options.read([])
    assert whole.output is not None
    assert whole.rounds >= 5
    names = {case.name for case in options.selected(whole)}
    assert {case.name for case in CASES} <= names
    assert {cases.peer_case(name).name for name in peers.PEERS} <= names
    assert all(whole.has_extra(name) for name in options.EXTRAS)
    for part in (["--quick"], ["--smoke"], ["--only", "TLS"]):
        assert options.read(part).output is None


def test_one_row_is_measured_with_what_it_is_compared_with() -> None:
    asked = options.read(["--only", "TLS: gRPC"])
    names = [case.name for case in options.selected(asked)]
    assert names == [
        "tls: tiny grpc perf_analyzer 32 (TLS)",
        "tls: tiny grpc perf_analyzer 32 (grpcio, TLS)",
    ]
    assert not any(asked.has_extra(name) for name in options.EXTRAS)
    assert options.read(["--only", "pipe"]).has_extra("pipeline")


def test_in_process_runs_whole_batches_and_finds_a_best_size(root: Path) -> None:
    session = InProcess(root, "tiny", threads=1)
    rows, wall_s, cpu_s = session.run(32, 0.05)
    assert rows % 32 == 0
    assert rows > 0
    assert wall_s >= 0.05
    assert cpu_s > 0
    assert session.best_rows() in (1, 8, 16, 32, 64)
