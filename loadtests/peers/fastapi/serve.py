# mypy: ignore-errors
# What it imports is installed in its own environment only.
"""FastAPI with pydantic models and onnxruntime, as a tutorial makes it: the OIP's infer route."""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Tensor(BaseModel):
    """A tensor as JSON."""

    name: str
    datatype: str
    shape: list[int]
    data: list[float]


class Request(BaseModel):
    """An infer request."""

    inputs: list[Tensor]


class Response(BaseModel):
    """Its answer."""

    model_name: str
    outputs: list[Tensor]


def make_app(path: str) -> FastAPI:
    """Return the application."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options)
    app = FastAPI()

    async def infer(name: str, request: Request) -> Response:
        (tensor,) = request.inputs
        rows = np.array(tensor.data, np.float32).reshape(tensor.shape)
        (output,) = session.run(None, {tensor.name: rows})
        data = output.reshape(-1).tolist()
        answered = Tensor(name="y", datatype="FP32", shape=list(output.shape), data=data)
        return Response(model_name=name, outputs=[answered])

    # As a decorator it would need annotations that are no text, which `from __future__` makes them.
    infer.__annotations__ = {"name": str, "request": Request, "return": Response}
    app.post("/v2/models/{name}/infer")(infer)
    return app


if __name__ == "__main__":
    uvicorn.run(
        make_app(sys.argv[1]),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        access_log=False,
        log_level="warning",
    )
