"""The infer route before ASGI, over raw connections: how requests may be framed and cut.

On both event loops, over a real pipeline. What answers say is the contract suite's; here it is
that each request is understood however its bytes arrive, and that nothing else is.
"""

from __future__ import annotations

import asyncio
import json
import struct
import zlib
from pathlib import Path
from typing import Final

import pytest

from tests.support.http_wire import (
    LIMIT_BYTES,
    LOOPS,
    Port,
    Wire,
    chunked,
    head,
    image,
    infer,
    open_port,
    row,
    run,
)

pytestmark = pytest.mark.parametrize("loop", LOOPS)


def test_a_whole_request_is_answered_with_the_headers_of_the_slow_path_in_its_order(
    loop: str, tmp_path: Path
) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            wire.send(infer(1.5, 2.5))
            answer = await wire.answer()
        assert answer.values == [1.5, 2.5]
        names = [name for name, _ in answer.headers]
        assert names == [
            "date",
            "content-type",
            "x-request-id",
            "x-sluice-reason",
            "content-length",
        ]
        assert answer.header("content-type") == "application/json"
        assert (answer.header("date") or "").endswith(" GMT")

    run(loop, work)


def test_a_binary_answer_says_where_its_json_ends(loop: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            wire.send(image(3))
            answer = await wire.answer()
        assert answer.values == [0.0, 1.0, 2.0]
        names = [name for name, _ in answer.headers]
        assert names[1:3] == ["content-type", "inference-header-content-length"]
        assert answer.header("content-type") == "application/octet-stream"

    run(loop, work)


def test_a_request_cut_anywhere_is_the_same_request(loop: str, tmp_path: Path) -> None:
    request = infer(1.0, x_request_id="a")

    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            for cut in range(1, len(request)):
                wire.send(request[:cut])
                await wire.writer.drain()
                await asyncio.sleep(0.0005)  # so that the server reads it by itself
                wire.send(request[cut:])
                assert (await wire.answer()).values == [1.0]
            await wire.drip(request)
            assert (await wire.answer()).values == [1.0]

    run(loop, work)


def test_a_chunked_request_cut_anywhere_is_the_same_request(loop: str, tmp_path: Path) -> None:
    content = row(1.0)
    request = head(transfer_encoding="Chunked") + chunked(
        content[:7], content[7:9], content[9:], trailers=b"x-checksum: 1\r\n"
    )

    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            for cut in range(1, len(request)):
                wire.send(request[:cut])
                await wire.writer.drain()
                await asyncio.sleep(0.0005)  # as above
                wire.send(request[cut:])
                assert (await wire.answer()).values == [1.0]

    run(loop, work)


@pytest.mark.parametrize("count", [10, 20_000, 250_000])
def test_a_body_of_any_length_goes_through_whole_and_the_next_request_is_not_in_it(
    loop: str, count: int, tmp_path: Path
) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            wire.send(image(count), infer(7.0), image(count))
            first, second, third = [await wire.answer() for _ in range(3)]
        assert first.values == list(range(count))
        assert second.values == [7.0]
        assert third.body == first.body

    run(loop, work)


def test_a_body_that_grows_its_buffer_is_whole(
    loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.http_api.fast.framing.FIRST_STEP_BYTES", 100)

    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            await wire.drip(image(1_000), step=97)
            assert (await wire.answer()).values == list(range(1_000))

    run(loop, work)


@pytest.mark.parametrize("count", [10, 20_000, 90_000])
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compression_works_both_ways_in_the_loop_and_beside_it(
    loop: str, coding: str, count: int, tmp_path: Path
) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            wire.send(image(count, coding), infer(5.0))
            answer = await wire.answer()
            assert (await wire.answer()).values == [5.0]
        assert answer.status == 200
        if count < 100:
            assert answer.values == list(range(count))
            return
        names = [name for name, _ in answer.headers]
        assert names[-3:] == ["content-encoding", "vary", "content-length"]
        assert answer.header("content-encoding") == coding
        assert answer.header("vary") == "accept-encoding"
        body = zlib.decompress(answer.body, zlib.MAX_WBITS | 32)
        tail = body[int(answer.header("inference-header-content-length") or 0) :]
        assert tail == struct.pack(f"<{count}f", *range(count))

    run(loop, work)


@pytest.mark.parametrize("size_bytes", [20, 60_000])
def test_broken_compression_is_refused_and_the_connection_goes_on(
    loop: str, size_bytes: int, tmp_path: Path
) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            wire.send(infer(body=b"x" * size_bytes, content_encoding="gzip"), infer(1.0))
            refused = await wire.answer()
            assert refused.status == 400
            assert refused.error.startswith("request body is no valid gzip data")
            assert (await wire.answer()).values == [1.0]

    run(loop, work)


def test_leave_to_send_a_body_is_given_before_the_body_comes(loop: str, tmp_path: Path) -> None:
    content = row(1.0)

    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            for lines in (
                {"content_length": str(len(content))},
                {"transfer_encoding": "chunked"},
            ):
                wire.send(head(expect="100-Continue", **lines))
                assert (await wire.answer()).status == 100
                wire.send(content if "content_length" in lines else chunked(content))
                assert (await wire.answer()).values == [1.0]

    run(loop, work)


def test_leave_to_send_a_body_waits_for_the_answers_before_it(loop: str, tmp_path: Path) -> None:
    content = row(2.0)

    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            wire.send(infer(1.0, model="held"))
            await port.in_flight(1)
            wire.send(head(expect="100-continue", content_length=str(len(content))))
            await asyncio.sleep(0.02)
            port.desk.shelf.gate.open()
            assert (await wire.answer()).values == [1.0]
            assert (await wire.answer()).status == 100
            wire.send(content)
            assert (await wire.answer()).values == [2.0]

    run(loop, work)


def test_no_leave_is_given_where_the_body_did_not_wait_for_it(loop: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            wire.send(infer(1.0, expect="100-continue"))
            assert (await wire.answer()).values == [1.0]

    run(loop, work)


@pytest.mark.parametrize(
    ("version", "line", "is_closed"),
    [
        ("1.1", "", False),
        ("1.1", "connection: keep-alive\r\n", False),
        ("1.1", "Connection: Close\r\n", True),
        ("1.0", "", True),
        ("1.0", "connection: keep-alive\r\n", True),
    ],
)
def test_the_connection_ends_where_it_should_and_the_answer_says_so(
    loop: str, version: str, line: str, is_closed: bool, tmp_path: Path
) -> None:
    request = infer(1.0).replace(b"HTTP/1.1\r\n", f"HTTP/{version}\r\n{line}".encode())

    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            wire.send(request)
            answer = await wire.answer()
            assert answer.values == [1.0]
            if is_closed:
                assert answer.headers[-1] == ("connection", "close")
                assert await wire.rest() == b""
            else:
                assert answer.header("connection") is None
                wire.send(request)
                assert (await wire.answer()).values == [1.0]

    run(loop, work)


def test_what_follows_the_last_request_is_not_served(loop: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            wire.send(infer(1.0, connection="close"), infer(2.0))
            assert (await wire.answer()).values == [1.0]
            assert await wire.rest() == b""
            assert port.statistics("echo").queue.queued_requests == 0
            assert port.desk.metrics is not None

    run(loop, work)


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/%65cho/infer",
        "/v2/models/echo/infer?a=1&b",
        "/v2/models/echo/versions/1/infer",
        "/v2/models/echo/versions/%31/infer?x",
        "http://somewhere/v2/models/echo/infer",
    ],
)
def test_a_path_may_be_written_in_every_way(loop: str, path: str, tmp_path: Path) -> None:
    request = infer(1.0).replace(b"/v2/models/echo/infer", path.encode())

    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            for _ in range(2):  # the second time from memory
                wire.send(request)
                assert (await wire.answer()).values == [1.0]

    run(loop, work)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/echo/infer", 405),
        ("PUT", "/v2/models/echo/infer", 405),
        ("POST", "/v2/models/echo%2Fx/infer", 404),
        ("POST", "/v2/models/echo/infer/", 404),
        ("POST", "/v2/models//infer", 404),
        ("POST", "/V2/models/echo/infer", 404),
        ("GET", "/now", 200),
    ],
)
def test_every_other_request_is_the_application_s(
    loop: str, method: str, path: str, status: int, tmp_path: Path
) -> None:
    request = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc".encode()

    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            wire.send(request, infer(1.0), request)
            assert (await wire.answer()).status == status
            assert (await wire.answer()).values == [1.0]
            assert (await wire.answer()).status == status

    run(loop, work)


