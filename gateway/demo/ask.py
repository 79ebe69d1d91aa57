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
import numpy.typing as npt

from gateway.demo.digits import NAME, PIXELS
from gateway.demo.screen import DemoFailed
from gateway.pb import inference_pb2 as pb
from router import document
from router.policy import CompiledRoute
from router.slot_map import SlotRange

KEY_HEADER: Final = "x-user-id"
"""Where the demo's route reads its key."""
TIMEOUT_S: Final = 10.0
ROWS_PER_REQUEST: Final = 25
PATH: Final = f"/v2/models/{NAME}/infer"
_METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"

Address = tuple[str, int]
Pixels = npt.NDArray[np.uint8]
"""Pictures, of shape (rows, 64)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back, and who answered."""

    protocol: str
    user: str
    digit: int
    probability: float
    version: str
    lines: Mapping[str, str]
    """The answer's headers or trailing metadata, names in lower case."""
    took_ms: float
    """As the caller measured it, connecting included."""

    @property
    def request_id(self) -> bytes:
        """The 16 bytes that name this request in the prediction log."""
        return bytes.fromhex(self.lines["x-request-id"].replace("-", ""))


def route(address: Address) -> CompiledRoute | None:
    """Return the demo's route as it is in force; None: somebody has deleted it.

    Raises:
        DemoFailed: the admin listener does not answer.
    """
    connection = http.client.HTTPConnection(*address, timeout=TIMEOUT_S)
    try:
        connection.request("GET", f"/v1/routes/{NAME}")
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as exc:
        raise DemoFailed(f"the admin listener does not answer: {exc}") from exc
    finally:
        connection.close()
    if answer.status != http.client.OK:
        return None
    shown = json.loads(body)
    made = document.read(shown, name=NAME, revision=shown["revision"])
    slots = [SlotRange(*row) for row in shown["derived"]["slots"]]
    return CompiledRoute.compile(made, slots, time.time_ns() // 1_000_000)


def request_json(pixels: Sequence[int]) -> str:
    """Return the body of an HTTP request for one picture, without needless space."""
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, PIXELS], "data": list(pixels)}
    return json.dumps({"inputs": [tensor]}, separators=(",", ":"))


def by_http(address: Address, pixels: Sequence[int], user: str) -> Answer:
    """Send one prediction over HTTP, as JSON.

    Raises:
        DemoFailed: no answer, or one that is an error.
    """
    start_s = time.monotonic()
    connection = http.client.HTTPConnection(*address, timeout=TIMEOUT_S)
    headers = {"content-type": "application/json", KEY_HEADER: user}
    try:
        connection.request("POST", PATH, request_json(pixels), headers)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as exc:
        raise DemoFailed(f"the gateway gave no answer over HTTP: {exc}") from exc
    finally:
        connection.close()
    took_ms = (time.monotonic() - start_s) * 1e3
    if response.status != http.client.OK:
        sentence = body.decode(errors="replace")
        raise DemoFailed(f"the gateway answered HTTP {response.status}: {sentence}")
    document: Any = json.loads(body)  # Any: JSON
    outputs = {output["name"]: output["data"] for output in document["outputs"]}
    digit = int(outputs["label"][0])
    return Answer(
        protocol="HTTP",
        user=user,
        digit=digit,
        probability=float(outputs["probabilities"][digit]),
        version=document["model_version"],
        lines={name.lower(): value for name, value in response.getheaders()},
        took_ms=took_ms,
    )


def many(address: Address, pictures: Pixels, user: str) -> list[bytes]:
    """Send pictures over HTTP, ROWS_PER_REQUEST in each request; return the request ids.

    Raises:
        DemoFailed: no answer, or one that is an error.
    """
    rids = []
    connection = http.client.HTTPConnection(*address, timeout=TIMEOUT_S)
    headers = {"content-type": "application/json", KEY_HEADER: user}
    try:
        for start in range(0, len(pictures), ROWS_PER_REQUEST):
            rows = pictures[start : start + ROWS_PER_REQUEST]
            tensor = {"name": "image", "datatype": "FP32", "shape": rows.shape}
            body = json.dumps({"inputs": [tensor | {"data": rows.reshape(-1).tolist()}]})
            connection.request("POST", PATH, body, headers)
            response = connection.getresponse()
            sentence = response.read().decode(errors="replace")
            if response.status != http.client.OK:
                raise DemoFailed(f"the gateway answered HTTP {response.status}: {sentence}")
            rids.append(bytes.fromhex(response.headers["x-request-id"].replace("-", "")))
    except (OSError, http.client.HTTPException) as exc:
        raise DemoFailed(f"the gateway gave no answer over HTTP: {exc}") from exc
    finally:
        connection.close()
    return rids


def by_grpc(address: Address, pixels: Sequence[int], user: str) -> Answer:
    """Send one prediction over gRPC.

    Raises:
        DemoFailed: no answer, or one that is an error.
    """
    request = pb.ModelInferRequest(
        model_name=NAME, raw_input_contents=[np.array(pixels, dtype="<f4").tobytes()]
    )
    request.inputs.add(name="image", datatype="FP32", shape=[1, PIXELS])
    host, port = address
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    start_s = time.monotonic()
    with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        infer = channel.unary_unary(
            _METHOD,
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        try:
            response, call = infer.with_call(
                request, timeout=TIMEOUT_S, metadata=((KEY_HEADER, user),)
            )
        except grpc.RpcError as exc:
            raise DemoFailed(f"the gateway gave no answer over gRPC: {_sentence(exc)}") from exc
        took_ms = (time.monotonic() - start_s) * 1e3
        lines = {str(name): str(value) for name, value in call.trailing_metadata()}
    raw = dict(zip((o.name for o in response.outputs), response.raw_output_contents, strict=True))
    digit = int(np.frombuffer(raw["label"], "<i8")[0])
    return Answer(
        protocol="gRPC",
        user=user,
        digit=digit,
        probability=float(np.frombuffer(raw["probabilities"], "<f4")[digit]),
        version=response.model_version,
        lines=lines,
        took_ms=took_ms,
    )


def _sentence(exc: grpc.RpcError) -> str:
    """Return what a failed call says; grpcio's errors are calls as well."""
    if isinstance(exc, grpc.Call):
        return f"{exc.code().name}: {exc.details()}"
    return str(exc)
