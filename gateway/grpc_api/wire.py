"""ModelInferRequest and ModelInferResponse by hand, for what callers send a million times alike.

The same results and the same errors as codec.py, for every input, at a fraction of its cost; what
is not plain goes there. Knows wire format, datatypes only through codec.py.

Theory. The fields of a message stand on their own: which order they come in, and what else is
there, changes nothing about one of them. So of a request everything but `id` and
`raw_input_contents` (the key) says the same each time it is sent, and is decoded once, by codec.py;
the id and the raw contents are cut out of every message anew. Of an answer, everything but `id` and
the data is serialized once, by protobuf.

Rules:
- A message is taken apart only if each of its fields is length-delimited, has a number below 16 and
  a length of at most four bytes; anything else is codec.py's.
- A key is remembered only after codec.py has accepted a message of that key with raw contents: so
  its names, datatypes, shapes and parameters are known to be right, and no input of it has typed
  contents. A message without raw contents, or with another number of them than inputs, is
  codec.py's, and so are all errors.
- A text is valid exactly where Python's decoder says so; protobuf has the same notion of UTF-8.
- Memory and time are bounded against callers whose every message is different: keys have a longest
  size, the memo a number of entries, the walk a number of fields.
- Parts of a large message are views of it, parts of a small one copies: a view costs more than a
  short copy, and keeps the message. What is remembered (parameters above all) is shared between
  requests and never changed.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from engines.tensors import Raw, Tensor
from gateway.grpc_api import codec
from gateway.memo import Memo
from gateway.pb import inference_pb2 as pb
from gateway.request import REQUEST_ID, InferRequest, InferResponse, ParameterValue, ServedBy

_ID: Final = 0x1A  # tags: field number << 3 | 2
_RAW: Final = 0x3A
_RAW_OUTPUT: Final = 0x32
_INFER_RESPONSE: Final = 0x12
_LONG_TAG_OR_TYPE: Final = 0x87
_LENGTH_DELIMITED: Final = 2

_VIEW_BYTES: Final = 16_384
"""From this size of a message on, its raw contents are views."""
_MAX_FIELDS: Final = range(64)
_MAX_KEY_BYTES: Final = 2_048
_MAX_ENTRIES: Final = 256
_LARGE_BYTES: Final = 1 << 16
_PARTS_OF_ONE_OUTPUT: Final = 5
_MAX_MESSAGE_BYTES: Final = (1 << 31) - (1 << 16)
"""Answers near protobuf's limit of 2 GiB are left to it."""

_Described = tuple[str, str, tuple[int, ...]]
"""Name, datatype and shape of a tensor."""
_Head = tuple[str, str, Mapping[str, ParameterValue], tuple[_Described, ...], tuple[str, ...]]
"""Name, version, parameters, inputs and outputs of a request."""

_heads: Final[Memo[bytes, _Head]] = Memo(_MAX_ENTRIES)
_new_tuple: Final = tuple.__new__  # makes a Tensor in two thirds of its constructor's time


def decode(data: Raw) -> InferRequest:
    """Decode a ModelInferRequest; a large one must not change while its request is in use.

    Raises:
        MalformedRequest, InvalidInput: as codec.decode, which see.
    """
    if len(data) >= _VIEW_BYTES:
        parts = _take_apart(memoryview(data))
    else:
        parts = _take_apart(data if type(data) is bytes else bytes(data))
    if parts is None:
        return codec.decode(data)
    key, request_id, raws = parts
    head = _heads.recent.get(key) or _heads.get(key)
    if head is None:
        return _learn(key, data)
    name, version, parameters, described, outputs = head
    if len(raws) != len(described):
        return codec.decode(data)
    if len(raws) == 1:
        tensor_name, datatype, shape = described[0]
        inputs: tuple[Tensor, ...] = (_new_tuple(Tensor, (tensor_name, datatype, shape, raws[0])),)
    else:
        inputs = tuple([Tensor(*d, raw) for d, raw in zip(described, raws, strict=True)])
    return InferRequest(name, version, request_id, parameters, inputs, outputs, "grpc")


def _take_apart(data: bytes | memoryview) -> tuple[bytes, str, list[Raw]] | None:
    """Return key, id and raw contents; None for a message that is not plain."""
    end = len(data)
    at = cut = 0  # the key is complete up to `cut`
    key = b""
    request_id = ""
    raws: list[Raw] = []
    try:
        for _ in _MAX_FIELDS:
            if at >= end:
                break
            tag = data[at]
            size = data[at + 1]
            start = at + 2
            if size > 127:
                size, start = _long_size(data, start, size)
            stop = start + size
            if tag in (_RAW, _ID):
                if tag == _RAW:
                    raws.append(data[start:stop])
                else:
                    request_id = str(data[start:stop], "utf-8")
                if cut != at:
                    key += data[cut:at]
                cut = stop
            elif tag & _LONG_TAG_OR_TYPE != _LENGTH_DELIMITED or size > _MAX_KEY_BYTES:
                return None
            at = stop
    except (IndexError, ValueError):  # it ends within a field's head; no UTF-8; a long length
        return None
    if at != end or not raws:
        return None
    return key + data[cut:], request_id, raws


