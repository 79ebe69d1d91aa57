"""Answers to infer requests as messages: responses, written and read by hand, and errors.

See frames.py for what a message is, and request_frames.py for the other half of the pair. The
caller's id does not travel back: the front has it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from gateway.memo import Memo
from gateway.request import NOBODY, InferResponse, ServedBy, Serving
from gateway.workers.frames import (
    DESCRIPTIONS,
    HEAD_BYTES,
    HEAD_PACK,
    TABLE,
    Definitions,
    Fetch,
    FrameError,
    Kind,
    Part,
    Place,
    check_size,
    description_of,
    encode,
    message,
    read_tensors,
    table_of,
)

RID_BYTES: Final = 16
_REMEMBERED_SERVINGS: Final = 512
_ANSWER_BYTES: Final = HEAD_BYTES + RID_BYTES
_ANSWER: Final = int(Kind.ANSWER)


class ErrorFrame(NamedTuple):
    """An error that answers a message."""

    name: str
    """Of the class."""
    sentence: str
    served_by: ServedBy | None


class _AnsweredBy(msgspec.Struct, frozen=True, array_like=True):
    """What is the same in many answers."""

    model: str
    version: str
    variant: str
    assigned: str
    revision: int
    reason: str
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]


_answered_by: Final = msgspec.msgpack.Decoder(_AnsweredBy).decode


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
            out += (HEAD_PACK(size, _ANSWER, 0, index, number), served_by.rid, data)
            return
        tail = table_of(outputs, self._place, self._threshold)
        size = _ANSWER_BYTES + sum(map(len, tail))
        check_size(size)
        out += (HEAD_PACK(size, _ANSWER, TABLE, index, number), served_by.rid, *tail)


def _describe_answer(response: InferResponse, s: Serving) -> bytes:
    tensors = tuple((t.name, t.datatype, tuple(t.shape)) for t in response.outputs)
    described = _AnsweredBy(
        response.model, response.version, s.variant, s.assigned, s.revision, s.reason, tensors
    )
    return encode(described)


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
        d = description_of(_answered_by, number, data[start:end])
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
        outputs = read_tensors(bool(flags & TABLE), tensors, data, position, end, self._fetch)
        served_by = ServedBy(data[start:position], serving)
        return InferResponse(model, version, request_id, outputs), served_by


def error_message(number: int, name: str, sentence: str, served_by: ServedBy | None) -> bytes:
    """Return the message of an error that answers message `number`."""
    who = None
    if served_by is not None:
        s = served_by.serving
        who = (served_by.rid, s.variant, s.assigned, s.revision, s.reason)
    return message(Kind.ERROR, number, encode((name, sentence, who)))


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
