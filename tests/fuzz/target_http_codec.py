"""HTTP bodies: any bytes decode, or are the caller's fault; what decodes can be looked at.

An input is two bytes, then a body: the length of its JSON part (0: a raw request; 0xffff: no binary
part).
"""

from __future__ import annotations

import json
import struct
from typing import Any, Final

from engines.base import ModelMetadata, TensorSpec
from engines.errors import InvalidInput
from engines.signature import Signature
from engines.tensors import DATATYPES
from gateway.errors import MalformedRequest, PayloadTooLarge
from gateway.http_api import codec
from gateway.request import InferRequest

CALLERS_FAULT: Final = (MalformedRequest, InvalidInput, PayloadTooLarge)
ALL_JSON: Final = 0xFFFF
WORDS: Final = (
    *(f'"{datatype}"'.encode() for datatype in DATATYPES),
    b'"inputs":[',
    b'"name":"x"',
    b'"shape":[',
    b'"datatype":',
    b'"data":[',
    b'"parameters":{',
    b'"binary_data_size":',
    b'"binary_data_output":true',
    b'"outputs":[',
    b'"shared_memory_region"',
    b'"classification"',
    b"1e999",
    b"9223372036854775808",
    b"-1",
    b"[[",
    b"NaN",
    b"\\ud800",
)
RAW_MODEL: Final = ModelMetadata(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, -1)),),
    outputs=(),
    max_batch_size=8,
    platform="",
    engine="",
    device="",
)


def seeds() -> list[bytes]:
    """Return a body of each datatype, flat, nested and binary, and some odd ones."""
    made = [struct.pack(">H", 0) + bytes(16)]
    for datatype, row in DATATYPES.items():
        entry = {"name": "x", "datatype": datatype, "shape": [1, 2]}
        made += [body({**entry, "data": data}) for data in (_data(datatype), [_data(datatype)])]
        wire = b"\x01\x00\x00\x00a" + bytes(4) if datatype == "BYTES" else bytes(2 * row.item_bytes)
        made.append(body({**entry, "parameters": {"binary_data_size": len(wire)}}, wire))
    return made


def _data(datatype: str) -> list[Any]:  # Any: JSON
    if datatype == "BYTES":
        return ["a", "b"]
    return [True, False] if datatype == "BOOL" else [1, 0]


def body(entry: dict[str, Any], tail: bytes = b"") -> bytes:  # Any: JSON
    """Return an input with one tensor."""
    document = {
        "id": "7",
        "parameters": {"binary_data_output": bool(tail), "key": "v"},
        "inputs": [entry],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }
    head = json.dumps(document).encode()
    return struct.pack(">H", len(head) if tail else ALL_JSON) + head + tail


def one(data: bytes) -> None:
    """Decode an input and check each tensor against a signature that fits its form."""
    if len(data) < 2:
        return
    (json_bytes,) = struct.unpack_from(">H", data)
    content = data[2:]
    try:
        if not json_bytes:
            request, _ = codec.decode_raw("m", "", content, RAW_MODEL)
            Signature("m", RAW_MODEL).order(request.inputs)
            return
        split = None if json_bytes == ALL_JSON else min(json_bytes, len(content))
        request, form = codec.decode("m", "", content, split)
        for tensor in request.inputs:
            form.is_binary(tensor.name)
            look_at(tensor.name, request)
    except CALLERS_FAULT as error:
        str(error).encode()


def look_at(name: str, request: InferRequest) -> None:
    """Make an array of a tensor as the batcher would after the signature's check."""
    (tensor, *_) = [tensor for tensor in request.inputs if tensor.name == name]
    spec = TensorSpec(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    metadata = ModelMetadata(
        inputs=(spec,), outputs=(), max_batch_size=0, platform="", engine="", device=""
    )
    Signature("m", metadata).order((tensor,))
    tensor.array()
