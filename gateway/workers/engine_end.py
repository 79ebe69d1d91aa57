"""The engine process's side of the links: requests in, answers out.

Every front has one link. Its infer calls go to the pipeline, its other gRPC calls to the service's
tables, its other HTTP requests to the Starlette application: those that answer in one process. What
a front that went away had under way is cancelled. Whatever comes on a link, the worst that it does
is to end that link.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Coroutine
from typing import Any, Final

from starlette.types import ASGIApp

from gateway.catalog import Catalog
from gateway.errors import StatusTable
from gateway.grpc_api.service import InferenceService
from gateway.http_api import codec
from gateway.lifecycle import Lifecycle
from gateway.pipeline import Call, Pipeline
from gateway.request import InferRequest, InferResponse, ServedBy
from gateway.workers import asgi_call, frames, greeting, messages
from gateway.workers.answer_frames import AnswerWriter, error_message
from gateway.workers.checked_form import ALL_JSON, CheckedForm
from gateway.workers.errors import from_wire, to_wire
from gateway.workers.frames import Kind
from gateway.workers.link import Link, widen
from gateway.workers.messages import (
    EngineState,
    FrontStatistics,
    HttpCall,
    Refused,
    UnaryCall,
)
from gateway.workers.remote_engine import make_arena, open_arena
from gateway.workers.request_frames import RequestReader
from gateway.workers.tensors_shared import THRESHOLD_BYTES

logger = logging.getLogger(__name__)

GREETING_S: Final = 5.0
"""Longest wait for a front's greeting."""


class EngineEnd:
    """Serves the fronts' links.

    Args:
        pipeline, service, app, catalog: what answers.
        lifecycle: told to the fronts whenever `announce` is called.
        statuses: error to status.
    """

    def __init__(
        self,
        *,
        pipeline: Pipeline,
        service: InferenceService,
        app: ASGIApp,
        catalog: Catalog,
        lifecycle: Lifecycle,
        statuses: StatusTable,
    ) -> None:
        self.pipeline = pipeline
        self.service = service
        self.app = app
        self.catalog = catalog
        self.statuses = statuses
        self._lifecycle = lifecycle
        self._links: set[FrontLink] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    @property
    def fronts(self) -> int:
        """How many links there are."""
        return len(self._links)

    def statistics(self) -> tuple[FrontStatistics, ...]:
        """Return the last word of every front, by its index."""
        last = [link.statistics for link in self._links if link.statistics is not None]
        return tuple(sorted(last, key=lambda statistics: statistics.front))

    async def serve(self, listening: socket.socket) -> None:
        """Accept links until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listening)
            except OSError:  # out of file descriptors: what is there goes on
                logger.exception("a link cannot be accepted")
                await asyncio.sleep(0.1)
                continue
            self.run(self._accept(sock))

    async def fronts_gone(self) -> None:
        """Return when there is no link."""
        while self._links:
            self._changed.clear()
            await self._changed.wait()

    def announce(self) -> None:
        """Tell every front where this process is."""
        for link in self._links:
            link.send_state()

    def state(self) -> bytes:
        """Return the message that says where this process is."""
        body = messages.write(EngineState(phase=self._lifecycle.phase.value))
        return frames.message(Kind.STATE, 0, body)

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do some work beside; the task is kept until it is done. Any: asyncio's own."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def forget(self, link: FrontLink) -> None:
        """Take a link that has ended off the list."""
        self._links.discard(link)
        self._changed.set()

    async def _accept(self, sock: socket.socket) -> None:
        arena = None
        try:
            sock.setblocking(False)
            _check_peer(sock)
            widen(sock)
            async with asyncio.timeout(GREETING_S):
                heard = await greeting.hear(sock)
            arena = make_arena()
            greeting.say(sock, 0, arena)
            front = FrontLink(self)
            link = front.open(arena, heard)
            self._links.add(front)
            await asyncio.get_running_loop().connect_accepted_socket(lambda: link, sock)
        except (OSError, TimeoutError, frames.FrameError) as exc:
            logger.warning("a front did not greet", extra={"reason": repr(exc)})
            sock.close()
            if arena is not None:
                arena.close()


def _check_peer(sock: socket.socket) -> None:
    """Refuse processes of other users; the socket's folder keeps them out as well."""
    if hasattr(socket, "SO_PEERCRED"):
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        uid = int.from_bytes(credentials[4:8], "little")
        if uid != os.geteuid():
            raise PermissionError(f"a process of user {uid}")


