"""The prediction record's bytes: what goes in comes out, and nothing that need not be there."""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.tensors import BYTES, DATATYPES, Tensor, decode_bytes, encode_bytes
from gateway.prediction_log.record import (
    CODEC_MSGPACK,
    LoggedTensor,
    MalformedRecord,
    PredictionRecord,
    Reduced,
    decode,
    nbytes,
)
from tests.support.records import encode, make_record, record_of

PLENTY = 1 << 20

shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@st.composite
def tensors(draw: st.DrawFn, datatype: str) -> Tensor:
    shape = draw(shapes)
    count = math.prod(shape)
    if datatype == BYTES:
        elements = draw(st.lists(st.binary(max_size=9), min_size=count, max_size=count))
        return Tensor("t", BYTES, shape, encode_bytes(elements))
    size = count * DATATYPES[datatype].item_bytes
    return Tensor("t", datatype, shape, draw(st.binary(min_size=size, max_size=size)))


def as_view(data: bytes) -> memoryview:
    """Return the data as a view of a larger buffer, as a batch's outputs are."""
    return memoryview(b"before" + data + b"after")[6 : 6 + len(data)]


def document_of(
    record: PredictionRecord, *, worker: str = "w", seq: int = 1, capture_max_bytes: int = PLENTY
) -> dict[str, Any]:  # Any: a msgpack document
    blob = encode(record, worker=worker, seq=seq, capture_max_bytes=capture_max_bytes)
    assert blob[:1] == CODEC_MSGPACK
    decoded: dict[str, Any] = msgspec.msgpack.decode(blob[1:])
    return decoded


def captured(tensor: Tensor, limit_bytes: int) -> LoggedTensor:
    record = make_record(inputs=(tensor,))
    logged = decode(encode(record, worker="w", seq=1, capture_max_bytes=limit_bytes))
    return logged.inputs[tensor.name]


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
@given(data=st.data())
def test_a_tensor_of_every_datatype_comes_back_bit_for_bit(
    datatype: str, data: st.DataObject
) -> None:
    tensor = data.draw(tensors(datatype))
    back = captured(tensor._replace(data=as_view(bytes(tensor.data))), PLENTY)
    assert back == LoggedTensor(datatype, tensor.shape, bytes(tensor.data))
    assert back.is_whole
    expected = tensor.array()
    found = back.array()
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert found.tolist() == expected.tolist() or found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
@given(data=st.data(), limit_bytes=st.integers(0, 40))
def test_a_tensor_over_the_limit_keeps_the_most_whole_elements_that_fit(
    datatype: str, data: st.DataObject, limit_bytes: int
) -> None:
    tensor = data.draw(tensors(datatype))
    whole = bytes(tensor.data)
    back = captured(tensor, limit_bytes)
    assert back.shape == tensor.shape
    if len(whole) <= limit_bytes:
        assert back.payload == whole
        return
    assert isinstance(back.payload, Reduced)
    assert back.payload.kind == "trunc"
    assert back.payload.kept_bytes == len(back.data) <= limit_bytes
    assert whole.startswith(back.data)
    if datatype == BYTES:
        elements = decode_bytes(whole)
        kept = decode_bytes(back.data)
        assert kept == elements[: len(kept)]
        assert len(back.data) + 4 + len(elements[len(kept)]) > limit_bytes
        assert back.array().tolist() == kept
    else:
        item_bytes = DATATYPES[datatype].item_bytes
        assert limit_bytes - item_bytes < len(back.data)
        assert back.array().nbytes == len(back.data) == back.array().size * item_bytes


words = st.text(max_size=12)
counts = st.integers(0, 1 << 40)


@given(
    st.fixed_dictionaries(
        {
            "rid": st.binary(min_size=16, max_size=16),
            "name": words,
            "ts_us": counts,
            "status": st.integers(200, 599),
            "cid": words,
            "model": words,
            "version": words,
            "artefact": st.sampled_from([b"", b"8 bytes!"]),
            "revision": counts,
            "variant": words,
            "served": words,
            "propensity": st.floats(0, 1),
            "reason": words,
            "error": words,
            "queue_us": counts,
            "batch_us": counts,
            "infer_us": counts,
            "total_us": counts,
            "batch_rows": counts,
            "device": words,
            "parent_rid": st.sampled_from([b"", bytes(range(16))]),
            "is_shadow": st.booleans(),
        }
    )
)
def test_every_field_comes_back_as_it_went_in(fields: dict[str, Any]) -> None:  # Any: values
    record = record_of(**fields)
    logged = decode(encode(record, worker="w@1", seq=9, capture_max_bytes=PLENTY))
    assert {name: getattr(logged, name) for name in fields} == fields
    assert (logged.worker, logged.seq, logged.weight, logged.schema) == ("w@1", 9, 1.0, 1)


