"""The messages between a front process and the engine process, as bytes.

Knows requests and answers; knows no socket and no protocol of the outside. Both ends are of one
release and of one machine: there are no versions here, and integers are little-endian.

Every message begins with `HEAD`: its whole length, its kind, flags, an index and a number. The
number is that of a request: per link, never used twice. The pair that is hot, a request and its
answer, is written by hand; what repeats from request to request (names, versions, shapes) is
described once per link, by a DEFINE message, and then only named by its index. The rest is rare and
travels as msgpack.

  INFER    index: of its description | flags: TABLE, RAW and the answer's form
           deadline, lengths | caller's headers | id | extras | table of tensors | their bytes
  ANSWER   index: of its description | flags: TABLE | rid | table | bytes
  DEFINE   number: an index | a description, in force for all that follows on the link
  FREE     offsets in the sender's peer's arena (tensors_shared.py) that are read no more

A table has one row (size, offset) per tensor: offset -1 means that the bytes follow, any other one
is a place in shared memory. A single tensor that follows needs no table: it is the rest.

Bounds: a message is at most MAX_MESSAGE_BYTES; a link has at most DESCRIPTIONS descriptions, each
of at most DESCRIPTION_BYTES, but for index 0, which takes the long ones, each for one message.
A reader raises FrameError for bytes that are no message, whatever they are.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from engines.tensors import Raw, Tensor
from gateway.memo import Memo
from gateway.request import (
    NO_PARAMETERS,
    NOBODY,
    HeaderLookup,
    InferRequest,
    InferResponse,
    ParameterValue,
    ServedBy,
    Serving,
    no_headers,
)
from gateway.workers.headers import HeaderBlock

MAX_MESSAGE_BYTES: Final = (1 << 32) - 1
DESCRIPTIONS: Final = 1_024
DESCRIPTION_BYTES: Final = 4_096

_REMEMBERED_SERVINGS: Final = 512

HEAD: Final = struct.Struct("<IBBHQ")
"""length, kind, flags, index, number"""
HEAD_BYTES: Final = HEAD.size
_INFER_HEAD: Final = struct.Struct("<IBBHQqIII")
"""HEAD, deadline in ns or 0, bytes of headers, of the id, of the extras"""
_INFER_REST: Final = struct.Struct("<qIII")
RID_BYTES: Final = 16
_ROW: Final = struct.Struct("<qq")
_OFFSET: Final = struct.Struct("<q")
INLINE: Final = -1

TABLE: Final = 1
"""Flag: there is a table."""
RAW: Final = 2
"""Flag: the only input is a whole HTTP body, to be read by the model's signature."""
JSON: Final = 4
"""Flag: outputs are wanted as JSON, unless something else is said of one."""
BINARY: Final = 8
"""Flag: outputs are wanted as bytes, unless something else is said of one."""
_BIG_INT: Final = 1
"""msgpack extension: an integer beyond 64 bits, as text."""

Part = bytes | bytearray | memoryview


class Kind(IntEnum):
    """What a message is."""

    INFER = 1
    ANSWER = 2
    ERROR = 3
    CANCEL = 4
    DEFINE = 5
    FREE = 6
    CALL = 7
    RETURN = 8
    HTTP = 9
    HTTP_ANSWER = 10
    STATE = 11
    REFUSED = 12
    STATISTICS = 13


# What is looked up once per request, under names that are found at once.
_HEAD_PACK: Final = HEAD.pack
_INFER_PACK: Final = _INFER_HEAD.pack
_INFER_UNPACK: Final = _INFER_REST.unpack_from
_INFER_BYTES: Final = _INFER_HEAD.size
_INFER_REST_BYTES: Final = _INFER_REST.size
_ANSWER_BYTES: Final = HEAD_BYTES + RID_BYTES
_INFER: Final = int(Kind.INFER)
_ANSWER: Final = int(Kind.ANSWER)
_new_tuple: Final = tuple.__new__  # makes a Tensor in two thirds of its constructor's time


class FrameError(ValueError):
    """The bytes are no message: the link cannot go on."""


class ErrorFrame(NamedTuple):
    """An error that answers a message."""

    name: str
    """Of the class."""
    sentence: str
    served_by: ServedBy | None


Form = tuple[int, Mapping[str, bool]]
"""How an answer is wanted: RAW, JSON or BINARY; and the outputs that are wanted otherwise than JSON
or BINARY says: whether as bytes."""
NO_FORM: Final[Form] = (0, {})
"""The answer's form can carry everything, as protobuf's can."""
Place = Callable[[Raw], int]
"""Puts bytes into shared memory; returns the offset, or INLINE where there is no room."""
Fetch = Callable[[int, int], Raw]
"""Takes offset and size; returns the bytes in shared memory. ValueError: there is no such place."""


def nowhere(_: Raw) -> int:
    """Place nothing: everything travels inline."""
    return INLINE


