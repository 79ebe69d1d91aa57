"""One request, end to end: route, check, submit, answer, count, log.

Takes a decoded request and a reply callback; needs no coroutine, task or future per request. Knows
no protocol: adapters decode before and encode after. Read next: directory.py (who serves),
engines/batcher.py (how), prediction_log (what is kept).

`reply` is called exactly once, on the event loop, possibly before `submit` returns. The prediction
record is offered before it, so that no answer leaves whose record was never taken or counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from engines.batch_queue import QueuedRequest
from engines.batcher import Batcher, Executed
from engines.errors import Cancelled, InvalidInput
from engines.tensors import Tensor
from gateway import ids
from gateway.accounts import Accounts
from gateway.directory import Directory, Target
from gateway.errors import Draining, Starting, StatusTable
from gateway.lifecycle import Lifecycle
from gateway.prediction_log.record import PredictionRecord
from gateway.prediction_log.writer import RecordSink
from gateway.request import (
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

_US = 1_000
_MAX_INT64 = (1 << 63) - 1


class Call:
    """One request under way. Made by `Pipeline.submit`; the caller may only cancel it."""

    __slots__ = (
        "_pipeline",
        "batcher",
        "inputs",
        "queued",
        "reply",
        "request",
        "rid",
        "started_ns",
        "target",
        "ts_us",
    )

    def __init__(self, pipeline: Pipeline, request: InferRequest, reply: Reply) -> None:
        self._pipeline = pipeline
        self.request = request
        self.reply = reply
        self.rid = ids.new_id()
        self.started_ns = time.monotonic_ns()
        self.ts_us = time.time_ns() // _US
        self.target: Target | None = None
        self.batcher: Batcher | None = None
        self.queued: QueuedRequest | None = None
        self.inputs: tuple[Tensor, ...] = request.inputs

    def cancel(self) -> None:
        """Give the request up. The reply still comes, with Cancelled, unless it came already."""
        if self.batcher is not None and self.queued is not None:
            self.batcher.cancel(self.queued)

    def done(self, outcome: object) -> None:
        """Take the batcher's outcome."""
        self._pipeline.finish(self, outcome)


