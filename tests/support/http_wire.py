"""The predict listener over a real pipeline, and raw connections to it, on one event loop.

The models are fakes: `echo` answers at once, `held` when the test opens the shelf's gate, row by
row. What is no infer call goes to a small application whose answers the test holds as well.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import ssl
import struct
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import uvloop
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from engines.base import ModelMetadata
from engines.executed import BatcherStatistics
from gateway.config import LimitsConfig
from gateway.errors import StatusTable
from gateway.http_api.fast.exchange import Service
from gateway.http_api.fast.listener import KEEP_ALIVE_S, PredictListener
from gateway.sockets import bind
from tests.support.batching import HANG_S, until
from tests.support.desk import Desk, open_desk
from tests.support.repositories import Shelf

LOOPS: Final[Mapping[str, Callable[[], asyncio.AbstractEventLoop]]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}
HOST: Final = "127.0.0.1"
LIMIT_BYTES: Final = 1 << 20
Work = Coroutine[Any, Any, None]  # Any: what asyncio's own types say


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer as it came."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """Return the only header of a name."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) < 2, self.headers
        return values[0] if values else None

    @property
    def error(self) -> str:
        """The sentence of an answer that is an error."""
        sentence: str = json.loads(self.body)["error"]
        return sentence

    @property
    def values(self) -> list[float]:
        """The elements of the first output, in either form."""
        assert self.status == 200, self.body
        length = self.header("inference-header-content-length")
        if length is None:
            data: list[float] = json.loads(self.body)["outputs"][0]["data"]
            return data
        tail = self.body[int(length) :]
        return list(struct.unpack(f"<{len(tail) // 4}f", tail))


class Wire:
    """A client's end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    def send(self, *parts: bytes) -> None:
        """Send some bytes, soon."""
        self.writer.write(b"".join(parts))

    async def drip(self, data: bytes, *, step: int = 1) -> None:
        """Send bytes so that the server reads them in small pieces."""
        for start in range(0, len(data), step):
            self.send(data[start : start + step])
            await self.writer.drain()
            await asyncio.sleep(0)

    async def answer(self) -> Answer:
        """Return the next answer."""
        async with asyncio.timeout(HANG_S):
            head = await self._reader.readuntil(b"\r\n\r\n")
            status, *lines = head.decode("latin-1").split("\r\n")[:-2]
            headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
            length = int(dict(headers).get("content-length", "0"))
            body = await self._reader.readexactly(length)
            return Answer(status=int(status.split()[1]), headers=headers, body=body)

    async def rest(self) -> bytes:
        """Return all that comes until the server closes."""
        async with asyncio.timeout(HANG_S):
            try:
                return await self._reader.read()
            except ConnectionResetError:
                return b""

    def close(self) -> None:
        """Go away."""
        self.writer.close()

    def reset(self) -> None:
        """Go away without a word of farewell."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Application:
    """What is no infer call: /now answers, /held waits for the test, /echo returns its body."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.may_answer = asyncio.Event()
        self.asgi = Starlette(
            routes=[
                Route("/now", self._now),
                Route("/held", self._held, methods=["GET", "POST"]),
                Route("/echo", self._echo, methods=["POST"]),
                Route("/v2/models/{name}/infer", self._now, methods=["POST"]),
            ]
        )
        self.asgi.router.redirect_slashes = False

    async def _now(self, request: Request) -> Response:
        self.entered.append(request.url.path)
        return PlainTextResponse("now")

    async def _held(self, request: Request) -> Response:
        self.entered.append(request.url.path)
        await self.may_answer.wait()
        return PlainTextResponse("held")

    async def _echo(self, request: Request) -> Response:
        self.entered.append(request.url.path)
        try:
            return PlainTextResponse(await request.body())
        except ClientDisconnect:
            return PlainTextResponse("nobody reads this")


@dataclass(slots=True, kw_only=True)
class Port:
    """A listener and everything around it."""

    desk: Desk
    listener: PredictListener
    application: Application
    wires: list[Wire] = field(default_factory=list)

    async def connect(self, *, buffer_bytes: int = 0, tls: ssl.SSLContext | None = None) -> Wire:
        """Open a connection, with a receive buffer of some size if it is to be small."""
        sock = socket.socket(proto=socket.IPPROTO_TCP)  # else asyncio sets no TCP_NODELAY
        if buffer_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (HOST, self.listener.port))
        except OSError:
            sock.close()
            raise
        reader, writer = await asyncio.open_connection(
            sock=sock, limit=1 << 16, ssl=tls, server_hostname="localhost" if tls else None
        )
        self.wires.append(Wire(reader, writer))
        return self.wires[-1]

    def statistics(self, model: str) -> BatcherStatistics:
        """Return the counts of a model."""
        return self.desk.repository.get(model, "1").batcher.statistics()

    async def queued(self, model: str, requests: int) -> None:
        """Return when so many requests of a model wait for an instance."""
        await until(lambda: self.statistics(model).queue.queued_requests == requests)

    async def in_flight(self, requests: int) -> None:
        """Return when so many requests are not answered yet."""
        await until(lambda: self.desk.pipeline.in_flight == requests)

    async def connections(self, count: int) -> None:
        """Return when so many connections are open."""
        await until(lambda: self.listener.statistics().connections == count)


class _Signatures:
    """What models take, as the catalog says it."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def signature(self, name: str, version: str) -> ModelMetadata:
        """Return what the model behind a public name takes."""
        return self._desk.directory.representative(name, version).metadata


