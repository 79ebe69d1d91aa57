"""HTTP/1 listener: what it takes for a request is what llhttp takes for one, however it is cut.

An input is one byte, which seeds the cuts, then what a client sends on one connection. Each request
that reaches the service or the application is noted: its target and its body. Then
  - the connection raises nothing, whatever comes, and holds nothing once it is lost;
  - bytes in one piece and bytes in many give the same requests and the same answers;
  - the requests are those that llhttp finds in the whole stream, in order, up to where we stopped:
    nobody gets a request in that a proxy before us would not have seen (smuggling).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from random import Random
from typing import Any, Final
from unittest import mock

import httptools

from engines.base import ModelMetadata, TensorSpec
from gateway.config import LimitsConfig
from gateway.errors import StatusTable
from gateway.http_api.fast import reader
from gateway.http_api.fast.answers import CONTINUE
from gateway.http_api.fast.connection import Connection
from gateway.http_api.fast.exchange import Exchange, Service
from gateway.http_api.fast.shared import Shared, bounds_of
from gateway.http_api.fast.slow import Application
from gateway.request import InferRequest, InferResponse, ServedBy
from tests.fuzz.frames import split

Seen = tuple[bytes, bytes]
"""Path and body of a request."""

_Reply = Callable[[InferResponse | Exception, ServedBy], None]
MOST_STEPS: Final = 24
"""Turns of the loop without an answer after which nothing more will happen."""
LIMIT_BYTES: Final = 4_096
HEADER_BYTES: Final = 4_096
WORDS: Final = (
    b"POST /v2/models/m/infer HTTP/1.1\r\n",
    b"GET /v2 HTTP/1.1\r\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\n\n",
    b"content-length: 5\r\n",
    b"content-length: +5\r\n",
    b"transfer-encoding: chunked\r\n",
    b"transfer-encoding: gzip, chunked\r\n",
    b"transfer-encoding: identity\r\n",
    b"expect: 100-continue\r\n",
    b"connection: close\r\n",
    b"connection: upgrade\r\nupgrade: h2c\r\n",
    b"inference-header-content-length: 0\r\n",
    b"accept-encoding: gzip\r\n",
    b"content-encoding: gzip\r\n",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"5;x=y\r\n",
    b"fffffffffffffff\r\n",
    b" HTTP/1.0\r\n",
    b" HTTP/2.0\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n",
    b"\x00",
    b"\t",
    b": ",
)
_MODEL: Final = ModelMetadata(
    inputs=(TensorSpec(name="x", datatype="UINT8", shape=(-1,)),),
    outputs=(),
    max_batch_size=0,
    platform="",
    engine="",
    device="",
)
_LENGTH: Final = [(b"content-length", b"2")]
_DATE: Final = re.compile(rb"date: [^\r]*\r\n")


class _Transport(asyncio.Transport):
    """Keeps what is written; reads when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.is_paused = False
        self.is_closed = False
        self.is_ended = False

    def write(self, data: Any) -> None:  # Any: what a buffer is
        assert not self.is_closed, "written to after it was closed"
        assert not self.is_ended, "written to after its end"
        self.written.append(bytes(data))

    def writelines(self, pieces: Iterable[Any]) -> None:  # Any: what a buffer is
        self.write(b"".join(pieces))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.is_ended = True

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def get_write_buffer_size(self) -> int:
        return 0


class _Desk:
    """The pipeline and the catalogue: answers with what it was asked, at once or when told."""

    def __init__(self, *, is_late: bool) -> None:
        self._is_late = is_late
        self.owed: list[_Asked] = []

    def submit(self, request: InferRequest, reply: _Reply) -> _Asked:
        """Take a request."""
        asked = _Asked(request, reply)
        if self._is_late:
            self.owed.append(asked)
        else:
            asked.answer()
        return asked

    def refuse(self, exc: Exception, protocol: str) -> None:
        """Count nothing."""

    def signature(self, name: str, version: str) -> ModelMetadata:
        """Return a model of bytes."""
        return _MODEL


