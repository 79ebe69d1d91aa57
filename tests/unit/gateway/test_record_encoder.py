"""The bytes of records: the documents that other code would write, whichever way they are made.

What a blob must say is in test_record.py, which goes through the same encoder. Here each blob is
compared with what msgspec makes of a plain LoggedPrediction. What is kept of which tensor is in
capture/test_kept_tensors.py, and records with work still to be done in capture/test_deferred.py.
"""

from __future__ import annotations

import struct
from copy import copy
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.executed import Execution
from engines.tensors import BYTES, DATATYPES, Tensor, decode_bytes, encode_bytes
from gateway.prediction_log import encoder as encoders
from gateway.prediction_log.capture.policy import NamePolicy
from gateway.prediction_log.encoder import RecordEncoder
from gateway.prediction_log.record import (
    CODEC_MSGPACK,
    LoggedPrediction,
    LoggedTensor,
    Origin,
    PredictionRecord,
    Reduced,
    decode,
)
from gateway.prediction_log_config import NameConfig
from tests.support.capture import keeping, policy_of
from tests.support.records import ordinary_record, record_of

LIMIT_BYTES = 64
WORKER = "gw-1@18f"
MOST_32 = (1 << 32) - 1
MOST_64 = (1 << 64) - 1
KEPT = keeping(LIMIT_BYTES)