@asynccontextmanager
async def open_port(
    folder: Path,
    *,
    limits: LimitsConfig | None = None,
    limit_bytes: int = LIMIT_BYTES,
    keep_alive_s: float = KEEP_ALIVE_S,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Port]:
    """Serve the models above; close what clients left open at the end."""
    shelf = Shelf(folder)
    wide = {"datatype": "FP32", "shape": [-1, -1]}
    sides = {"inputs": [{"name": "x", **wide}], "outputs": [{"name": "y", **wide}]}
    shelf.add_fake("echo", "1", **sides)
    shelf.add_fake("held", "1", latency_ms=1, max_batch_size=1, **sides)
    async with open_desk(shelf) as desk:
        application = Application()
        service = Service(
            pipeline=desk.pipeline,
            catalog=_Signatures(desk),
            statuses=StatusTable(),
            limit_bytes=limit_bytes,
        )
        listener = PredictListener(
            service,
            application.asgi,
            bind("http", HOST, 0),
            limits=limits or LimitsConfig(),
            ssl_context=tls,
            keep_alive_s=keep_alive_s,
        )
        await listener.start()
        port = Port(desk=desk, listener=listener, application=application)
        try:
            yield port
        finally:
            for wire in port.wires:
                wire.close()
            shelf.gate.open()
            application.may_answer.set()
            await listener.stop(HANG_S)


def run(loop: str, work: Callable[[], Work]) -> None:
    """Run a coroutine on a loop of a kind."""
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(work())


def row(*values: float) -> bytes:
    """Return a JSON body of one row."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, len(values)], "data": list(values)}
    return json.dumps({"inputs": [tensor]}).encode()


def infer(*values: float, model: str = "echo", body: bytes | None = None, **headers: str) -> bytes:
    """Return a whole request, with a Content-Length; headers with underscores."""
    content = row(*values) if body is None else body
    return head(model, content_length=str(len(content)), **headers) + content


def head(model: str = "echo", **headers: str) -> bytes:
    """Return the head of an infer call; headers with underscores."""
    lines = [f"POST /v2/models/{model}/infer HTTP/1.1", "host: x"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def chunked(*pieces: bytes, trailers: bytes = b"") -> bytes:
    """Return a body in chunks."""
    chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece]
    return b"".join([*chunks, b"0\r\n", trailers, b"\r\n"])


def image(count: int, coding: str = "", **headers: str) -> bytes:
    """Return a request of so many FP32 elements in binary form, answered in binary form.

    Under a content coding (gzip, deflate) the answer may have it as well.
    """
    data = struct.pack(f"<{count}f", *range(count))
    tensor = {
        "name": "x",
        "datatype": "FP32",
        "shape": [1, count],
        "parameters": {"binary_data_size": len(data)},
    }
    document = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    content = json.dumps(document).encode()
    headers["inference_header_content_length"] = str(len(content))
    content += data
    if coding:
        headers |= {"content_encoding": coding, "accept_encoding": coding}
        content = gzip.compress(content) if coding == "gzip" else zlib.compress(content)
    return infer(body=content, **headers)
