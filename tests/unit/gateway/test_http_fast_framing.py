"""Bodies and their ends, against llhttp: every cut, every chunking, and where the rest begins."""

from __future__ import annotations

from itertools import pairwise

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http_api.fast import framing
from gateway.http_api.fast.framing import (
    BadFraming,
    BodyBuffer,
    ChunkedFraming,
    Framing,
    LengthFraming,
)

NEXT = b"GET / HTTP/1.1\r\n"
HEAD = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"


def take(framing_: Framing, pieces: list[bytes]) -> tuple[bytes, bytes]:
    """Give pieces to a framing; return the body and what follows it."""
    body, rest = bytearray(), b""
    for piece in pieces:
        if framing_.is_done:
            rest += piece
        else:
            end = framing_.take(piece, 0, body.extend)
            assert framing_.is_done or end == len(piece)
            rest += piece[end:]
    return bytes(body), rest


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """Return data in pieces."""
    places = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    return [data[a:b] for a, b in pairwise(places)]


def chunked() -> ChunkedFraming:
    """Return a framing with room for trailers."""
    return ChunkedFraming(trailer_bytes=1_000)


class Oracle:
    """What llhttp makes of a chunked request."""

    def __init__(self, data: bytes) -> None:
        self.body = b""
        self.is_complete = False
        self.is_good = True
        try:
            httptools.HttpRequestParser(self).feed_data(HEAD + data)
        except httptools.HttpParserError:
            self.is_good = False

    def on_body(self, body: bytes) -> None:
        """Take a piece."""
        self.body += body

    def on_message_complete(self) -> None:
        """Take the end."""
        self.is_complete = True


@given(st.binary(min_size=1, max_size=50), st.binary(max_size=20), st.lists(st.integers(0, 99)))
def test_a_length_ends_where_it_says(body: bytes, rest: bytes, cuts: list[int]) -> None:
    assert take(LengthFraming(len(body)), cut(body + rest, cuts)) == (body, rest)


CHUNKS = st.lists(st.binary(min_size=1, max_size=30), max_size=5)
EXTENSIONS = st.sampled_from([b"", b";a", b";a=b", b';a="b"', b";a=b;c", b';a="";b=c;d="x;\t= y"'])
TRAILERS = st.lists(
    st.sampled_from([b"a: b", b"x-y:", b"c:d e\tf", b"content-lengths: 1"]), max_size=3
)


@given(CHUNKS, EXTENSIONS, TRAILERS, st.lists(st.integers(0, 400)))
def test_chunks_are_read_as_llhttp_reads_them_however_they_are_cut(
    chunks: list[bytes], extension: bytes, trailers: list[bytes], cuts: list[int]
) -> None:
    lines = [b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks]
    data = b"".join([*lines, b"0%b\r\n" % extension, *(t + b"\r\n" for t in trailers), b"\r\n"])
    oracle = Oracle(data)
    assert (oracle.is_good, oracle.is_complete) == (True, True)
    assert take(chunked(), cut(data + NEXT, cuts)) == (oracle.body, NEXT)


MESSY = st.lists(
    st.sampled_from(
        [b"0", b"1", b"3", b"a", b"A", b"g", b"x", b" ", b"\t", b";", b"=", b'"', b":", b"-", b"+"]
        + [b"\r\n"] * 8
        + [b"\r", b"\n", b"\0", b"\xff", b"0\r\n\r\n", b"3\r\nabc\r\n", b"a: b\r\n"]
    ),
    max_size=16,
).map(b"".join)


@given(MESSY, st.lists(st.integers(0, 60), max_size=4))
def test_nothing_is_a_body_here_that_is_none_for_llhttp(data: bytes, cuts: list[int]) -> None:
    """The other way round is no danger: what is refused here ends the connection."""
    framing_ = chunked()
    try:
        body, rest = take(framing_, cut(data, cuts))
    except BadFraming:
        return
    oracle = Oracle(data[: len(data) - len(rest)])
    if framing_.is_done:
        assert (oracle.is_good, oracle.is_complete, oracle.body) == (True, True, body)
    else:
        assert not oracle.is_complete or not oracle.is_good


@given(st.text('ab;="\\ \t\r\n\x00\x7f\xff/,', max_size=8).map(str.encode))
def test_nothing_is_an_extension_here_that_is_none_for_llhttp(extension: bytes) -> None:
    data = b"1;%b\r\nx\r\n0\r\n\r\n" % extension
    try:
        body, rest = take(chunked(), [data])
    except BadFraming:
        return
    oracle = Oracle(data)
    assert (oracle.is_good, oracle.is_complete, oracle.body, rest) == (True, True, body, b"")


@pytest.mark.parametrize(
    "extension",
    b'; ;;a ;\ta ;=b ;a= ;a=b\tc ;a="b ;a="b"c ;a="\\"" ;a=b=c ;a/b ;a=\xff'.split(b" "),
)
def test_an_extension_that_is_not_of_the_grammar_or_is_read_in_two_ways_is_refused(
    extension: bytes,
) -> None:
    with pytest.raises(BadFraming):
        take(chunked(), [b"0%b\r\n\r\n" % extension])


@pytest.mark.parametrize("name", [b"Transfer-Encoding", b"content-length"])
@pytest.mark.parametrize("before", [b"", b"a: b\r\n"])
def test_a_trailer_says_nothing_about_where_the_body_ends(before: bytes, name: bytes) -> None:
    with pytest.raises(BadFraming):
        take(chunked(), [b"0\r\n%b%b: 1\r\n\r\n" % (before, name)])


@pytest.mark.parametrize("step", [1, 3, 100])
def test_trailers_are_bounded_all_together(step: int) -> None:
    line = b"abc: defg\r\n"
    fits = b"0\r\n" + line * 90 + b"\r\n"
    over = b"0\r\n" + line * 91 + b"\r\n"
    for data, is_good in ((fits, True), (over, False)):
        pieces = [data[n : n + step] for n in range(0, len(data), step)]
        if is_good:
            assert take(chunked(), pieces) == (b"", b"")
        else:
            with pytest.raises(BadFraming):
                take(chunked(), pieces)


def test_a_line_that_never_ends_is_refused_while_it_comes() -> None:
    for size in (1, 100):
        with pytest.raises(BadFraming):
            take(chunked(), [b"0" * size] * 2_000)


@given(st.integers(2, 500), st.integers(1, 60), st.integers(1, 90))
def test_a_buffer_takes_a_body_of_any_length_in_steps(length: int, first: int, read: int) -> None:
    data = bytes(n % 251 for n in range(length))
    first = min(first, length - 1)
    before = framing.FIRST_STEP_BYTES
    framing.FIRST_STEP_BYTES = 16  # type: ignore[misc]  # so that small bodies grow as well
    try:
        buffer = BodyBuffer(length, data[:first])
        filled = first
        while not buffer.is_full:
            space = buffer.space()
            assert 0 < len(space) <= length - filled
            count = min(read, len(space))
            space[:count] = data[filled : filled + count]
            buffer.add(count)
            filled += count
    finally:
        framing.FIRST_STEP_BYTES = before  # type: ignore[misc]
    assert buffer.whole() == data
    assert buffer.whole().readonly
