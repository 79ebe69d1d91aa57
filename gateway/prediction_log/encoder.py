"""A prediction record to the bytes of record.py's envelope.

A blob is put together from pieces: what the records of one choice, the requests of one batch and
the tensors of one form have in common is encoded once and kept; the rest is one `struct.pack` and
one join, 1 us in all for one input and one output. Only a record with a number beyond its width (an
hour in a queue, a clock that ran backwards) has its fields encoded one by one, to the same
document; tests/unit/gateway/test_record_encoder.py holds the two together.

The pieces are msgpack: a map's header, then key and value after key and value. Numbers that vary
are written in a fixed width, which the format allows and every reader takes.

What is kept of a tensor is decided by capture/policy.py. A tensor that takes more than a look makes
the record a `Deferred`.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import Any, Final

import msgspec

from engines.executed import Execution
from engines.tensors import Raw, Tensor
from gateway.memo import Memo
from gateway.prediction_log.capture.deferred import (
    HEAD_PIECES,
    Deferred,
    Finished,
    Work,
    other_form,
    whole_form,
)
from gateway.prediction_log.capture.policy import NamePolicy, Plan
from gateway.prediction_log.capture.reduction import LOST
from gateway.prediction_log.record import (
    CODEC_MSGPACK,
    KEYS,
    SCHEMA,
    Origin,
    PredictionRecord,
)

__all__ = ["Deferred", "Finished", "RecordEncoder"]

_NS_PER_US: Final = 1_000
_MAX_PARTS: Final = 1024
"""Origins and forms of tensors kept."""
_encode: Final = msgspec.msgpack.Encoder().encode

# The header of a map, then rid, ts, seq, tt, tq: each key with its length (0xa0 | n) and the type
# of its value (0xc4: binary of so many bytes, 0xcf: 64 bits, 0xce: 32 bits).
_head: Final = struct.Struct(">BBH 6s16s 4sQ 5sQ 4sI 4sI").pack
_batch: Final = struct.Struct(">4sI 4sI 4sI").pack
_HEAD_FIELDS: Final = 5
_BATCH_FIELDS: Final = 3
_MAP16: Final = 0xDE
_CODEC: Final = CODEC_MSGPACK[0]
_SMALL_MAP: Final = 16
# A key and the header of a map of each small number of tensors.
_INPUTS: Final = tuple(b"\xa2in" + bytes((0x80 | count,)) for count in range(_SMALL_MAP))
_OUTPUTS: Final = tuple(b"\xa3out" + bytes((0x80 | count,)) for count in range(_SMALL_MAP))
_PAIR_PIECES: Final = HEAD_PIECES + 2 * 3
"""Pieces of a record of an input and an output that are written as they are."""

_Form = tuple[str, str, tuple[int, ...], int]
"""Name, datatype, shape and size of a tensor."""
_Forms = Memo[_Form, tuple[bytes, Plan | None]]
_Pair = tuple[str, str, tuple[int, ...], int, str, str, tuple[int, ...], int]
"""The forms of an input and an output."""


class RecordEncoder:
    """Encodes the records of one public name, of one process's life.

    Args:
        worker: the process's name, in every record.
        policy: what is kept.
    """

    def __init__(self, *, worker: str, policy: NamePolicy) -> None:
        self._worker = worker
        self._policy = policy
        self._origins: Memo[tuple[Any, ...], tuple[int, bytes]] = Memo(_MAX_PARTS // 2)
        self._inputs: _Forms = Memo(_MAX_PARTS // 2)
        self._outputs: _Forms = Memo(_MAX_PARTS // 2)
        self._pairs: Memo[_Pair, tuple[bytes, bytes]] = Memo(_MAX_PARTS // 2)
        # Of the record before this one: most are of the same batch. Compared by identity.
        self._origin: Origin | None = None
        self._execution: Execution | None = None
        self._status, self._error, self._weight, self._sampled_as = 0, "", 0.0, ""
        self._of_choice = 0, b""
        self._fields, self._shared = 0, b""

    def encode(self, record: PredictionRecord, seq: int) -> bytes | Deferred:
        """Return the blob of a record, or what is to be done for it.

        Args:
            record: its buffers must not change before it is finished.
            seq: its number in its stream.
        """
        inputs, outputs = record.inputs, record.outputs
        try:
            if (
                record.origin is not self._origin
                or record.sampled_as != self._sampled_as
                or record.weight != self._weight
                or record.status != self._status
                or record.error != self._error
            ):
                self._share(record)
            elif record.execution is not self._execution:
                self._share_batch(record.execution)
            fields, own = self._fields, b""
            if record.cid or record.subject or record.parent_rid:
                more, own = self._own(record)
                fields += more
            head = _head(
                _CODEC, _MAP16, fields + bool(inputs) + bool(outputs),
                b"\xa3rid\xc4\x10", record.rid,
                b"\xa2ts\xcf", record.ts_us,
                b"\xa3seq\xcf", seq,
                b"\xa2tt\xce", record.total_us,
                b"\xa2tq\xce", record.queue_us,
            )  # fmt: skip
            shared = self._shared
        except struct.error:
            self._origin = None  # what is shared may be of another record
            document = self._document(record, record.weight)
            head, shared, own = _head_of(document, _sides(record), seq), b"", b""
        if len(inputs) == 1 and len(outputs) == 1:
            ((name, datatype, shape, data),) = inputs
            ((out_name, out_datatype, out_shape, out_data),) = outputs
            pair = (
                name, datatype, shape, len(data),
                out_name, out_datatype, out_shape, len(out_data),
            )  # fmt: skip
            known = self._pairs.recent.get(pair) or self._pairs.get(pair)
            if known is not None:
                return b"".join((head, shared, own, known[0], data, known[1], out_data))
        return self._assemble(record, [head, shared, own])

    def _share(self, record: PredictionRecord) -> None:
        """Encode what the records of a choice and a batch have in common; raises struct.error."""
        origin = record.origin
        key = (origin, record.status, record.error, record.weight, record.sampled_as)
        origins = self._origins
        known = origins.recent.get(key) or origins.get(key)
        self._of_choice = known or self._know_origin(key, record)
        self._origin = origin
        self._status, self._error = record.status, record.error
        self._weight, self._sampled_as = record.weight, record.sampled_as
        self._share_batch(record.execution)

    def _share_batch(self, execution: Execution | None) -> None:
        """Add what the records of a batch have in common to that of the choice."""
        fields, shared = self._of_choice
        if execution is not None:
            fields += _BATCH_FIELDS
            shared += _batch(
                b"\xa2tb\xce", (execution.input_ns + execution.output_ns) // _NS_PER_US,
                b"\xa2ti\xce", execution.infer_ns // _NS_PER_US,
                b"\xa2bs\xce", execution.rows,
            )  # fmt: skip
        self._fields, self._shared, self._execution = fields, shared, execution

    def _know_origin(self, key: tuple[Any, ...], record: PredictionRecord) -> tuple[int, bytes]:
        document = self._common(record, record.weight)
        pairs = [_encode(key) + _encode(value) for key, value in document.items()]
        return self._origins.put(key, (len(pairs) + _HEAD_FIELDS, b"".join(pairs)))

    def _common(self, record: PredictionRecord, weight: float) -> dict[str, Any]:
        """Return the fields that do not differ between the records of a choice."""
        origin = record.origin
        document: dict[str, Any] = {  # Any: msgpack values, here and below
            KEYS[field]: value for field in Origin.__slots__ if (value := getattr(origin, field))
        }
        document |= {KEYS["name"]: origin.name, KEYS["schema"]: SCHEMA, KEYS["weight"]: weight}
        document |= {KEYS["sampled_as"]: record.sampled_as, KEYS["worker"]: self._worker}
        document[KEYS["status"]] = record.status
        if record.error:
            document[KEYS["error"]] = record.error
        if self._policy.columns_digest:
            document[KEYS["columns"]] = self._policy.columns_digest
        return document

    def _own(self, record: PredictionRecord) -> tuple[int, bytes]:
        """Encode what is rarely there and differs between records: how many fields, and they."""
        fields, encoded = 0, b""
        if record.cid:
            fields, encoded = 1, b"\xa3cid" + _encode(record.cid)
        if record.parent_rid:
            fields += 1
            encoded += b"\xa4prid\xc4\x10" + record.parent_rid
        if record.subject:
            tag = self._policy.tag(record.subject)
            if tag:
                fields += 1
                encoded += b"\xa3sub" + _encode(tag)
        return fields, encoded

    def _document(self, record: PredictionRecord, weight: float) -> dict[str, Any]:
        """Return all fields but the number and the tensors."""
        execution = record.execution
        rest: dict[str, Any] = {
            "cid": record.cid,
            KEYS["parent_rid"]: record.parent_rid,
            KEYS["subject"]: self._policy.tag(record.subject) if record.subject else b"",
            KEYS["total_us"]: record.total_us,
            KEYS["queue_us"]: record.queue_us,
        }
        if execution is not None:
            rest[KEYS["batch_us"]] = (execution.input_ns + execution.output_ns) // _NS_PER_US
            rest[KEYS["infer_us"]] = execution.infer_ns // _NS_PER_US
            rest[KEYS["batch_rows"]] = execution.rows
        document = self._common(record, weight)
        document |= {"rid": record.rid, KEYS["ts_us"]: record.ts_us}
        return document | {key: value for key, value in rest.items() if value}

    def _assemble(self, record: PredictionRecord, pieces: list[Raw]) -> bytes | Deferred:
        """Put a record of any tensors together, behind the pieces of its head."""
        works: dict[int, Work] = {}
        if record.inputs:
            self._append(pieces, works, record, self._inputs)
        if record.outputs:
            self._append(pieces, works, record, self._outputs)
        blob = b"".join(pieces)
        if not works:
            if len(pieces) == _PAIR_PIECES:
                self._note_pair(record)
            return blob
        head_of_whole = None
        if any(work.plan.is_large for work in works.values()) and self._is_kept_whole(record):
            weight = record.weight / self._policy.whole_share.share
            head_of_whole = partial(_head_of, self._document(record, weight), _sides(record))
        held_bytes = sum(len(work.tensor.data) for work in works.values())
        return Deferred(blob, held_bytes, pieces, works, head_of_whole)

    def _note_pair(self, record: PredictionRecord) -> None:
        """Keep the forms of an input and an output that are written as they are."""
        if len(record.inputs) != 1 or len(record.outputs) != 1:
            return
        kind, out_kind = _form_of(record.inputs[0]), _form_of(record.outputs[0])
        known, out_known = self._inputs.get(kind), self._outputs.get(out_kind)
        if known is not None and out_known is not None and known[1] is None is out_known[1]:
            forms = (_INPUTS[1] + known[0], _OUTPUTS[1] + out_known[0])
            self._pairs.put((*kind, *out_kind), forms)

    def _is_kept_whole(self, record: PredictionRecord) -> bool:
        return self._policy.whole_share.takes(record.parent_rid or record.rid)

    def _append(
        self, pieces: list[Raw], works: dict[int, Work], record: PredictionRecord, forms: _Forms
    ) -> None:
        """Append a map of tensors, and note what is to be done in place of which piece."""
        is_input = forms is self._inputs
        tensors = record.inputs if is_input else record.outputs
        pieces.append(_map_head(_INPUTS if is_input else _OUTPUTS, len(tensors)))
        for tensor in tensors:
            name, datatype, shape, data = tensor
            kind = (name, datatype, shape, len(data))
            known = forms.recent.get(kind) or forms.get(kind)
            form, plan = known or self._know_form(kind, forms)
            if plan is None:
                pieces += (form, data)
            elif plan.treatment.is_dropped:
                pieces.append(form)
            else:
                work = self._work(tensor, plan, record)
                if plan.is_deferred or (plan.is_large and self._is_kept_whole(record)):
                    works[len(pieces)] = work
                    pieces.append(form)
                else:
                    pieces += work.carry_out()[0]

    def _work(self, tensor: Tensor, plan: Plan, record: PredictionRecord) -> Work:
        policy = self._policy
        key = policy.sealing_key(record.subject) if plan.treatment.is_sealed else None
        return Work(tensor, plan, record.rid, key, policy.max_bytes, policy.references)

    def _know_form(self, kind: _Form, forms: _Forms) -> tuple[bytes, Plan | None]:
        """Encode what stands in a record for a tensor, or before its bytes if they are kept."""
        name, datatype, shape, size = kind
        # Texts differ in size, and most are dropped: those share one entry.
        dropped = (name, datatype, shape, -1)
        known = forms.get(dropped)
        if known is not None:
            return known
        plan = self._policy.plan(name, datatype, shape, size, forms is self._inputs)
        if plan.treatment.is_dropped:
            return forms.put(dropped, (other_form(name, datatype, shape), plan))
        if plan.is_whole:
            return forms.put(kind, (whole_form(name, datatype, shape, size), None))
        return forms.put(kind, (other_form(name, datatype, shape, LOST), plan))


def _map_head(heads: tuple[bytes, ...], count: int) -> bytes:
    if count < _SMALL_MAP:
        return heads[count]
    return heads[0][:-1] + b"\xde" + count.to_bytes(2, "big")


def _head_of(document: dict[str, Any], sides: int, seq: int) -> bytes:
    """Encode all that stands before the tensors: the other fields; `sides` of tensors follow."""
    document = document | {"seq": seq}
    pairs = [_encode(key) + _encode(value) for key, value in document.items()]
    fields = len(document) + sides
    return b"".join((bytes((_CODEC, _MAP16)), fields.to_bytes(2, "big"), *pairs))


def _form_of(tensor: Tensor) -> _Form:
    return (tensor.name, tensor.datatype, tensor.shape, len(tensor.data))


def _sides(record: PredictionRecord) -> int:
    return bool(record.inputs) + bool(record.outputs)
