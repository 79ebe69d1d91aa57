# mypy: ignore-errors
# What it imports is installed in its own environment only.
"""MLServer with a custom runtime around onnxruntime, its adaptive batching on."""

from __future__ import annotations

import asyncio
import sys

import numpy as np
import onnxruntime as ort
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxRuntime(MLModel):
    """The tiny model."""

    async def load(self) -> bool:
        """Load the file."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(self.settings.parameters.uri, options)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer one request, or one batch that MLServer made."""
        rows = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32)
        (output,) = self._session.run(None, {"x": rows})
        answered = NumpyCodec.encode_output("y", output)
        return InferenceResponse(model_name=self.name, outputs=[answered])


async def serve(path: str, port: int) -> None:
    """Serve in this process: MLServer's workers would add a hop between processes."""
    settings = Settings(
        host="127.0.0.1",
        http_port=port,
        grpc_port=port + 1 if port < 65_000 else port - 1,
        metrics_port=port + 2 if port < 65_000 else port - 2,
        parallel_workers=0,
        debug=False,
    )
    model = ModelSettings(
        name="tiny",
        implementation=OnnxRuntime,
        parameters=ModelParameters(uri=path),
        max_batch_size=32,
        max_batch_time=0.001,
    )
    server = MLServer(settings)
    await server.start([model])


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
