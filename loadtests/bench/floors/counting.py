"""A model behind a floor: run once per request or in small batches, and counted."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from loadtests.bench import models

Rows = np.ndarray[Any, np.dtype[np.float32]]
LARGEST_BATCH: Final = 64


class CountedModel:
    """One onnxruntime session with one thread."""

    def __init__(self, path: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(str(path), options)
        self._waiting: list[tuple[Rows, asyncio.Future[Rows]]] = []
        self.answered = 0
        self.batches = 0

    def run(self, rows: Rows) -> Rows:
        """Return the outputs of some rows, now."""
        self.answered += 1
        return self._run(rows)

    async def run_batched(self, rows: Rows) -> Rows:
        """Return the outputs of some rows, run with those of whoever asks in the same turn of the
        event loop: a future per request, one np.concatenate per batch."""
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Rows] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._flush)
        self._waiting.append((rows, answered))
        return await answered

    def _flush(self) -> None:
        batch, self._waiting = self._waiting[:LARGEST_BATCH], self._waiting[LARGEST_BATCH:]
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        outputs = self._run(np.concatenate([rows for rows, _ in batch]))
        start = 0
        for rows, answered in batch:
            end = start + len(rows)
            if not answered.done():
                answered.set_result(outputs[start:end])
                self.answered += 1
            start = end

    def _run(self, rows: Rows) -> Rows:
        (output,) = self._session.run([models.OUTPUT], {models.INPUT: rows})
        self.batches += 1
        return np.asarray(output, np.float32)
