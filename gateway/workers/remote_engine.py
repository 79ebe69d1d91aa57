"""A front's connection to the engine process: made, lost, made again.

Knows links and what is asked over them beside inference: calls that are passed on as bytes, the
engine process's state. The requests themselves are remote_pipeline.py's, which hears of every link
that comes and goes. One link at a time; a message can only be taken from the link it came on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping
from itertools import count
from typing import Final, Protocol

from gateway.errors import Starting
from gateway.lifecycle import Phase
from gateway.workers import frames, greeting, messages
from gateway.workers.answer_frames import AnswerReader, ErrorFrame, read_error
from gateway.workers.errors import EngineAway, from_wire
from gateway.workers.frames import Kind
from gateway.workers.link import Link, widen
from gateway.workers.messages import EngineState, HttpAnswer, HttpCall, UnaryCall
from gateway.workers.request_frames import RequestWriter
from gateway.workers.tensors_shared import THRESHOLD_BYTES, Arena, SharedReader

logger = logging.getLogger(__name__)

RETRY_S: Final = 0.05
"""Between two attempts to reach the engine process."""


class Wire:
    """A link and what was agreed on it. Made by RemoteEngine."""

    def __init__(self, link: Link, writer: RequestWriter, reader: AnswerReader) -> None:
        self.link = link
        self.writer = writer
        self.reader = reader


class InferEnd(Protocol):
    """Who takes answers (remote_pipeline.py)."""

    def wire_up(self, wire: Wire) -> None:
        """A link was made."""

    def wire_lost(self) -> None:
        """The link has ended."""

    def phase_changed(self, phase: Phase) -> None:
        """The engine process said where it is."""

    def answered(
        self, flags: int, index: int, number: int, data: bytes, start: int, end: int
    ) -> None:
        """An ANSWER came."""

    def failed(self, number: int, error: ErrorFrame) -> None:
        """An ERROR came for a request."""


class RemoteEngine:
    """The engine process, as a front sees it.

    Args:
        path: of the engine process's unix socket.
        index: of this front.
        on_ready: told whenever `is_ready` changes.
        has_served: whether an engine process served before this front was started.
    """

    def __init__(
        self, path: str, index: int, on_ready: Callable[[bool], None], *, has_served: bool = False
    ) -> None:
        self._path = path
        self._index = index
        self._on_ready = on_ready
        self._infer: InferEnd | None = None
        self._wire: Wire | None = None
        self._asks: dict[int, tuple[Kind, asyncio.Future[bytes]]] = {}
        self._numbers = count(1)
        self._lost = asyncio.Event()
        self.heard = asyncio.Event()
        """Set once the engine process has said for the first time where it is."""
        self.phase = Phase.STARTING
        self.has_served = has_served
        """Whether there ever was an engine process that served."""

    @property
    def is_ready(self) -> bool:
        """Whether the engine process is there and serves."""
        return self._wire is not None and self.phase is Phase.SERVING

    def number(self) -> int:
        """Return a number for a message: never used twice, on no link."""
        return next(self._numbers)

    async def run(self, infer: InferEnd) -> None:
        """Keep a link up until cancelled."""
        self._infer = infer
        while True:
            self._lost.clear()
            try:
                await self._connect()
            except (OSError, frames.FrameError) as exc:
                logger.debug("the engine process is not there", extra={"reason": str(exc)})
                await asyncio.sleep(RETRY_S)
            else:
                await self._lost.wait()

    def close(self) -> None:
        """End the link when what was sent has been written."""
        if self._wire is not None:
            self._wire.link.close()

    async def _connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        arena: Arena | None = None
        try:
            sock.setblocking(False)
            widen(sock)
            sock.connect(self._path)
            arena = make_arena()
            greeting.say(sock, self._index, arena)
            heard = await greeting.hear(sock)
            link = self._make_link(arena, heard)
            await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=sock)
        except BaseException:
            sock.close()
            if arena is not None:
                arena.close()
            raise

    def _make_link(self, arena: Arena | None, heard: greeting.Greeting) -> Link:
        def made() -> None:
            fetch = link.reader.fetch if link.reader is not None else frames.nothing_shared
            place = arena.put if arena is not None else frames.nowhere
            writer = RequestWriter(place, THRESHOLD_BYTES)
            self._wire = Wire(link, writer, AnswerReader(fetch))
            if self._infer is not None:
                self._infer.wire_up(self._wire)

        link = Link(
            {
                Kind.ANSWER: self._take_answer,
                Kind.ERROR: self._take_error,
                Kind.DEFINE: self._take_definition,
                Kind.RETURN: self._take_return,
                Kind.HTTP_ANSWER: self._take_return,
                Kind.STATE: self._take_state,
            },
            made,
            self._take_loss,
            arena=arena,
            reads_when_full=True,
        )
        link.reader = open_arena(heard, link)
        return link

    # --- asking -----------------------------------------------------------------------------------

    async def call(
        self, method: str, data: bytes, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Pass a gRPC call on and return its answer; raises what it raised, or EngineAway."""
        call = UnaryCall(method=method, data=data, headers=dict(headers or {}))
        return await self._ask(Kind.CALL, messages.write(call))

    async def http(self, call: HttpCall) -> HttpAnswer:
        """Pass an HTTP request on and return its answer; raises EngineAway."""
        data = await self._ask(Kind.HTTP, messages.write(call))
        return messages.read(HttpAnswer, data, 0, len(data))

    async def _ask(self, kind: Kind, body: bytes) -> bytes:
        if self._wire is None:
            raise self.absence()
        number = self.number()
        answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asks[number] = kind, answered
        try:
            self._wire.link.send(frames.message(kind, number, body))
            return await answered
        finally:
            if self._asks.pop(number, None) is not None and self._wire is not None:
                self._wire.link.send(frames.message(Kind.CANCEL, number))

    def absence(self) -> Exception:
        """Return why there is no engine process: it was never there, or it went."""
        return EngineAway() if self.has_served else Starting()

    # --- what comes -------------------------------------------------------------------------------

    def _take_answer(
        self, flags: int, index: int, number: int, data: bytes, start: int, end: int
    ) -> None:
        assert self._infer is not None
        self._infer.answered(flags, index, number, data, start, end)

    def _take_definition(
        self, flags: int, index: int, number: int, data: bytes, start: int, end: int
    ) -> None:
        assert self._wire is not None
        self._wire.reader.define(number, data, start, end)

    def _take_error(
        self, flags: int, index: int, number: int, data: bytes, start: int, end: int
    ) -> None:
        error = read_error(data, start, end)
        ask = self._asks.pop(number, None)
        if ask is None:
            assert self._infer is not None
            self._infer.failed(number, error)
        elif not ask[1].done():
            ask[1].set_exception(from_wire(error.name, error.sentence))

    def _take_return(
        self, flags: int, index: int, number: int, data: bytes, start: int, end: int
    ) -> None:
        ask = self._asks.pop(number, None)
        if ask is not None and not ask[1].done():
            ask[1].set_result(data[start:end])

    def _take_state(
        self, flags: int, index: int, number: int, data: bytes, start: int, end: int
    ) -> None:
        was_ready = self.is_ready
        self.phase = Phase(messages.read(EngineState, data, start, end).phase)
        self.heard.set()
        self.has_served = self.has_served or self.phase is Phase.SERVING
        if self._infer is not None:
            self._infer.phase_changed(self.phase)
        if self.is_ready != was_ready:
            self._on_ready(self.is_ready)

    def _take_loss(self) -> None:
        was_ready = self.is_ready
        self._wire = None
        self.phase = Phase.STARTING
        asks = list(self._asks.values())
        self._asks.clear()
        for _, answered in asks:
            if not answered.done():
                answered.set_exception(EngineAway())
        if self._infer is not None:
            self._infer.wire_lost()
        if was_ready:
            self._on_ready(False)
        self._lost.set()


def make_arena() -> Arena | None:
    """Return a fresh arena, or None where the system has no anonymous memory to share."""
    return Arena() if hasattr(os, "memfd_create") else None


def open_arena(heard: greeting.Greeting, link: Link) -> SharedReader | None:
    """Map the peer's arena, for a link; takes the file descriptor over."""
    if heard.arena_fd < 0:
        return None
    try:
        return SharedReader(heard.arena_fd, heard.arena_bytes, link.freed)
    finally:
        os.close(heard.arena_fd)
