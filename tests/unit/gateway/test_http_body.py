"""Bodies in and out of ASGI, without a server: limits, compression, errors."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import random
import zlib
from collections.abc import Callable
from typing import Any, Final

import pytest

from engines.errors import InvalidInput, QueueFull
from gateway.errors import INTERNAL_SENTENCE, MalformedRequest, PayloadTooLarge, StatusTable
from gateway.http_api import body as bodies

LIMIT: Final = 1_000
Message = dict[str, Any]  # Any: ASGI


def scope(**headers: str) -> Message:
    """Return a scope with headers; underscores are dashes."""
    lines = [(k.replace("_", "-").encode(), v.encode("latin-1")) for k, v in headers.items()]
    return {"type": "http", "headers": lines}


class Script:
    """A `receive` that hands out messages, and fails if it is asked for more."""

    def __init__(self, *messages: Message) -> None:
        self._messages = list(messages)
        self.asked = 0

    async def __call__(self) -> Message:
        """Return the next message."""
        self.asked += 1
        return self._messages.pop(0)


def chunks(*parts: bytes) -> list[Message]:
    """Return body messages, the last of which says so."""
    return [
        {"type": "http.request", "body": part, "more_body": n < len(parts) - 1}
        for n, part in enumerate(parts)
    ]


def read(script: Script, **headers: str) -> bytes:
    """Read a body."""
    return asyncio.run(bodies.read_body(scope(**headers), script, LIMIT))


def test_a_body_may_come_in_one_message_or_in_many() -> None:
    assert read(Script(*chunks(b"whole"))) == b"whole"
    assert read(Script(*chunks(b"in ", b"", b"parts"))) == b"in parts"
    assert read(Script(*chunks(b""))) == b""


def test_a_body_of_exactly_the_limit_is_read() -> None:
    assert len(read(Script(*chunks(b"x" * LIMIT)), content_length=str(LIMIT))) == LIMIT


def test_a_declared_length_over_the_limit_is_refused_without_reading() -> None:
    script = Script()
    with pytest.raises(PayloadTooLarge, match="limit of 1000 bytes"):
        read(script, content_length=str(LIMIT + 1))
    assert script.asked == 0


def test_a_body_that_grows_over_the_limit_is_read_no_further() -> None:
    script = Script(*chunks(b"x" * LIMIT, b"x", b"never read"))
    with pytest.raises(PayloadTooLarge):
        read(script)
    assert script.asked == 2


def test_one_message_over_the_limit_is_refused() -> None:
    with pytest.raises(PayloadTooLarge):
        read(Script(*chunks(b"x" * (LIMIT + 1))))


@pytest.mark.parametrize(
    "messages",
    [
        [{"type": "http.disconnect"}],
        [*chunks(b"a", b"b")[:1], {"type": "http.disconnect"}],
    ],
)
def test_a_client_that_goes_away_is_told_from_an_empty_body(messages: list[Message]) -> None:
    with pytest.raises(bodies.ClientDisconnected):
        read(Script(*messages))


def raw_deflate(data: bytes) -> bytes:
    """Compress without the zlib wrapper."""
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


ENCODERS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    " GZip ": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": raw_deflate,
    "identity": bytes,
}


@pytest.mark.parametrize("encoding", ENCODERS)
@pytest.mark.parametrize("data", [b"", b"x", b"abc" * 300])
def test_every_encoding_is_read(encoding: str, data: bytes) -> None:
    content = ENCODERS[encoding](data)
    assert read(Script(*chunks(content)), content_encoding=encoding) == data


def test_a_large_body_is_decompressed_too() -> None:
    """By another way: in a thread, so that the event loop is not held."""
    data = random.Random(7).randbytes(2 * bodies.THREAD_FROM_BYTES)
    script = Script(*chunks(gzip.compress(data)))
    headers = scope(content_encoding="gzip")
    assert asyncio.run(bodies.read_body(headers, script, 2 * len(data))) == data


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_is_refused_when_it_passes_the_limit(encoding: str) -> None:
    bomb = ENCODERS[encoding](b"\0" * (LIMIT + 1))
    assert len(bomb) < LIMIT / 10
    with pytest.raises(PayloadTooLarge):
        bodies.decompress(bomb, encoding, LIMIT)
    assert len(bodies.decompress(bomb, encoding, LIMIT + 1)) == LIMIT + 1


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "Deflate"])
def test_every_cut_of_compressed_data_is_malformed(encoding: str) -> None:
    content = ENCODERS[encoding](b"some data that is not too short")
    for end in range(len(content)):
        with pytest.raises(MalformedRequest, match="is no valid"):
            bodies.decompress(content[:end], encoding, LIMIT)


@pytest.mark.parametrize(
    ("encoding", "content", "sentence"),
    [
        ("gzip", gzip.compress(b"a") + b"b", "1 bytes follow the data"),
        ("gzip", gzip.compress(b"a") * 2, "bytes follow the data"),
        ("deflate", zlib.compress(b"a") + b"bc", "2 bytes follow the data"),
        ("gzip", zlib.compress(b"a"), "incorrect header check"),
        ("br", b"a", "'br' is neither gzip nor deflate"),
        ("gzip, gzip", gzip.compress(b"a"), "'gzip, gzip' is neither gzip nor deflate"),
    ],
)
def test_what_is_not_as_it_says_is_malformed(encoding: str, content: bytes, sentence: str) -> None:
    with pytest.raises(MalformedRequest, match=sentence):
        bodies.decompress(content, encoding, LIMIT)


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("deflate, gzip", "gzip"),
        ("GZIP", "gzip"),
        ("br, zstd", None),
        ("gzip;q=0, deflate;q=0.5", "deflate"),
        ("gzip; q=0.000", None),
        ("gzip;q=1.0", "gzip"),
        ("identity", None),
    ],
)
def test_the_encoding_of_an_answer_is_one_that_the_client_takes(
    accepted: str, encoding: str | None
) -> None:
    assert bodies.accepted(accepted) == encoding


def test_a_client_that_says_nothing_gets_no_encoding() -> None:
    assert bodies.accepted(None) is None


@pytest.mark.parametrize(
    ("encoding", "decode"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)]
)
def test_a_body_is_compressed_as_it_says(encoding: str, decode: Callable[[bytes], bytes]) -> None:
    content = b"abcd" * 1_000
    body = bodies.compress(content, encoding)
    assert len(body) < len(content) / 10
    assert decode(body) == content


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("encoding", ENCODERS)
def test_a_body_may_be_any_kind_of_bytes(
    encoding: str, kind: Callable[[bytes], bytes | bytearray | memoryview]
) -> None:
    content = kind(ENCODERS[encoding](b"abc" * 300))
    assert bodies.decompress(content, encoding, LIMIT) == b"abc" * 300


def test_an_answer_is_two_messages_and_says_its_length() -> None:
    messages: list[Message] = []

    async def send(message: Any) -> None:  # Any: ASGI
        messages.append(message)

    lines = [(b"content-type", b"text/plain")]
    asyncio.run(bodies.send_answer(send, 404, b"abc", lines))
    start, last = messages
    assert start["status"] == 404
    assert start["headers"] == [*lines, (b"content-length", b"3")]
    assert last["body"] == b"abc"


def test_a_header_is_one_character_per_byte() -> None:
    assert bodies.header(scope(x_user_id="gr\xf6\xdfer"), b"x-user-id") == "gr\xf6\xdfer"
    assert bodies.header(scope(), b"x-user-id") is None


def test_an_error_is_one_sentence_in_json(caplog: pytest.LogCaptureFixture) -> None:
    status, content, headers = bodies.error_answer(StatusTable(), InvalidInput("input 'é': no"))
    assert status == 400
    assert json.loads(content) == {"error": "input 'é': no"}
    assert headers == [(b"content-type", b"application/json")]
    assert caplog.records == []


def test_an_error_that_may_pass_invites_a_retry() -> None:
    full = QueueFull(model="m", version="1", limit=8)
    _, _, headers = bodies.error_answer(StatusTable(), full)
    assert (b"retry-after", b"1") in headers


def test_a_bug_is_logged_with_its_trace_and_told_in_fixed_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    status, content, _ = bodies.error_answer(StatusTable(), ZeroDivisionError("secret"))
    assert status == 500
    assert json.loads(content) == {"error": INTERNAL_SENTENCE}
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
