from __future__ import annotations

import struct

import pytest

from gateway.demo import show
from gateway.demo.ask import Answer
from gateway.demo.digits import Picture
from gateway.prediction_log.record import LoggedPrediction, LoggedTensor

PICTURE = Picture(digit=4, pixels=(16,) * 64)


def answer(*, protocol: str = "HTTP", digit: int = 4, reason: str = "slot") -> Answer:
    return Answer(
        protocol=protocol,
        user="user-1",
        digit=digit,
        probability=0.9876,
        version="2",
        lines={"x-sluice-variant": "canary", "x-sluice-reason": reason, "x-request-id": "00-ff"},
        took_ms=1.25,
    )


def prediction(**changes: object) -> LoggedPrediction:
    fields: dict[str, object] = {
        "schema": 1,
        "rid": bytes(range(16)),
        "ts_us": 1_700_000_000_012_345,
        "name": "digits",
        "status": 200,
        "weight": 1.0,
        "sampled_as": "base",
        "worker": "w",
        "seq": 1,
        "model": "digits",
        "version": "1",
        "revision": 3,
        "variant": "stable",
        "propensity": 0.9,
        "reason": "slot",
        "queue_us": 10,
        "batch_us": 20,
        "infer_us": 30,
        "total_us": 70,
        "batch_rows": 1,
        "device": "cpu",
        "inputs": {"image": LoggedTensor("FP32", (1, 12), struct.pack("<12f", *range(12)))},
        "outputs": {
            "probabilities": LoggedTensor("FP32", (1, 2), struct.pack("<2f", 0.25, 0.75)),
            "label": LoggedTensor("INT64", (1, 1), struct.pack("<q", 7)),
        },
    }
    return LoggedPrediction(**(fields | changes))  # type: ignore[arg-type]


def test_answers_stand_to_the_right_of_the_picture() -> None:
    lines = show.answers(PICTURE, [answer(), answer(protocol="gRPC")], "utf-8")
    assert len(lines) == 10
    assert lines[1].startswith("│████████████████│")
    text = "\n".join(lines)
    assert "a held-out picture of a 4" in text
    assert "HTTP, x-user-id: user-1" in text
    assert "gRPC, x-user-id: user-1" in text
    assert "answer 4 (98.8 %), right, in 1.2 ms" in text
    assert "version 2, variant canary, reason slot" in text


def test_answers_fit_into_a_terminal_of_eighty_columns_with_their_indent() -> None:
    assert max(map(len, show.answers(PICTURE, [answer(), answer()], "utf-8"))) <= 75


def test_a_wrong_answer_is_called_wrong() -> None:
    text = "\n".join(show.answers(PICTURE, [answer(digit=9)], "utf-8"))
    assert "answer 9 (98.8 %), wrong," in text


def test_an_ascii_terminal_gets_ascii_only() -> None:
    assert all(line.isascii() for line in show.answers(PICTURE, [answer()], "ascii"))


def test_each_reason_is_explained_once() -> None:
    given = [answer(), answer(), answer(reason="random")]
    explained = show.reasons(given)
    assert [line.partition(":")[0] for line in explained] == ["reason slot", "reason random"]
    assert show.reasons([answer(reason="of later days")]) == []


def test_the_request_id_of_an_answer_is_its_bytes() -> None:
    assert answer().request_id == b"\x00\xff"


def test_a_record_is_shown_with_one_aligned_line_per_fact() -> None:
    lines = show.record(prediction())
    labels = [line[:13].strip() for line in lines]
    assert labels == [
        *("request id", "arrived", "asked for", "answered by", "device", "variant", "status"),
        *("took", "input", "", "output", "", "output", ""),
    ]
    texts = [line[13:] for line in lines]
    assert texts == [
        "00010203-0405-0607-0809-0a0b0c0d0e0f",
        "2023-11-14 22:13:20.012 UTC",
        "digits, revision 3 of the route",
        "model digits, version 1",
        "cpu",
        "stable, chosen with probability 0.9, reason slot",
        "200",
        "70 us: 10 queued, 30 inferring, 20 copying, in a batch of 1 row",
        "image FP32 [1, 12]",
        "0 1 2 3 4 5 6 7 8 9 and 2 more",
        "probabilities FP32 [1, 2]",
        "0.250 0.750",
        "label INT64 [1, 1]",
        "7",
    ]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"batch_rows": 5}, "in a batch of 5 rows"),
        ({"status": 503, "error": "Draining"}, "status       503 Draining"),
        ({"device": ""}, "device       not known"),
    ],
)
def test_a_record_says_what_is_different(changes: dict[str, object], text: str) -> None:
    assert any(text in line for line in show.record(prediction(**changes)))