class FrontLink:
    """One front, and what it has under way."""

    def __init__(self, end: EngineEnd) -> None:
        self._end = end
        self._pending: dict[int, _Pending] = {}
        self._asked: dict[int, asyncio.Task[None]] = {}
        self.statistics: FrontStatistics | None = None
        self.link: Link
        self.writer: AnswerWriter
        self._reader: RequestReader

    def open(self, arena: Any, heard: greeting.Greeting) -> Link:  # Any: Arena or None
        """Return the link, to be connected."""
        self.link = link = Link(
            {
                Kind.INFER: self._infer,
                Kind.DEFINE: self._define,
                Kind.CANCEL: self._cancel,
                Kind.CALL: self._call,
                Kind.HTTP: self._http,
                Kind.REFUSED: self._refused,
                Kind.STATISTICS: self._take_statistics,
            },
            self.send_state,
            self._lost,
            arena=arena,
            reads_when_full=False,
        )
        link.reader = open_arena(heard, link)
        fetch = link.reader.fetch if link.reader is not None else frames.nothing_shared
        self._reader = RequestReader(fetch)
        self.writer = AnswerWriter(arena.put if arena else frames.nowhere, THRESHOLD_BYTES)
        return link

    def send_state(self) -> None:
        """Tell the front where this process is."""
        self.link.send(self._end.state())

    # --- infer calls ------------------------------------------------------------------------------

    def _infer(
        self, flags: int, index: int, number: int, data: bytes, start: int, end: int
    ) -> None:
        request, by_output = self._reader.read(flags, index, data, start, end)
        pending = _Pending(self, number)
        if flags & frames.RAW:
            try:
                request = self._read_raw(request)
            except Exception as exc:  # adapter edge: every error becomes an answer
                self._end.pipeline.refuse(exc, request.protocol)
                self.fail(number, exc, None)
                return
        elif by_output:
            is_binary = bool(flags & frames.BINARY)
            form = CheckedForm(default_binary=is_binary, by_output=by_output)
            request.write = form.write
        elif flags & frames.JSON:
            request.write = ALL_JSON
        self._pending[number] = pending
        call = self._end.pipeline.submit(request, pending.reply)
        if not pending.is_answered:
            pending.call = call

    def _read_raw(self, sent: InferRequest) -> InferRequest:
        signature = self._end.catalog.signature(sent.name, sent.version)
        request, _ = codec.decode_raw(sent.name, sent.version, sent.inputs[0].data, signature)
        request.header = sent.header
        request.deadline_ns = sent.deadline_ns
        return request

    def answer(self, pending: _Pending, answer: InferResponse, served_by: ServedBy) -> None:
        """Send an answer."""
        del self._pending[pending.number]
        link = self.link
        if link.is_lost:
            return
        try:
            self.writer.write(link.out, pending.number, answer, served_by)
        except Exception as exc:  # adapter edge: too large for a message, or a bug
            self.fail(pending.number, exc, served_by)
        else:
            link.schedule()

    def fail(self, number: int, exc: Exception, served_by: ServedBy | None) -> None:
        """Send an error; the log of this process has what is a bug."""
        if self.link.is_lost:
            return
        if not self._end.statuses.is_known(exc):
            logger.error("request failed", exc_info=exc)
        name, sentence = to_wire(self._end.statuses, exc)
        self.link.send(error_message(number, name, sentence, served_by))

    def refuse(self, pending: _Pending, exc: Exception, served_by: ServedBy) -> None:
        """Send the error that answers an infer call."""
        del self._pending[pending.number]
        self.fail(pending.number, exc, served_by)

    def _define(
        self, flags: int, index: int, number: int, data: bytes, start: int, end: int
    ) -> None:
        self._reader.define(number, data, start, end)

    def _cancel(
        self, flags: int, index: int, number: int, data: bytes, start: int, end: int
    ) -> None:
        pending = self._pending.get(number)
        if pending is not None and pending.call is not None:
            pending.call.cancel()
        elif (task := self._asked.get(number)) is not None:
            task.cancel()

    # --- everything else --------------------------------------------------------------------------

    def _call(self, flags: int, index: int, number: int, data: bytes, start: int, end: int) -> None:
        call = messages.read(UnaryCall, data, start, end)
        self._ask(number, self._answer_call(number, call))

    def _http(self, flags: int, index: int, number: int, data: bytes, start: int, end: int) -> None:
        call = messages.read(HttpCall, data, start, end)
        self._ask(number, self._answer_http(number, call))

    def _ask(self, number: int, work: Coroutine[Any, Any, None]) -> None:  # Any: asyncio's own
        self._asked[number] = task = self._end.run(work)
        task.add_done_callback(lambda _: self._asked.pop(number, None))

    async def _answer_call(self, number: int, call: UnaryCall) -> None:
        service = self._end.service
        try:
            if (at_once := service.unary.get(call.method)) is not None:
                answer = at_once(call.data)
            elif "/" in call.method:
                other, _, method = call.method.partition("/")
                answer = await service.others[other][method](call.data, call.headers.get)
            else:
                answer = await service.slow[call.method](call.data)
        except Exception as exc:  # adapter edge: every error becomes an answer
            self.fail(number, exc, None)
        else:
            self._return(Kind.RETURN, number, answer)

    async def _answer_http(self, number: int, call: HttpCall) -> None:
        answer = asgi_call.Gathered()
        try:
            await self._end.app(
                asgi_call.scope_of(call), asgi_call.Body(call.body).receive, answer.send
            )
        except Exception:  # Starlette raises on after it has answered, for the server's log
            logger.exception("request failed")
        self._return(Kind.HTTP_ANSWER, number, messages.write(answer.whole()))

    def _return(self, kind: Kind, number: int, body: bytes) -> None:
        if not self.link.is_lost:
            self.link.send(frames.message(kind, number, body))

    def _refused(
        self, flags: int, index: int, number: int, data: bytes, start: int, end: int
    ) -> None:
        refused = messages.read(Refused, data, start, end)
        exc = from_wire(refused.name, refused.sentence)
        self._end.pipeline.refuse(exc, refused.protocol)

    def _take_statistics(
        self, flags: int, index: int, number: int, data: bytes, start: int, end: int
    ) -> None:
        self.statistics = messages.read(FrontStatistics, data, start, end)

    def _lost(self) -> None:
        """Cancel what the front had under way: nobody reads it."""
        self._end.forget(self)
        for pending in list(self._pending.values()):
            if pending.call is not None:
                pending.call.cancel()
        for task in list(self._asked.values()):
            task.cancel()


class _Pending:
    """An infer call of a front, until it is answered."""

    __slots__ = ("_front", "call", "is_answered", "number")

    def __init__(self, front: FrontLink, number: int) -> None:
        self._front = front
        self.number = number
        self.call: Call | None = None
        self.is_answered = False

    def reply(self, answer: InferResponse | Exception, served_by: ServedBy) -> None:
        """Take the pipeline's answer."""
        self.is_answered = True
        self.call = None  # it refers to us: without this, a cycle
        if isinstance(answer, Exception):
            self._front.refuse(self, answer, served_by)
        else:
            self._front.answer(self, answer, served_by)
