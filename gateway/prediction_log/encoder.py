"""A prediction record to the bytes of record.py's envelope.

Two ways to the same document. Ordinary records (answered, from a batch, every tensor within the
limit) are put together from parts: what their origin and the form of their tensors have in common
is encoded once and kept, the rest is one `struct.pack` and one join, 2 us in all. All others are
encoded field by field with msgspec. tests/unit/gateway/test_record.py holds the two together.

The parts are msgpack: a map's header, then key and value after key and value. Numbers that vary
are written in a fixed width, which the format allows and every reader takes.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgspec

from engines.batcher import Execution
from engines.tensors import BYTES, DATATYPES, Raw, Tensor
from gateway.memo import Memo
from gateway.prediction_log.record import (
    BASE,
    CODEC_MSGPACK,
    ERROR,
    KEYS,
    SCHEMA,
    UNKNOWN_PROPENSITY,
    LoggedPrediction,
    LoggedTensor,
    Origin,
    PredictionRecord,
    Reduced,
)

_CUT: Final = "trunc"
_OK: Final = 200
_LENGTH: Final = struct.Struct("<I")
_NS_PER_US: Final = 1_000
_MAX_PARTS: Final = 1024
"""Origins and forms of tensors kept."""
_encode: Final = msgspec.msgpack.Encoder().encode

# The header of a map, then rid, ts, seq, tt, tq, tb, ti, bs: each key with its length (0xa0 | n)
# and the type of its value (0xc4: binary of so many bytes, 0xcf: 64 bits, 0xce: 32 bits).
_head: Final = struct.Struct(">BBH 6s16s 4sQ 5sQ 4sI 4sI 4sI 4sI 4sI").pack
_HEAD_FIELDS: Final = 8
_TENSOR_FIELDS: Final = 2
_MAP16: Final = 0xDE
_CODEC: Final = CODEC_MSGPACK[0]

_Form = tuple[str, str, tuple[int, ...], int]
"""Name, datatype, shape and size of a tensor."""


class RecordEncoder:
    """Encodes the records of one process's life.

    Args:
        worker: its name, in every record.
        capture_max_bytes: a tensor over this is cut and flagged.
    """

    def __init__(self, *, worker: str, capture_max_bytes: int) -> None:
        self._worker = worker
        self._limit_bytes = capture_max_bytes
        self._origins: Memo[Origin, tuple[int, bytes]] = Memo(_MAX_PARTS // 2)
        self._forms: Memo[_Form, bytes] = Memo(_MAX_PARTS // 2)

    def encode(self, record: PredictionRecord, seq: int) -> bytes:
        """Return the blob of a record; `seq` is its number in its stream."""
        execution = record.execution
        is_answer = record.status == _OK and not record.error
        if execution is not None and is_answer and not record.parent_rid:
            try:
                return self._join(record, execution, seq)
            except (_Unusual, struct.error):  # a number beyond its width: an hour in a queue
                pass
        return _encode_fields(
            record, worker=self._worker, seq=seq, capture_max_bytes=self._limit_bytes
        )

    def _join(self, record: PredictionRecord, execution: Execution, seq: int) -> bytes:
        """Put an ordinary record together; raises _Unusual."""
        origin, origins = record.origin, self._origins
        known = origins.recent.get(origin) or origins.get(origin)
        fields, common = known or self._know(origin)
        pieces: list[Raw] = [b"", common]
        if record.cid:
            fields += 1
            pieces.append(b"\xa3cid" + _encode(record.cid))
        self._append(pieces, b"\xa2in", record.inputs)
        self._append(pieces, b"\xa3out", record.outputs)
        pieces[0] = _head(
            _CODEC, _MAP16, fields + _HEAD_FIELDS + _TENSOR_FIELDS,
            b"\xa3rid\xc4\x10", record.rid,
            b"\xa2ts\xcf", record.ts_us,
            b"\xa3seq\xcf", seq,
            b"\xa2tt\xce", record.total_us,
            b"\xa2tq\xce", record.queue_us,
            b"\xa2tb\xce", (execution.input_ns + execution.output_ns) // _NS_PER_US,
            b"\xa2ti\xce", execution.infer_ns // _NS_PER_US,
            b"\xa2bs\xce", execution.rows,
        )  # fmt: skip
        return b"".join(pieces)

    def _append(self, pieces: list[Raw], key: bytes, tensors: tuple[Tensor, ...]) -> None:
        """Append a key and a map of tensors; raises _Unusual where one is over the limit."""
        if not 0 < len(tensors) < 16:
            raise _Unusual
        pieces.append(key + bytes((0x80 | len(tensors),)))
        forms = self._forms
        for name, datatype, shape, data in tensors:
            size = len(data)
            kind = (name, datatype, shape, size)
            form = forms.recent.get(kind) or forms.get(kind)
            if form is None:
                form = self._know_form(name, datatype, shape, size)
            pieces += (form, data)

    def _know(self, origin: Origin) -> tuple[int, bytes]:
        """Encode what the records of an origin have in common: how many fields, and their bytes."""
        document: dict[str, Any] = {  # Any: msgpack values
            KEYS[field]: value for field in Origin.__slots__ if (value := getattr(origin, field))
        }
        document |= {KEYS["schema"]: SCHEMA, KEYS["status"]: _OK, KEYS["weight"]: 1.0}
        document |= {KEYS["sampled_as"]: BASE, KEYS["worker"]: self._worker}
        document.setdefault(KEYS["name"], origin.name)
        pairs = [_encode(key) + _encode(value) for key, value in document.items()]
        return self._origins.put(origin, (len(pairs), b"".join(pairs)))

    def _know_form(self, name: str, datatype: str, shape: tuple[int, ...], size: int) -> bytes:
        """Encode what stands before a tensor's bytes: its name, and an array of three."""
        if size > self._limit_bytes:
            raise _Unusual
        array = b"\x93" + _encode(datatype) + _encode(shape)
        form = _encode(name) + array + b"\xc6" + size.to_bytes(4, "big")
        return self._forms.put((name, datatype, shape, size), form)


