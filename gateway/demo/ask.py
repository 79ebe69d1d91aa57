"""Asks a running gateway for one prediction, by HTTP and by gRPC, as any caller would.

Knows the protocol from the outside: the standard library's HTTP client and JSON, grpcio and the
protocol's messages. Both connect directly, whatever proxy the environment names.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
import numpy as np

from gateway.demo.digits import NAME, PIXELS
from gateway.demo.screen import DemoFailed
from gateway.pb import inference_pb2 as pb

KEY_HEADER: Final = "x-user-id"
"""Where the demo's route reads its key."""
TIMEOUT_S: Final = 10.0
_METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back, and who answered."""

    protocol: str
    user: str
    digit: int
    probability: float
    version: str
    variant: str
    reason: str
    request_id: str
    took_ms: float
    """As the caller measured it, connecting included."""


def request_json(pixels: Sequence[int]) -> str:
    """Return the body of an HTTP request for one picture, without needless space."""
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, PIXELS], "data": list(pixels)}
    return json.dumps({"inputs": [tensor]}, separators=(",", ":"))


def by_http(address: tuple[str, int], pixels: Sequence[int], user: str) -> Answer:
    """Send one prediction over HTTP, as JSON.

    Raises:
        DemoFailed: no answer, or one that is an error.
    """
    start_s = time.monotonic()
    connection = http.client.HTTPConnection(*address, timeout=TIMEOUT_S)
    try:
        connection.request(
            "POST",
            f"/v2/models/{NAME}/infer",
            request_json(pixels),
            {"content-type": "application/json", KEY_HEADER: user},
        )
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as exc:
        raise DemoFailed(f"the gateway gave no answer over HTTP: {exc}") from exc
    finally:
        connection.close()
    if response.status != http.client.OK:
        sentence = body.decode(errors="replace")
        raise DemoFailed(f"the gateway answered HTTP {response.status}: {sentence}")
    document: Any = json.loads(body)  # Any: JSON
    outputs = {output["name"]: output["data"] for output in document["outputs"]}
    digit = int(outputs["label"][0])
    return _answer(
        "HTTP",
        user,
        digit,
        float(outputs["probabilities"][digit]),
        {**response.headers, "version": document["model_version"], "took": start_s},
    )


def by_grpc(address: tuple[str, int], pixels: Sequence[int], user: str) -> Answer:
    """Send one prediction over gRPC.

    Raises:
        DemoFailed: no answer, or one that is an error.
    """
    request = pb.ModelInferRequest(
        model_name=NAME,
        inputs=[
            pb.ModelInferRequest.InferInputTensor(
                name="image", datatype="FP32", shape=[1, PIXELS]
            )
        ],
        raw_input_contents=[np.array(pixels, dtype="<f4").tobytes()],
    )
    start_s = time.monotonic()
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(_target(address), options=options) as channel:
        call = channel.unary_unary(
            _METHOD,
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        try:
            response, rpc = call.with_call(
                request, timeout=TIMEOUT_S, metadata=[(KEY_HEADER, user)]
            )
        except grpc.RpcError as exc:
            raise DemoFailed(f"the gateway gave no answer over gRPC: {_sentence(exc)}") from exc
    return None