def test_empty_lines_before_a_request_are_nothing(loop: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            wire.send(b"\r\n", infer(1.0), b"\r\n\r\n\r\n", infer(2.0), b"\n")
            assert (await wire.answer()).values == [1.0]
            assert (await wire.answer()).values == [2.0]
            wire.send(infer(3.0))
            assert (await wire.answer()).values == [3.0]

    run(loop, work)


def test_an_upgrade_that_is_asked_for_is_ignored(loop: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            wire.send(infer(1.0, connection="upgrade, http2-settings", upgrade="h2c"), infer(2.0))
            assert (await wire.answer()).values == [1.0]
            assert (await wire.answer()).values == [2.0]

    run(loop, work)


def test_headers_reach_the_request_the_first_of_each_name(loop: str, tmp_path: Path) -> None:
    request = infer(1.0).replace(
        b"host: x\r\n", b"host: x\r\nX-Request-ID: gr\xfcn\r\nx-request-id: rot\r\n"
    )

    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            wire.send(request)
            await wire.answer()
            (record,) = port.desk.log.records
            assert record.cid == "grün"

    run(loop, work)


BAD_HEADS: Final = {
    "no HTTP": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 32 + b"\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "lower-case method": head().replace(b"POST", b"post") + b"",
    "length and chunks": head(content_length="5", transfer_encoding="chunked") + b"0\r\n\r\n",
    "chunks and length": head(transfer_encoding="chunked", content_length="5") + b"0\r\n\r\n",
    "two lengths": head(content_length="5\r\ncontent-length: 6") + b"12345",
    "the same length twice": head(content_length="5\r\ncontent-length: 5") + b"12345",
    "a list of lengths": head(content_length="5, 5") + b"12345",
    "a signed length": head(content_length="+5") + b"12345",
    "a hexadecimal length": head(content_length="0x5") + b"12345",
    "no length at all": head(content_length="") + b"12345",
    "a length beyond 64 bits": head(content_length="99999999999999999999") + b"12345",
    "an unknown coding": head(transfer_encoding="gzip") + b"0\r\n\r\n",
    "two codings": head(transfer_encoding="gzip, chunked") + b"0\r\n\r\n",
    "chunked twice": head(transfer_encoding="chunked\r\ntransfer-encoding: chunked") + b"0\r\n\r\n",
    "a coding that looks like chunked": head(transfer_encoding="xchunked") + b"0\r\n\r\n",
    "chunks in HTTP/1.0": head(transfer_encoding="chunked").replace(b"/1.1", b"/1.0")
    + b"0\r\n\r\n",
    "a space before the colon": head().replace(b"host:", b"content-length :") + b"12345",
    "a folded line": head(a="b\r\n c"),
    "a zero byte": head(a="b\0c"),
    "a bare carriage return": head(a="b\rc"),
    "a bare line feed": head(a="b\nc: d"),
    "a line without a name": head().replace(b"host", b""),
    "no URL": head().replace(b"/v2/models/echo/infer", b"v2"),
    "a byte beyond ASCII in the path": head().replace(b"echo", b"ech\xf6"),
    "bare line ends": b"POST /v2/models/echo/infer HTTP/1.1\n\n\r\n\r\n",
}


@pytest.mark.parametrize("case", BAD_HEADS)
def test_what_is_no_request_is_refused_and_ends_the_connection(
    loop: str, case: str, tmp_path: Path
) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            wire.send(infer(1.0), BAD_HEADS[case], infer(2.0))
            assert (await wire.answer()).values == [1.0]
            await is_refused(port, wire)

    run(loop, work)


async def is_refused(port: Port, wire: Wire) -> None:
    """Check that the next answer is the last, and says that this was no HTTP."""
    refused = await wire.answer()
    assert refused.status == 400
    assert refused.body == b"Invalid HTTP request received."
    assert refused.header("content-type") == "text/plain; charset=utf-8"
    assert refused.header("connection") == "close"
    assert await wire.rest() == b""
    assert port.listener.statistics().bad_requests == 1


BAD_CHUNKS: Final = {
    "no size": b"\r\n\r\n",
    "a size that is no number": b"xyz\r\nabc\r\n0\r\n\r\n",
    "a signed size": b"+3\r\nabc\r\n0\r\n\r\n",
    "a prefixed size": b"0x3\r\nabc\r\n0\r\n\r\n",
    "an underscore in the size": b"1_0\r\n" + b"a" * 16 + b"\r\n0\r\n\r\n",
    "a space before the size": b" 3\r\nabc\r\n0\r\n\r\n",
    "a space after the size": b"3 \r\nabc\r\n0\r\n\r\n",
    "a size beyond 60 bits": b"1000000000000000\r\nabc",
    "a bare line feed after the size": b"3\nabc\r\n0\r\n\r\n",
    "a carriage return in an extension": b"3;a\rb\r\nabc\r\n0\r\n\r\n",
    "an extension without a name": b"3;\r\nabc\r\n0\r\n\r\n",
    "an endless extension": b"3;" + b"a" * 1_100,
    "more data than the size": b"3\r\nabcd\r\n0\r\n\r\n",
    "a bare line feed after the data": b"3\r\nabc\n0\r\n\r\n",
    "a trailer that is no header": b"0\r\nnonsense\r\n\r\n",
    "a trailer with a zero byte": b"0\r\na: \0\r\n\r\n",
    "a trailer that is a length": b"0\r\ncontent-length: 0\r\n\r\n",
    "endless trailers": b"0\r\n" + b"a: b\r\n" * 6_000,
}


@pytest.mark.parametrize("case", BAD_CHUNKS)
def test_a_bad_chunk_is_refused_and_ends_the_connection(
    loop: str, case: str, tmp_path: Path
) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            wire.send(head(transfer_encoding="chunked"), BAD_CHUNKS[case])
            await is_refused(port, wire)
            assert port.desk.log.records == []

    run(loop, work)


@pytest.mark.parametrize("path", ["/echo", "/now"])
def test_a_bad_chunk_for_the_application_ends_the_connection_as_well(
    loop: str, path: str, tmp_path: Path
) -> None:
    request = f"POST {path} HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n".encode()

    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            wire.send(request, b"3\r\nabcX")
            answer = await wire.rest()
            assert answer.count(b"HTTP/1.1 ") == 1
            assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 405 "))

    run(loop, work)


def test_a_length_over_the_limit_is_refused_before_the_body_is_sent(
    loop: str, tmp_path: Path
) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            for lines in ({}, {"expect": "100-continue"}):
                wire = await port.connect()
                wire.send(head(content_length=str(LIMIT_BYTES + 1), **lines))
                refused = await wire.answer()
                assert refused.status == 413
                assert refused.header("connection") == "close"
                assert str(LIMIT_BYTES) in refused.error
                assert await wire.rest() == b""

    run(loop, work)


@pytest.mark.parametrize("is_chunked", [True, False])
def test_who_sends_too_much_all_the_same_can_read_why_it_was_refused(
    loop: str, is_chunked: bool, tmp_path: Path
) -> None:
    size_bytes = 20 * LIMIT_BYTES
    lines = {"transfer_encoding": "chunked"} if is_chunked else {"content_length": str(size_bytes)}

    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            wire.send(head(**lines))
            for _ in range(20):
                piece = b" " * LIMIT_BYTES
                wire.send(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
                await wire.writer.drain()
            assert (await wire.answer()).status == 413
            wire.close()
            await port.connections(0)

    run(loop, work)


def test_a_body_of_exactly_the_limit_is_read(loop: str, tmp_path: Path) -> None:
    content = row(1.0).ljust(LIMIT_BYTES)

    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            wire.send(infer(body=content), head(transfer_encoding="chunked"))
            wire.send(chunked(content[:-1], content[-1:]))
            assert (await wire.answer()).values == [1.0]
            assert (await wire.answer()).values == [1.0]

    run(loop, work)


def test_a_request_without_a_body_is_malformed_and_no_end(loop: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with open_port(tmp_path) as port:
            wire = await port.connect()
            for lines in ({}, {"content_length": "0"}):
                wire.send(head(**lines))
                refused = await wire.answer()
                assert refused.status == 400
                assert json.loads(refused.body)["error"].startswith("request body: Input data was")
                assert [name for name, _ in refused.headers] == [
                    "date",
                    "content-type",
                    "content-length",
                ]
            wire.send(infer(1.0))
            assert (await wire.answer()).values == [1.0]

    run(loop, work)
