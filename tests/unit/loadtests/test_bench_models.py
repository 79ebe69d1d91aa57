from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines import ort
from engines.base import EngineConfig
from gateway import config as configuration
from gateway.config import ModelsConfig
from gateway.model_config import ModelConfigs
from loadtests.bench import cases, models


@pytest.fixture
def root(tmp_path: Path) -> Path:
    cases.write_models(tmp_path / "models", threads=1)
    return tmp_path / "models"


def test_the_models_take_and_give_the_promised_widths(root: Path) -> None:
    for name, version, widths in (
        (cases.ROUTE, "1", models.TINY),
        (cases.ROUTE, "2", models.TINY),
        (cases.BATCHED, "1", models.MEDIUM),
        (cases.UNBATCHED, "1", models.MEDIUM),
    ):
        engine = ort.load(root / name / version / "model.onnx", EngineConfig(intra_op_threads=1))
        rows = np.ones((5, widths[0]), np.float32)
        (answer,) = engine.infer({models.INPUT: rows}).values()
        assert answer.shape == (5, widths[-1])
        assert np.isfinite(answer).all()
        engine.close()


def test_the_two_versions_behind_the_route_differ(root: Path) -> None:
    files = [(root / cases.ROUTE / v / "model.onnx").read_bytes() for v in ("1", "2")]
    assert files[0] != files[1]


def test_the_gateway_reads_batching_on_off_and_the_same_threads(root: Path) -> None:
    configs = ModelConfigs(settings=ModelsConfig(), usable_cores=8)
    batched = configs.read_spec(root / cases.BATCHED)
    unbatched = configs.read_spec(root / cases.UNBATCHED)
    assert batched.batching is not None
    assert unbatched.batching is not None
    assert batched.batching.dynamic
    assert not unbatched.batching.dynamic
    for spec in (batched, unbatched):
        assert spec.instances == 1
        assert spec.engine.intra_op_threads == 1
        assert spec.engine.max_batch_size == cases.MAX_BATCH_SIZE


def test_the_route_splits_90_to_10_between_versions_that_exist(root: Path) -> None:
    path = root.parent / "sluice.toml"
    path.write_text(f'[models]\nrepository = "models"\n{cases.tables()}')
    config = configuration.load(path, {})
    configuration.check_targets(config, path.parent)
    (route,) = configuration.routes(config)
    assert {v.name: float(v.weight) for v in route.variants} == {"stable": 90, "canary": 10}
    assert config.prediction_log.enabled
