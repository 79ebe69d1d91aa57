"""Clients of the infer call, one per wire form, behind one small interface.

The contract suite runs over all of them, so a later transport of ours is one more entry in
TRANSPORTS. Nothing here uses the gateway's codecs: what the tests send and read is written out with
json, struct, numpy and the protocol's own messages.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import Any, Final, Protocol

import grpc
import httpx
import numpy as np

from gateway.pb import inference_pb2 as pb

CLIENT_LIMIT_S: Final = 15.0
"""No answer within this time is a failure of the test."""
UNLIMITED: Final = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
)
METHOD: Final = "/inference.GRPCInferenceService/"
DTYPES: Final[Mapping[str, str]] = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
    "BF16": "<u2",
}
_CONTENTS: Final[Mapping[str, str]] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class Outcome(Enum):
    """What a request came to, as each protocol calls it."""

    OK = (200, "OK")
    INVALID = (400, "INVALID_ARGUMENT")
    FORBIDDEN = (403, "PERMISSION_DENIED")
    NOT_FOUND = (404, "NOT_FOUND")
    TOO_LARGE = (413, "RESOURCE_EXHAUSTED")
    SHED = (429, "RESOURCE_EXHAUSTED")
    INTERNAL = (500, "INTERNAL")
    UNSUPPORTED = (501, "UNIMPLEMENTED")
    UNAVAILABLE = (503, "UNAVAILABLE")
    EXPIRED = (504, "DEADLINE_EXCEEDED")


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """An input as the caller states it; shape and elements need not agree."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    elements: Sequence[Any]  # Any: numbers, booleans or bytes; BF16 as bit patterns
    raw: bytes | None = None
    """Sent instead of the elements by the transports that send bytes."""

    def wire(self) -> bytes:
        """Return the bytes to send."""
        return raw_bytes(self.datatype, self.elements) if self.raw is None else self.raw


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One infer call."""

    model: str
    inputs: tuple[Given, ...]
    version: str = ""
    outputs: tuple[str, ...] = ()
    id: str = ""
    parameters: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float | None = None
    """The gRPC deadline; over HTTP the header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """An output as received."""

    datatype: str
    shape: tuple[int, ...]
    elements: list[Any]  # Any: as in Given


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back."""

    code: int | str
    """The protocol's own: an HTTP status number, or a gRPC status name."""
    error: str = ""
    model: str = ""
    version: str = ""
    id: str = ""
    outputs: Mapping[str, Output] = field(default_factory=dict)
    """In the order received."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """HTTP headers, or trailing metadata, by lower-case name."""

    def came_to(self, outcome: Outcome) -> bool:
        """Whether the code is that of the outcome."""
        return self.code in outcome.value


class Transport(Protocol):
    """One way to make the infer call."""

    name: str
    is_raw: bool
    """Inputs travel as bytes, not as elements."""
    cannot_carry: frozenset[str]
    """Datatypes without a form here."""

    def infer(self, ask: Ask) -> Answer:
        """Make the call and return its answer, or its error."""

    def close(self) -> None:
        """Close the connection."""


def raw_bytes(datatype: str, elements: Sequence[Any]) -> bytes:  # Any: see Given
    """Return elements in the raw form that all binary transports share."""
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(element)) + element for element in elements)
    return np.array(elements, dtype=DTYPES[datatype]).tobytes()


def from_raw(datatype: str, data: bytes) -> list[Any]:  # Any: see Given
    """Return the elements of a raw tensor."""
    if datatype != "BYTES":
        return list(np.frombuffer(data, DTYPES[datatype]).tolist())
    bounds, position = [0], 0
    while position < len(data):
        position += 4 + struct.unpack_from("<I", data, position)[0]
        bounds.append(position)
    return [data[start + 4 : end] for start, end in pairwise(bounds)]


class HttpTransport:
    """HTTP with JSON tensors, or with the binary extension both ways."""

    def __init__(self, address: str, *, is_raw: bool) -> None:
        self.name = "http-binary" if is_raw else "http-json"
        self.is_raw = is_raw
        self.cannot_carry = frozenset() if is_raw else frozenset({"BF16"})
        self._client = httpx.Client(base_url=f"http://{address}", timeout=CLIENT_LIMIT_S)

    def infer(self, ask: Ask) -> Answer:
        """Post the body of this form."""
        path = f"/v2/models/{ask.model}" + (f"/versions/{ask.version}" if ask.version else "")
        headers = dict(ask.headers)
        if ask.timeout_s is not None:
            headers["x-sluice-timeout-ms"] = str(round(ask.timeout_s * 1e3))
        document, tail = self._body(ask)
        head = json.dumps(document).encode()
        if self.is_raw:
            headers["inference-header-content-length"] = str(len(head))
        reply = self._client.post(f"{path}/infer", content=head + tail, headers=headers)
        return read_http(reply)

    def _body(self, ask: Ask) -> tuple[dict[str, Any], bytes]:  # Any: JSON
        inputs: list[dict[str, Any]] = []  # Any: JSON
        tail = b""
        for given in ask.inputs:
            entry: dict[str, Any] = {  # Any: JSON
                "name": given.name,
                "datatype": given.datatype,
                "shape": list(given.shape),
            }
            if self.is_raw:
                entry["parameters"] = {"binary_data_size": len(given.wire())}
                tail += given.wire()
            else:
                entry["data"] = [e.decode() if isinstance(e, bytes) else e for e in given.elements]
            inputs.append(entry)
        document: dict[str, Any] = {"inputs": inputs}  # Any: JSON
        parameters = dict(ask.parameters)
        if self.is_raw:
            parameters["binary_data_output"] = True
        if parameters:
            document["parameters"] = parameters
        if ask.id:
            document["id"] = ask.id
        if ask.outputs:
            document["outputs"] = [{"name": name} for name in ask.outputs]
        return document, tail

    def close(self) -> None:
        """Close the client."""
        self._client.close()


def read_http(reply: httpx.Response) -> Answer:
    """Return an HTTP answer, JSON or binary, or an error."""
    headers = dict(reply.headers)
    if reply.status_code != 200:
        document = reply.json()
        assert list(document) == ["error"], document
        return Answer(code=reply.status_code, error=document["error"], headers=headers)
    length = headers.get("inference-header-content-length")
    json_bytes = len(reply.content) if length is None else int(length)
    document = json.loads(reply.content[:json_bytes])
    position = json_bytes
    outputs = {}
    for entry in document["outputs"]:
        if "data" in entry:
            is_text = entry["datatype"] == "BYTES"
            elements = [e.encode() if is_text else e for e in entry["data"]]
        else:
            end = position + entry["parameters"]["binary_data_size"]
            elements = from_raw(entry["datatype"], reply.content[position:end])
            position = end
        outputs[entry["name"]] = Output(
            datatype=entry["datatype"], shape=tuple(entry["shape"]), elements=elements
        )
    assert position == len(reply.content)
    return Answer(
        code=200,
        model=document["model_name"],
        version=document["model_version"],
        id=document.get("id", ""),
        outputs=outputs,
        headers=headers,
    )


class GrpcTransport:
    """gRPC with raw contents, or with typed contents; answers are raw in both."""

    def __init__(self, address: str, *, is_raw: bool) -> None:
        self.name = "grpc-raw" if is_raw else "grpc-typed"
        self.is_raw = is_raw
        self.cannot_carry = frozenset() if is_raw else frozenset({"FP16", "BF16"})
        self._channel = grpc.insecure_channel(address, options=UNLIMITED)
        self._infer = unary(self._channel, "ModelInfer", pb.ModelInferResponse)

    def infer(self, ask: Ask) -> Answer:
        """Call ModelInfer."""
        try:
            message, call = self._infer.with_call(
                infer_message(ask, is_raw=self.is_raw),
                timeout=CLIENT_LIMIT_S if ask.timeout_s is None else ask.timeout_s,
                metadata=tuple(ask.headers.items()),
            )
        except grpc.RpcError as exc:
            return Answer(
                code=exc.code().name,
                error=exc.details() or "",
                headers=metadata_of(exc),
            )
        return read_message(message, metadata_of(call))

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


def unary(channel: grpc.Channel, method: str, answer: Any) -> Any:  # Any: generated, and grpcio's
    """Return a callable for a unary method of the inference service."""
    return channel.unary_unary(
        METHOD + method,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=answer.FromString,
    )


def metadata_of(call: Any) -> dict[str, str]:  # Any: grpcio's call or error
    """Return trailing metadata by name."""
    return {key: str(value) for key, value in call.trailing_metadata() or ()}


def infer_message(ask: Ask, *, is_raw: bool) -> pb.ModelInferRequest:
    """Return a call as a message."""
    message = pb.ModelInferRequest(model_name=ask.model, model_version=ask.version, id=ask.id)
    for name, value in ask.parameters.items():
        parameter = message.parameters[name]
        for kind, choice in (
            (bool, "bool_param"),
            (int, "int64_param"),
            (float, "double_param"),
            (str, "string_param"),
        ):
            if isinstance(value, kind):
                setattr(parameter, choice, value)
                break
    for given in ask.inputs:
        tensor = message.inputs.add(
            name=given.name, datatype=given.datatype, shape=list(given.shape)
        )
        if is_raw:
            message.raw_input_contents.append(given.wire())
        elif given.elements:
            contents = _CONTENTS.get(given.datatype, "fp32_contents")
            getattr(tensor.contents, contents).extend(given.elements)
    for name in ask.outputs:
        message.outputs.add(name=name)
    return message


def read_message(message: pb.ModelInferResponse, headers: Mapping[str, str]) -> Answer:
    """Return a gRPC answer, which has one raw entry per output and nothing typed."""
    assert len(message.outputs) == len(message.raw_output_contents)
    assert not any(output.HasField("contents") for output in message.outputs)
    outputs = {
        output.name: Output(
            datatype=output.datatype,
            shape=tuple(output.shape),
            elements=from_raw(output.datatype, raw),
        )
        for output, raw in zip(message.outputs, message.raw_output_contents, strict=True)
    }
    return Answer(
        code="OK",
        model=message.model_name,
        version=message.model_version,
        id=message.id,
        outputs=outputs,
        headers=headers,
    )


class Listeners(Protocol):
    """Where a gateway listens, as host:port."""

    @property
    def http(self) -> str:
        """The HTTP predict port."""

    @property
    def grpc(self) -> str:
        """The gRPC predict port."""


TRANSPORTS: Final[Mapping[str, Callable[[Listeners], Transport]]] = {
    "http-json": lambda at: HttpTransport(at.http, is_raw=False),
    "http-binary": lambda at: HttpTransport(at.http, is_raw=True),
    "grpc-typed": lambda at: GrpcTransport(at.grpc, is_raw=False),
    "grpc-raw": lambda at: GrpcTransport(at.grpc, is_raw=True),
}
RAW: Final = ("http-binary", "grpc-raw")
"""The transports whose inputs travel as bytes."""
TYPED: Final = ("http-json", "grpc-typed")
"""The transports whose inputs travel as elements."""


@contextmanager
def connected(at: Listeners, names: Iterable[str] = TRANSPORTS) -> Iterator[list[Transport]]:
    """Connect some transports for the length of a block."""
    transports = [TRANSPORTS[name](at) for name in names]
    try:
        yield transports
    finally:
        for transport in transports:
            transport.close()
