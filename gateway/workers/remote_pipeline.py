"""The pipeline, as a front's transports see it: the same calls, answered by the engine process.

Rules:
- `reply` is called exactly once per request, on the event loop, as gateway.pipeline does it.
- A request is sent over a link under a number that no other message ever has, so an answer finds
  its own caller or nobody.
- When the link is lost, what is under way stays here, with its tensors, and is sent once more when
  the next engine process serves. A request that was lost twice is answered with EngineAway: what
  ends an engine process must not do it for ever. So a request may be executed twice; it is
  answered once.
- New requests are held as well while the engine process is being replaced, so that callers see a
  delay and no error; nobody waits for longer than HOLD_S after the loss, or the own deadline.
- Deadlines are the engine process's business. One that has not been answered GRACE_S after its
  deadline is expired here.
- The engine process routes, checks, batches, counts and logs. What is answered here without it
  (draining, over the bounds, malformed) is reported to it, so that the books are whole.
- An answer's form is checked by the engine process before it counts (checked_form.py), so writing
  it here fails only for what that check cannot know.

Bounds: LIMIT_REQUESTS and LIMIT_BYTES of tensors under way; over them, LinkFull.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import Any, Final

from engines.errors import Cancelled
from gateway import ids
from gateway.errors import Draining, StatusTable
from gateway.http_api.codec import AnswerForm
from gateway.lifecycle import Phase
from gateway.request import InferRequest, InferResponse, ServedBy
from gateway.workers import frames, messages
from gateway.workers.answer_frames import ErrorFrame
from gateway.workers.errors import EngineAway, ExpiredUnanswered, LinkFull, from_wire, to_wire
from gateway.workers.frames import Form, Kind
from gateway.workers.headers import HeaderBlocks
from gateway.workers.messages import FrontStatistics, Refused
from gateway.workers.raw_bodies import RAW_INPUT
from gateway.workers.remote_engine import RemoteEngine, Wire

logger = logging.getLogger(__name__)

LIMIT_REQUESTS: Final = 65_536
LIMIT_BYTES: Final = 512 << 20
HOLD_S: Final = 10.0
"""Longest wait for the next engine process, from the loss of the one before."""
GRACE_S: Final = 0.5
LOOK_S: Final = 0.25
"""How often deadlines are looked through."""
SENDS: Final = 2
"""How often a request is sent: a second time if the first engine process was lost."""

Reply = Callable[[InferResponse | Exception, ServedBy], None]


class RemoteCall:
    """One request under way. The caller may only cancel it."""

    __slots__ = (
        "_pipeline",
        "bytes",
        "is_cancelled",
        "number",
        "reply",
        "request",
        "sends",
        "started_ns",
    )

    def __init__(
        self, pipeline: RemotePipeline, request: InferRequest, reply: Reply, size_bytes: int
    ) -> None:
        self._pipeline = pipeline
        self.request = request
        self.reply = reply
        self.number = 0
        self.bytes = size_bytes
        self.sends = 0
        self.is_cancelled = False
        self.started_ns = time.monotonic_ns()

    def cancel(self) -> None:
        """Give the request up. The reply still comes, with Cancelled, unless it came already."""
        self._pipeline.cancel(self)


class RemotePipeline:
    """The pipeline of a front process.

    Args:
        engine: the connection to the engine process.
        statuses: error to status.
        index: of this front.
    """

    def __init__(self, engine: RemoteEngine, statuses: StatusTable, index: int) -> None:
        self._engine = engine
        self._statuses = statuses
        self._index = index
        self._wire: Wire | None = None
        self._calls: dict[int, RemoteCall] = {}
        self._held: dict[RemoteCall, None] = {}
        """In the order of their arrival; disjoint from `_calls`."""
        self._bytes = 0
        self._headers = HeaderBlocks()
        self._idle = asyncio.Event()
        self._lost_at_ns = time.monotonic_ns() if engine.has_served else 0
        """When an engine process that served was lost; 0: it is there, or never was."""
        self._is_draining = False
        self._resent = 0
        self._given_up = 0

    # --- what transports call ---------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """How many requests are not yet answered."""
        return len(self._calls) + len(self._held)

    async def idle(self) -> None:
        """Return when no request is under way; meant for a drain, when none is accepted."""
        while self._calls or self._held:
            self._idle.clear()
            await self._idle.wait()

    def submit(self, request: InferRequest, reply: Reply) -> RemoteCall:
        """Send a request; `reply` gets its answer or its error, once."""
        size_bytes = 0
        for tensor in request.inputs:
            size_bytes += len(tensor[3])
        call = RemoteCall(self, request, reply, size_bytes)
        wire = self._wire
        if (
            wire is None
            or self._lost_at_ns
            or self._is_draining
            or self._bytes + size_bytes > LIMIT_BYTES
            or len(self._calls) >= LIMIT_REQUESTS
        ):
            self._hold_or_refuse(call)
        else:
            self._bytes += size_bytes
            self._send(call, wire)
        return call

    def refuse(self, exc: Exception, protocol: str) -> None:
        """Count a request that an adapter answered with an error without submitting it."""
        if self._wire is not None:
            name, sentence = to_wire(self._statuses, exc)
            body = Refused(protocol=protocol, name=name, sentence=sentence)
            self._wire.link.send(frames.message(Kind.REFUSED, 0, messages.write(body)))

    def drain(self) -> None:
        """Refuse new requests from now on."""
        self._is_draining = True

    def abandon(self) -> None:
        """Answer every request under way with Draining, now; meant for the end of a drain."""
        for call in [*self._calls.values(), *self._held]:
            self._give_up(call, Draining())

    def cancel(self, call: RemoteCall) -> None:
        """Tell the engine process, which answers; answer here what is not at one."""
        call.is_cancelled = True
        if call in self._held:
            self._finish(call, Cancelled(), _here())
        elif self._wire is not None and call.number in self._calls:
            self._wire.link.send(frames.message(Kind.CANCEL, call.number))

    def statistics(self) -> FrontStatistics:
        """Return what there is to say."""
        return FrontStatistics(
            front=self._index,
            pid=os.getpid(),
            in_flight=self.in_flight,
            held=len(self._held),
            resent=self._resent,
            given_up=self._given_up,
        )

    # --- on the way -------------------------------------------------------------------------------

    def _send(self, call: RemoteCall, wire: Wire) -> None:
        request = call.request
        call.number = number = self._engine.number()
        call.sends += 1
        link = wire.link
        form = frames.NO_FORM if request.write is None else _form(request)
        self._calls[number] = call
        try:
            block = self._headers.of(request.header)
            wire.writer.write(link.out, number, request, block, form)
        except Exception as exc:  # adapter edge: whatever cannot be written, the caller is told
            self._give_up(call, exc)
        link.schedule()

    def _hold_or_refuse(self, call: RemoteCall) -> None:
        """Keep a request for the next engine process, or answer that it cannot be."""
        now_ns = time.monotonic_ns()
        exc: Exception | None = None
        if self._is_draining:
            exc = Draining()
        elif self.in_flight >= LIMIT_REQUESTS:
            exc = LinkFull(limit=LIMIT_REQUESTS, unit="requests")
        elif self._bytes + call.bytes > LIMIT_BYTES:
            exc = LinkFull(limit=LIMIT_BYTES, unit="bytes")
        elif not self._lost_at_ns:
            exc = self._engine.absence()
        elif now_ns - self._lost_at_ns > HOLD_S * 1e9:
            exc = EngineAway()
        if exc is None:
            self._bytes += call.bytes
            self._held[call] = None
        else:
            self.refuse(exc, call.request.protocol)
            self._given_up += 1
            call.reply(exc, _here())

    def _give_up(self, call: RemoteCall, exc: Exception) -> None:
        """Answer a request from here; tell the engine process, if it has it."""
        if call.number in self._calls and self._wire is not None:
            self._wire.link.send(frames.message(Kind.CANCEL, call.number))
        self._given_up += 1
        self._finish(call, exc, _here())

    def _finish(
        self, call: RemoteCall, answer: InferResponse | Exception, served_by: ServedBy
    ) -> None:
        """Answer a request; called once per call."""
        if self._calls.pop(call.number, None) is None:
            self._held.pop(call, None)
        self._bytes -= call.bytes
        if not self._calls and not self._held:
            self._idle.set()
        try:
            call.reply(answer, served_by)
        except Exception:  # adapter edge: one caller's trouble is not the others'
            logger.exception("an answer could not be given")

    def look(self) -> None:
        """Expire what is over its deadline, or was held for too long; meant to be called often."""
        now_ns = time.monotonic_ns()
        late_ns = now_ns - int(GRACE_S * 1e9)
        late = [
            call
            for call in self._calls.values()
            if call.request.deadline_ns is not None and call.request.deadline_ns < late_ns
        ]
        is_over = self._lost_at_ns and now_ns - self._lost_at_ns > HOLD_S * 1e9
        for call in list(self._held):
            deadline_ns = call.request.deadline_ns
            if deadline_ns is not None and deadline_ns < now_ns:
                late.append(call)
            elif is_over:
                self._give_up(call, EngineAway())
        for call in late:
            waited_ns = now_ns - call.started_ns
            self._give_up(call, ExpiredUnanswered(model=call.request.name, waited_ns=waited_ns))

    async def watch(self) -> None:
        """Call `look` until cancelled, and tell the engine process how things stand."""
        told: FrontStatistics | None = None
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()
            statistics = self.statistics()
            if self._wire is not None and statistics != told:
                told = statistics
                body = messages.write(statistics)
                self._wire.link.send(frames.message(Kind.STATISTICS, 0, body))

    # --- what the connection says -----------------------------------------------------------------

    def wire_up(self, wire: Wire) -> None:
        """A link was made; after a loss, requests wait until the engine process serves."""
        self._wire = wire

    def wire_lost(self) -> None:
        """Keep what may be sent once more; answer the rest."""
        self._wire = None
        calls = list(self._calls.values())
        self._calls.clear()
        if self._engine.has_served:
            self._lost_at_ns = self._lost_at_ns or time.monotonic_ns()
        before = self._held
        self._held = dict.fromkeys(calls)
        self._held.update(before)
        for call in calls:
            if call.is_cancelled:
                self._finish(call, Cancelled(), _here())
            elif call.sends >= SENDS or self._is_draining:
                self._give_up(call, EngineAway())

    def phase_changed(self, phase: Phase) -> None:
        """Send what was held, when the engine process serves."""
        wire = self._wire
        if wire is None or phase is not Phase.SERVING:
            return
        self._lost_at_ns = 0
        held = list(self._held)
        self._held.clear()
        for call in held:
            self._resent += call.sends > 0
            self._send(call, wire)

    def answered(
        self, flags: int, index: int, number: int, data: bytes, start: int, end: int
    ) -> None:
        """Give an answer to its caller."""
        wire = self._wire
        assert wire is not None
        call = self._calls.get(number)
        if call is None:  # given up before; reading it gives its places in shared memory back
            wire.reader.read(flags, index, "", data, start, end)
            return
        request = call.request
        answer, served_by = wire.reader.read(flags, index, request.id, data, start, end)
        if request.write is not None:
            try:
                request.write(answer)
            except Exception as exc:  # adapter edge: what the form cannot carry, or a bug
                self.refuse(exc, request.protocol)
                self._finish(call, exc, served_by)
                return
        self._finish(call, answer, served_by)

    def failed(self, number: int, error: ErrorFrame) -> None:
        """Give an error to its caller."""
        call = self._calls.get(number)
        if call is not None:
            exc = from_wire(error.name, error.sentence)
            self._finish(call, exc, error.served_by or _here())


def _here() -> ServedBy:
    """Say of a request that is answered by the front only an id."""
    return ServedBy(ids.new_id())


def _form(request: InferRequest) -> Form:
    """Return how the answer to a request is wanted, as far as its writer shows it."""
    owner: Any = getattr(request.write, "__self__", None)  # Any: of a transport's own type
    form = getattr(owner, "form", None)
    is_raw = bool(request.inputs) and request.inputs[0].name is RAW_INPUT
    flags = frames.RAW if is_raw else 0
    if not isinstance(form, AnswerForm):
        return flags, _NOTHING_ELSE
    flags |= frames.BINARY if form.default_binary else frames.JSON
    return flags, form.by_output or _NOTHING_ELSE


_NOTHING_ELSE: Final[dict[str, bool]] = {}
