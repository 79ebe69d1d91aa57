"""What the encoder writes of a tensor at once: all of it, its first elements, or nothing."""

from __future__ import annotations

from typing import Any

import pytest

from engines.tensors import BYTES, Tensor, encode_bytes
from gateway.prediction_log.capture.policy import DROP, NamePolicy
from gateway.prediction_log.encoder import RecordEncoder
from gateway.prediction_log.record import LoggedTensor, PredictionRecord, Reduced, decode
from gateway.prediction_log_config import CaptureConfig
from tests.support.capture import Treatments, keeping, policy_of
from tests.support.records import ordinary_record

KEPT = keeping(64)


def encoded(record: PredictionRecord, policy: NamePolicy = KEPT) -> bytes:
    return blob_of(RecordEncoder(worker="w", policy=policy), record)


def blob_of(encoder: RecordEncoder, record: PredictionRecord) -> bytes:
    blob = encoder.encode(record, 1)
    assert isinstance(blob, bytes)
    return blob


@pytest.mark.parametrize(("size", "is_whole"), [(64, True), (65, False)])
def test_a_tensor_at_the_limit_is_kept_whole_and_one_over_it_is_cut(
    size: int, is_whole: bool
) -> None:
    record = ordinary_record()
    record.outputs = (Tensor("y", "UINT8", (size,), bytes(range(size))),)
    payload = decode(encoded(record)).outputs["y"].payload
    kept = bytes(range(64))
    assert (
        payload == kept if is_whole else payload == Reduced(kind="trunc", kept_bytes=64, data=kept)
    )


def test_with_full_a_tensor_of_any_size_is_kept_whole() -> None:
    record = ordinary_record()
    record.outputs = (Tensor("y", "UINT8", (65,), bytes(65)),)
    policy = policy_of(CaptureConfig(max_bytes=64, over="full", full_share=1.0))
    assert decode(encoded(record, policy=policy)).outputs["y"].payload == bytes(65)


def test_tensors_of_one_name_and_size_but_another_datatype_or_shape_are_told_apart() -> None:
    encoder = RecordEncoder(worker="w", policy=KEPT)
    for datatype, shape in (("UINT8", (8,)), ("UINT8", (2, 4)), ("INT64", (1,)), ("FP64", (1,))):
        record = ordinary_record()
        record.inputs = (Tensor("x", datatype, shape, bytes(8)),)
        for _ in range(2):
            found = decode(blob_of(encoder, record)).inputs["x"]
            assert (found.datatype, found.shape, found.data) == (datatype, shape, bytes(8))


@pytest.mark.parametrize("is_input", [True, False])
def test_without_privacy_text_is_dropped_and_numbers_are_kept(is_input: bool) -> None:
    number = Tensor("x", "FP32", (1,), bytes(4))
    encoder = RecordEncoder(worker="w", policy=policy_of())
    # Texts of other sizes share what is known of them, and those of other shapes do not.
    for name, shape in ((b"Ada", (1,)), (b"Ada L.", (1,)), (b"Ada", (1, 1)), (b"Ada", (1,))):
        secret = Tensor("t", BYTES, shape, encode_bytes([name]))
        record = ordinary_record()
        side = (secret, number)
        record.inputs, record.outputs = (side, (number,)) if is_input else ((number,), side)
        blob = blob_of(encoder, record)
        logged = decode(blob)
        found = logged.inputs if is_input else logged.outputs
        assert found == {
            "t": LoggedTensor(BYTES, shape, None),
            "x": LoggedTensor("FP32", (1,), bytes(4)),
        }
        assert b"Ada" not in blob


def test_a_refused_tensor_of_an_unknown_datatype_is_dropped() -> None:
    record = ordinary_record()
    record.status, record.execution, record.outputs = 400, None, ()
    record.inputs = (Tensor("x", "FP33", (1,), bytes(4)),)
    assert decode(encoded(record, policy=policy_of())).inputs["x"].payload is None


def test_an_input_and_an_output_of_one_form_are_judged_apart() -> None:
    class InputsDropped(Treatments):
        def treatment(
            self, tensor: str, datatype: str, shape: tuple[int, ...], is_input: bool
        ) -> Any:  # Any: a Treatment
            return DROP if is_input else super().treatment(tensor, datatype, shape, is_input)

    record = ordinary_record()
    record.inputs = record.outputs = (Tensor("x", "UINT8", (1,), b"!"),)
    policy = policy_of(privacy=InputsDropped())
    encoder = RecordEncoder(worker="w", policy=policy)
    for _ in range(2):
        logged = decode(blob_of(encoder, record))
        assert (logged.inputs["x"].payload, logged.outputs["x"].payload) == (None, b"!")


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 300])
def test_any_number_of_tensors_comes_back_in_order(count: int) -> None:
    record = ordinary_record()
    record.inputs = tuple(Tensor(f"t{n}", "UINT16", (1,), n.to_bytes(2)) for n in range(count))
    logged = decode(encoded(record))
    assert [(name, t.data) for name, t in logged.inputs.items()] == [
        (name, data) for name, _, _, data in record.inputs
    ]
    assert list(logged.outputs) == ["y"]