class _Asked:
    """A request under way."""

    def __init__(self, request: InferRequest, reply: _Reply) -> None:
        self._request = request
        self._reply = reply
        self._is_cancelled = False

    def answer(self) -> None:
        """Send the inputs back."""
        if self._is_cancelled:
            return
        request = self._request
        response = InferResponse(model=request.name, version="1", id="", outputs=request.inputs)
        answer: InferResponse | Exception = response
        try:
            if request.write is not None:
                request.write(response)
        except Exception as exc:  # as the pipeline does
            answer = exc
        self._reply(answer, ServedBy(bytes(16)))

    def cancel(self) -> None:
        """Answer no more."""
        self._is_cancelled = True


class _Run:
    """One connection, fed piece by piece."""

    def __init__(self, *, is_late: bool) -> None:
        self.seen: list[Seen] = []
        self._transport = _Transport()
        self._desk = _Desk(is_late=is_late)
        service = Service(
            pipeline=self._desk,
            catalog=self._desk,
            statuses=StatusTable(),
            limit_bytes=LIMIT_BYTES,
        )
        limits = LimitsConfig(header_bytes=HEADER_BYTES)
        self._shared = Shared(
            service=service,
            application=Application(app=self._application),
            bounds=bounds_of(limits, keep_alive_s=75, tick_s=1),
        )
        self._connection = Connection(self._shared, asyncio.get_running_loop())
        self._connection.connection_made(self._transport)

    async def feed(self, piece: bytes) -> None:
        """Give the connection bytes, as it asks for them."""
        while piece and not self._transport.is_closed:
            if self._transport.is_paused:
                await self._settle()
                assert not self._transport.is_paused or self._transport.is_closed, "stuck for ever"
                continue
            space = self._connection.get_buffer(-1)
            size = min(len(space), len(piece))
            assert size, "no room to read into"
            space[:size] = piece[:size]
            piece = piece[size:]
            noting.run = self
            self._connection.buffer_updated(size)

    async def _settle(self) -> None:
        """Let everything happen that can without more bytes."""
        noting.run = self
        idle = written = 0
        while idle < MOST_STEPS:
            idle += 1
            if len(self._transport.written) > written:
                written = len(self._transport.written)
                idle = 0
            if self._desk.owed:
                self._desk.owed.pop().answer()
                idle = 0
            await asyncio.sleep(0)

    async def end(self) -> bytes:
        """Let go; return what was answered, less what depends on time and on the cuts."""
        await self._settle()
        assert self._transport.is_closed or not self._desk.owed
        self._connection.connection_lost(None)
        await self._settle()
        assert not self._shared.connections
        assert not self._shared.application.tasks
        return _DATE.sub(b"", b"".join(self._transport.written)).replace(CONTINUE, b"")

    async def _application(self, scope: Any, receive: Any, send: Any) -> None:  # Any: ASGI
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.seen.append((scope["raw_path"], body))
        await send({"type": "http.response.start", "status": 200, "headers": _LENGTH})
        await send({"type": "http.response.body", "body": b"ok"})


class _Noting(Exchange):
    """Notes what an infer call was given."""

    def start(self, body: Any) -> None:  # Any: a buffer
        """As Exchange."""
        if noting.run is not None:
            noting.run.seen.append((_path(self._head.url), bytes(body)))
        super().start(body)


def _path(url: bytes) -> bytes:
    """Return the path of a target, or all of one that is no URL: we refuse that."""
    try:
        path: bytes = httptools.parse_url(url).path
    except (httptools.HttpParserError, TypeError):
        return url
    return path


