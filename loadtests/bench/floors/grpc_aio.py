"""`python -m loadtests.bench.floors.grpc_aio MODEL`: ModelInfer on grpc.aio and nothing else.

The floor of gRPC in Python: raw bytes handlers (no generated code around them), uvloop, one model
run per request, no checks, no routing, no log, no metrics, no batching. Prints its port.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import uvloop

from gateway.pb import inference_pb2 as pb
from loadtests.bench import models
from loadtests.bench.floors.counting import CountedModel

SERVICE = "inference.GRPCInferenceService"
_LARGEST = (("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0))


async def serve(path: Path) -> None:
    """Serve until the process is told to end."""
    model = CountedModel(path)

    async def infer(data: bytes, _: object) -> bytes:
        request = pb.ModelInferRequest.FromString(data)
        shape = list(request.inputs[0].shape)
        rows = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(shape)
        output = model.run(rows)
        answer = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
        answer.outputs.add(name=models.OUTPUT, datatype="FP32", shape=output.shape)
        answer.raw_output_contents.append(output.tobytes())
        return answer.SerializeToString()

    async def count(data: bytes, _: object) -> bytes:
        return str(model.answered).encode()

    handlers: dict[str, Any] = {  # Any: as grpcio types it
        "ModelInfer": grpc.unary_unary_rpc_method_handler(infer),
        "Answered": grpc.unary_unary_rpc_method_handler(count),
    }
    server = grpc.aio.server(options=_LARGEST)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(serve(Path(sys.argv[1])))
