"""The reference gRPC transport: grpcio's aio server over InferenceService.

Knows grpcio and nothing of inference: it moves wire bytes, deadlines, cancellation, metadata and
statuses. Raw bytes reach the service (no deserializer here), so that a malformed message gets the
service's own answer rather than grpcio's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gateway.errors import Draining, StatusTable
from gateway.grpc_api.feedback import Asked
from gateway.grpc_api.service import SERVICE, InferenceService, InferReply
from gateway.request import HeaderLookup, ServedBy
from gateway.sockets import AddressInUse
from gateway.tls import Pem

logger = logging.getLogger(__name__)

STREAM_IN_FLIGHT: Final = 1024
"""Requests of one stream under way; beyond it the stream is not read."""

SETTLE_S: Final = 0.05
"""Calls that grpcio has taken before a stop reach their handlers within this time."""

# Any: grpcio types its contexts by message; ours are bytes.
_Context = Any
_Metadata = list[tuple[str, str]]
_CODES: Final = {status.value[0]: status for status in grpc.StatusCode}
_COMPRESSION: Final = {
    "none": grpc.Compression.NoCompression,
    "gzip": grpc.Compression.Gzip,
    "deflate": grpc.Compression.Deflate,
}


class GrpcServer:
    """The gRPC listener.

    Args:
        service: the methods.
        statuses: error to status.
        host, port: address; port 0 picks a free one.
        limit_bytes: largest message, either way.
        compression: of answers: none, gzip or deflate.
        shares_port: whether other processes may listen on the same port.
        pem: key and certificates; None: plain text.

    Raises:
        AddressInUse: the address cannot be bound.
    """

    def __init__(  # noqa: PLR0913 - what a listener is made of
        self,
        *,
        service: InferenceService,
        statuses: StatusTable,
        host: str,
        port: int,
        limit_bytes: int,
        compression: str,
        shares_port: bool = False,
        pem: Pem | None = None,
    ) -> None:
        self._statuses = statuses
        self._service = service
        self._running = 0
        self._is_idle = asyncio.Event()
        self._streams: set[_Stream] = set()
        options = [
            ("grpc.max_receive_message_length", limit_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", int(shares_port)),
        ]
        self._server = grpc.aio.server(options=options, compression=_COMPRESSION[compression])
        self._server.add_generic_rpc_handlers(_handlers(service, self))
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, *service.others, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            self.port: int = _open(self._server, where, pem)
        except RuntimeError:
            why = "address already in use or not available"
            raise AddressInUse(name="gRPC", host=host, port=port, why=why) from None

    async def start(self) -> None:
        """Accept connections; health answers NOT_SERVING until `set_ready`."""
        await self.set_ready(is_ready=False)
        await self._server.start()

    async def set_ready(self, *, is_ready: bool) -> None:
        """Tell health clients."""
        status = health_pb2.HealthCheckResponse
        value = status.SERVING if is_ready else status.NOT_SERVING
        for name in ("", SERVICE, *self._service.others):
            await self._health.set(name, value)

    async def stop(self, limit_s: float) -> None:
        """Take no more calls, send what is being sent within the limit, end the streams, close.

        Health watches never end by themselves, so grpcio's own grace period would always last to
        its end: it is cut short when the infer calls are done.
        """
        for stream in self._streams:
            stream.cut()
        stopping = asyncio.create_task(self._server.stop(limit_s))
        await asyncio.sleep(SETTLE_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self._running:
                    self._is_idle.clear()
                    await self._is_idle.wait()
        await self._server.stop(None)
        await stopping

    def connections(self) -> None:
        """Say that nobody knows: grpcio keeps its connections to itself."""

    def _enter(self, context: _Context) -> None:
        """Count an infer call until its answer has been sent."""
        self._running += 1
        context.add_done_callback(self._leave)

    def _leave(self, _: _Context) -> None:
        self._running -= 1
        self._is_idle.set()

    async def unary(
        self, handle: Callable[[bytes], bytes], data: bytes, context: _Context
    ) -> bytes:
        """Answer a call that needs no waiting."""
        try:
            return handle(data)
        except Exception as exc:  # adapter edge: every error becomes a status
            return self._refuse(context, exc, [])

    async def slow(
        self, handle: Callable[[bytes], Awaitable[bytes]], data: bytes, context: _Context
    ) -> bytes:
        """Answer a call that waits."""
        try:
            return await handle(data)
        except Exception as exc:  # adapter edge: every error becomes a status
            return self._refuse(context, exc, [])

    async def asked(self, handle: Asked, data: bytes, context: _Context) -> bytes:
        """Answer a call that waits, and looks at its metadata."""
        self._enter(context)
        try:
            return await handle(data, _Headers(context).header)
        except Exception as exc:  # adapter edge: every error becomes a status
            return self._refuse(context, exc, [])

    async def infer(self, data: bytes, context: _Context) -> bytes:
        """Answer ModelInfer. Cancellation: the client's reaches the queue."""
        self._enter(context)
        answered: asyncio.Future[tuple[bytes | Exception, ServedBy | None]]
        answered = asyncio.get_running_loop().create_future()

        def reply(outcome: bytes | Exception, served_by: ServedBy | None) -> None:
            if not answered.done():
                answered.set_result((outcome, served_by))

        typed: InferReply = reply
        call = self._service.infer(data, _Headers(context).header, _deadline_ns(context), typed)
        try:
            outcome, served_by = await answered
        except asyncio.CancelledError:
            if call is not None:
                call.cancel()
            raise
        metadata = served_by.headers() if served_by else []
        if isinstance(outcome, Exception):
            return self._refuse(context, outcome, metadata)
        context.set_trailing_metadata(tuple(metadata))
        return outcome

    async def stream(
        self, requests: AsyncIterator[bytes], context: _Context
    ) -> AsyncIterator[bytes]:
        """Answer ModelStreamInfer: answers in the order of the requests, many under way."""
        self._enter(context)
        stream = _Stream(self._service, _Headers(context).header, _deadline_ns(context))
        self._streams.add(stream)
        reader = asyncio.create_task(stream.read(requests))
        try:
            async for message in stream.answers():
                yield message
            if stream.is_cut:
                self._refuse(context, Draining(), [])
        finally:
            self._streams.discard(stream)
            reader.cancel()
            stream.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    def _refuse(self, context: _Context, exc: Exception, metadata: _Metadata) -> bytes:
        """Set the error's status, and return what the handler is to return: nothing is sent of it.

        Not by context.abort, whose exception would keep the request alive until the garbage
        collector finds it.
        """
        if not self._statuses.is_known(exc):
            logger.error("request failed", exc_info=exc)
        context.set_code(_CODES[int(self._statuses.of(exc).grpc)])
        context.set_details(self._statuses.sentence(exc))
        context.set_trailing_metadata(tuple(metadata))
        return b""


