# mypy: ignore-errors
# What it imports is installed in its own environment only.
"""LitServe with its batching on. It speaks no Open Inference Protocol: {"data": [[...]]} in."""

import sys
from typing import Any

import litserve as ls
import numpy as np
import onnxruntime as ort


class TinyApi(ls.LitAPI):
    """The tiny model."""

    def setup(self, device: str) -> None:
        """Load the file."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(sys.argv[1], options)

    def decode_request(self, request: dict[str, Any]) -> Any:
        """Return one row."""
        return np.asarray(request["data"][0], np.float32)

    def batch(self, inputs: list[Any]) -> Any:
        """Stack rows."""
        return np.stack(inputs)

    def predict(self, x: Any) -> Any:
        """Run one batch."""
        return self._session.run(None, {"x": x})[0]

    def unbatch(self, output: Any) -> list[Any]:
        """Return its rows."""
        return list(output)

    def encode_response(self, output: Any) -> dict[str, Any]:
        """Return the body of one answer."""
        return {"y": [output.tolist()]}


if __name__ == "__main__":
    api = TinyApi(max_batch_size=32, batch_timeout=0.001)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[2]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
    )