def nothing_shared(offset: int, size: int) -> Raw:
    """Refuse every place."""
    raise FrameError(f"no shared memory at {offset}, {size} bytes")


# --- descriptions ---------------------------------------------------------------------------------


class Definitions:
    """The sender's side of a link's descriptions: which index means what to the receiver."""

    __slots__ = ("_by_key", "_next")

    def __init__(self) -> None:
        self._by_key: dict[object, int] = {}
        self._next = 1

    def find(self, key: object) -> int | None:
        """Return the index of something that was described before."""
        return self._by_key.get(key)

    def define(self, key: object, description: bytes) -> tuple[int, bytes]:
        """Return the index of something new, and the message that goes before its first use."""
        if len(description) > DESCRIPTION_BYTES:
            index = 0
        else:
            if self._next >= DESCRIPTIONS:
                self._by_key.clear()
                self._next = 1
            index = self._by_key[key] = self._next
            self._next += 1
        return index, message(Kind.DEFINE, index, description)


class _AskedOf(msgspec.Struct, frozen=True, array_like=True):
    """What is the same in many requests."""

    name: str
    version: str
    protocol: str
    outputs: tuple[str, ...]
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]


class _AnsweredBy(msgspec.Struct, frozen=True, array_like=True):
    """What is the same in many answers."""

    model: str
    version: str
    variant: str
    assigned: str
    revision: int
    reason: str
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]


_encode: Final = msgspec.msgpack.Encoder().encode
_asked_of: Final = msgspec.msgpack.Decoder(_AskedOf).decode
_answered_by: Final = msgspec.msgpack.Decoder(_AnsweredBy).decode


# --- requests -------------------------------------------------------------------------------------


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
            tail = _table(inputs, self._place, self._threshold)
            size += sum(map(len, tail))
            _check_size(size)
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
    return _encode(
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
        self._known[number] = _description(_asked_of, number, data[start:end])

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
        if flags & TABLE:
            inputs = _read_table(tensors, data, position, end, self._fetch)
        elif len(tensors) == 1:
            name, datatype, shape = tensors[0]
            inputs = (_new_tuple(Tensor, (name, datatype, shape, data[position:end])),)
        else:
            raise FrameError(f"{len(tensors)} tensors without a table")
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
        return _encode((dict(parameters), by_output))
    except OverflowError:  # an integer beyond 64 bits
        packable = {k: _packable(v) if isinstance(v, int) else v for k, v in parameters.items()}
        return _encode((packable, by_output))


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


# --- answers --------------------------------------------------------------------------------------


class AnswerWriter:
    """Writes the answers of one link."""

    __slots__ = ("_definitions", "_place", "_threshold")

    def __init__(self, place: Place, threshold_bytes: int) -> None:
        self._definitions = Definitions()
        self._place = place
        self._threshold = threshold_bytes

    def write(
        self, out: list[Part], number: int, response: InferResponse, served_by: ServedBy
    ) -> None:
        """Append the answer's message, after a DEFINE where it needs one. The id stays behind."""
        outputs = response.outputs
        if len(outputs) == 1:
            name, datatype, shape, data = outputs[0]
            key: object = (
                response.model,
                response.version,
                served_by.serving,
                name,
                datatype,
                shape,
            )
            is_small = len(data) < self._threshold
        else:
            parts = [tensor[:3] for tensor in outputs]
            key = (response.model, response.version, served_by.serving, *parts)
            is_small = False
        index = self._definitions.find(key)
        if index is None:
            description = _describe_answer(response, served_by.serving)
            index, definition = self._definitions.define(key, description)
            out.append(definition)
        if is_small:
            size = _ANSWER_BYTES + len(data)
            out += (_HEAD_PACK(size, _ANSWER, 0, index, number), served_by.rid, data)
            return
        tail = _table(outputs, self._place, self._threshold)
        size = _ANSWER_BYTES + sum(map(len, tail))
        _check_size(size)
        out += (_HEAD_PACK(size, _ANSWER, TABLE, index, number), served_by.rid, *tail)


def _describe_answer(response: InferResponse, s: Serving) -> bytes:
    tensors = tuple((t.name, t.datatype, tuple(t.shape)) for t in response.outputs)
    described = _AnsweredBy(
        response.model, response.version, s.variant, s.assigned, s.revision, s.reason, tensors
    )
    return _encode(described)


_servings: Final[Memo[tuple[str, str, int, str], Serving]] = Memo(_REMEMBERED_SERVINGS)


def serving_of(variant: str, assigned: str, revision: int, reason: str) -> Serving:
    """Return who serves; the same object for the same words, as transports remember by it."""
    key = (variant, assigned, revision, reason)
    return _servings.get(key) or _servings.put(key, Serving(*key) if any(key) else NOBODY)


class _Answerer(NamedTuple):
    """A description of answers, with what is made of it once."""

    model: str
    version: str
    serving: Serving
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]


