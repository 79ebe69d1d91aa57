"""HTTP bodies <-> InferRequest and InferResponse: JSON, and the binary tensor extension.

Knows the wire form only; the elements of JSON tensors are elements.py's. Binary tensors are views
of the body, not copies. Unknown keys are ignored, as the protocol wants. Binary layout: the JSON
header, then the tensors in order; `Inference-Header-Content-Length` is the header's length.

What callers send alike each time is decoded once: a binary body's JSON header is remembered by its
bytes, together with the sizes of the tensors, after a body with it was found right; so every error
comes from the long way. Of an answer, all but id and data is a template. Both memos are bounded in
entries and in the size of one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from engines.base import ModelMetadata
from engines.errors import InvalidInput
from engines.tensors import (
    BYTES,
    DATATYPES,
    Raw,
    Tensor,
    check_shape,
    datatype_of,
    encode_bytes,
)
from gateway.errors import MalformedRequest
from gateway.http_api import elements
from gateway.memo import Memo
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


class _InputTensor(msgspec.Struct, gc=False):
    name: str
    shape: list[int]
    datatype: str
    parameters: _Parameters = {}
    data: msgspec.Raw = msgspec.Raw()


class _RequestedOutput(msgspec.Struct, gc=False):
    name: str
    parameters: _Parameters = {}


class _RequestBody(msgspec.Struct, gc=False):
    inputs: list[_InputTensor]
    id: str = ""
    parameters: _Parameters = {}
    outputs: list[_RequestedOutput] = []


_decode_body: Final = msgspec.json.Decoder(_RequestBody).decode
_encode_json: Final = msgspec.json.Encoder().encode
_new_tuple: Final = tuple.__new__  # makes a Tensor in two thirds of its constructor's time


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


_JSON_FORM: Final = AnswerForm()
_BINARY_FORM: Final = AnswerForm(default_binary=True)


class _Header(NamedTuple):
    """What a binary body's JSON header says, and the bytes that it makes the tensors take."""

    id: str
    parameters: _Parameters
    outputs: tuple[str, ...]
    form: AnswerForm
    inputs: tuple[tuple[str, str, tuple[int, ...], int], ...]
    tensor_bytes: int


_headers: Final[Memo[bytes, _Header]] = Memo(256)
_MAX_HEADER_BYTES: Final = 2_048


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
    if json_bytes is None:
        return _decode(name, version, body, memoryview(body), b"")
    view = memoryview(body)
    if json_bytes > _MAX_HEADER_BYTES:
        return _decode(name, version, view[:json_bytes], view, b"")
    head = bytes(body[:json_bytes])
    header = _headers.recent.get(head) or _headers.get(head)
    if header is None or len(view) - json_bytes != header.tensor_bytes:
        return _decode(name, version, head, view, head)
    request_id, parameters, outputs, form, described, _ = header
    inputs, position = [], json_bytes
    for tensor_name, datatype, shape, size in described:
        end = position + size
        inputs.append(_new_tuple(Tensor, (tensor_name, datatype, shape, view[position:end])))
        position = end
    request = InferRequest(name, version, request_id, parameters, tuple(inputs), outputs, "http")
    return request, form


def _decode(
    name: str, version: str, head: Raw, view: memoryview, key: bytes
) -> tuple[InferRequest, AnswerForm]:
    """Decode a body, and remember its JSON header by `key`, unless that is empty."""
    try:
        parsed = _decode_body(head)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise MalformedRequest(f"request body: {exc}") from None
    inputs, position = [], len(head)
    for tensor in parsed.inputs:
        decoded, position = _input(tensor, view, position)
        inputs.append(decoded)
    if position != len(view):
        raise MalformedRequest(
            f"request body: {len(view) - position} bytes follow the last binary tensor"
        )
    outputs = tuple([output.name for output in parsed.outputs]) if parsed.outputs else ()
    form = _form(parsed) if parsed.parameters or parsed.outputs else _JSON_FORM
    request = InferRequest(
        name, version, parsed.id, parsed.parameters, tuple(inputs), outputs, "http"
    )
    if key:
        _remember(key, parsed, request, form)
    return request, form