class _Unusual(Exception):
    """A record that is not put together from parts."""


def _encode_fields(
    record: PredictionRecord, *, worker: str, seq: int, capture_max_bytes: int
) -> bytes:
    """Encode any record, field by field."""
    origin, execution = record.origin, record.execution
    logged = LoggedPrediction(
        schema=SCHEMA,
        rid=record.rid,
        ts_us=record.ts_us,
        name=origin.name,
        status=record.status,
        weight=1.0,
        sampled_as=ERROR if record.status >= 400 else BASE,
        worker=worker,
        seq=seq,
        cid=record.cid,
        model=origin.model,
        version=origin.version,
        artefact=origin.artefact,
        revision=origin.revision,
        variant=origin.variant,
        served=origin.served,
        # A default is left out by identity, and a float computed elsewhere may be equal to it
        # without being it. Empty strings, empty bytes and small integers are single objects.
        propensity=origin.propensity or UNKNOWN_PROPENSITY,
        reason=origin.reason,
        error=record.error,
        queue_us=record.queue_us,
        batch_us=(execution.input_ns + execution.output_ns) // _NS_PER_US if execution else 0,
        infer_us=execution.infer_ns // _NS_PER_US if execution else 0,
        total_us=record.total_us,
        batch_rows=execution.rows if execution else 0,
        device=origin.device,
        inputs={t.name: _captured(t, capture_max_bytes) for t in record.inputs},
        outputs={t.name: _captured(t, capture_max_bytes) for t in record.outputs},
        parent_rid=record.parent_rid,
        is_shadow=origin.is_shadow,
    )
    return CODEC_MSGPACK + _encode(logged)


def _captured(tensor: Tensor, limit_bytes: int) -> LoggedTensor:
    data = tensor.data
    if len(data) <= limit_bytes:
        whole = data if type(data) is bytes else bytes(data)
        return LoggedTensor(tensor.datatype, tensor.shape, whole)
    kept = bytes(memoryview(data)[: _whole_elements(tensor.datatype, data, limit_bytes)])
    cut = Reduced(kind=_CUT, kept_bytes=len(kept), data=kept)
    return LoggedTensor(tensor.datatype, tensor.shape, cut)


def _whole_elements(datatype: str, data: Raw, limit_bytes: int) -> int:
    """Return the end of the last element that lies wholly within the first `limit_bytes`."""
    if datatype != BYTES:
        return limit_bytes - limit_bytes % DATATYPES[datatype].item_bytes
    end = 0
    while end + _LENGTH.size <= limit_bytes:
        following = end + _LENGTH.size + _LENGTH.unpack_from(data, end)[0]
        if following > limit_bytes:
            break
        end = following
    return end
