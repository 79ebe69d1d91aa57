"""Answers as bytes: the lines that uvicorn would write, in its order."""

from __future__ import annotations

from email.utils import parsedate_to_datetime

import pytest

from gateway.http_api.fast.answers import JOIN_TO_BYTES, Answers, Output, join
from gateway.ids import uuid7
from gateway.request import ServedBy, Serving

RID = uuid7(1_700_000_000_000, 7)


def text(output: Output) -> tuple[str, bytes]:
    """Return head and body, without the date."""
    whole = output if isinstance(output, bytes) else b"".join(output)
    head, _, body = whole.partition(b"\r\n\r\n")
    status, date, *lines = head.decode().split("\r\n")
    assert parsedate_to_datetime(date.removeprefix("date: ")).tzinfo is not None
    return "\n".join([status, *lines]), body


def test_a_json_answer() -> None:
    output = Answers().good(b"{}", None, b"x-request-id: 1\r\n", is_last=False)
    assert text(output) == (
        "HTTP/1.1 200 OK\ncontent-type: application/json\nx-request-id: 1\ncontent-length: 2",
        b"{}",
    )


def test_a_binary_answer_that_is_the_last() -> None:
    output = Answers().good(b"{}ab", 2, b"", is_last=True)
    head, body = text(output)
    assert head.split("\n") == [
        "HTTP/1.1 200 OK",
        "content-type: application/octet-stream",
        "inference-header-content-length: 2",
        "content-length: 4",
        "connection: close",
    ]
    assert body == b"{}ab"


@pytest.mark.parametrize(
    ("status", "line"),
    [(404, "404 Not Found"), (499, "499 "), (503, "503 Service Unavailable")],
)
def test_any_other_answer(status: int, line: str) -> None:
    output = Answers().other(status, b"no", join([(b"a", b"b"), (b"c", b"")]), is_last=False)
    assert text(output) == (f"HTTP/1.1 {line}\na: b\nc: \ncontent-length: 2", b"no")


@pytest.mark.parametrize("size", [JOIN_TO_BYTES, JOIN_TO_BYTES + 1])
def test_a_large_body_is_not_copied(size: int) -> None:
    body = bytes(size)
    output = Answers().good(body, None, b"", is_last=False)
    assert isinstance(output, tuple) == (size > JOIN_TO_BYTES)
    if isinstance(output, tuple):
        assert output[1] is body
    assert text(output)[1] == body


def test_who_served_is_told_as_the_request_says_it_also_from_memory() -> None:
    answers = Answers()
    serving = Serving("canary", "sta%ble", 3, "rule:100%s")
    for served_by in (ServedBy(RID, serving), ServedBy(bytes(16), serving), ServedBy(RID)):
        for _ in range(2):
            expected = "".join(f"{name}: {value}\r\n" for name, value in served_by.headers())
            assert answers.served_by(served_by) == expected.encode()


def test_the_date_is_that_of_the_last_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers()
    before = answers.good(b"", None, b"", is_last=False)
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert answers.good(b"", None, b"", is_last=False) == before
    answers.refresh()
    after = answers.good(b"", None, b"", is_last=False)
    assert isinstance(after, bytes)
    assert b"\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n" in after
    assert answers.date in answers.other(404, b"", b"", is_last=False)[:80]
