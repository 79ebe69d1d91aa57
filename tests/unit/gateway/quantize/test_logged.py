from __future__ import annotations

import msgspec
import numpy as np
import pytest

from gateway.prediction_log.record import LoggedPrediction, LoggedTensor, Reduced
from gateway.quantize import logged
from gateway.quantize.faults import WrongInput
from gateway.quantize.graphs import Port, Signature
from tests.support.log_streams import floats, prediction

SIGNATURE = Signature((Port("x", "FP32", (-1, 2)),), (Port("y", "INT64", (-1,)),))


def of(tensor: LoggedTensor | None) -> LoggedPrediction:
    return prediction(1, inputs={} if tensor is None else {"x": tensor})


def reduced(kind: str) -> LoggedTensor:
    return LoggedTensor("FP32", (1, 2), Reduced(kind=kind))


def test_whole_inputs_of_answered_requests_become_samples_of_their_rows() -> None:
    records = [prediction(1), of(floats(3, 2, start=7))]
    found = logged.from_records(records, SIGNATURE)
    assert [s["x"].tolist() for s in found.samples] == [
        [[1, 2]],
        [[7, 8], [9, 10], [11, 12]],
    ]
    assert not found.why_not
    assert logged.checked(found, "digits") is found.samples


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (prediction(1, error="EngineFailed"), "ended in an error"),
        (of(None), "have no input 'x'"),
        (of(reduced("stat")), "keep only statistics of 'x'"),
        (of(reduced("thumb")), "keep only statistics of 'x'"),
        (of(reduced("trunc")), "keep only the start of 'x'"),
        (of(reduced("seal")), "have sealed 'x'"),
        (of(reduced("erased")), "no longer have 'x'"),
        (of(LoggedTensor("FP32", (1, 2), None)), "were told by privacy rules to drop 'x'"),
        (of(floats(1, 3)), "have another datatype or shape than 'x' FP32 [-1, 2]"),
        (of(LoggedTensor("FP64", (1, 2), bytes(16))), "have another datatype or shape"),
        (of(LoggedTensor("FP32", (1, 2), bytes(5))), "have broken bytes for 'x'"),
        (
            of(LoggedTensor("FP32", (1, 2), np.array([1, np.nan], "<f4").tobytes())),
            "have values of 'x' that are not finite",
        ),
    ],
)
def test_a_record_that_does_not_count_says_why(record: LoggedPrediction, why: str) -> None:
    found = logged.from_records([record, prediction(2)], SIGNATURE)
    assert len(found.samples) == 1
    ((told, count),) = found.why_not.items()
    assert told.startswith(why)
    assert count == 1


def test_if_none_counts_the_causes_are_told_and_what_to_do_about_statistics() -> None:
    records = [of(reduced("stat"))] * 3 + [prediction(1, error="Cancelled")]
    found = logged.from_records(records, SIGNATURE)
    with pytest.raises(WrongInput) as refused:
        logged.checked(found, "digits")
    assert str(refused.value).startswith(
        "the log of 'digits': none of 4 records has its inputs whole: 3 keep only statistics of "
        "'x', 1 ended in an error; tensors over [prediction_log.capture] max_bytes"
    )


def test_an_empty_log_is_told_as_that() -> None:
    with pytest.raises(WrongInput, match="the log of 'digits': there is no record in it"):
        logged.checked(logged.from_records([], SIGNATURE), "digits")


def test_text_inputs_are_refused_before_any_record_is_looked_at() -> None:
    signature = Signature((Port("note", "BYTES", (-1,)),), SIGNATURE.outputs)
    with pytest.raises(WrongInput, match="input 'note' BYTES"):
        logged.from_records(iter([msgspec.UNSET]), signature)  # type: ignore[arg-type]