class Pipeline:
    """The core that every transport calls."""

    def __init__(
        self,
        *,
        directory: Directory,
        lifecycle: Lifecycle,
        accounts: Accounts,
        log: RecordSink,
        statuses: StatusTable,
        watch: Watch,
    ) -> None:
        self._directory = directory
        self._lifecycle = lifecycle
        self._accounts = accounts
        self._log = log
        self._statuses = statuses
        self._watch = watch
        self._calls: set[Call] = set()
        self._idle = asyncio.Event()
        self._is_abandoning = False

    @property
    def in_flight(self) -> int:
        """How many requests are not yet answered."""
        return len(self._calls)

    async def idle(self) -> None:
        """Return when no request is under way; meant for a drain, when none is accepted."""
        while self._calls:
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
        call.target = target = self._directory.choose(request)
        batcher = target.served.batcher
        signature = batcher.signature
        call.inputs, rows = signature.order(request.inputs)
        if request.outputs:
            signature.check_outputs(request.outputs)
        call.queued = queued = QueuedRequest(
            inputs=call.inputs,
            rows=rows,
            shape_key=signature.shape_key(call.inputs),
            enqueued_ns=call.started_ns,
            deadline_ns=deadline_ns(request, batcher, call.started_ns),
            priority=priority(request, batcher),
            on_done=call.done,
        )
        call.batcher = batcher
        batcher.submit(queued)
        if target.split is not None and target.split.is_watched:
            self._watch.admitted(call, target)

    def finish(self, call: Call, outcome: object) -> None:
        """Answer, count and log a request; called once per call."""
        self._calls.discard(call)
        if not self._calls:
            self._idle.set()
        if self._is_abandoning and isinstance(outcome, Cancelled):
            outcome = Draining()
        total_ns = time.monotonic_ns() - call.started_ns
        served_by = _served_by(call)
        answer = _answer(call, outcome)
        executed = outcome if isinstance(outcome, Executed) else None
        error = answer if isinstance(answer, Exception) else None
        self._accounts.answered(
            call.target,
            executed,
            protocol=call.request.protocol,
            code=int(self._statuses.of(error).grpc) if error else 0,
            rows=call.queued.rows if call.queued else 0,
            total_ns=total_ns,
            now_ms=call.ts_us // 1_000,
        )
        if not isinstance(answer, Cancelled):
            self._record(call, answer, executed, total_ns)
        # The queued request refers to the call by its callback: without this, tensors would live
        # on until the next run of the garbage collector.
        call.queued = None
        call.reply(answer, served_by)

    def _record(
        self,
        call: Call,
        answer: InferResponse | Exception,
        executed: Executed | None,
        total_ns: int,
    ) -> None:
        """Offer the prediction record of an answered request whose name is known here."""
        request, target = call.request, call.target
        if target is None and not self._directory.knows(request.name):
            return
        error = answer if isinstance(answer, Exception) else None
        metadata = call.batcher.metadata if call.batcher else None
        record = PredictionRecord(
            rid=call.rid,
            cid=correlation_id(request),
            ts_us=call.ts_us,
            name=request.name,
            model=target.served.model if target else "",
            version=target.served.version if target else request.version,
            artefact=call.batcher.artefact if call.batcher else b"",
            revision=target.revision if target else 0,
            variant=target.assigned if target else "",
            served=target.variant if target and executed else "",
            propensity=target.propensity if target else 1.0,
            reason=target.reason if target else "",
            status=self._statuses.of(error).http if error else 200,
            error=type(error).__name__ if error else "",
            queue_us=executed.queue_ns // _US if executed else 0,
            batch_us=(executed.input_ns + executed.output_ns) // _US if executed else 0,
            infer_us=executed.infer_ns // _US if executed else 0,
            total_us=total_ns // _US,
            batch_rows=executed.batch_rows if executed else 0,
            device=metadata.device if metadata else "",
            inputs=call.inputs,
            outputs=executed.outputs if executed else (),
        )
        self._log.offer(record)


def _answer(call: Call, outcome: object) -> InferResponse | Exception:
    """Return what the caller gets: the response, already written in its form, or an error."""
    if not isinstance(outcome, Executed) or call.target is None:
        return outcome if isinstance(outcome, Exception) else RuntimeError(repr(outcome))
    response = InferResponse(
        model=call.target.served.model,
        version=call.target.served.version,
        id=call.request.id,
        outputs=_select(outcome.outputs, call.request.outputs),
    )
    if call.request.write is not None:
        try:
            call.request.write(response)
        except Exception as exc:  # adapter edge: what the form cannot carry, or a bug
            return exc
    return response


def _served_by(call: Call) -> ServedBy:
    target, request_id = call.target, ids.as_text(call.rid)
    if target is None:
        return ServedBy(request_id=request_id)
    return ServedBy(
        request_id=request_id,
        variant=target.variant,
        assigned=target.assigned if target.assigned != target.variant else "",
        revision=target.revision,
        reason=target.reason,
    )


def _select(outputs: tuple[Tensor, ...], names: tuple[str, ...]) -> tuple[Tensor, ...]:
    """Return the outputs asked for, in the order asked for; all of them if none is named."""
    if not names:
        return outputs
    by_name = {tensor.name: tensor for tensor in outputs}
    return tuple(by_name[name] for name in names)


def deadline_ns(request: InferRequest, batcher: Batcher, now_ns: int) -> int | None:
    """Return the earliest of the caller's deadline, its `timeout` in µs, and the model's default.

    Raises:
        InvalidInput: `timeout` is no number of microseconds.
    """
    policy = batcher.policy
    if not request.parameters and not policy.default_timeout_us:
        return request.deadline_ns
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
    if not levels and not request.parameters:
        return 0
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
