"""`python -m loadtests.bench.floors.starlette_json MODEL`: a Starlette Route with JSONResponse.

The floor of HTTP JSON in Python as its tutorials write it: `await request.json()`, one model run
per request, or with --batching one per turn of the event loop; JSONResponse; uvicorn with httptools
and uvloop. No checks, no routing, no log, no metrics. Prints its port.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from loadtests.bench import models
from loadtests.bench.floors.counting import CountedModel


def make_app(model: CountedModel, *, is_batching: bool) -> Starlette:
    """Return the application."""

    async def infer(request: Request) -> Response:
        body = await request.json()
        tensor = body["inputs"][0]
        rows = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
        output = await model.run_batched(rows) if is_batching else model.run(rows)
        answered = {
            "name": models.OUTPUT,
            "datatype": "FP32",
            "shape": list(output.shape),
            "data": output.reshape(-1).tolist(),
        }
        return JSONResponse({"model_name": request.path_params["name"], "outputs": [answered]})

    async def count(request: Request) -> Response:
        return JSONResponse({"answered": model.answered, "batches": model.batches})

    return Starlette(
        routes=[
            Route("/v2/models/{name}/infer", infer, methods=["POST"]),
            Route("/answered", count),
        ]
    )


def serve(path: Path, *, is_batching: bool) -> None:
    """Serve until the process is told to end."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(
        make_app(CountedModel(path), is_batching=is_batching),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        log_level="warning",
        access_log=False,
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    serve(Path(sys.argv[1]), is_batching="--batching" in sys.argv[2:])
