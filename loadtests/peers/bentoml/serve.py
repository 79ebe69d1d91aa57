# mypy: ignore-errors
# What it imports is installed in its own environment only.
"""BentoML: a service whose method takes batches. Its own JSON: {"data": [[...]]} in, rows out."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # before the import below, which the server's workers do as well
    os.environ["PEER_MODEL"] = sys.argv[1]
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    os.execv(
        sys.executable,
        [
            *(sys.executable, "-m", "bentoml", "serve", "serve:Tiny"),
            *("--working-dir", os.path.dirname(os.path.abspath(__file__))),
            *("--host", "127.0.0.1", "--port", sys.argv[2], "--api-workers", "1"),
        ],
    )

import bentoml
import numpy as np
import onnxruntime as ort


@bentoml.service(workers=1, traffic={"timeout": 30}, logging={"access": {"enabled": False}})
class Tiny:
    """The tiny model."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(os.environ["PEER_MODEL"], options)

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=1_000)
    def predict(self, data: np.ndarray) -> np.ndarray:
        """Run one batch."""
        output: np.ndarray = self._session.run(None, {"x": data.astype(np.float32)})[0]
        return output
