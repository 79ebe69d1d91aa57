"""One request, end to end: route, check, submit, answer, count, log.

Takes a decoded request and a reply callback; needs no coroutine, task or future per request. Knows
no protocol: adapters decode before and encode after. Read next: directory.py (who serves),
engines/batcher.py (how), prediction_log (what is kept).

`reply` is called exactly once, on the event loop. Answers wait until the prediction log has written
their records, or counted them as dropped: at the end of their batch (`release`), or of the loop's
turn. So no answer leaves whose record a kill -9 could still lose, and a batch costs one write.
Without a log nothing waits, and `reply` may be called before `submit` returns.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from engines.batch_queue import QueuedRequest
from engines.batcher import Batcher
from engines.errors import Cancelled, InvalidInput
from engines.executed import Executed
from engines.tensors import Tensor
from gateway import ids
from gateway.accounts import Accounts
from gateway.directory import Directory, Target
from gateway.errors import Draining, Starting, StatusTable, TooMuchInFlight
from gateway.lifecycle import Lifecycle
from gateway.memo import Memo
from gateway.prediction_log.record import Origin, PredictionRecord
from gateway.prediction_log.record_sink import RecordSink
from gateway.request import (
    NOBODY,
    InferRequest,
    InferResponse,
    ParameterValue,
    ServedBy,
    correlation_id,
)


class Watch(Protocol):
    """What is done with the requests of some routes, beside answering them (route_watch.py)."""

    def admitted(self, call: Call, target: Target) -> None:
        """A request of a watched route is queued; never raises, never waits."""


Reply = Callable[[InferResponse | Exception, ServedBy], None]
_Held = tuple[Reply, InferResponse | Exception, ServedBy]

_US: Final = 1_000
_OK: Final = 200
_MAX_INT64: Final = (1 << 63) - 1
_MAX_ORIGINS: Final = 1024
_LARGE_BYTES: Final = 64 << 10
"""Tensors of at least this size are counted against the bytes in flight; of smaller ones the bounds
of the queues are bound enough."""


class Call(QueuedRequest):
    """One request under way, from its arrival to its answer; one object for pipeline and batcher.

    Made by `Pipeline.submit`; the caller may only cancel it.
    """

    __slots__ = (
        "_pipeline",
        "batcher",
        "held_bytes",
        "key",
        "reply",
        "request",
        "rid",
        "target",
        "ts_us",
    )

    def __init__(self, pipeline: Pipeline, request: InferRequest, reply: Reply) -> None:
        # Written out, without the parent's: this is done once per request.
        self._pipeline = pipeline
        self.request = request
        self.reply = reply
        self.ts_us = ts_us = time.time_ns() // _US
        self.rid = ids.new_id(ts_us // 1_000)
        self.target: Target | None = None
        self.key: bytes | None = None
        """The sticky key by which the route decided."""
        self.batcher: Batcher | None = None
        self.held_bytes = 0
        self.inputs = request.inputs
        self.rows = 0
        self.shape_key = ()
        self.enqueued_ns = time.monotonic_ns()
        self.deadline_ns = None
        self.priority = 0
        self.is_done = False
        self.has_left = False
        self.order_key = (0, 0, 0)

    def cancel(self) -> None:
        """Give the request up. The reply still comes, with Cancelled, unless it came already."""
        if self.batcher is not None:
            self.batcher.cancel(self)

    def on_done(self, outcome: object) -> None:
        """Take the batcher's outcome."""
        self._pipeline.finish(self, outcome)


def _answered(outcome: InferResponse | Exception, served_by: ServedBy) -> None:
    """Stand where the reply was: a call that is answered refers to its caller no longer."""


