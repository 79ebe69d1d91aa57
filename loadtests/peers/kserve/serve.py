# mypy: ignore-errors
# What it imports is installed in its own environment only.
"""KServe's Python server with a model of our own around onnxruntime."""

from __future__ import annotations

import sys
from typing import Any

import onnxruntime as ort
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class OnnxModel(Model):
    """The tiny model."""

    def __init__(self, name: str, path: str) -> None:
        super().__init__(name)
        self._path = path
        self.load()

    def load(self) -> bool:
        """Load the file."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(self._path, options)
        self.ready = True
        return self.ready

    async def predict(
        self, payload: InferRequest, headers: Any = None, response_headers: Any = None
    ) -> InferResponse:
        """Answer one request."""
        (output,) = self._session.run(None, {"x": payload.inputs[0].as_numpy()})
        answered = InferOutput(name="y", shape=list(output.shape), datatype="FP32")
        answered.set_data_from_numpy(output, binary_data=False)
        return InferResponse(
            response_id=payload.id or "", model_name=self.name, infer_outputs=[answered]
        )


if __name__ == "__main__":
    port = int(sys.argv[2])
    server = ModelServer(http_port=port, enable_grpc=False, workers=1, enable_docs_url=False)
    server.start([OnnxModel("tiny", sys.argv[1])])
