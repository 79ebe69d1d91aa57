from __future__ import annotations

import pytest

from loadtests.http_loop import Answer, LoopFailed, parse, post

ONE = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nX-Sluice-Variant:  canary \r\n\r\nhello"


def test_an_answer_is_read_whole_with_its_headers() -> None:
    parsed = parse(ONE)
    assert parsed is not None
    answer, size_bytes = parsed
    assert (answer.status, answer.body, size_bytes) == (200, b"hello", len(ONE))
    assert answer.header("x-sluice-variant") == "canary"
    assert answer.header("content-length") == "5"
    assert answer.header("x-sluice") is None


@pytest.mark.parametrize("size_bytes", range(len(ONE)))
def test_an_answer_that_is_not_whole_yet_is_none(size_bytes: int) -> None:
    assert parse(ONE[:size_bytes]) is None


def test_what_follows_an_answer_is_left() -> None:
    refused = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"
    parsed = parse(refused + ONE)
    assert parsed is not None
    assert parsed[0].status == 429
    assert parsed[0].body == b""
    assert parsed[1] == len(refused)


def test_a_header_ends_the_head() -> None:
    assert Answer(200, b"http/1.1 200 ok\r\na: 1\r\nlast: of all", b"").header("last") == "of all"


@pytest.mark.parametrize(
    "received",
    [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 abc\r\ncontent-length: 0\r\n\r\n",
    ],
)
def test_what_is_no_answer_is_refused(received: bytes) -> None:
    with pytest.raises(LoopFailed, match="no answer that is understood here"):
        parse(received)


def test_a_post_has_its_length_and_headers() -> None:
    assert post("/v2", b"{}", {"x-user-id": "u"}) == (
        b"POST /v2 HTTP/1.1\r\nHost: gateway\r\nContent-Length: 2\r\nx-user-id: u\r\n\r\n{}"
    )
