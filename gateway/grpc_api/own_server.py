"""Our own gRPC transport over InferenceService: the cheap one, and the default.

Knows the transport's calls and the service's tables; nothing of HTTP/2 and nothing of inference. It
answers as server.py, the reference, does: tests/conformance plays the same calls to both. Per call
there is no task, no future and no timer: a call is started by the transport, and answered when the
service's callback comes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from engines.tensors import Raw
from gateway import ids
from gateway.errors import Draining, StatusTable
from gateway.grpc_api.feedback import Asked
from gateway.grpc_api.service import SERVICE, InferenceService
from gateway.grpc_transport import (
    Call,
    Method,
    Server,
    encode_metadata,
    health,
    reflection,
)
from gateway.http2.limits import Limits
from gateway.memo import Memo
from gateway.pipeline import Call as InferCall
from gateway.request import REQUEST_ID, ServedBy, Serving

logger = logging.getLogger(__name__)

STREAM_IN_FLIGHT: Final = 1024
"""Requests of one stream under way; beyond it the stream is not read."""
_RESUME_BELOW: Final = STREAM_IN_FLIGHT // 2
_ID_CHARACTERS: Final = 36
_REQUEST_ID_FIELD: Final = encode_metadata([(REQUEST_ID, "0" * _ID_CHARACTERS)])[:-_ID_CHARACTERS]
"""The field of a request's id up to its value."""
_MAX_BLOCKS: Final = 512