class AnswerReader:
    """Reads the answers of one link."""

    __slots__ = ("_fetch", "_known")

    def __init__(self, fetch: Fetch) -> None:
        self._known: list[_Answerer | None] = [None] * DESCRIPTIONS
        self._fetch = fetch

    def define(self, number: int, data: bytes, start: int, end: int) -> None:
        """Take a description."""
        d = _description(_answered_by, number, data[start:end])
        serving = serving_of(d.variant, d.assigned, d.revision, d.reason)
        self._known[number] = _Answerer(d.model, d.version, serving, d.tensors)

    def read(
        self, flags: int, index: int, request_id: str, data: bytes, start: int, end: int
    ) -> tuple[InferResponse, ServedBy]:
        """Return the answer to the request of that caller's id; tensors as in a request."""
        known = self._known[index] if index < DESCRIPTIONS else None
        position = start + RID_BYTES
        if known is None or position > end:
            raise FrameError(f"an answer of description {index}, in {end - start} bytes")
        model, version, serving, tensors = known
        if flags & TABLE:
            outputs = _read_table(tensors, data, position, end, self._fetch)
        elif len(tensors) == 1:
            name, datatype, shape = tensors[0]
            outputs = (_new_tuple(Tensor, (name, datatype, shape, data[position:end])),)
        else:
            raise FrameError(f"{len(tensors)} tensors without a table")
        served_by = ServedBy(data[start:position], serving)
        return InferResponse(model, version, request_id, outputs), served_by


# --- what both have in common ---------------------------------------------------------------------


_T = TypeVar("_T")


def _description(decode: Callable[[bytes], _T], number: int, data: bytes) -> _T:
    if number >= DESCRIPTIONS:
        raise FrameError(f"description {number} of {DESCRIPTIONS}")
    try:
        return decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise FrameError(f"a description: {exc}") from None


def _table(tensors: tuple[Tensor, ...], place: Place, threshold: int) -> tuple[Part, ...]:
    """Return the rows of some tensors, and the bytes of those that are not in shared memory."""
    rows, tail = [], []
    for tensor in tensors:
        data = tensor.data
        offset = place(data) if len(data) >= threshold else INLINE
        rows.append(_ROW.pack(len(data), offset))
        if offset == INLINE:
            tail.append(data)
    return b"".join(rows), *tail


def _read_table(
    described: tuple[tuple[str, str, tuple[int, ...]], ...],
    data: bytes,
    start: int,
    end: int,
    fetch: Fetch,
) -> tuple[Tensor, ...]:
    position = start + _ROW.size * len(described)
    if position > end:
        raise FrameError("a table runs past its message")
    tensors = []
    for row, (name, datatype, shape) in enumerate(described):
        size, offset = _ROW.unpack_from(data, start + row * _ROW.size)
        if size < 0:
            raise FrameError(f"a tensor of {size} bytes")
        raw: Raw
        if offset == INLINE:
            raw = data[position : position + size]
            position += size
        else:
            raw = fetch(offset, size)
        tensors.append(Tensor(name, datatype, shape, raw))
    if position != end:
        raise FrameError(f"the tensors take {position - end} bytes more than there are")
    return tuple(tensors)


def _check_size(size: int) -> None:
    if size > MAX_MESSAGE_BYTES:
        raise FrameError(f"a message of {size} bytes; {MAX_MESSAGE_BYTES} is the limit")


def message(kind: Kind, number: int, body: bytes = b"", *, index: int = 0) -> bytes:
    """Return a whole message."""
    size = HEAD_BYTES + len(body)
    _check_size(size)
    return _HEAD_PACK(size, kind, 0, index, number) + body


def free_message(offsets: list[int]) -> bytes:
    """Return the message that gives places in shared memory back."""
    return message(Kind.FREE, 0, b"".join(map(_OFFSET.pack, offsets)))


def read_offsets(data: bytes, start: int, end: int) -> list[int]:
    """Return the offsets of a FREE message."""
    if (end - start) % _OFFSET.size:
        raise FrameError("offsets end early")
    return [offset for (offset,) in _OFFSET.iter_unpack(data[start:end])]


def error_message(number: int, name: str, sentence: str, served_by: ServedBy | None) -> bytes:
    """Return the message of an error that answers message `number`."""
    who = None
    if served_by is not None:
        s = served_by.serving
        who = (served_by.rid, s.variant, s.assigned, s.revision, s.reason)
    return message(Kind.ERROR, number, _encode((name, sentence, who)))


_decode_error: Final = msgspec.msgpack.Decoder(
    tuple[str, str, tuple[bytes, str, str, int, str] | None]
).decode


def read_error(data: bytes, start: int, end: int) -> ErrorFrame:
    """Return an error."""
    try:
        name, sentence, who = _decode_error(data[start:end])
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise FrameError(f"an error: {exc}") from None
    served_by = None if who is None else ServedBy(who[0], serving_of(*who[1:]))
    return ErrorFrame(name, sentence, served_by)
