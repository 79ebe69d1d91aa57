"""Records with work still to be done: what is written before, after, and instead of it."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.tensors import BYTES, Tensor, decode_bytes, encode_bytes
from gateway.prediction_log.capture.policy import DROP, NamePolicy, Plain
from gateway.prediction_log.capture.references import References
from gateway.prediction_log.encoder import Deferred, RecordEncoder
from gateway.prediction_log.record import (
    LoggedPrediction,
    LoggedTensor,
    PredictionRecord,
    Reduced,
    decode,
)
from gateway.prediction_log_config import CaptureConfig, Over
from tests.support.capture import Treatments, XorKey, policy_of
from tests.support.records import ordinary_record

LARGE = np.arange(1_000, dtype="<f4").reshape(1, 1_000)
IMAGE = Tensor("image", "FP32", LARGE.shape, memoryview(LARGE.tobytes()))
SMALL = Tensor("x", "FP32", (1,), struct.pack("<f", 0.5))


def capture(over: Over = "statistics", full_share: float = 0.0) -> CaptureConfig:
    return CaptureConfig(max_bytes=100, over=over, full_share=full_share)


def record_with(*inputs: Tensor) -> PredictionRecord:
    record = ordinary_record()
    record.inputs = inputs
    return record


def deferred(record: PredictionRecord, policy: NamePolicy, seq: int = 9) -> Deferred:
    found = RecordEncoder(worker="w", policy=policy).encode(record, seq)
    assert isinstance(found, Deferred)
    return found


def without_image(logged: LoggedPrediction) -> tuple[LoggedPrediction, LoggedTensor]:
    """Return a record without its large input, which stands beside it."""
    rest = {name: t for name, t in logged.inputs.items() if name != "image"}
    fields = {name: getattr(logged, name) for name in logged.__struct_fields__}
    return LoggedPrediction(**fields | {"inputs": rest}), logged.inputs["image"]


@pytest.mark.parametrize("queue_us", [7, -1], ids=["fixed widths", "field by field"])
@pytest.mark.parametrize("over", ["statistics", "thumbnail", "reference"])
def test_before_and_after_the_work_a_record_differs_in_its_large_tensor_only(
    over: Over, queue_us: int, tmp_path: Path
) -> None:
    references = References(tmp_path, max_bytes=1 << 20)
    record = record_with(SMALL, IMAGE, SMALL._replace(name="z"))
    record.queue_us = queue_us
    work = deferred(record, policy_of(capture(over), references=references))
    intent, lost = without_image(decode(work.intent))
    finished, reduced = without_image(decode(work.finish().blob))
    skipped, gone = without_image(decode(work.skipped()))
    assert intent == finished == skipped
    assert (finished.seq, finished.cid, finished.queue_us) == (9, "3", queue_us)
    assert finished.inputs == {
        "x": LoggedTensor("FP32", (1,), bytes(SMALL.data)),
        "z": LoggedTensor("FP32", (1,), bytes(SMALL.data)),
    }
    assert lost == LoggedTensor("FP32", (1, 1_000), Reduced(kind="lost"))
    assert gone == LoggedTensor("FP32", (1, 1_000), Reduced(kind="skipped"))
    assert (reduced.datatype, reduced.shape) == ("FP32", (1, 1_000))
    assert isinstance(reduced.payload, Reduced)
    assert reduced.payload.kind == {"reference": "ref", "thumbnail": "thumb"}.get(over, "stat")
    assert reduced.payload.statistics["mean"] == 499.5
    assert not work.wants_whole
    assert work.finish().whole is None


def test_only_the_bytes_that_are_worked_on_are_held() -> None:
    record = record_with(SMALL, IMAGE)
    record.outputs = (IMAGE._replace(name="y"),)
    assert deferred(record, policy_of(capture())).held_bytes == 2 * 4_000


@pytest.mark.parametrize("over", ["statistics", "truncate"])
def test_a_record_of_the_whole_share_is_also_written_whole(over: Over) -> None:
    record = record_with(SMALL, IMAGE)
    record.weight, record.sampled_as = 2.0, "base"
    work = deferred(record, policy_of(capture(over, full_share=1.0)))
    assert work.wants_whole
    work.whole_seq = 77
    blob, whole = work.finish()
    assert whole is not None
    logged = decode(whole)
    assert logged.inputs["image"].payload == LARGE.tobytes()
    assert logged.inputs["x"].payload == SMALL.data
    assert (logged.seq, decode(blob).seq) == (77, 9)
    assert decode(blob).inputs["image"] != logged.inputs["image"]
    same = [name for name in logged.__struct_fields__ if name not in ("seq", "inputs")]
    assert [getattr(logged, n) for n in same] == [getattr(decode(blob), n) for n in same]


def test_the_weight_of_a_whole_record_is_that_of_both_drawings() -> None:
    policy = policy_of(capture(full_share=0.5))
    weights = set()
    for n in range(20):
        record = record_with(IMAGE)
        record.rid, record.weight = n.to_bytes(16), 4.0
        work = deferred(record, policy)
        whole = work.finish().whole
        assert (whole is not None) is work.wants_whole
        weights.add(decode(whole).weight if whole is not None else None)
    assert weights == {None, 8.0}


def test_a_shadow_s_record_is_kept_whole_where_its_live_twin_is() -> None:
    policy = policy_of(capture(full_share=0.5))
    for n in range(20):
        live = record_with(IMAGE)
        live.rid = n.to_bytes(16)
        shadow = record_with(IMAGE)
        shadow.parent_rid, shadow.rid = live.rid, (n + 99).to_bytes(16)
        assert deferred(shadow, policy).wants_whole is deferred(live, policy).wants_whole


def test_a_record_without_large_tensors_is_not_written_twice() -> None:
    encoder = RecordEncoder(worker="w", policy=policy_of(capture(full_share=1.0)))
    assert isinstance(encoder.encode(record_with(SMALL), 1), bytes)


def doubled(data: bytes | bytearray | memoryview) -> tuple[str, tuple[int, ...], bytes]:
    """Stand for any change: other datatype, shape and size."""
    return "FP64", (len(data) // 4,), np.frombuffer(data, "<f4").astype("<f8").tobytes()


def test_a_changed_tensor_is_judged_by_what_the_change_left() -> None:
    def first(data: bytes | bytearray | memoryview) -> tuple[str, tuple[int, ...], bytes]:
        return "UINT8", (4,), bytes(data[:4])

    changes = {"image": Plain(change=first), "x": Plain(change=doubled)}
    policy = policy_of(capture(full_share=1.0), privacy=Treatments(changes))
    blob, whole = deferred(record_with(SMALL, IMAGE), policy).finish()
    expected = {
        "x": LoggedTensor("FP64", (1,), struct.pack("<d", 0.5)),
        "image": LoggedTensor("UINT8", (4,), LARGE.tobytes()[:4]),
    }
    assert decode(blob).inputs == expected
    assert whole is not None
    assert decode(whole).inputs == expected


def test_the_statistics_and_the_whole_share_are_of_the_changed_elements() -> None:
    def zeroed(data: bytes | bytearray | memoryview) -> tuple[str, tuple[int, ...], bytes]:
        return "FP32", (1, len(data) // 4), bytes(len(data))

    privacy = Treatments({"image": Plain(change=zeroed)})
    policy = policy_of(capture(full_share=1.0), privacy=privacy)
    work = deferred(record_with(IMAGE), policy)
    blob, whole = work.finish()
    payload = decode(blob).inputs["image"].payload
    assert isinstance(payload, Reduced)
    assert payload.statistics["max"] == 0.0
    assert whole is not None
    assert decode(whole).inputs["image"].payload == bytes(4_000)
    needle = LARGE.tobytes()[400:440]
    assert all(needle not in made for made in (work.intent, work.skipped(), blob, whole))


def test_a_small_tensor_that_grows_over_the_limit_is_reduced_at_once() -> None:
    values = np.arange(20, dtype="<f4")
    tensor = Tensor("x", "FP32", (20,), values.tobytes())
    policy = policy_of(capture(), privacy=Treatments({"x": Plain(change=doubled)}))
    blob = RecordEncoder(worker="w", policy=policy).encode(record_with(tensor), 1)
    assert isinstance(blob, bytes)
    payload = decode(blob).inputs["x"].payload
    assert isinstance(payload, Reduced)
    assert (payload.kind, payload.statistics["max"]) == ("stat", 19.0)


def test_a_change_of_many_texts_is_deferred_and_nothing_of_them_is_written_before() -> None:
    def hidden(data: bytes | bytearray | memoryview) -> tuple[str, tuple[int, ...], bytes]:
        texts = decode_bytes(data)
        return BYTES, (len(texts),), encode_bytes(b"#" for _ in texts)

    texts = Tensor("t", BYTES, (70,), encode_bytes([b"Ada"] * 70))
    policy = policy_of(CaptureConfig(), privacy=Treatments({"t": Plain(change=hidden)}))
    work = deferred(record_with(texts), policy)
    assert b"Ada" not in work.intent
    assert b"Ada" not in work.skipped()
    found = decode(work.finish().blob).inputs["t"]
    assert found.array().tolist() == [b"#"] * 70
    assert not work.wants_whole


@pytest.mark.parametrize("tensor", [SMALL, IMAGE], ids=["at once", "deferred"])
def test_a_sealed_tensor_is_whole_sealed_and_bound_to_its_record(tensor: Tensor) -> None:
    key = XorKey()
    privacy = Treatments({tensor.name: Plain(is_sealed=True)}, key=key)
    record = record_with(tensor)
    record.subject = "ada"
    made = RecordEncoder(worker="w", policy=policy_of(capture(), privacy=privacy)).encode(record, 1)
    blob = made.finish().blob if isinstance(made, Deferred) else made
    sealed = bytes(b ^ 0xFF for b in tensor.data)
    assert decode(blob).inputs[tensor.name] == LoggedTensor(
        "FP32", tensor.shape, Reduced(kind="seal", data=sealed, key_id=b"key 1")
    )
    assert key.contexts == [record.rid + tensor.name.encode()]
    assert isinstance(made, Deferred) is (tensor is IMAGE)


@pytest.mark.parametrize("tensor", [SMALL, IMAGE], ids=["at once", "deferred"])
def test_what_is_to_be_sealed_is_dropped_where_there_is_no_subject(tensor: Tensor) -> None:
    privacy = Treatments({tensor.name: Plain(is_sealed=True)}, key=XorKey())
    policy = policy_of(capture(full_share=1.0), privacy=privacy)
    made = RecordEncoder(worker="w", policy=policy).encode(record_with(tensor), 1)
    blob = made.finish().blob if isinstance(made, Deferred) else made
    assert decode(blob).inputs[tensor.name] == LoggedTensor("FP32", tensor.shape, None)


def test_a_changed_tensor_is_sealed_as_the_change_left_it() -> None:
    privacy = Treatments({"x": Plain(change=doubled, is_sealed=True)}, key=XorKey())
    record = record_with(SMALL)
    record.subject = "ada"
    blob = RecordEncoder(worker="w", policy=policy_of(privacy=privacy)).encode(record, 1)
    assert isinstance(blob, bytes)
    found = decode(blob).inputs["x"]
    sealed = bytes(b ^ 0xFF for b in struct.pack("<d", 0.5))
    assert (found.datatype, found.shape, found.data) == ("FP64", (1,), sealed)


def test_a_large_tensor_that_is_dropped_makes_no_work() -> None:
    policy = policy_of(capture(full_share=1.0), privacy=Treatments({"image": DROP}))
    blob = RecordEncoder(worker="w", policy=policy).encode(record_with(IMAGE), 1)
    assert isinstance(blob, bytes)
    assert decode(blob).inputs["image"] == LoggedTensor("FP32", (1, 1_000), None)


def test_privacy_is_asked_for_tags_and_keys_before_the_work_and_not_by_it() -> None:
    privacy = Treatments({"image": Plain(is_sealed=True)}, key=XorKey())
    record = record_with(IMAGE, IMAGE._replace(name="other"))
    record.subject = "ada"
    work = deferred(record, policy_of(capture(full_share=1.0), privacy=privacy))
    privacy.tagged.clear()
    whole = work.finish().whole
    assert whole is not None
    assert decode(whole).subject == b"ada............."
    assert privacy.tagged == []


def test_a_change_that_fails_fails_the_work_and_leaves_the_record_to_be_skipped() -> None:
    def broken(data: object) -> tuple[str, tuple[int, ...], bytes]:
        raise ValueError("of the change")

    policy = policy_of(capture(), privacy=Treatments({"image": Plain(change=broken)}))
    work = deferred(record_with(IMAGE), policy)
    with pytest.raises(ValueError, match="of the change"):
        work.finish()
    assert decode(work.skipped()).inputs["image"].payload == Reduced(kind="skipped")


def test_what_the_encoder_learns_later_does_not_change_what_is_deferred() -> None:
    encoder = RecordEncoder(worker="w", policy=policy_of(capture()))
    record = record_with(IMAGE)
    work = encoder.encode(record, 1)
    assert isinstance(work, Deferred)
    other = record_with(SMALL)
    other.origin = replace(other.origin, version="other")
    encoder.encode(other, 2)
    assert decode(work.finish().blob).version == record.origin.version
