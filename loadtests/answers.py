"""Whether an answer is what the metadata promised: outputs, datatypes, shapes and byte counts.

Pure: takes what a client received and returns what is wrong with it, or None. Values are not
looked at; a load test knows no right ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import msgspec

from engines.tensors import BYTES, DATATYPES
from gateway.pb import inference_pb2 as pb
from loadtests.payloads import Signature, TensorShape


def fault_of_json(status: int, body: bytes, promised: Signature) -> str | None:
    """Return what is wrong with an HTTP answer whose tensors are JSON."""
    if status != 200:
        return _refusal(status, body)
    outputs = _json_outputs(body)
    if isinstance(outputs, str):
        return outputs
    return _fault(
        promised,
        (
            (o.get("name"), o.get("datatype"), o.get("shape", ()), len(o.get("data", ())))
            for o in outputs
        ),
    )


def fault_of_binary(
    status: int, body: bytes, json_bytes: str | None, promised: Signature
) -> str | None:
    """Return what is wrong with an HTTP answer whose tensors follow a JSON header.

    `json_bytes` is the header Inference-Header-Content-Length as received.
    """
    if status != 200:
        return _refusal(status, body)
    if json_bytes is None or not json_bytes.isdecimal():
        return f"Inference-Header-Content-Length is {json_bytes!r}"
    split = int(json_bytes)
    outputs = _json_outputs(body[:split])
    if isinstance(outputs, str):
        return outputs
    sizes = [o.get("parameters", {}).get("binary_data_size", -1) for o in outputs]
    if sum(sizes) != len(body) - split:
        return f"{len(body) - split} bytes follow the JSON header, its sizes add up to {sum(sizes)}"
    return _fault(
        promised,
        (
            (o.get("name"), o.get("datatype"), o.get("shape", ()), _elements(o.get("datatype"), n))
            for o, n in zip(outputs, sizes, strict=True)
        ),
    )


def fault_of_grpc(data: bytes, promised: Signature) -> str | None:
    """Return what is wrong with the bytes of a ModelInferResponse."""
    message = pb.ModelInferResponse.FromString(data)
    raw = message.raw_output_contents
    if len(raw) != len(message.outputs):
        return f"{len(message.outputs)} outputs with {len(raw)} raw contents"
    return _fault(
        promised,
        (
            (o.name, o.datatype, o.shape, _elements(o.datatype, len(content)))
            for o, content in zip(message.outputs, raw, strict=True)
        ),
    )


def _refusal(status: int, body: bytes) -> str:
    return f"HTTP {status}: {body[:200].decode(errors='replace')}"


def _json_outputs(body: bytes) -> list[dict[str, Any]] | str:  # Any: JSON
    try:
        document = msgspec.json.decode(body)
    except msgspec.DecodeError as exc:
        return f"the answer is no JSON: {exc}"
    outputs = document.get("outputs") if isinstance(document, dict) else None
    return outputs if isinstance(outputs, list) else "the answer has no outputs"


def _elements(datatype: str | None, size_bytes: int) -> int | None:
    """Return how many elements so many bytes hold; None for BYTES, whose elements vary."""
    known = DATATYPES.get(datatype or "")
    if known is None or known.name == BYTES:
        return None
    return size_bytes // known.item_bytes


def _fault(
    promised: Signature, received: Iterable[tuple[Any, Any, Iterable[int], int | None]]
) -> str | None:  # Any: what stood in the answer
    """Compare (name, datatype, shape, elements) of each output with the promise, in order."""
    outputs = list(received)
    names = [name for name, *_ in outputs]
    if names != [spec.name for spec in promised.outputs]:
        return f"outputs {names} instead of {[spec.name for spec in promised.outputs]}"
    for spec, (_, datatype, shape, elements) in zip(promised.outputs, outputs, strict=True):
        if datatype != spec.datatype:
            return f"output {spec.name!r} is {datatype} instead of {spec.datatype}"
        dimensions = tuple(shape)
        if not _fits(dimensions, spec):
            return f"output {spec.name!r} has the shape {list(dimensions)}, not {list(spec.shape)}"
        if elements is not None and elements != math.prod(dimensions):
            return f"output {spec.name!r} has {elements} elements in shape {list(dimensions)}"
    return None


def _fits(shape: tuple[int, ...], spec: TensorShape) -> bool:
    """Whether a shape answers one row: the first dimension is 1 where it varies."""
    if len(shape) != len(spec.shape):
        return False
    if spec.shape[:1] == (-1,) and shape[0] != 1:
        return False
    return all(b in (-1, a) for a, b in zip(shape, spec.shape, strict=True))