def _open(server: Any, where: str, pem: Pem | None) -> int:  # Any: grpcio's server
    """Bind an address; RuntimeError if it cannot be."""
    if pem is None:
        port: int = server.add_insecure_port(where)
        return port
    credentials = grpc.ssl_server_credentials(
        [(pem.key, pem.certificate)],
        root_certificates=pem.client_ca,
        require_client_auth=pem.client_ca is not None,
    )
    port = server.add_secure_port(where, credentials)
    return port


class _Stream:
    """One ModelStreamInfer: requests under way, answered in their order."""

    def __init__(
        self, service: InferenceService, header: HeaderLookup, deadline_ns: int | None
    ) -> None:
        self._service = service
        self._header = header
        self._deadline_ns = deadline_ns
        self._pending: deque[asyncio.Future[bytes]] = deque()
        self._calls: set[Any] = set()  # Any: Call, by identity
        self._room = asyncio.Semaphore(STREAM_IN_FLIGHT)
        self._arrived = asyncio.Event()
        self._is_complete = False
        self.is_cut = False
        """Ended by the server, not by the client."""

    async def read(self, requests: AsyncIterator[bytes]) -> None:
        """Submit what arrives, as long as there is room."""
        try:
            async for data in requests:
                await self._room.acquire()
                if self.is_cut:
                    return
                self._submit(data)
        finally:
            self._is_complete = True
            self._arrived.set()

    def _submit(self, data: bytes) -> None:
        answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def reply(message: bytes) -> None:
            if not answered.done():
                answered.set_result(message)

        call = self._service.stream_infer(data, self._header, self._deadline_ns, reply)
        if call is not None:
            self._calls.add(call)
            answered.add_done_callback(lambda _: self._calls.discard(call))
        self._pending.append(answered)
        self._arrived.set()

    async def answers(self) -> AsyncIterator[bytes]:
        """Yield the answers until the client has ended the stream and all are sent."""
        while True:
            while self._pending:
                message = await self._pending[0]
                self._pending.popleft()
                self._room.release()
                yield message
            if self._is_complete:
                return
            self._arrived.clear()
            await self._arrived.wait()

    def cut(self) -> None:
        """End the stream when what was submitted is answered, unless the client ended it."""
        if not self._is_complete:
            self.is_cut = self._is_complete = True
            self._arrived.set()

    def cancel(self) -> None:
        """Give up what is still under way."""
        for call in list(self._calls):
            call.cancel()


class _Headers:
    """A call's metadata, looked up lazily: most requests never ask."""

    __slots__ = ("_context",)

    def __init__(self, context: _Context) -> None:
        self._context = context

    @property
    def headers(self) -> list[tuple[str, str | bytes]]:
        """All of them, as they came; -bin values are bytes."""
        return list(self._context.invocation_metadata() or ())

    def header(self, name: str) -> str | None:
        """Return the first value of a name, one character per byte."""
        for key, value in self._context.invocation_metadata() or ():
            if key == name:
                return value if isinstance(value, str) else value.decode("latin-1")
        return None


def _deadline_ns(context: _Context) -> int | None:
    remaining_s = context.time_remaining()
    if remaining_s is None:
        return None
    return time.monotonic_ns() + int(remaining_s * 1e9)


def _handlers(service: InferenceService, server: GrpcServer) -> list[grpc.GenericRpcHandler]:
    """Return the method tables for grpcio; no serializers: bytes pass through."""
    handlers: dict[str, Any] = {  # Any: grpcio's handler tuples
        name: grpc.unary_unary_rpc_method_handler(partial(server.unary, handle))
        for name, handle in service.unary.items()
    }
    handlers |= {
        name: grpc.unary_unary_rpc_method_handler(partial(server.slow, handle))
        for name, handle in service.slow.items()
    }
    handlers["ModelInfer"] = grpc.unary_unary_rpc_method_handler(server.infer)
    handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(server.stream)
    tables = {SERVICE: handlers}
    for other, methods in service.others.items():
        tables[other] = {
            name: grpc.unary_unary_rpc_method_handler(partial(server.asked, handle))
            for name, handle in methods.items()
        }
    return [grpc.method_handlers_generic_handler(name, table) for name, table in tables.items()]
