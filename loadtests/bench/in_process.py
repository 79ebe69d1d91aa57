"""The limit: onnxruntime called in a loop with ready-made batches, nothing else going on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort

from loadtests.bench import content, models
from loadtests.bench.cases import BEST, ModelName

BATCHES: Final = (1, 8, 16, 32, 64)
"""Sizes that are tried for the best."""
_TRIAL_S: Final = 0.2


class InProcess:
    """A session set up as the gateway's engine sets it up: so many threads, not spinning."""

    def __init__(self, root: Path, model: ModelName, *, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(str(content.model_file(root, model)), options)
        self._shape = content.SHAPES[model]
        self._best_rows: int | None = None

    def run(self, rows: int, duration_s: float) -> tuple[int, float, float]:
        """Run batches for this long; return rows, wall seconds and CPU seconds.

        Args:
            rows: per batch; BEST: the size that gave most rows per second when it was tried.
            duration_s: how long.
        """
        rows = self.best_rows() if rows == BEST else rows
        batch = np.random.default_rng(1).random((rows, *self._shape), dtype=np.float32)
        cpu_before_s = time.process_time()
        started_s = now_s = time.monotonic()
        batches = 0
        while now_s - started_s < duration_s:
            self._session.run([models.OUTPUT], {models.INPUT: batch})
            batches += 1
            now_s = time.monotonic()
        return batches * rows, now_s - started_s, time.process_time() - cpu_before_s

    def best_rows(self) -> int:
        """Return the batch size that gives most rows per second; tried once."""
        if self._best_rows is None:
            rates = {}
            for rows in BATCHES:
                done, wall_s, _ = self.run(rows, _TRIAL_S)
                rates[rows] = done / wall_s
            self._best_rows = max(rates, key=lambda rows: rates[rows])
        return self._best_rows
