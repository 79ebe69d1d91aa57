# mypy: ignore-errors
# What it imports is installed in its own environment only.
"""Ray Serve: one replica with serve.batch. {"data": [[...]]} in, {"y": [[...]]} out."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
import onnxruntime as ort
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=1, max_ongoing_requests=200)
class Tiny:
    """The tiny model."""

    def __init__(self, path: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(path, options)

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.001)
    async def run(self, rows: list[Any]) -> list[Any]:
        """Run one batch."""
        return list(self._session.run(None, {"x": np.stack(rows)})[0])

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Answer one request."""
        body = await request.json()
        output = await self.run(np.asarray(body["data"][0], np.float32))
        return {"y": [output.tolist()]}


if __name__ == "__main__":
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    serve.run(Tiny.bind(sys.argv[1]), route_prefix="/predict")
    threading.Event().wait()