def test_the_envelope_has_the_short_keys_of_the_schema() -> None:
    assert document_of(make_record(3), worker="gw@1", seq=5) == {
        "v": 1,
        "rid": make_record(3).rid,
        "ts": make_record(3).ts_us,
        "n": "digits",
        "st": 200,
        "w": 1.0,
        "sp": "base",
        "wk": "gw@1",
        "seq": 5,
        "cid": "3",
        "m": "digits",
        "ver": "2",
        "rev": 7,
        "va": "canary",
        "vs": "canary",
        "pp": 0.1,
        "rsn": "slot",
        "tt": 1234,
        "tq": 0,
        "in": {"x": ["FP32", [1, 2], struct.pack("<2f", 3, 0.5)]},
        "out": {"y": ["INT64", [1], struct.pack("<q", 3)]},
    }


def test_a_shadow_s_record_says_so_and_whom_it_copies() -> None:
    record = make_record(3)
    live = document_of(record)
    record.parent_rid = bytes(range(16))
    record.origin = replace(record.origin, is_shadow=True)
    assert document_of(record) == live | {"prid": bytes(range(16)), "sh": True}


def test_what_is_empty_takes_no_bytes_but_the_two_times_that_all_records_have() -> None:
    # Computed, so that they equal the defaults without being the same objects.
    record = record_of(
        rid=bytes(16),
        name="digits",
        ts_us=1,
        status=404,
        propensity=float("0"),
        cid="x"[:0],
        artefact=b"x"[:0],
        revision=int("0"),
    )
    expected = {"v", "rid", "ts", "n", "st", "w", "sp", "wk", "seq", "tt", "tq"}
    assert set(document_of(record)) == expected


def test_weight_and_reason_of_the_sampling_are_those_of_the_record() -> None:
    record = make_record()
    record.weight, record.sampled_as = 12.5, "slow"
    document = document_of(record)
    assert (document["w"], document["sp"]) == (12.5, "slow")
    logged = decode(encode(record, worker="w", seq=1, capture_max_bytes=PLENTY))
    assert (logged.weight, logged.sampled_as) == (12.5, "slow")


def test_of_a_subject_only_the_tag_is_written() -> None:
    record = make_record()
    record.subject = "Ada Lovelace, London"
    blob = encode(record, worker="w", seq=1, capture_max_bytes=PLENTY)
    assert decode(blob).subject == b"Ada Lovelace, Lo"  # the tests' tag: 16 bytes of it
    assert b"London" not in blob


def test_a_cut_tensor_says_so_in_the_envelope() -> None:
    tensor = Tensor("x", "FP32", (3,), struct.pack("<3f", 1, 2, 3))
    cut = document_of(make_record(inputs=(tensor,)), capture_max_bytes=9)["in"]["x"]
    kept = struct.pack("<2f", 1, 2)
    assert cut == ["FP32", [3], {"k": "trunc", "n": 8, "d": kept}]


def test_keys_and_payload_kinds_of_later_versions_are_readable() -> None:
    document = document_of(make_record()) | {"later": bytes(16), "v": 2}
    document["in"] = {
        "redacted": ["FP32", [2]],
        "summed_up": ["FP32", [2], {"k": "stat", "mean": 0.5}],
        "extended": ["FP32", [1], b"\0\0\x80?", "more"],
    }
    logged = decode(CODEC_MSGPACK + msgspec.msgpack.encode(document))
    assert logged.inputs["redacted"].array().tolist() == []
    assert not logged.inputs["redacted"].is_whole
    assert logged.inputs["summed_up"].payload == Reduced(kind="stat")
    assert logged.inputs["extended"].array().tolist() == [1.0]


def test_arrays_come_by_name() -> None:
    inputs, outputs = decode(
        encode(make_record(4), worker="w", seq=1, capture_max_bytes=PLENTY)
    ).arrays()
    assert np.array_equal(inputs["x"], np.array([[4, 0.5]], dtype="<f4"))
    assert np.array_equal(outputs["y"], np.array([4]))


@pytest.mark.parametrize(
    "blob",
    [b"", b"\x01", b"\x02\x80", b"\x01\x80", b"\x01\x91\x01", CODEC_MSGPACK + b"\xc1"],
    ids=["empty", "tag only", "other codec", "no fields", "a list", "no msgpack"],
)
def test_bytes_that_are_no_record_are_refused(blob: bytes) -> None:
    with pytest.raises(MalformedRecord):
        decode(blob)


@pytest.mark.parametrize(
    "tensor",
    [
        LoggedTensor("FP32", (2,), b"\0\0\0\0"),
        LoggedTensor("FP33", (1,), b"\0\0\0\0"),
        LoggedTensor("BYTES", (1,), b"\x09\0\0\0x"),
        LoggedTensor("BYTES", (9,), Reduced(kind="trunc", data=b"\x09\0")),
    ],
    ids=["too short", "unknown datatype", "broken framing", "cut framing"],
)
def test_a_tensor_that_contradicts_itself_has_no_array(tensor: LoggedTensor) -> None:
    with pytest.raises(MalformedRecord):
        tensor.array()


def test_the_size_of_a_record_is_that_of_its_tensors() -> None:
    data = as_view(bytes(24))
    record = make_record(inputs=(Tensor("a", "UINT8", (24,), data), Tensor("b", "FP32", (0,), b"")))
    assert nbytes(record) == 24 + 8
