"""Records that are put together from parts: the same documents as field by field, and when.

What a blob must say is in test_record.py, which goes through the same encoder; here the two ways to
a blob are held together.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.batcher import Execution
from engines.tensors import BYTES, Tensor, encode_bytes
from gateway.prediction_log import encoder as encoders
from gateway.prediction_log.encoder import RecordEncoder, _encode_fields
from gateway.prediction_log.record import (
    CODEC_MSGPACK,
    Origin,
    PredictionRecord,
    Reduced,
    decode,
)
from tests.support.records import make_record, record_of

LIMIT_BYTES = 64
WORKER = "gw-1@18f"
MOST_32 = (1 << 32) - 1
MOST_64 = (1 << 64) - 1


def by_fields(record: PredictionRecord, seq: int, *, limit_bytes: int = LIMIT_BYTES) -> bytes:
    return _encode_fields(record, worker=WORKER, seq=seq, capture_max_bytes=limit_bytes)


def is_joined(blob: bytes) -> bool:
    """Tell a blob that was put together from one that was encoded: only that begins so."""
    return blob[4:8] == b"\xa3rid"


def document_of(blob: bytes) -> dict[str, Any]:  # Any: a msgpack document
    """Return a blob's document as any reader of msgpack sees it; no key stands there twice."""
    assert blob[:1] == CODEC_MSGPACK
    found: dict[str, Any] = msgspec.msgpack.decode(blob[1:])
    (count,) = struct.unpack_from(">H", blob, 2)
    assert blob[1] == 0xDE
    assert len(found) == count
    return found


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
def test_both_ways_lead_to_the_same_document(given_records: list[tuple[Any, int]]) -> None:
    encoder = RecordEncoder(worker=WORKER, capture_max_bytes=LIMIT_BYTES)
    for record, seq in given_records * 2:  # the second time its parts are known
        expected = by_fields(record, seq)
        blob = encoder.encode(record, seq)
        assert decode(blob) == decode(expected)
        if not is_joined(blob):
            assert blob == expected


@given(origins, executions, st.lists(tensors(st.sampled_from("ab")), min_size=2, max_size=8))
def test_parts_of_one_record_never_end_up_in_another(
    origin: Origin, execution: Execution, drawn: list[Tensor]
) -> None:
    encoder = RecordEncoder(worker=WORKER, capture_max_bytes=LIMIT_BYTES)
    others = [origin, replace(origin, version="other"), replace(origin)]
    for n, tensor in enumerate(drawn):
        record = record_of(rid=bytes(16), ts_us=n, status=200, name="")
        record.origin, record.execution = others[n % 3], execution
        record.inputs, record.outputs = (tensor,), (drawn[n - 1],)
        assert decode(encoder.encode(record, n)) == decode(by_fields(record, n))


def ordinary() -> PredictionRecord:
    """Return a record of the kind that nearly all are."""
    record = make_record(3)
    record.execution = Execution(1_000, 2_000, 3_000, 4, 1)
    record.queue_us = 7
    return record


def encoded(record: PredictionRecord, seq: int = 9) -> bytes:
    return RecordEncoder(worker=WORKER, capture_max_bytes=LIMIT_BYTES).encode(record, seq)


def test_an_ordinary_record_is_put_together_and_reads_as_any_other() -> None:
    blob = encoded(ordinary())
    assert is_joined(blob)
    assert document_of(blob) == document_of(by_fields(ordinary(), 9))
    assert document_of(blob)["tb"] == 4  # laying and cutting


def test_no_field_of_a_default_stands_in_an_ordinary_record_but_numbers() -> None:
    record = ordinary()
    record.cid, record.queue_us, record.total_us = "", 0, 0
    record.origin = Origin(name="digits")
    assert set(document_of(encoded(record))) == {
        *("v", "n", "st", "w", "sp", "wk"),
        *("rid", "ts", "seq", "tt", "tq", "tb", "ti", "bs"),
        *("in", "out"),
    }
    assert decode(encoded(record)) == decode(by_fields(record, 9))