def whole_or_cut(tensor: Tensor) -> LoggedTensor:
    whole = bytes(tensor.data)
    if len(whole) <= LIMIT_BYTES:
        return LoggedTensor(tensor.datatype, tensor.shape, whole)
    item_bytes = DATATYPES[tensor.datatype].item_bytes
    if item_bytes:
        kept = whole[: LIMIT_BYTES // item_bytes * item_bytes]
    else:
        kept = b""
        for element in decode_bytes(whole):
            following = kept + encode_bytes([element])
            if len(following) > LIMIT_BYTES:
                break
            kept = following
    cut = Reduced(kind="trunc", kept_bytes=len(kept), data=kept)
    return LoggedTensor(tensor.datatype, tensor.shape, cut)


def expected(record: PredictionRecord, seq: int) -> LoggedPrediction:
    """Return the document of a record, all of whose tensors are kept up to the limit."""
    origin, execution = record.origin, record.execution
    logged = LoggedPrediction(
        schema=1,
        rid=record.rid,
        ts_us=record.ts_us,
        name=origin.name,
        status=record.status,
        weight=record.weight,
        sampled_as=record.sampled_as,
        worker=WORKER,
        seq=seq,
        cid=record.cid,
        model=origin.model,
        version=origin.version,
        artefact=origin.artefact,
        revision=origin.revision,
        variant=origin.variant,
        served=origin.served,
        propensity=origin.propensity,
        reason=origin.reason,
        error=record.error,
        queue_us=record.queue_us,
        batch_us=(execution.input_ns + execution.output_ns) // 1_000 if execution else 0,
        infer_us=execution.infer_ns // 1_000 if execution else 0,
        total_us=record.total_us,
        batch_rows=execution.rows if execution else 0,
        device=origin.device,
        inputs={t.name: whole_or_cut(t) for t in record.inputs},
        outputs={t.name: whole_or_cut(t) for t in record.outputs},
        parent_rid=record.parent_rid,
        is_shadow=origin.is_shadow,
        subject=record.subject.encode().ljust(16, b".")[:16] if record.subject else b"",
    )
    # As it comes back: floats that equal a default without being it, dicts of no entries.
    return msgspec.msgpack.decode(msgspec.msgpack.encode(logged), type=LoggedPrediction)


def is_of_fixed_widths(blob: bytes) -> bool:
    """Tell whether a blob begins as those do whose numbers are written in fixed widths."""
    return blob[4:8] == b"\xa3rid"


def document_of(blob: bytes) -> dict[str, Any]:  # Any: a msgpack document
    """Return a blob's document as any reader of msgpack sees it; no key stands there twice."""
    assert blob[:1] == CODEC_MSGPACK
    found: dict[str, Any] = msgspec.msgpack.decode(blob[1:])
    (count,) = struct.unpack_from(">H", blob, 2)
    assert blob[1] == 0xDE
    assert len(found) == count
    return found


def encoded(record: PredictionRecord, seq: int = 9, policy: NamePolicy = KEPT) -> bytes:
    return blob_of(RecordEncoder(worker=WORKER, policy=policy), record, seq)


def blob_of(encoder: RecordEncoder, record: PredictionRecord, seq: int) -> bytes:
    blob = encoder.encode(record, seq)
    assert isinstance(blob, bytes)
    return blob


texts = st.one_of(st.just(""), st.text(max_size=8), st.text(min_size=30, max_size=40))
times_us = st.one_of(
    st.integers(0, 1 << 20), st.sampled_from([0, MOST_32 - 1, MOST_32, MOST_32 + 1, 1 << 40])
)
numbers = st.one_of(st.integers(0, 1 << 20), st.sampled_from([0, MOST_32, MOST_64, 1 << 40]))


@st.composite
def tensors(draw: st.DrawFn, names: st.SearchStrategy[str]) -> Tensor:
    """Draw a tensor of bytes or of text, some over the limit, some as views."""
    name = draw(names)
    if draw(st.booleans()):
        elements = draw(st.lists(st.binary(max_size=20), max_size=4))
        return Tensor(name, BYTES, (len(elements),), encode_bytes(elements))
    data = draw(st.one_of(st.binary(max_size=8), st.binary(min_size=60, max_size=70)))
    datatype = draw(st.sampled_from(["UINT8", "INT8"]))
    shape = draw(st.sampled_from([(len(data),), (1, len(data), 1)]))
    made = draw(st.sampled_from([bytes, bytearray, memoryview]))
    view = memoryview(b"before" + data)[6:]
    return Tensor(name, datatype, shape, view if made is memoryview else made(data))


@st.composite
def sides(draw: st.DrawFn) -> tuple[Tensor, ...]:
    """Draw the tensors of one side of a record: none, some, more than a small map holds."""
    count = draw(st.sampled_from([0, 1, 1, 1, 2, 3, 15, 16, 17]))
    found = [draw(tensors(st.just(f"t{n}"))) for n in range(min(count, 3))]
    if count <= 3:
        return tuple(found)
    (more, *_) = found
    return tuple(more._replace(name=f"t{n}") for n in range(count))


origins = st.builds(
    Origin,
    name=texts,
    model=texts,
    version=texts,
    artefact=st.sampled_from([b"", b"8 bytes!"]),
    revision=numbers,
    variant=texts,
    served=texts,
    propensity=st.one_of(st.sampled_from([0.0, 1.0, float("0")]), st.floats(0, 1)),
    reason=texts,
    device=texts,
    is_shadow=st.booleans(),
)
executions = st.builds(
    Execution,
    input_ns=times_us.map(lambda us: us * 1_000 + 999),
    infer_ns=times_us.map(lambda us: us * 1_000 + 999),
    output_ns=times_us.map(lambda us: us * 1_000 + 999),
    rows=st.one_of(st.integers(1, 64), st.just(MOST_32 + 1)),
    number=st.integers(1, 9),
)
any_records = st.builds(
    PredictionRecord,
    origin=origins,
    rid=st.binary(min_size=16, max_size=16),
    ts_us=numbers,
    status=st.sampled_from([200, 400, 503]),
    total_us=times_us,
    cid=texts,
    error=st.sampled_from(["", "QueueFull"]),
    queue_us=times_us,
    execution=st.none() | executions,
    inputs=sides(),
    outputs=sides(),
    parent_rid=st.sampled_from([b"", bytes(range(16))]),
    subject=st.sampled_from(["", "ada"]),
    weight=st.sampled_from([1.0, 10.0, 1 / 0.3]),
    sampled_as=st.sampled_from(["base", "error", "slow"]),
)
ordinary_records = st.builds(
    PredictionRecord,
    origin=origins,
    rid=st.binary(min_size=16, max_size=16),
    ts_us=numbers,
    status=st.just(200),
    total_us=st.integers(0, MOST_32),
    cid=texts,
    queue_us=st.integers(0, MOST_32),
    execution=st.builds(
        Execution,
        input_ns=st.integers(0, 1 << 40),
        infer_ns=st.integers(0, 1 << 40),
        output_ns=st.integers(0, 1 << 40),
        rows=st.integers(1, MOST_32),
        number=st.just(1),
    ),
    inputs=sides(),
    outputs=sides(),
)
records = ordinary_records | any_records


@given(st.lists(st.tuples(records, numbers), min_size=1, max_size=6))
def test_a_blob_says_what_its_record_says_whatever_came_before(
    given_records: list[tuple[PredictionRecord, int]],
) -> None:
    encoder = RecordEncoder(worker=WORKER, policy=KEPT)
    for record, seq in given_records * 2:  # the second time its parts are known
        blob = blob_of(encoder, record, seq)
        assert decode(blob) == expected(record, seq)
        document_of(blob)


@given(origins, executions, st.lists(tensors(st.sampled_from("ab")), min_size=2, max_size=8))
def test_parts_of_one_record_never_end_up_in_another(
    origin: Origin, execution: Execution, drawn: list[Tensor]
) -> None:
    encoder = RecordEncoder(worker=WORKER, policy=KEPT)
    others = [origin, replace(origin, version="other"), replace(origin)]
    for n, tensor in enumerate(drawn):
        record = record_of(rid=bytes(16), ts_us=n, status=200, name="")
        record.origin, record.execution = others[n % 3], execution
        record.inputs, record.outputs = (tensor,), (drawn[n - 1],)
        assert decode(blob_of(encoder, record, n)) == expected(record, n)


DIFFERENCES: dict[str, Any] = {  # Any: a field's value
    "origin": Origin(name="digits", version="3"),
    "execution": Execution(9_000, 9_000, 9_000, 9, 2),
    "status": 503,
    "error": "QueueFull",
    "weight": 8.0,
    "sampled_as": "slow",
    "cid": "",
    "subject": "ada",
    "parent_rid": bytes(range(16)),
    "queue_us": 8,
    "total_us": 8,
    "ts_us": 8,
    "rid": bytes(16),
}


@pytest.mark.parametrize("field", DIFFERENCES)
def test_a_record_that_differs_from_the_one_before_in_one_field_says_so(field: str) -> None:
    encoder = RecordEncoder(worker=WORKER, policy=KEPT)
    first = ordinary_record()
    before = blob_of(encoder, first, 9)
    record = copy(first)  # of the same choice and the same batch
    setattr(record, field, DIFFERENCES[field])
    blob = blob_of(encoder, record, 9)
    assert decode(blob) == expected(record, 9) != decode(before)
    assert is_of_fixed_widths(blob)
    assert blob_of(encoder, first, 9) == before


def test_a_record_of_forms_that_are_known_takes_one_look_at_its_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = RecordEncoder(worker=WORKER, policy=KEPT)
    before = blob_of(encoder, ordinary_record(), 9)

    def refuse(*_: object) -> bytes:
        raise AssertionError("the long way")

    monkeypatch.setattr(encoder, "_assemble", refuse)
    assert blob_of(encoder, ordinary_record(), 9) == before
    record = ordinary_record()
    record.subject, record.weight, record.sampled_as = "ada", 10.0, "slow"
    assert decode(blob_of(encoder, record, 9)) == expected(record, 9)
    record.outputs = (record.outputs[0]._replace(shape=(1, 1)),)
    with pytest.raises(AssertionError, match="the long way"):
        encoder.encode(record, 9)


def test_no_field_of_a_default_stands_in_an_ordinary_record_but_numbers() -> None:
    record = ordinary_record()
    record.cid, record.queue_us, record.total_us = "", 0, 0
    record.origin = Origin(name="digits")
    blob = encoded(record)
    assert set(document_of(blob)) == {
        *("v", "n", "st", "w", "sp", "wk"),
        *("rid", "ts", "seq", "tt", "tq", "tb", "ti", "bs"),
        *("in", "out"),
    }
    assert document_of(blob)["tb"] == 4  # laying and cutting
    assert decode(blob) == expected(record, 9)


TOO_WIDE: dict[str, dict[str, Any]] = {  # Any: fields of a record
    "a long wait": {"queue_us": MOST_32 + 1},
    "a long request": {"total_us": MOST_32 + 1},
    "a clock that ran backwards": {"queue_us": -1},
    "a long batch": {"execution": Execution(0, (MOST_32 + 1) * 1_000, 0, 1, 1)},
    "a long laying": {"execution": Execution((MOST_32 + 1) * 1_000, 0, 0, 1, 1)},
    "a large batch": {"execution": Execution(0, 0, 0, MOST_32 + 1, 1)},
}


@pytest.mark.parametrize("kind", TOO_WIDE)
def test_a_number_beyond_its_width_is_written_all_the_same(kind: str) -> None:
    record = ordinary_record()
    record.subject, record.error, record.parent_rid = "ada", "Odd", bytes(range(16))
    for name, value in TOO_WIDE[kind].items():
        setattr(record, name, value)
    encoder = RecordEncoder(worker=WORKER, policy=KEPT)
    before = blob_of(encoder, ordinary_record(), 1)
    blob = blob_of(encoder, record, 9)
    assert not is_of_fixed_widths(blob)
    assert decode(blob) == expected(record, 9)
    document_of(blob)
    assert blob_of(encoder, ordinary_record(), 1) == before


def test_numbers_up_to_32_and_64_bits_fit() -> None:
    record = ordinary_record()
    record.ts_us = MOST_64
    record.queue_us = record.total_us = MOST_32
    record.execution = Execution(0, MOST_32 * 1_000, 999, MOST_32, 1)
    blob = encoded(record, MOST_64)
    assert is_of_fixed_widths(blob)
    logged = decode(blob)
    assert (logged.ts_us, logged.seq) == (MOST_64, MOST_64)
    assert (logged.queue_us, logged.total_us, logged.infer_us) == (MOST_32,) * 3
    assert (logged.batch_rows, logged.batch_us) == (MOST_32, 0)


def test_without_keys_a_subject_leaves_no_trace() -> None:
    record = ordinary_record()
    record.subject = "ada"
    blob = encoded(record, policy=policy_of())
    assert "sub" not in document_of(blob)
    assert b"ada" not in blob
    record.queue_us = -1
    assert "sub" not in document_of(encoded(record, policy=policy_of()))


def test_the_digest_of_the_columns_is_in_each_record() -> None:
    policy = policy_of(settings=NameConfig(columns={"x": ["width", "height"]}))
    assert len(policy.columns_digest) == 8
    for queue_us in (7, -1):
        record = ordinary_record()
        record.queue_us = queue_us
        assert decode(encoded(record, policy=policy)).columns == policy.columns_digest


@pytest.mark.parametrize("cid", ["x", "größe 🧪", "\x00", "c" * 31, "c" * 32, "c" * 70_000])
def test_a_callers_id_of_any_length_and_letters_comes_back(cid: str) -> None:
    record = ordinary_record()
    record.cid = cid
    assert is_of_fixed_widths(encoded(record))
    assert decode(encoded(record)).cid == cid


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "_MAX_PARTS", 4)
    encoder = RecordEncoder(worker=WORKER, policy=KEPT)
    for n in range(50):
        record = ordinary_record()
        record.origin = replace(record.origin, revision=n)
        record.inputs = (Tensor("x", "UINT8", (n,), bytes(n)),)
        logged = decode(blob_of(encoder, record, n))
        assert (logged.revision, logged.inputs["x"].data) == (n, bytes(n))
        for memo in (encoder._origins, encoder._inputs, encoder._outputs, encoder._pairs):
            assert len(memo) <= 4