def _remember(key: bytes, parsed: _RequestBody, request: InferRequest, form: AnswerForm) -> None:
    """Remember a JSON header that was found right, if all the tensors are binary."""
    if any("binary_data_size" not in tensor.parameters for tensor in parsed.inputs):
        return
    inputs = tuple((t.name, t.datatype, t.shape, len(t.data)) for t in request.inputs)
    header = _Header(
        request.id,
        parsed.parameters,
        request.outputs,
        form,
        inputs,
        sum(len(tensor.data) for tensor in request.inputs),
    )
    _headers.put(key, header)


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
    if not tensor.parameters:
        shape = tuple(tensor.shape)
        packed = elements.pack(tensor.datatype, shape, tensor.data)
        if packed is not None:
            made = _new_tuple(Tensor, (tensor.name, tensor.datatype, shape, packed))
            return made, position
    datatype_of(tensor.datatype, tensor.name)
    check_shape(tensor.name, tensor.shape)
    shape = tuple(tensor.shape)
    size = tensor.parameters.get("binary_data_size")
    has_data = memoryview(tensor.data).nbytes > 0
    check_no_shared_memory(f"input {tensor.name!r}", tensor.parameters)
    if size is None:
        if not has_data:
            raise MalformedRequest(f"input {tensor.name!r}: has neither data nor binary_data_size")
        data: Raw = elements.decode(tensor.name, tensor.datatype, shape, tensor.data)
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
    return request, _BINARY_FORM


def _guess(
    name: str, item_shape: Sequence[int], body_bytes: int, item_bytes: int
) -> tuple[int, ...]:
    """Fill in the one dimension that varies from the size of the body."""
    if sum(dimension == -1 for dimension in item_shape) > 1:
        raise InvalidInput(f"input {name!r}: a raw request leaves several dimensions open")
    known = math.prod(dimension for dimension in item_shape if dimension != -1) * item_bytes
    guess = body_bytes // known if known else 0
    return tuple(guess if dimension == -1 else dimension for dimension in item_shape)


class _Output(NamedTuple):
    """How one output of a template is written."""

    head: bytes
    """Its JSON, from the comma before it, up to the size or the elements of its data."""
    layout: elements.Layout | None
    """For JSON by the short way."""
    size: bytes
    """For binary data of `size_bytes`, and what follows; empty: this output is JSON."""
    size_bytes: int


_Template = tuple[bytes, tuple[_Output, ...]]
"""An answer's JSON up to its id, and its outputs."""

_templates: Final[Memo[tuple[object, ...], _Template]] = Memo(256)


def encode(response: InferResponse, form: AnswerForm) -> tuple[bytes, int | None]:
    """Return a response body, and the length of its JSON header if tensors follow it.

    Raises:
        Unrepresentable: an output asked for as JSON that JSON cannot carry.
    """
    start, outputs = _template(response, form)
    parts = [start]
    tail: list[Raw] = []
    if response.id:
        parts += (b',"id":', _encode_json(response.id))
    for tensor, (head, layout, size, size_bytes) in zip(response.outputs, outputs, strict=True):
        if size:
            data = tensor.data
            tail.append(data)
            parts += (head, size if len(data) == size_bytes else _size(data))
        else:
            parts += (head, elements.unpack(tensor, layout) or elements.encode(tensor), b"}")
    parts.append(b"]}" if outputs else b',"outputs":[]}')
    content = b"".join(parts)
    if not tail:
        return content, None
    return b"".join((content, *tail)), len(content)


def _size(data: Raw) -> bytes:
    return b"%d}}" % len(data)


def _template(response: InferResponse, form: AnswerForm) -> _Template:
    """Return what answers of this model, these outputs and this form have in common."""
    tensors = response.outputs
    if len(tensors) == 1:
        (tensor,) = tensors
        what: tuple[object, ...] = (form.is_binary(tensor.name), tensor[:3])
    else:
        what = tuple([(form.is_binary(tensor.name), tensor[:3]) for tensor in tensors])
    key = (response.model, response.version, what)
    return _templates.recent.get(key) or _templates.get(key) or _prepare(key, response, form)


def _prepare(key: tuple[object, ...], response: InferResponse, form: AnswerForm) -> _Template:
    served = {"model_name": response.model, "model_version": response.version}
    outputs = []
    before = b',"outputs":['
    for tensor in response.outputs:
        name, datatype, shape, data = tensor
        head = before + _encode_json({"name": name, "datatype": datatype, "shape": shape})[:-1]
        before = b","
        if form.is_binary(name):
            head += b',"parameters":{"binary_data_size":'
            outputs.append(_Output(head, None, _size(data), len(data)))
        else:
            layout = elements.layout_of(datatype, shape)
            outputs.append(_Output(head + b',"data":', layout, b"", 0))
    return _templates.put(key, (_encode_json(served)[:-1], tuple(outputs)))
