"""One infer call over HTTP/1: its body in, its answer out. No task, no future, one object.

Knows what a request means (codec.py, the pipeline) and how its answer is written; its connection
knows when it is sent. Errors are answered as everywhere, by the one table of statuses. Bodies that
are long to compress or to decompress take a turn in a thread, as they would hold the event loop.

Ownership: the connection lets go of an exchange once it is answered, and an exchange of its
connection once that is lost; an answer that comes later goes nowhere.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol, TypeVar

from engines.base import ModelMetadata
from engines.tensors import Raw
from gateway.errors import MalformedRequest, StatusTable
from gateway.http_api import body as bodies
from gateway.http_api import codec
from gateway.http_api.fast.answers import Answers, Output, join
from gateway.http_api.fast.heads import TIMEOUT_HEADER, Head
from gateway.request import InferRequest, InferResponse, ServedBy

_T = TypeVar("_T")
_MAX_TIMEOUT_DIGITS: Final = 12
_DEFAULT_FORM: Final = codec.AnswerForm()


class Cancellable(Protocol):
    """A request under way."""

    def cancel(self) -> None:
        """Give it up."""


class InferPipeline(Protocol):
    """Where requests are served: gateway.pipeline, or its image in a front process."""

    def submit(
        self,
        request: InferRequest,
        reply: Callable[[InferResponse | Exception, ServedBy], None],
    ) -> Cancellable:
        """Start a request; `reply` gets its answer once, maybe before this returns."""

    def refuse(self, exc: Exception, protocol: str) -> None:
        """Count a request that was answered with an error without being submitted."""


class Signatures(Protocol):
    """What models take: gateway.catalog, for requests that are nothing but bytes."""

    def signature(self, name: str, version: str) -> ModelMetadata:
        """Return what the model behind a public name takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What all exchanges of a listener share."""

    pipeline: InferPipeline
    catalog: Signatures
    statuses: StatusTable
    limit_bytes: int
    """Largest body, before and after decompression."""
    answers: Answers = field(default_factory=Answers)


class Turn(Protocol):
    """The connection's queue, as an exchange sees it."""

    def hold(self, exchange: Exchange, held_bytes: int) -> None:
        """The exchange holds so many bytes now: it is not answered yet."""

    def answered(self, exchange: Exchange) -> None:
        """The exchange has its output: send it when its turn comes."""


class Notice:
    """An answer that is about the connection, not about inference: it was no request."""

    __slots__ = ("held_bytes", "is_last", "output")

    def __init__(self, output: Output) -> None:
        self.is_last = True
        self.held_bytes = 0
        self.output: Output | None = output

    def drop(self) -> None:
        """Nothing is under way."""


