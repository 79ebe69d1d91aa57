"""gRPC calls on the sans-IO connection, and servers of it on a socket, for tests."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

from gateway.grpc_transport import Call, Method, Raw, Server
from gateway.grpc_transport.head import CallHead, HeadReader
from gateway.http2.fields import Fields
from gateway.http2.limits import Limits
from tests.support.http2 import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    REQUEST,
    RST,
    Client,
    frame,
)

SERVICE: Final = "/t.S/"


def message(data: bytes, flags: int = 0) -> bytes:
    """Return a length-prefixed message."""
    return struct.pack(">BI", flags, len(data)) + data


def messages(body: bytes) -> list[bytes]:
    """Return the messages of a body that is not compressed."""
    found = []
    at = 0
    while at < len(body):
        flags, size = struct.unpack_from(">BI", body, at)
        assert flags == 0
        found.append(body[at + 5 : at + 5 + size])
        assert len(found[-1]) == size
        at += 5 + size
    return found


def echo(call: Call, data: Raw) -> None:
    call.reply(bytes(data))


def echo_stream(call: Call) -> Callable[[Raw | None], None]:
    def sink(data: Raw | None) -> None:
        if data is None:
            call.finish()
        else:
            call.send(bytes(data))

    return sink


ECHO: Final[Mapping[str, Method]] = {
    SERVICE + "Echo": Method(echo, is_streaming=False),
    SERVICE + "Stream": Method(echo_stream, is_streaming=True),
}


@dataclass
class Answer:
    """What came back on one stream."""

    head: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)
    reset: int | None = None
    is_ended: bool = False

    @property
    def status(self) -> int:
        return int(dict(self.trailers)["grpc-status"])

    @property
    def text(self) -> str:
        return unquote(dict(self.trailers).get("grpc-message", ""))

    def binary(self, name: str) -> bytes:
        value = dict(self.trailers)[name]
        return base64.b64decode(value + "=" * (-len(value) % 4))


class Calls:
    """An application whose streams are calls of the given methods."""

    open = Call

    def __init__(
        self, methods: Mapping[str, Method], max_message_bytes: int, compression: str
    ) -> None:
        self._reader = HeadReader(methods, max_message_bytes, compression)

    def read_head(self, fields: Fields) -> CallHead:
        return self._reader.read(fields)

    def oversized_head(self) -> CallHead:
        return self._reader.oversized()


class CallClient(Client):
    """A client that makes calls."""

    def __init__(
        self,
        methods: Mapping[str, Method] = ECHO,
        *,
        limits: Limits | None = None,
        max_message_bytes: int = 1 << 20,
        compression: str = "none",
    ) -> None:
        super().__init__(limits, Calls(methods, max_message_bytes, compression))
        self.answers: dict[int, Answer] = {}

    def head(
        self,
        stream_id: int,
        name: str = "Echo",
        *extra: tuple[str, str],
        is_last: bool = False,
        **changed: str | None,
    ) -> bytes:
        """Return a HEADERS frame; changed fields by name, `_` for `-`; None leaves one out."""
        fields = {**dict(REQUEST), ":path": SERVICE + name}
        for changed_name, value in changed.items():
            key = changed_name.replace("_", "-")
            key = f":{key}" if f":{key}" in fields else key
            if value is None:
                del fields[key]
            else:
                fields[key] = value
        block = self.block(*extra, fields=fields.items())
        return frame(HEADERS, END_HEADERS | (END_STREAM if is_last else 0), stream_id, block)

    def call(self, *body: bytes, method: str = "Echo", **changed: str | None) -> Answer:
        """Make a call of DATA frames; the last one ends it. Return what came at once."""
        stream_id = self.connection.last_id + (2 if self.connection.last_id else 1)
        parts = [frame(DATA, 0, stream_id, part) for part in body[:-1]]
        parts += [frame(DATA, END_STREAM, stream_id, part) for part in body[-1:]]
        self.send(self.head(stream_id, method, is_last=not body, **changed), *parts)
        return self.answer(stream_id)

    def answer(self, stream_id: int) -> Answer:
        """Return what has come back on a stream so far."""
        for found in self.read():
            answer = self.answers.setdefault(found.stream_id, Answer())
            if found.kind == DATA:
                answer.body += found.payload
            elif found.kind == RST:
                answer.reset = found.code
            elif found.kind == HEADERS:
                is_last = bool(found.flags & END_STREAM)
                answer.is_ended = is_last
                fields = self.fields(found)
                if not answer.head:
                    answer.head = fields
                if is_last:
                    answer.trailers = fields
        return self.answers.setdefault(stream_id, Answer())


@asynccontextmanager
async def serving(methods: Mapping[str, Method] = ECHO, **options: Any) -> AsyncIterator[Server]:
    """Run a server on a free port. Any: the constructor's keywords."""
    server = Server(
        **{
            "methods": methods,
            "limits": Limits(),
            "max_message_bytes": 64 << 20,
            "compression": "none",
            "name": "gRPC",
            "host": "127.0.0.1",
            "port": 0,
            **options,
        }
    )
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)


async def until(condition: Callable[[], object], limit_s: float = 10) -> None:
    """Wait for what the loop, or the other side, will do."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - any condition, of either side
            await asyncio.sleep(0.005)


def recording(into: list[bytes | None]) -> Callable[[Call], Callable[[Raw | None], None]]:
    """Return a streaming method that writes down what it gets and answers nothing."""

    def start(call: Call) -> Callable[[Raw | None], None]:
        return lambda data: into.append(None if data is None else bytes(data))

    return start


def pieces(data: bytes, size: int) -> Iterable[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]