class OwnGrpcServer:
    """The gRPC listener.

    Args:
        service: the methods.
        statuses: error to status.
        sock: bound and listening; it belongs to the listener from now on.
        limits: what a client may take.
        max_message_bytes: largest message, either way, also decompressed.
        compression: of answers: none, gzip or deflate.
        ssl_context: None: plain text.
    """

    def __init__(  # noqa: PLR0913 - what a listener is made of
        self,
        *,
        service: InferenceService,
        statuses: StatusTable,
        sock: socket.socket,
        limits: Limits,
        max_message_bytes: int,
        compression: str,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.port: int = sock.getsockname()[1]
        self._service = service
        self._statuses = statuses
        self._health = health.Health((SERVICE, *service.others))
        self._streams: set[_InferStream] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._blocks: Memo[Serving, bytes] = Memo(_MAX_BLOCKS)
        names = (SERVICE, *service.others, health.SERVICE, reflection.SERVICE)
        self._server = Server(
            methods={**self._methods(), **self._health.methods, **reflection.methods(names)},
            limits=limits,
            max_message_bytes=max_message_bytes,
            compression=compression,
            name="gRPC",
            host="",
            port=0,
            sock=sock,
            ssl=ssl_context,
        )

    async def start(self) -> None:
        """Accept connections; health answers NOT_SERVING until `set_ready`."""
        await self._server.start()

    async def set_ready(self, *, is_ready: bool) -> None:
        """Tell health clients."""
        self._health.set_ready(is_ready=is_ready)

    async def stop(self, limit_s: float) -> None:
        """Take no more calls, send what is being sent within the limit, end the streams, close."""
        for stream in list(self._streams):
            stream.cut()
        self._health.end()
        await self._server.stop(limit_s)
        for task in self._tasks:
            task.cancel()

    def connections(self) -> tuple[int, int]:
        """Return how many are open and how many were refused."""
        statistics = self._server.statistics()
        return statistics.connections, statistics.connections_refused

    def _methods(self) -> dict[str, Method]:
        methods = {
            name: Method(partial(self._unary, handle), is_streaming=False)
            for name, handle in self._service.unary.items()
        }
        methods |= {
            name: Method(partial(self._slow, handle), is_streaming=False)
            for name, handle in self._service.slow.items()
        }
        methods["ModelInfer"] = Method(self._infer, is_streaming=False)
        methods["ModelStreamInfer"] = Method(self._stream, is_streaming=True)
        others = {
            f"/{service}/{name}": Method(partial(self._asked, handle), is_streaming=False)
            for service, handles in self._service.others.items()
            for name, handle in handles.items()
        }
        return {f"/{SERVICE}/{name}": method for name, method in methods.items()} | others

    def _infer(self, call: Call, message: Raw) -> None:
        """Start a ModelInfer. Cancellation: the client's reaches the queue."""

        def reply(outcome: bytes | Exception, served_by: ServedBy | None) -> None:
            if outcome.__class__ is bytes and served_by is not None:
                call.reply(outcome, self._trailers(served_by))
            else:
                self._refuse(call, outcome, served_by)

        request = self._service.infer(message, call.head.header, call.deadline_ns, reply)
        if request is not None and not call.is_done:
            call.on_cancel = request.cancel

    def _stream(self, call: Call) -> Callable[[Raw | None], None]:
        stream = _InferStream(self._service, call, self._end_stream)
        self._streams.add(stream)
        return stream.take

    def _end_stream(self, stream: _InferStream) -> None:
        self._streams.discard(stream)
        if stream.is_cut:
            self._refuse(stream.call, Draining(), None)

    def _unary(self, handle: Callable[[bytes], bytes], call: Call, message: Raw) -> None:
        """Answer a call that needs no waiting."""
        try:
            call.reply(handle(bytes(message)))
        except Exception as exc:  # adapter edge: every error becomes a status
            self._refuse(call, exc, None)

    def _slow(self, handle: Callable[[bytes], Awaitable[bytes]], call: Call, message: Raw) -> None:
        """Answer a call that waits."""
        self._begin(call, handle(bytes(message)))

    def _asked(self, handle: Asked, call: Call, message: Raw) -> None:
        """Answer a call that waits, and looks at its metadata."""
        self._begin(call, handle(bytes(message), call.head.header))

    def _begin(self, call: Call, answer: Awaitable[bytes]) -> None:
        task = asyncio.get_running_loop().create_task(self._wait(answer, call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        call.on_cancel = partial(_cancel, task)

    async def _wait(self, answer: Awaitable[bytes], call: Call) -> None:
        try:
            call.reply(await answer)
        except Exception as exc:  # adapter edge: every error becomes a status
            self._refuse(call, exc, None)

    def _refuse(self, call: Call, outcome: object, served_by: ServedBy | None) -> None:
        exc = outcome if isinstance(outcome, Exception) else TypeError(repr(outcome))
        if not self._statuses.is_known(exc):
            logger.error("request failed", exc_info=exc)
        trailers = b"" if served_by is None else self._trailers(served_by)
        call.fail(int(self._statuses.of(exc).grpc), self._statuses.sentence(exc), trailers)

    def _trailers(self, served_by: ServedBy) -> bytes:
        """Return who served as encoded metadata; all but the request's id is kept."""
        serving = served_by.serving
        blocks = self._blocks
        block = blocks.recent.get(serving) or blocks.get(serving)
        if block is None:
            block = blocks.put(serving, encode_metadata(serving.lines))
        return b"".join((_REQUEST_ID_FIELD, ids.as_text(served_by.rid).encode(), block))


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


class _Answer:
    """The place of one request of a stream: its answer goes out in its turn."""

    __slots__ = ("call", "message", "stream")

    def __init__(self, stream: _InferStream) -> None:
        self.stream = stream
        self.message: bytes | None = None
        self.call: InferCall | None = None

    def __call__(self, message: bytes) -> None:
        self.message = message
        self.call = None
        self.stream.flush()


class _InferStream:
    """One ModelStreamInfer: requests under way, answered in their order.

    Bounded: STREAM_IN_FLIGHT requests without a sent answer, then the stream is not read; an answer
    waits here while the client does not read.
    """

    __slots__ = ("_answers", "_end", "_is_complete", "_is_paused", "_service", "call", "is_cut")

    def __init__(
        self, service: InferenceService, call: Call, end: Callable[[_InferStream], None]
    ) -> None:
        self._service = service
        self._end = end
        self._answers: deque[_Answer] = deque()
        self._is_complete = False
        self._is_paused = False
        self.call = call
        self.is_cut = False
        """Ended by the server, not by the client."""
        call.on_cancel = self._cancel
        call.on_drained = self.flush

    def take(self, message: Raw | None) -> None:
        """Submit a request; None: the client has no more."""
        if self._is_complete:
            return
        if message is None:
            self._is_complete = True
            self.flush()
            return
        answer = _Answer(self)
        self._answers.append(answer)
        call = self.call
        request = self._service.stream_infer(message, call.head.header, call.deadline_ns, answer)
        if answer.message is None:
            answer.call = request
        if len(self._answers) >= STREAM_IN_FLIGHT and not self._is_paused:
            self._is_paused = True
            call.pause_reading()

    def flush(self) -> None:
        """Send the answers whose turn it is; end the call after the last one."""
        answers, call = self._answers, self.call
        while answers and (message := answers[0].message) is not None and not call.is_full:
            answers.popleft()
            call.send(message)
        if self._is_paused and len(answers) < _RESUME_BELOW:
            self._is_paused = False
            call.resume_reading()
        if self._is_complete and not answers:
            self._end(self)
            call.finish()

    def cut(self) -> None:
        """End the stream when what was submitted is answered, unless the client ended it."""
        if not self._is_complete:
            self.is_cut = self._is_complete = True
            self.flush()

    def _cancel(self) -> None:
        """Give up what is still under way: the client has gone."""
        self._is_complete = True
        for answer in list(self._answers):
            if answer.call is not None:
                answer.call.cancel()
        self._answers.clear()
        self._end(self)