class Exchange:
    """A request and its answer, in a connection's queue until that is sent."""

    __slots__ = (
        "_call",
        "_head",
        "_service",
        "_turn",
        "_written",
        "form",
        "held_bytes",
        "is_last",
        "output",
    )

    def __init__(self, service: Service, turn: Turn, head: Head, *, is_last: bool) -> None:
        self._service = service
        self._turn: Turn | None = turn
        self._head = head
        self._call: Cancellable | None = None
        self.form = _DEFAULT_FORM
        """How the answer is wanted; `request.write` is ours, so a front process finds it here."""
        self._written: tuple[bytes, int | None] = (b"", None)
        self.held_bytes = 0
        self.is_last = is_last
        """The connection ends with this answer, and the answer says so."""
        self.output: Output | None = None
        """The answer, once there is one."""

    def start(self, body: Raw) -> None:
        """Take the whole body; the answer may come before this returns."""
        encoding = self._head.encoding
        if not encoding:
            self._submit(body)
        elif len(body) >= bodies.THREAD_FROM_BYTES // 8:  # what it inflates to is not known yet
            work = partial(bodies.decompress, body, encoding, self._service.limit_bytes)
            self._hold(self._service.limit_bytes)
            _in_thread(work, self._inflated, self.refuse)
        else:
            try:
                body = bodies.decompress(body, encoding, self._service.limit_bytes)
            except Exception as exc:  # adapter edge: every error becomes an answer
                self.refuse(exc)
            else:
                self._inflated(body)

    def drop(self) -> None:
        """The client has gone: take the request out of its queue, if it is still there."""
        self._turn = None
        if self._call is not None:
            self._call.cancel()

    def refuse(self, exc: Exception) -> None:
        """Answer with an error, without having submitted anything."""
        self._service.pipeline.refuse(exc, "http")
        self._fail(exc, b"")

    def _inflated(self, body: Raw) -> None:
        self._hold(len(body))
        self._submit(body)

    def _hold(self, held_bytes: int) -> None:
        if self._turn is not None:
            self._turn.hold(self, held_bytes)

    def _submit(self, body: Raw) -> None:
        if self._turn is None:
            return
        try:
            request, self.form = decode(self._service, self._head, body)
        except Exception as exc:  # adapter edge: every error becomes an answer
            self.refuse(exc)
            return
        request.write = self._write
        call = self._service.pipeline.submit(request, self._reply)
        if self.output is None:
            self._call = call

    def _write(self, response: InferResponse) -> None:
        """Put the answer into the caller's form; raises Unrepresentable."""
        self._written = codec.encode(response, self.form)

    def _reply(self, answer: InferResponse | Exception, served_by: ServedBy) -> None:
        self._call = None  # it refers to us: without this, a cycle
        if self._turn is None:
            return
        answers = self._service.answers
        lines = answers.served_by(served_by)
        if isinstance(answer, Exception):
            self._fail(answer, lines)
            return
        content, json_bytes = self._written
        coding = self._head.accepted
        if coding is None or len(content) < bodies.COMPRESS_FROM_BYTES:
            self._done(answers.good(content, json_bytes, lines, is_last=self.is_last))
        elif len(content) < bodies.THREAD_FROM_BYTES:
            self._compressed(lines, coding, bodies.compress(content, coding))
        else:
            work = partial(bodies.compress, content, coding)
            self._hold(len(content))
            _in_thread(
                work, partial(self._compressed, lines, coding), partial(self._fail, lines=lines)
            )

    def _compressed(self, lines: bytes, coding: str, content: bytes) -> None:
        lines += b"content-encoding: %b\r\nvary: accept-encoding\r\n" % coding.encode()
        json_bytes = self._written[1]
        self._written = (b"", None)  # it may be much larger than the answer, which may have to wait
        answers = self._service.answers
        self._done(answers.good(content, json_bytes, lines, is_last=self.is_last))

    def _fail(self, exc: Exception, lines: bytes) -> None:
        """Answer with an error; never compressed: tritonclient reads errors as they come."""
        status, content, own = bodies.error_answer(self._service.statuses, exc)
        answers = self._service.answers
        self._done(answers.other(status, content, join(own) + lines, is_last=self.is_last))

    def _done(self, output: Output) -> None:
        self.output = output
        if self._turn is not None:
            self._turn.answered(self)


def decode(service: Service, head: Head, body: Raw) -> tuple[InferRequest, codec.AnswerForm]:
    """Return what a head and its body, decompressed, ask for, and in which form.

    Raises:
        MalformedRequest, InvalidInput, UnknownModel...: as the codec and the catalog do.
    """
    assert head.target is not None
    name, version = head.target
    deadline_ns = None if head.timeout is None else _deadline_ns(head.timeout)
    length = None
    if head.json_length is not None:
        length = codec.header_length(head.json_length, len(body))
    if length == 0:
        signature = service.catalog.signature(name, version)
        request, form = codec.decode_raw(name, version, body, signature)
    else:
        request, form = codec.decode(name, version, body, length)
    request.header = head.header
    request.deadline_ns = deadline_ns
    return request, form


def _deadline_ns(text: str) -> int:
    if not text.isdecimal() or len(text) > _MAX_TIMEOUT_DIGITS or int(text) == 0:
        raise MalformedRequest(
            f"header {TIMEOUT_HEADER}: {text!r} is no positive number of milliseconds"
        )
    return time.monotonic_ns() + int(text) * 1_000_000


def _in_thread(
    work: Callable[[], _T], done: Callable[[_T], None], fail: Callable[[Exception], None]
) -> None:
    """Do some work beside the event loop, then go on with what it returned or raised."""

    def finished(future: asyncio.Future[_T]) -> None:
        try:
            result = future.result()
        except Exception as exc:  # adapter edge: every error becomes an answer
            fail(exc)
        else:
            done(result)

    asyncio.get_running_loop().run_in_executor(None, work).add_done_callback(finished)