class _Reference:
    """The requests of a stream, as llhttp finds them."""

    def __init__(self, stream: bytes) -> None:
        self.seen: list[Seen] = []
        self.is_cut = False
        """llhttp left HTTP/1 to somebody else, where we go on."""
        self._url = self._body = b""
        parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(stream)
        except httptools.HttpParserUpgrade:
            self.is_cut = True
        except httptools.HttpParserError:
            return

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._url = self._body = b""

    def on_url(self, url: bytes) -> None:
        """Take the target."""
        self._url += url

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._body += body

    def on_message_complete(self) -> None:
        """End a request."""
        self.seen.append((_path(self._url), self._body))


class _NotingRun:
    """Which run is under way: exchanges are made by the connection, which knows none."""

    run: _Run | None = None


noting: Final = _NotingRun()
_loops: Final[list[asyncio.AbstractEventLoop]] = []


def seeds() -> list[bytes]:
    """Return what clients send, and a few things that only attackers do."""
    infer = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: a\r\n"
    document = b'{"inputs":[{"name":"x","datatype":"UINT8","shape":[2],"data":[1,2]}]}'
    length = b"content-length: %d\r\n\r\n" % len(document)
    chunked = b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(document), document)
    get = b"GET /v2/health/live?x=1 HTTP/1.1\r\nhost: a\r\n\r\n"
    raw = infer + b"inference-header-content-length: 0\r\ncontent-length: 3\r\n\r\nabc"
    put = b"POST /v2/other HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello"
    streams = [
        infer + length + document,
        infer + chunked,
        get,
        raw,
        put,
        raw * 5 + get + raw,
        (raw + put + get) * 3,
        raw * 200,
        infer + b"expect: 100-continue\r\n" + length + document + raw,
        infer + b"expect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        infer + b"connection: close\r\n" + length + document + raw,
        infer.replace(b"1.1", b"1.0") + length + document,
        infer + b"content-length: 3\r\n" + chunked,
        infer + b"transfer-encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nx: y\r\n\r\n" + raw,
        b"\r\n\r\n" + raw,
        infer + b"content-length: 99999\r\n\r\n" + bytes(50),
        infer + b"accept-encoding: gzip\r\n" + length + document,
        get.replace(b"\r\n\r\n", b"\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n") + raw,
        b"POST /v2/models/m/infer?a=b HTTP/1.1\r\nhost: a\r\n" + length + document,
        b"POST /v2/models/%6d%2f/versions/1/infer HTTP/1.1\r\nhost: a\r\n" + length + document,
        b"POST http://a/v2/models/m/infer HTTP/1.1\r\nhost: a\r\n" + length + document,
    ]
    return [bytes((place % 4,)) + stream for place, stream in enumerate(streams)]


def one(data: bytes) -> None:
    """Feed an input in one piece, and in many, and to llhttp."""
    if not data:
        return
    choice, stream = Random(data[0]), data[1:]
    if not _loops:
        _loops.append(asyncio.new_event_loop())
    with mock.patch.object(reader, "Exchange", _Noting):
        seen = _loops[0].run_until_complete(
            _in_both_ways(choice, stream, is_late=bool(data[0] & 1))
        )
    noting.run = None
    reference = _Reference(stream)
    if reference.is_cut:  # the last one's body is not looked for
        del seen[max(0, len(reference.seen) - 1) :]
    assert seen == reference.seen[: len(seen)], f"{seen} is not how {reference.seen} begins"


async def _in_both_ways(choice: Random, stream: bytes, *, is_late: bool) -> list[Seen]:
    """Feed bytes in one piece, and in many; return the requests."""
    failures: list[dict[str, Any]] = []  # Any: the loop's open dictionaries
    asyncio.get_running_loop().set_exception_handler(lambda _, failure: failures.append(failure))
    whole = _Run(is_late=is_late)
    await whole.feed(stream)
    answers = await whole.end()
    cut = _Run(is_late=is_late)
    for piece in split(choice, stream):
        await cut.feed(piece)
    assert await cut.end() == answers, "the answers depend on how the bytes were cut"
    assert not failures, failures[0]
    assert cut.seen == whole.seen, "the requests depend on how the bytes were cut"
    return whole.seen
