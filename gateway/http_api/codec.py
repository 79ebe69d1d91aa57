"""HTTP bodies <-> InferRequest and InferResponse: JSON, and the binary tensor extension.

Knows the wire form only. Data of JSON tensors may be nested or flat and is checked element by
element by msgspec's typed decoders; binary tensors are views of the body, not copies. Unknown keys
are ignored, as the protocol wants. Binary layout: the JSON header, then the tensors in order;
`Inference-Header-Content-Length` is the header's length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from engines.base import ModelMetadata
from engines.errors import InvalidInput
from engines.tensors import (
    BYTES,
    DATATYPES,
    Raw,
    Tensor,
    check_element_count,
    check_shape,
    datatype_of,
    encode_bytes,
    out_of_range,
)
from gateway.errors import MalformedRequest, Unrepresentable
from gateway.request import (
    InferRequest,
    InferResponse,
    check_no_shared_memory,
    check_output_parameters,
)

HEADER_LENGTH: Final = "inference-header-content-length"
_MAX_LENGTH_DIGITS: Final = 20
JSON_TYPE: Final = "application/json"
BINARY_TYPE: Final = "application/octet-stream"

_Parameters = dict[str, bool | int | float | str]


class _InputTensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: _Parameters = {}
    data: msgspec.Raw = msgspec.Raw()


class _RequestedOutput(msgspec.Struct):
    name: str
    parameters: _Parameters = {}


class _RequestBody(msgspec.Struct):
    inputs: list[_InputTensor]
    id: str = ""
    parameters: _Parameters = {}
    outputs: list[_RequestedOutput] = []


class _OutputTensor(msgspec.Struct, omit_defaults=True):
    name: str
    datatype: str
    shape: Sequence[int]
    parameters: dict[str, int] = {}
    data: msgspec.Raw | None = None


class _ResponseBody(msgspec.Struct):
    model_name: str
    model_version: str
    id: str | msgspec.UnsetType
    outputs: list[_OutputTensor]


# Numbers decode strictly: no text, no booleans; integers are fine where floats are wanted.
_FLAT: Final[Mapping[str, Any]] = {  # Any: decoders of different types
    kind: msgspec.json.Decoder(element)
    for kind, element in (
        ("b", list[bool]),
        ("i", list[int]),
        ("u", list[int]),
        ("f", list[float]),
        ("O", list[str]),
    )
}
_ELEMENTS: Final[Mapping[str, Any]] = {  # Any: types as values
    "b": list[bool],
    "i": list[int],
    "u": list[int],
    "f": list[float],
    "O": list[str],
}
_body_decoder: Final = msgspec.json.Decoder(_RequestBody)
_encoder: Final = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """How the caller wants each output: binary or JSON."""

    default_binary: bool = False
    by_output: Mapping[str, bool] | None = None

    def is_binary(self, output: str) -> bool:
        """Whether this output goes behind the header as bytes."""
        if self.by_output and output in self.by_output:
            return self.by_output[output]
        return self.default_binary


def header_length(text: str | None, body_bytes: int) -> int | None:
    """Return the value of Inference-Header-Content-Length, or None without one.

    Raises:
        MalformedRequest: no number, or longer than the body.
    """
    if text is None:
        return None
    is_number = text.isdecimal() and len(text) <= _MAX_LENGTH_DIGITS
    if not is_number or int(text) > body_bytes:
        raise MalformedRequest(
            f"Inference-Header-Content-Length is {text!r}, which is no length within the "
            f"body of {body_bytes} bytes"
        )
    return int(text)


def decode(
    name: str, version: str, body: Raw, json_bytes: int | None
) -> tuple[InferRequest, AnswerForm]:
    """Decode a JSON or mixed body.

    Args:
        name: from the path.
        version: from the path; empty without one.
        body: whole and decompressed; binary inputs become views of it.
        json_bytes: length of the JSON header; None: the body is all JSON.

    Raises:
        MalformedRequest, InvalidInput: naming the field.
    """
    view = memoryview(body)
    split = len(view) if json_bytes is None else json_bytes
    try:
        parsed = _body_decoder.decode(view[:split])
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise MalformedRequest(f"request body: {exc}") from None
    inputs, position = [], split
    for tensor in parsed.inputs:
        decoded, position = _input(tensor, view, position)
        inputs.append(decoded)
    if position != len(view):
        raise MalformedRequest(
            f"request body: {len(view) - position} bytes follow the last binary tensor"
        )
    request = InferRequest(
        name=name,
        version=version,
        id=parsed.id,
        parameters=parsed.parameters,
        inputs=tuple(inputs),
        outputs=tuple(output.name for output in parsed.outputs),
        protocol="http",
    )
    return request, _form(parsed)


def _form(parsed: _RequestBody) -> AnswerForm:
    default = parsed.parameters.get("binary_data_output", False) is True
    by_output = {}
    for output in parsed.outputs:
        if output.parameters:
            check_output_parameters(output.name, output.parameters)
            if isinstance(wanted := output.parameters.get("binary_data"), bool):
                by_output[output.name] = wanted
    return AnswerForm(default_binary=default, by_output=by_output)


def _input(tensor: _InputTensor, view: memoryview, position: int) -> tuple[Tensor, int]:
    """Return an input and where the next binary one starts."""
    datatype_of(tensor.datatype, tensor.name)
    check_shape(tensor.name, tensor.shape)
    shape = tuple(tensor.shape)
    size = tensor.parameters.get("binary_data_size")
    has_data = memoryview(tensor.data).nbytes > 0
    check_no_shared_memory(f"input {tensor.name!r}", tensor.parameters)
    if size is None:
        if not has_data:
            raise MalformedRequest(f"input {tensor.name!r}: has neither data nor binary_data_size")
        data: Raw = decode_elements(tensor.name, tensor.datatype, shape, tensor.data)
        return Tensor(tensor.name, tensor.datatype, shape, data), position
    if has_data:
        raise MalformedRequest(f"input {tensor.name!r}: has both data and binary_data_size")
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise MalformedRequest(f"input {tensor.name!r}: binary_data_size {size!r} is no byte count")
    end = position + size
    if end > len(view):
        raise MalformedRequest(
            f"input {tensor.name!r}: binary_data_size is {size}, "
            f"the body has {len(view) - position} bytes left"
        )
    return Tensor(tensor.name, tensor.datatype, shape, view[position:end]), end


def decode_elements(name: str, datatype: str, shape: Sequence[int], data: msgspec.Raw) -> bytes:
    """Return JSON elements, nested or flat, as raw bytes.

    Raises:
        InvalidInput: an element of the wrong kind or out of range, or the wrong number of them.
    """
    row = DATATYPES[datatype]
    if datatype == "BF16":
        raise InvalidInput(f"input {name!r}: BF16 has no JSON form, send it as binary data")
    try:
        elements = _FLAT[row.dtype.kind].decode(data)
    except msgspec.DecodeError:
        elements = _flatten(name, datatype, shape, data)
    check_element_count(name, shape, len(elements))
    if datatype == BYTES:
        return encode_bytes(element.encode() for element in elements)
    try:
        with np.errstate(over="ignore"):
            array = np.array(elements, dtype=row.dtype)
    except (OverflowError, ValueError):
        raise out_of_range(name, datatype) from None
    if row.dtype.kind == "f" and not np.isfinite(array).all():
        raise out_of_range(name, datatype)
    return array.tobytes()


def _flatten(name: str, datatype: str, shape: Sequence[int], data: msgspec.Raw) -> list[Any]:
    """Flatten nested data, whose nesting must be that of the shape. Any: JSON elements."""
    try:
        level: Any = msgspec.json.decode(data)
    except msgspec.DecodeError as exc:
        raise MalformedRequest(f"input {name!r}: data: {exc}") from None
    if not isinstance(level, list):
        raise InvalidInput(f"input {name!r}: data is no array")
    if any(isinstance(item, list) for item in level):
        level = [level]
        for size in shape:
            if not all(isinstance(item, list) and len(item) == size for item in level):
                raise InvalidInput(f"input {name!r}: data is not nested as shape {list(shape)}")
            level = [element for item in level for element in item]
    try:
        flat: list[Any] = msgspec.convert(level, _ELEMENTS[DATATYPES[datatype].dtype.kind])
    except msgspec.ValidationError as exc:
        raise InvalidInput(f"input {name!r}: data for {datatype}: {exc}") from None
    return flat


def decode_raw(
    name: str, version: str, body: Raw, metadata: ModelMetadata
) -> tuple[InferRequest, AnswerForm]:
    """Decode a raw request (header length 0): the whole body is the only input, one row of it.

    Raises:
        InvalidInput: the model takes several inputs, or has more than one dimension to guess.
    """
    if len(metadata.inputs) != 1:
        raise InvalidInput(f"a raw request needs a model with one input, {name!r} has several")
    spec = metadata.inputs[0]
    first = 1 if metadata.max_batch_size else 0
    item_shape = spec.shape[first:]
    batch: tuple[int, ...] = (1,) * first
    if spec.datatype == BYTES:
        if math.prod(item_shape) not in (1, -1):
            raise InvalidInput(f"input {spec.name!r}: a raw request carries one BYTES element")
        shape = batch + (1,) * len(item_shape)
        data: Raw = encode_bytes([bytes(body)])
    else:
        shape = batch + _guess(
            spec.name, item_shape, len(body), DATATYPES[spec.datatype].item_bytes
        )
        data = body
    tensor = Tensor(spec.name, spec.datatype, shape, data)
    request = InferRequest(name=name, version=version, inputs=(tensor,), protocol="http")
    return request, AnswerForm(default_binary=True)


def _guess(
    name: str, item_shape: Sequence[int], body_bytes: int, item_bytes: int
) -> tuple[int, ...]:
    """Fill in the one dimension that varies from the size of the body."""
    if sum(dimension == -1 for dimension in item_shape) > 1:
        raise InvalidInput(f"input {name!r}: a raw request leaves several dimensions open")
    known = math.prod(dimension for dimension in item_shape if dimension != -1) * item_bytes
    guess = body_bytes // known if known else 0
    return tuple(guess if dimension == -1 else dimension for dimension in item_shape)


def encode(response: InferResponse, form: AnswerForm) -> tuple[bytes, int | None]:
    """Return a response body, and the length of its JSON header if tensors follow it.

    Raises:
        Unrepresentable: an output asked for as JSON that JSON cannot carry.
    """
    outputs, tail = [], []
    for tensor in response.outputs:
        out = _OutputTensor(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if form.is_binary(tensor.name):
            out.parameters = {"binary_data_size": len(tensor.data)}
            tail.append(tensor.data)
        else:
            out.data = msgspec.Raw(_json_elements(tensor))
        outputs.append(out)
    head = _encoder.encode(
        _ResponseBody(
            model_name=response.model,
            model_version=response.version,
            id=response.id or msgspec.UNSET,
            outputs=outputs,
        )
    )
    if not tail:
        return head, None
    return b"".join([head, *tail]), len(head)


def _json_elements(tensor: Tensor) -> bytes:
    advice = "ask for it with binary_data"
    if tensor.datatype == "BF16":
        raise Unrepresentable(f"output {tensor.name!r}: BF16 has no JSON form, {advice}")
    array = tensor.array()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Unrepresentable(
            f"output {tensor.name!r} holds NaN or infinity, which JSON cannot carry: {advice}"
        )
    elements = array.reshape(-1).tolist()
    if tensor.datatype == BYTES:
        try:
            elements = [element.decode() for element in elements]
        except UnicodeDecodeError:
            raise Unrepresentable(
                f"output {tensor.name!r} holds bytes that are no UTF-8 text: {advice}"
            ) from None
    return _encoder.encode(elements)
