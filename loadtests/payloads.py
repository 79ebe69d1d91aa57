"""Requests made from a model's own metadata: random tensors, and the three wire forms of them.

Knows the answer of ``GET /v2/models/{name}`` and the protocol's tensors; knows no model and sends
nothing. A dimension that varies becomes 1, so a request is one row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from engines.tensors import BYTES, DATATYPES, Array, Tensor, from_array
from gateway.pb import inference_pb2 as pb

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
WITHOUT_JSON: Final = frozenset({"BF16"})
"""Datatypes that JSON cannot carry."""
_INTEGERS_BELOW: Final = 10
"""Small numbers fit every integer type, and are indices that even a small table has."""
_WORDS: Final = (b"sluice", b"gate", b"water", b"lock", "Schütz".encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorShape:
    """One input or output, as the metadata call describes it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """-1 is a dimension that varies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What a name takes and gives."""

    name: str
    inputs: tuple[TensorShape, ...]
    outputs: tuple[TensorShape, ...]

    @property
    def has_json_form(self) -> bool:
        """Whether every tensor of a request and of its answer can be JSON."""
        return all(t.datatype not in WITHOUT_JSON for t in (*self.inputs, *self.outputs))


def signature(metadata: Mapping[str, Any]) -> Signature:  # Any: JSON
    """Read the metadata of a model or route.

    Raises:
        ValueError: it describes no inputs, or a datatype that the protocol does not have.
    """
    sides = [
        tuple(
            TensorShape(name=t["name"], datatype=t["datatype"], shape=tuple(t["shape"]))
            for t in metadata.get(side, ())
        )
        for side in ("inputs", "outputs")
    ]
    unknown = [t.datatype for side in sides for t in side if t.datatype not in DATATYPES]
    if unknown:
        raise ValueError(f"model {metadata['name']!r} has the unknown datatype {unknown[0]!r}")
    if not sides[0]:
        raise ValueError(f"model {metadata['name']!r} has no inputs")
    return Signature(name=metadata["name"], inputs=sides[0], outputs=sides[1])


def random_row(taken: Signature, rng: np.random.Generator) -> tuple[Tensor, ...]:
    """Return one row of random, finite, valid tensors for every input."""
    tensors = []
    for spec in taken.inputs:
        shape = tuple(1 if dimension < 0 else dimension for dimension in spec.shape)
        tensors.append(from_array(spec.name, spec.datatype, _random(spec.datatype, shape, rng)))
    return tuple(tensors)


def _random(datatype: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    dtype = DATATYPES[datatype].dtype
    if datatype == BYTES:
        words = np.empty(math.prod(shape), dtype=object)
        words[:] = [_WORDS[n] for n in rng.integers(len(_WORDS), size=words.size)]
        return words.reshape(shape)
    if datatype == "BF16":  # the upper half of an FP32
        return (rng.random(shape, dtype=np.float32).view(np.uint32) >> 16).astype(dtype)
    if dtype.kind == "f":
        return rng.random(shape).astype(dtype)
    return rng.integers(2 if dtype.kind == "b" else _INTEGERS_BELOW, size=shape).astype(dtype)


def as_json(tensors: Sequence[Tensor]) -> bytes:
    """Return an HTTP body with every tensor as JSON numbers or text.

    Raises:
        ValueError: a tensor has no JSON form.
    """
    inputs = []
    for tensor in tensors:
        if tensor.datatype in WITHOUT_JSON:
            raise ValueError(f"input {tensor.name!r}: {tensor.datatype} has no JSON form")
        elements = tensor.array().reshape(-1).tolist()
        if tensor.datatype == BYTES:
            elements = [element.decode() for element in elements]
        inputs.append(_description(tensor) | {"data": elements})
    return msgspec.json.encode({"inputs": inputs})


def as_binary(tensors: Sequence[Tensor]) -> tuple[bytes, int]:
    """Return an HTTP body with every tensor behind its JSON header, and the header's length.

    The answer is asked for in the same form.
    """
    inputs = [
        _description(tensor) | {"parameters": {"binary_data_size": len(tensor.data)}}
        for tensor in tensors
    ]
    head = msgspec.json.encode({"inputs": inputs, "parameters": {"binary_data_output": True}})
    return b"".join([head, *(tensor.data for tensor in tensors)]), len(head)


def as_grpc(name: str, tensors: Sequence[Tensor], *, version: str = "") -> bytes:
    """Return a serialized ModelInferRequest with raw contents."""
    message = pb.ModelInferRequest(
        model_name=name,
        model_version=version,
        raw_input_contents=[bytes(tensor.data) for tensor in tensors],
    )
    for tensor in tensors:
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    return message.SerializeToString()


def _description(tensor: Tensor) -> dict[str, Any]:  # Any: a JSON document being written
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