UNUSUAL: dict[str, dict[str, Any]] = {  # Any: fields of a record
    "an error": {"status": 429, "error": "QueueFull"},
    "an error that is called well": {"error": "QueueFull"},
    "of no batch": {"execution": None},
    "of a shadow": {"parent_rid": bytes(range(16))},
    "without inputs": {"inputs": ()},
    "without outputs": {"outputs": ()},
    "too many inputs": {"inputs": tuple(Tensor(f"t{n}", "UINT8", (0,), b"") for n in range(16))},
    "a long wait": {"queue_us": MOST_32 + 1},
    "a long request": {"total_us": MOST_32 + 1},
    "a clock that ran backwards": {"queue_us": -1},
    "a long batch": {"execution": Execution(0, (MOST_32 + 1) * 1_000, 0, 1, 1)},
    "a large tensor": {"inputs": (Tensor("x", "UINT8", (65,), bytes(65)),)},
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_a_record_that_does_not_fit_the_parts_is_encoded_field_by_field(kind: str) -> None:
    record = ordinary()
    for name, value in UNUSUAL[kind].items():
        setattr(record, name, value)
    encoder = RecordEncoder(worker=WORKER, capture_max_bytes=LIMIT_BYTES)
    assert encoder.encode(ordinary(), 1)  # parts that it has learned do not help it
    assert encoder.encode(record, 9) == by_fields(record, 9)


def test_numbers_up_to_32_and_64_bits_fit() -> None:
    record = ordinary()
    record.ts_us = MOST_64
    record.queue_us = record.total_us = MOST_32
    record.execution = Execution(0, MOST_32 * 1_000, 999, MOST_32, 1)
    blob = encoded(record, MOST_64)
    assert is_joined(blob)
    logged = decode(blob)
    assert (logged.ts_us, logged.seq) == (MOST_64, MOST_64)
    assert (logged.queue_us, logged.total_us, logged.infer_us) == (MOST_32,) * 3
    assert (logged.batch_rows, logged.batch_us) == (MOST_32, 0)


@pytest.mark.parametrize(("size", "is_whole"), [(64, True), (65, False)])
def test_a_tensor_at_the_limit_is_kept_whole_and_one_over_it_is_cut(
    size: int, is_whole: bool
) -> None:
    record = ordinary()
    record.outputs = (Tensor("y", "UINT8", (size,), bytes(range(size))),)
    blob = encoded(record)
    assert is_joined(blob) is is_whole
    payload = decode(blob).outputs["y"].payload
    kept = bytes(range(64))
    assert (
        payload == kept if is_whole else payload == Reduced(kind="trunc", kept_bytes=64, data=kept)
    )


def test_tensors_of_one_name_and_size_but_another_datatype_or_shape_are_told_apart() -> None:
    encoder = RecordEncoder(worker=WORKER, capture_max_bytes=LIMIT_BYTES)
    for datatype, shape in (("UINT8", (8,)), ("UINT8", (2, 4)), ("INT64", (1,)), ("FP64", (1,))):
        record = ordinary()
        record.inputs = (Tensor("x", datatype, shape, bytes(8)),)
        for _ in range(2):
            blob = encoder.encode(record, 1)
            assert is_joined(blob)
            found = decode(blob).inputs["x"]
            assert (found.datatype, found.shape, found.data) == (datatype, shape, bytes(8))


@pytest.mark.parametrize("cid", ["x", "größe 🧪", "\x00", "c" * 31, "c" * 32, "c" * 70_000])
def test_a_callers_id_of_any_length_and_letters_comes_back(cid: str) -> None:
    record = ordinary()
    record.cid = cid
    assert is_joined(encoded(record))
    assert decode(encoded(record)).cid == cid


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "_MAX_PARTS", 4)
    encoder = RecordEncoder(worker=WORKER, capture_max_bytes=LIMIT_BYTES)
    for n in range(50):
        record = ordinary()
        record.origin = replace(record.origin, revision=n)
        record.inputs = (Tensor("x", "UINT8", (n,), bytes(n)),)
        logged = decode(encoder.encode(record, n))
        assert (logged.revision, logged.inputs["x"].data) == (n, bytes(n))
        assert len(encoder._origins) <= 4
        assert len(encoder._forms) <= 4
