"""A connection of the predict port under any bytes, in memory: cut anywhere, the same answers.

The pipeline answers each request with the number in it, at once or later, in an order of its own.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse

from engines.base import ModelMetadata
from engines.errors import UnknownModel
from engines.tensors import Tensor
from gateway.config import LimitsConfig
from gateway.errors import StatusTable
from gateway.http_api.fast.connection import Connection
from gateway.http_api.fast.exchange import Service
from gateway.http_api.fast.shared import Shared, bounds_of
from gateway.http_api.fast.slow import Application
from gateway.request import InferRequest, InferResponse, ServedBy
from tests.support.http_wire import chunked, head, image, infer, row

LIMIT_BYTES = 20_000
Reply = Callable[[InferResponse | Exception, ServedBy], None]


class Pipeline:
    """Echoes requests: every third at once, the others when the loop has time, newest first."""

    def __init__(self) -> None:
        self.waiting: list[tuple[InferRequest, Reply]] = []
        self.count = 0

    def submit(self, request: InferRequest, reply: Reply) -> Pipeline:
        """Take a request."""
        self.count += 1
        if self.count % 3 == 0:
            self.answer(request, reply)
        else:
            self.waiting.append((request, reply))
        return self

    def answer(self, request: InferRequest, reply: Reply) -> None:
        """Echo."""
        (given_,) = request.inputs
        output = Tensor("y", "FP32", given_.shape, bytes(given_.data))
        response = InferResponse("m", "1", request.id, (output,))
        assert request.write is not None
        request.write(response)
        reply(response, ServedBy(bytes(16)))

    def go_on(self) -> None:
        """Answer what waits."""
        while self.waiting:
            self.answer(*self.waiting.pop())

    def cancel(self) -> None:
        """Nobody goes away here."""

    def refuse(self, exc: Exception, protocol: str) -> None:
        """Count nothing."""

    def signature(self, name: str, version: str) -> ModelMetadata:
        """Know no model."""
        raise UnknownModel(model=name)


class Memory(asyncio.Transport):
    """A transport without a network."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.is_paused = self.is_over = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep it."""
        assert not self.is_over
        self.written += data

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Keep it."""
        self.write(b"".join(list_of_data))

    def get_write_buffer_size(self) -> int:
        """Whatever is written was read."""
        return 0

    def pause_reading(self) -> None:
        """Give no more bytes."""
        self.is_paused = True

    def resume_reading(self) -> None:
        """Give some more."""
        self.is_paused = False

    def is_closing(self) -> bool:
        """Whether it was closed."""
        return self.is_over

    def close(self) -> None:
        """End."""
        self.is_over = True

    def can_write_eof(self) -> bool:
        """As TCP."""
        return True

    def write_eof(self) -> None:
        """End."""
        self.is_over = True

    def get_extra_info(self, name: str, default: object = None) -> object:
        """Know nothing."""
        return default


def answers_to(pieces: list[bytes]) -> bytes:
    """Return all that is written when some pieces come one after the other."""

    async def work() -> bytes:
        pipeline, transport = Pipeline(), Memory()
        service = Service(
            pipeline=pipeline, catalog=pipeline, statuses=StatusTable(), limit_bytes=LIMIT_BYTES
        )
        limits = LimitsConfig(header_bytes=4_096)
        shared = Shared(
            service=service,
            application=Application(app=PlainTextResponse("slow")),
            bounds=bounds_of(limits, keep_alive_s=75, tick_s=1),
        )
        service.answers.date = b"today"
        connection = Connection(shared, asyncio.get_running_loop())
        connection.connection_made(transport)
        for piece in pieces:
            await give(connection, transport, piece)
            pipeline.go_on()
        for _ in range(400):
            await asyncio.sleep(0)
            pipeline.go_on()
        connection.connection_lost(None)
        assert shared.connections == set()
        return bytes(transport.written)

    return re.sub(rb"date: [^\r]*", b"date: x", asyncio.run(work()))


async def give(connection: Connection, transport: Memory, data: bytes) -> None:
    """Give bytes as a transport does: as many as there is space for, and none while it pauses."""
    while data and not transport.is_over:
        for _ in range(200):
            if not transport.is_paused:
                break
            await asyncio.sleep(0)
            connection._shared.service.pipeline.go_on()  # type: ignore[attr-defined]
        assert not transport.is_paused or transport.is_over
        space = connection.get_buffer(-1)
        count = min(len(space), len(data))
        assert count > 0
        space[:count] = data[:count]
        connection.buffer_updated(count)
        data = data[count:]


GET = b"GET /now HTTP/1.1\r\n\r\n"
ECHO = b"POST /echo HTTP/1.1\r\ncontent-length: 5\r\n\r\nabcde"
GOOD = st.one_of(
    st.integers(0, 9).map(lambda n: infer(float(n))),
    st.integers(1, 900).map(image),
    st.integers(1, 20).map(
        lambda n: head(transfer_encoding="chunked") + chunked(row(1.0)[:n], row(1.0)[n:])
    ),
    st.sampled_from([GET, ECHO, infer(body=b"{"), infer(1.0, x_sluice_timeout_ms="no"), b"\r\n"]),
)
BAD = st.sampled_from(
    [
        b"nonsense\r\n\r\n",
        head(content_length="99999999"),
        head(transfer_encoding="chunked") + b"zz\r\n",
        head(transfer_encoding="chunked", content_length="3"),
        head(a="x" * 5_000),
        infer(1.0, connection="close"),
        infer(1.0).replace(b"HTTP/1.1", b"HTTP/1.0"),
    ]
)
CONVERSATIONS = st.tuples(
    st.lists(GOOD, max_size=12), st.one_of(st.just(b""), BAD), st.lists(GOOD, max_size=2)
).map(lambda parts: b"".join([*parts[0], parts[1], *parts[2]]))


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """Return data in pieces."""
    places = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    return [data[a:b] for a, b in pairwise(places)]


@given(CONVERSATIONS, st.lists(st.integers(0, 60_000), max_size=12))
def test_a_conversation_has_the_same_answers_however_it_is_cut(
    data: bytes, cuts: list[int]
) -> None:
    assert answers_to(cut(data, cuts)) == answers_to([data])


@given(st.lists(GOOD, min_size=1, max_size=20))
def test_every_request_has_its_own_answer_in_its_place(requests: list[bytes]) -> None:
    requests = [request for request in requests if request.strip()]
    together = answers_to([b"".join(requests)])
    assert together == b"".join(answers_to([request]) for request in requests)
    assert together.count(b"HTTP/1.1 ") == len(requests)


WORDS = [
    *(b"\r\n", b"\r\n\r\n", b"POST ", b"/v2/models/m/infer", b" HTTP/1.1", b"content-length: "),
    *(b"transfer-encoding: chunked", b"3", b"0", b"expect: 100-continue", infer(1.0), GET),
]
MESS = st.lists(st.one_of(st.binary(max_size=20), st.sampled_from(WORDS)), max_size=20).map(
    b"".join
)


@given(MESS, st.lists(st.integers(0, 2_000), max_size=6))
def test_any_bytes_have_the_same_answers_however_they_are_cut(data: bytes, cuts: list[int]) -> None:
    assert without_leave(answers_to(cut(data, cuts))) == without_leave(answers_to([data]))


def without_leave(answers: bytes) -> bytes:
    """Return answers without 100 Continue, which depends on what has come by then."""
    return answers.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
