"""Infer requests as messages, written and read by hand: this is done for every one of them.

See frames.py for what a message is. What is the same in many requests, names and shapes, is
described once per link; a request then names its description.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from gateway.request import (
    NO_PARAMETERS,
    HeaderLookup,
    InferRequest,
    ParameterValue,
    no_headers,
)
from gateway.workers.frames import (
    DESCRIPTIONS,
    TABLE,
    Definitions,
    Fetch,
    Form,
    FrameError,
    Kind,
    Part,
    Place,
    check_size,
    description_of,
    encode,
    read_tensors,
    table_of,
)
from gateway.workers.headers import HeaderBlock

_INFER_HEAD: Final = struct.Struct("<IBBHQqIII")
"""HEAD, deadline in ns or 0, bytes of headers, of the id, of the extras"""
_INFER_REST: Final = struct.Struct("<qIII")
_INFER_PACK: Final = _INFER_HEAD.pack
_INFER_UNPACK: Final = _INFER_REST.unpack_from
_INFER_BYTES: Final = _INFER_HEAD.size
_INFER_REST_BYTES: Final = _INFER_REST.size
_INFER: Final = int(Kind.INFER)
_BIG_INT: Final = 1
"""msgpack extension: an integer beyond 64 bits, as text."""


class _AskedOf(msgspec.Struct, frozen=True, array_like=True):
    """What is the same in many requests."""

    name: str
    version: str
    protocol: str
    outputs: tuple[str, ...]
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]


_asked_of: Final = msgspec.msgpack.Decoder(_AskedOf).decode


class RequestWriter:
    """Writes the requests of one link."""

    __slots__ = ("_definitions", "_place", "_threshold")

    def __init__(self, place: Place, threshold_bytes: int) -> None:
        self._definitions = Definitions()
        self._place = place
        self._threshold = threshold_bytes

    def write(
        self, out: list[Part], number: int, request: InferRequest, headers: bytes, form: Form
    ) -> None:
        """Append the request's message, after a DEFINE where it needs one."""
        flags, by_output = form
        inputs = request.inputs
        if len(inputs) == 1:
            name, datatype, shape, data = inputs[0]
            key: object = (
                request.name,
                request.version,
                request.protocol,
                request.outputs,
                name,
                datatype,
                shape,
            )
            is_small = len(data) < self._threshold
        else:
            parts = [tensor[:3] for tensor in inputs]
            key = (request.name, request.version, request.protocol, request.outputs, *parts)
            is_small = False
        index = self._definitions.find(key)
        if index is None:
            index, definition = self._definitions.define(key, _describe_request(request))
            out.append(definition)
        request_id = request.id.encode() if request.id else b""
        extras = b""
        if request.parameters or by_output:
            extras = _pack_extras(request.parameters, by_output)
        size = _INFER_BYTES + len(headers) + len(request_id) + len(extras)
        if is_small:
            size += len(data)
            tail: tuple[Part, ...] = (data,)
        else:
            flags |= TABLE
            tail = table_of(inputs, self._place, self._threshold)
            size += sum(map(len, tail))
            check_size(size)
        out += (
            _INFER_PACK(
                size,
                _INFER,
                flags,
                index,
                number,
                request.deadline_ns or 0,
                len(headers),
                len(request_id),
                len(extras),
            ),
            headers,
            request_id,
            extras,
            *tail,
        )


def _describe_request(request: InferRequest) -> bytes:
    tensors = tuple((t.name, t.datatype, tuple(t.shape)) for t in request.inputs)
    return encode(
        _AskedOf(request.name, request.version, request.protocol, request.outputs, tensors)
    )


class RequestReader:
    """Reads the requests of one link."""

    __slots__ = ("_fetch", "_known")

    def __init__(self, fetch: Fetch) -> None:
        self._known: list[_AskedOf | None] = [None] * DESCRIPTIONS
        self._fetch = fetch

    def define(self, number: int, data: bytes, start: int, end: int) -> None:
        """Take a description."""
        self._known[number] = description_of(_asked_of, number, data[start:end])

    def read(
        self, flags: int, index: int, data: bytes, start: int, end: int
    ) -> tuple[InferRequest, Mapping[str, bool]]:
        """Return a request, and the second half of its form.

        Its small tensors are copies, the large ones views of the arena.
        """
        known = self._known[index] if index < DESCRIPTIONS else None
        position = start + _INFER_REST_BYTES
        if known is None or position > end:
            raise FrameError(f"a request of description {index}, in {end - start} bytes")
        deadline_ns, headers_bytes, id_bytes, extras_bytes = _INFER_UNPACK(data, start)
        header: HeaderLookup = no_headers
        if headers_bytes:
            at, position = position, position + headers_bytes
            header = HeaderBlock(data[at:position]).find
        request_id = ""
        if id_bytes:
            at, position = position, position + id_bytes
            request_id = str(data[at:position], "utf-8")
        parameters = NO_PARAMETERS
        by_output = _ALL_ALIKE
        if extras_bytes:
            at, position = position, position + extras_bytes
            parameters, by_output = _unpack_extras(data[at:position])
        if position > end:
            raise FrameError(f"the parts of a request take {position - end} bytes too many")
        tensors = known.tensors
        inputs = read_tensors(bool(flags & TABLE), tensors, data, position, end, self._fetch)
        request = InferRequest(
            known.name,
            known.version,
            request_id,
            parameters,
            inputs,
            known.outputs,
            known.protocol,
            header,
            deadline_ns or None,
        )
        return request, by_output


_ALL_ALIKE: Final[Mapping[str, bool]] = {}


def _pack_extras(parameters: Mapping[str, ParameterValue], by_output: Mapping[str, bool]) -> bytes:
    try:
        return encode((dict(parameters), by_output))
    except OverflowError:  # an integer beyond 64 bits
        packable = {k: _packable(v) if isinstance(v, int) else v for k, v in parameters.items()}
        return encode((packable, by_output))


def _packable(value: int) -> object:
    if -(1 << 63) <= value < 1 << 64:
        return value
    return msgspec.msgpack.Ext(_BIG_INT, hex(value).encode())


def _ext(code: int, data: memoryview) -> int:
    if code != _BIG_INT:
        raise ValueError(f"extension {code}")
    return int(bytes(data), 16)


# Any: the values are checked one by one, since an extension has no type of its own.
_decode_extras: Final = msgspec.msgpack.Decoder(
    tuple[dict[str, Any], dict[str, bool]], ext_hook=_ext
).decode


def _unpack_extras(data: bytes) -> tuple[Mapping[str, ParameterValue], Mapping[str, bool]]:
    parameters, by_output = _decode_extras(data)
    if not all(isinstance(value, (bool, int, float, str)) for value in parameters.values()):
        raise FrameError("a parameter of no known type")
    return parameters, by_output