def _long_size(data: bytes | memoryview, at: int, first: int) -> tuple[int, int]:
    """Return a length of two to four bytes, and where it ends; ValueError for a longer one."""
    size = first & 127
    for shift in (7, 14, 21):
        byte = data[at]
        at += 1
        size |= (byte & 127) << shift
        if byte < 128:
            return size, at
    raise ValueError("a length of more than four bytes")


def _learn(key: bytes, data: Raw) -> InferRequest:
    """Decode a message whose key is new, and remember the key."""
    request = codec.decode(data)
    if len(key) <= _MAX_KEY_BYTES:
        described = tuple((t.name, t.datatype, t.shape) for t in request.inputs)
        _heads.put(
            key,
            (request.name, request.version, request.parameters, described, request.outputs),
        )
    return request


_Template = tuple[bytes, tuple[tuple[int, bytes], ...]]
"""An answer without id and data; by output: the size its data had, the head of data that big."""

_templates: Final[Memo[tuple[object, ...], _Template]] = Memo(_MAX_ENTRIES)


def encode(response: InferResponse) -> bytes:
    """Return the answer as a serialized ModelInferResponse.

    Raises:
        EncodeError: protobuf's, for more than 2 GiB.
    """
    parts = _parts(response)
    may_be_large = len(parts[-1]) > _LARGE_BYTES or len(parts) > _PARTS_OF_ONE_OUTPUT
    if may_be_large and sum(map(len, parts)) > _MAX_MESSAGE_BYTES:
        return codec.encode(response).SerializeToString()
    return b"".join(parts)


def encode_stream(response: InferResponse, served_by: ServedBy) -> bytes:
    """Return the answer as a serialized ModelStreamInferResponse, as codec.encode_stream.

    Raises:
        EncodeError: protobuf's, for more than 2 GiB.
    """
    parts = _parts(response)
    parameters = _parameters(served_by)
    size = len(parameters) + sum(map(len, parts))
    if size > _MAX_MESSAGE_BYTES:
        return codec.encode_stream(response, served_by).SerializeToString()
    return b"".join((_field(_INFER_RESPONSE, size), parameters, *parts))


def _parts(response: InferResponse) -> list[Raw]:
    """Return what a ModelInferResponse consists of: id, template, and the data with their heads."""
    outputs = response.outputs
    model, version = response.model, response.version
    if len(outputs) == 1:
        key: tuple[object, ...] = (model, version, outputs[0][:3])
    else:
        key = (model, version, *[tensor[:3] for tensor in outputs])
    template, heads = (
        _templates.recent.get(key)
        or _templates.get(key)
        or _templates.put(key, _template(response))
    )
    parts: list[Raw] = [template]
    if response.id:
        text = response.id.encode()
        parts = [_field(_ID, len(text)), text, template]
    for tensor, (size, head) in zip(outputs, heads, strict=True):
        data = tensor.data
        parts.append(head if len(data) == size else _field(_RAW_OUTPUT, len(data)))
        parts.append(data)
    return parts


def _template(response: InferResponse) -> _Template:
    heads = ((len(t.data), _field(_RAW_OUTPUT, len(t.data))) for t in response.outputs)
    return codec.described(response).SerializeToString(), tuple(heads)


def _field(tag: int, size: int) -> bytes:
    """Return the head of a length-delimited field."""
    if size < 128:
        return bytes((tag, size))
    head = bytearray((tag,))
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    head.append(size)
    return bytes(head)


_blocks: Final[Memo[tuple[tuple[str, str], ...], bytes]] = Memo(_MAX_ENTRIES)


def _parameters(served_by: ServedBy) -> bytes:
    """Return the parameters of a stream's answer, of which only the request id is ever new."""
    lines = served_by.serving.lines
    block = _blocks.recent.get(lines) or _blocks.get(lines)
    if block is None:
        message = pb.ModelInferResponse()
        codec.add_parameters(message, lines)
        block = _blocks.put(lines, message.SerializeToString())
    return b"".join((_REQUEST_ID_HEAD, served_by.request_id.encode(), block))


def _line_head(name: str, value_bytes: int) -> bytes:
    """Return a parameter up to its value, which stands last."""
    message = pb.ModelInferResponse()
    message.parameters[name].string_param = "\0" * value_bytes
    whole: bytes = message.SerializeToString()
    return whole[: len(whole) - value_bytes]


_REQUEST_ID_HEAD: Final = _line_head(REQUEST_ID, len(ServedBy(bytes(16)).request_id))
