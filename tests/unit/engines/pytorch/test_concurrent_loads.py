"""Several programs loaded at once, as a repository does; torch keeps what it reads in one place."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from engines import pytorch
from engines.base import Engine, EngineConfig
from tests.support.torch_models import write_identity


def test_programs_that_are_loaded_at_the_same_time_all_come_up(tmp_path: Path) -> None:
    path = write_identity(tmp_path / "model.pt2", "FP32", [4], batch_axis=True)

    def load(_: int) -> Engine:
        return pytorch.load(path, EngineConfig())

    with ThreadPoolExecutor(4) as loaders:
        engines = list(loaders.map(load, range(12)))
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    for engine in engines:
        np.testing.assert_array_equal(engine.infer({"x": rows})["y"], rows)
        engine.close()