class Pipeline:
    """The core that every transport calls."""

    def __init__(  # noqa: PLR0913 - everything that a request meets
        self,
        *,
        directory: Directory,
        lifecycle: Lifecycle,
        accounts: Accounts,
        log: RecordSink,
        statuses: StatusTable,
        watch: Watch,
        in_flight_bytes: int,
    ) -> None:
        self._directory = directory
        self._lifecycle = lifecycle
        self._accounts = accounts
        self._log = log
        self._statuses = statuses
        self._watch = watch
        self._limit_bytes = in_flight_bytes
        self._held_bytes = 0
        """Of large tensors in `_calls`."""
        self._calls: set[Call] = set()
        self._origins: Memo[Target, Origin] = Memo(_MAX_ORIGINS // 2)
        self._held: list[_Held] = []
        """Answers whose records were offered to the log and not yet committed."""
        self._unsent = 0
        """Answers that are held, or wait for the log."""
        self._idle = asyncio.Event()
        self._is_abandoning = False

    @property
    def in_flight(self) -> int:
        """How many requests are not yet answered."""
        return len(self._calls) + self._unsent

    async def idle(self) -> None:
        """Return when no request is under way; meant for a drain, when none is accepted."""
        while self._calls or self._unsent:
            self._idle.clear()
            await self._idle.wait()

    def submit(self, request: InferRequest, reply: Reply) -> Call:
        """Start a request; `reply` gets its answer or its error, once."""
        call = Call(self, request, reply)
        self._calls.add(call)
        try:
            self._admit(call)
        except Exception as exc:  # adapter edge: whatever it is, the caller gets an answer
            if self._statuses.is_known(exc):
                # Nobody logs its trace, whose frames would keep the request's tensors alive.
                exc.__traceback__ = exc.__context__ = None
            self.finish(call, exc)
        return call

    def abandon(self) -> None:
        """Answer every request under way with Draining, now; meant for the end of a drain."""
        self._is_abandoning = True
        for call in list(self._calls):
            call.cancel()

    def refuse(self, exc: Exception, protocol: str) -> None:
        """Count a request that an adapter answered with an error without submitting it."""
        self._accounts.refused(protocol, int(self._statuses.of(exc).grpc))

    def _admit(self, call: Call) -> None:
        if not self._lifecycle.is_ready:
            raise Draining if self._lifecycle.is_draining else Starting
        request = call.request
        target, call.key = self._directory.resolve(request)
        call.target = target
        batcher = target.served.batcher
        signature = batcher.signature
        call.inputs, call.rows, call.shape_key = signature.admit(request.inputs)
        for tensor in call.inputs:
            if len(tensor[3]) >= _LARGE_BYTES:
                self._hold(call, len(tensor[3]))
        if request.outputs:
            signature.check_outputs(request.outputs)
        if request.parameters or not batcher.policy.is_plain:
            call.deadline_ns = deadline_ns(request, batcher, call.enqueued_ns)
            call.priority = priority(request, batcher)
        else:
            call.deadline_ns = request.deadline_ns
        call.batcher = batcher
        batcher.submit(call)
        if target.is_watched:
            self._watch.admitted(call, target)

    def _hold(self, call: Call, size: int) -> None:
        """Count a large tensor until its call is answered."""
        if self._held_bytes + size > self._limit_bytes:
            raise TooMuchInFlight(limit_bytes=self._limit_bytes)
        self._held_bytes += size
        call.held_bytes += size

    def finish(self, call: Call, outcome: object) -> None:
        """Answer, count and log a request; called once per call."""
        self._calls.discard(call)
        if call.held_bytes:
            self._held_bytes -= call.held_bytes
            call.held_bytes = 0
        target = call.target
        if target is None or outcome.__class__ is not Executed:
            error = outcome if isinstance(outcome, Exception) else RuntimeError(repr(outcome))
            self._fail(call, error, None)
            return
        total_ns = time.monotonic_ns() - call.enqueued_ns
        request, served = call.request, target.served
        outputs = outcome.outputs
        if request.outputs:
            outputs = _select(outputs, request.outputs)
        answer = InferResponse(served.model, served.version, request.id, outputs)
        if request.write is not None:
            try:
                request.write(answer)
            except Exception as exc:  # adapter edge: what the form cannot carry, or a bug
                self._fail(call, exc, outcome)
                return
        self._accounts.answered(
            target, outcome, request.protocol, call.rows, total_ns, call.ts_us // 1_000
        )
        log = self._log
        if log.is_on:
            log.offer(
                PredictionRecord(
                    self._origin(target, call),
                    call.rid,
                    call.ts_us,
                    _OK,
                    total_ns // _US,
                    request.id or correlation_id(request),
                    "",
                    outcome.queue_ns // _US,
                    outcome.execution,
                    call.inputs,
                    outcome.outputs,
                    b"",
                    "" if log.subject_of is None else log.subject_of(request),
                ),
                True,
            )
        self._answer(call, answer, ServedBy(call.rid, target.serving))

    def release(self) -> None:
        """Have the records of the answers held written, then send these; at the end of a batch."""
        held, self._held = self._held, []
        if held:
            self._log.commit(partial(self._send, held))

    def _answer(self, call: Call, answer: InferResponse | Exception, served_by: ServedBy) -> None:
        """Hold an answer until its record is written, or send it where there is no log."""
        reply, call.reply = call.reply, _answered
        if not self._log.is_on:
            if not self._calls:
                self._idle.set()
            reply(answer, served_by)
            return
        if not self._held:
            asyncio.get_running_loop().call_soon(self.release)
        self._held.append((reply, answer, served_by))
        self._unsent += 1

    def _send(self, held: list[_Held], reason: object) -> None:
        """Send answers whose records are written, or counted as dropped for a reason."""
        self._unsent -= len(held)
        if not self._unsent and not self._calls:
            self._idle.set()
        for reply, answer, served_by in held:
            try:
                reply(answer, served_by)
            except Exception as exc:  # a caller's fault must not cost the others their answers
                context = {"message": "a reply callback failed", "exception": exc}
                asyncio.get_running_loop().call_exception_handler(context)

    def _fail(self, call: Call, error: Exception, executed: Executed | None) -> None:
        """Answer, count and log a request that gets an error."""
        call.is_done = True  # also where no batcher said so: there is nothing left to cancel
        if self._is_abandoning and isinstance(error, Cancelled):
            error = Draining()
        total_ns = time.monotonic_ns() - call.enqueued_ns
        status, request = self._statuses.of(error), call.request
        self._accounts.failed(
            call.target, executed, request.protocol, int(status.grpc), total_ns, call.ts_us // 1_000
        )
        target = call.target
        is_ours = target is not None or self._directory.knows(request.name)
        if self._log.is_on and is_ours and not isinstance(error, Cancelled):
            origin = (
                Origin(name=request.name, version=request.version, propensity=1.0)
                if target is None
                else _origin(target, request.name, call.batcher, is_executed=executed is not None)
            )
            record = PredictionRecord(
                origin,
                call.rid,
                call.ts_us,
                status.http,
                total_ns // _US,
                correlation_id(request),
                type(error).__name__,
                executed.queue_ns // _US if executed else 0,
                executed.execution if executed else None,
                call.inputs,
                executed.outputs if executed else (),
            )
            if self._log.subject_of is not None:
                record.subject = self._log.subject_of(request)
            self._log.offer(record, True)
        self._answer(call, error, ServedBy(call.rid, target.serving if target else NOBODY))

    def _origin(self, target: Target, call: Call) -> Origin:
        """Return what the records of a target's answers have in common, made once."""
        origins = self._origins
        known = origins.recent.get(target) or origins.get(target)
        if known is not None:
            return known
        origin = _origin(target, call.request.name, call.batcher, is_executed=True)
        return origins.put(target, origin)


def _origin(target: Target, name: str, batcher: Batcher | None, *, is_executed: bool) -> Origin:
    return Origin(
        name=name,
        model=target.served.model,
        version=target.served.version,
        artefact=batcher.artefact if batcher else b"",
        revision=target.revision,
        variant=target.assigned,
        served=target.variant if is_executed else "",
        propensity=target.propensity,
        reason=target.reason,
        device=batcher.metadata.device if batcher else "",
    )


def _select(outputs: tuple[Tensor, ...], names: tuple[str, ...]) -> tuple[Tensor, ...]:
    """Return the outputs asked for, in the order asked for."""
    by_name = {tensor.name: tensor for tensor in outputs}
    return tuple(by_name[name] for name in names)


def deadline_ns(request: InferRequest, batcher: Batcher, now_ns: int) -> int | None:
    """Return the earliest of the caller's deadline, its `timeout` in µs, and the model's default.

    Raises:
        InvalidInput: `timeout` is no number of microseconds.
    """
    policy = batcher.policy
    timeout_us = _whole(request.parameters.get("timeout", 0), "timeout", "microseconds")
    if policy.default_timeout_us:
        may_shorten = policy.allow_timeout_override and timeout_us
        timeout_us = (
            min(timeout_us, policy.default_timeout_us) if may_shorten else policy.default_timeout_us
        )
    if not timeout_us:
        return request.deadline_ns
    by_timeout_ns = now_ns + timeout_us * _US
    return by_timeout_ns if request.deadline_ns is None else min(request.deadline_ns, by_timeout_ns)


def priority(request: InferRequest, batcher: Batcher) -> int:
    """Return the queue priority of a request, 1 the highest; 0 where the model has no levels.

    Raises:
        InvalidInput: `priority` is no number, or beyond the model's levels.
    """
    levels = batcher.policy.priority_levels
    asked = _whole(request.parameters.get("priority", 0), "priority", "levels")
    if not levels:
        return 0
    if asked > levels:
        raise InvalidInput(f"parameter 'priority': {asked} given, the model has {levels} levels")
    return asked or batcher.policy.default_priority_level


def _whole(value: ParameterValue, name: str, unit: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_INT64:
        raise InvalidInput(f"parameter {name!r}: {value!r} is not a whole number of {unit}")
    return value
