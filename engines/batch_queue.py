"""Which queued requests share a batch: a pure queue that is handed the time.

Knows rows, shapes, priorities and instants; knows no event loop, no thread, no engine and no clock.
Read next: batcher.py, which drives one of these, and docs/adr/0002.

Theory. Requests whose per-row shapes differ can never run together, so each shape has a lane of its
own and never closes another's batch. Inside a lane requests stand in order of (priority, ordering
instant, arrival). The ordering instant is the deadline, but at most `ORDERING_HORIZON_NS` after
arrival: so the earliest deadline goes first, and nothing is overtaken by requests that arrive more
than a second after it, dated or not. A batch is a prefix of one lane: nothing is skipped over,
nothing is split.

A lane is due, in this order:
  1. `full`: its prefix fills max_batch_size, or the next request would not fit beside it;
  2. `preferred`: some prefix adds up to a preferred size exactly (the largest such goes);
  3. `delay`: its oldest request has waited max_queue_delay_us;
  4. `drain`: the queue drains, nobody waits for companions any more.
Of several due lanes the one whose head is first in the order above goes.

Invariants:
  - queued rows <= max_queue_rows, and queued requests <= max_queue_requests where that is set;
  - every pushed request leaves exactly once: in a batch, by `remove`, or by `clear`;
  - a batch never mixes shapes and never exceeds max_batch_size rows.

Cost: a push is one `bisect.insort`, at the end of the list for ordinary traffic; a batch is one
slice. Dispatch semantics follow Triton's dynamic batcher (core, dynamic_batch_scheduler.cc), except
for the lanes, which Triton has not.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

from engines.base import BatchPolicy
from engines.signature import ShapeKey
from engines.tensors import Tensor

ORDERING_HORIZON_NS: Final = 1_000_000_000
_US: Final = 1_000

_OrderKey = tuple[int, int, int]
_order_key: Final = attrgetter("order_key")
_COMPACT_ABOVE: Final = 64


class QueuedRequest:
    """One request between admission and its answer. Identity matters, so it is no value.

    Whoever submits it subclasses it, so that a request is one object from its arrival to its
    answer: `on_done` is what it does with the outcome.
    """

    __slots__ = (
        "deadline_ns",
        "enqueued_ns",
        "has_left",
        "inputs",
        "is_done",
        "order_key",
        "priority",
        "rows",
        "shape_key",
    )

    def __init__(
        self,
        inputs: tuple[Tensor, ...],
        rows: int,
        shape_key: ShapeKey,
        enqueued_ns: int,
        deadline_ns: int | None = None,
        priority: int = 0,
    ) -> None:
        self.inputs = inputs
        """In the model's order."""
        self.rows = rows
        self.shape_key = shape_key
        self.enqueued_ns = enqueued_ns
        self.deadline_ns = deadline_ns
        self.priority = priority
        self.is_done = False
        """Answered, expired or cancelled; set by the batcher before it calls on_done."""
        self.has_left = False
        """Taken out of a queue that still holds others; set by the queue."""
        self.order_key: _OrderKey = (0, 0, 0)
        """Set by the queue."""

    def on_done(self, outcome: object) -> None:
        """Take the outcome, an Executed or an exception; called once, on the event loop."""
        raise NotImplementedError


class CallbackRequest(QueuedRequest):
    """A request whose outcome goes to a function."""

    __slots__ = ("_callback",)

    def __init__(  # noqa: PLR0913 - one argument per field
        self,
        *,
        inputs: tuple[Tensor, ...],
        rows: int,
        shape_key: ShapeKey,
        enqueued_ns: int,
        deadline_ns: int | None = None,
        priority: int = 0,
        on_done: Callable[[object], None],
    ) -> None:
        super().__init__(inputs, rows, shape_key, enqueued_ns, deadline_ns, priority)
        self._callback = on_done

    def on_done(self, outcome: object) -> None:
        """Call the function."""
        self._callback(outcome)


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that run together, in the order in which their rows are laid."""

    requests: tuple[QueuedRequest, ...]
    rows: int
    reason: str
    """full, preferred, delay, drain or single."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatistics:
    """What the queue holds and has done."""

    queued_rows: int
    queued_requests: int
    shapes: int
    """Distinct shapes waiting."""
    refused: int
    """Requests refused because the queue was full."""
    batches_by_reason: dict[str, int]


class _Lane:
    """The requests of one shape: `ordered` by order key, `arrivals` in the order they came.

    `arrivals` may also hold requests that have left: they are dropped when they come to its front,
    or when they outnumber the ones that are here.
    """

    __slots__ = ("arrivals", "ordered", "rows")

    def __init__(self) -> None:
        self.ordered: list[QueuedRequest] = []
        self.arrivals: deque[QueuedRequest] = deque()
        self.rows = 0

    def oldest_ns(self) -> int:
        arrivals = self.arrivals
        while arrivals[0].has_left:
            arrivals.popleft()
        return arrivals[0].enqueued_ns

    def add(self, request: QueuedRequest) -> None:
        ordered = self.ordered
        if not ordered or ordered[-1].order_key < request.order_key:
            ordered.append(request)  # ordinary traffic: behind all others
        else:
            insort(ordered, request, key=_order_key)
        self.arrivals.append(request)
        self.rows += request.rows

    def cut(self, start: int, end: int) -> list[QueuedRequest]:
        """Take some out, where others stay."""
        taken = self.ordered[start:end]
        del self.ordered[start:end]
        for request in taken:
            self.rows -= request.rows
            request.has_left = True
        if len(self.arrivals) > 2 * len(self.ordered) + _COMPACT_ABOVE:
            self.arrivals = deque(r for r in self.arrivals if not r.has_left)
        return taken


class QueueIsFull(Exception):
    """Raised by push; the batcher turns it into a QueueFull that names the version."""

    def __init__(self, limit: int, unit: str) -> None:
        super().__init__(f"{limit} {unit}")
        self.limit = limit
        self.unit = unit


class BatchQueue:
    """The queue of one model version, shared by all its instances."""

    def __init__(self, policy: BatchPolicy) -> None:
        self._policy = policy
        self._preferred = frozenset(
            size for size in policy.preferred_batch_sizes if size <= policy.max_batch_size
        )
        self._delay_ns = policy.max_queue_delay_us * _US
        self._lanes: dict[ShapeKey, _Lane] = {}
        self._rows = 0
        self._requests = 0
        self._sequence = 0
        self._refused = 0
        self._reasons: dict[str, int] = {}
        self.is_draining = False

    def __repr__(self) -> str:
        return (
            f"<BatchQueue {self._requests} requests, {self._rows} rows, {len(self._lanes)} shapes>"
        )

    def __len__(self) -> int:
        return self._requests

    def push(self, request: QueuedRequest) -> None:
        """Add a request behind those it does not overtake.

        Raises:
            QueueIsFull: its rows would exceed the bound; the queue is unchanged.
            ValueError: no batch can hold it; admission (signature.py) should have refused it.
        """
        policy = self._policy
        if not 1 <= request.rows <= policy.max_batch_size:
            raise ValueError(f"{request.rows} rows do not fit into {policy.max_batch_size}")
        if self._rows + request.rows > policy.max_queue_rows:
            self._refused += 1
            raise QueueIsFull(policy.max_queue_rows, "rows")
        if 0 < policy.max_queue_requests <= self._requests:
            self._refused += 1
            raise QueueIsFull(policy.max_queue_requests, "requests")
        self._sequence += 1
        order_ns = request.enqueued_ns + ORDERING_HORIZON_NS
        deadline_ns = request.deadline_ns
        if deadline_ns is not None and deadline_ns < order_ns:
            order_ns = deadline_ns
        request.order_key = (request.priority, order_ns, self._sequence)
        lane = self._lanes.get(request.shape_key)
        if lane is None:
            lane = self._lanes[request.shape_key] = _Lane()
        lane.add(request)
        self._rows += request.rows
        self._requests += 1

    def remove(self, request: QueuedRequest) -> bool:
        """Take a request out, if it is still queued; its rows never reach a batch."""
        lane = self._lanes.get(request.shape_key)
        if lane is None:
            return False
        position = bisect_left(lane.ordered, request.order_key, key=_order_key)
        if position == len(lane.ordered) or lane.ordered[position] is not request:
            return False
        self._cut(request.shape_key, lane, position, position + 1)
        return True

    def clear(self) -> list[QueuedRequest]:
        """Take everything out, in the order of the lanes."""
        taken = [request for lane in self._lanes.values() for request in lane.ordered]
        self._lanes.clear()
        self._rows = self._requests = 0
        return taken

    def take(self, now_ns: int) -> Batch | None:
        """Remove and return the batch that is due at `now_ns`, or None."""
        best: tuple[_OrderKey, ShapeKey, _Lane, int, str] | None = None
        for shape_key, lane in self._lanes.items():
            due = self._due(lane, now_ns)
            if due is not None:
                head = lane.ordered[0].order_key
                if best is None or head < best[0]:
                    best = (head, shape_key, lane, *due)
        if best is None:
            return None
        _, shape_key, lane, count, reason = best
        before_rows = self._rows
        requests = self._cut(shape_key, lane, 0, count)
        self._reasons[reason] = self._reasons.get(reason, 0) + 1
        return Batch(tuple(requests), before_rows - self._rows, reason)

    def next_due_ns(self) -> int | None:
        """When `take` will next return a batch if nothing else arrives; None: empty.

        An instant in the past means: now.
        """
        if not self._lanes:
            return None
        return min(lane.oldest_ns() for lane in self._lanes.values()) + self._delay_ns

    def statistics(self) -> QueueStatistics:
        """Return a frozen copy of the counters."""
        return QueueStatistics(
            queued_rows=self._rows,
            queued_requests=self._requests,
            shapes=len(self._lanes),
            refused=self._refused,
            batches_by_reason=dict(self._reasons),
        )

    def _due(self, lane: _Lane, now_ns: int) -> tuple[int, str] | None:
        """Return how many requests of the lane go now and why, or None: keep waiting.

        The four cases of the module's theory, in its order. Each but `drain` may apply to a
        queue of any length; the prefix is walked at most once.
        """
        policy = self._policy
        if not policy.dynamic:
            return 1, "single"
        if not self._delay_ns and not self._preferred and lane.rows <= policy.max_batch_size:
            # Ordinary traffic: all of it goes now, and nobody need be looked at.
            is_full = lane.rows == policy.max_batch_size
            return len(lane.ordered), "full" if is_full else "delay"
        waited = now_ns - lane.oldest_ns() >= self._delay_ns
        may_be_full = lane.rows >= policy.max_batch_size
        if not (waited or may_be_full or self.is_draining or self._preferred):
            return None
        rows = count = preferred_count = 0
        for request in lane.ordered:
            if rows + request.rows > policy.max_batch_size:
                return count, "full"
            rows += request.rows
            count += 1
            if rows in self._preferred:
                preferred_count = count
        if rows == policy.max_batch_size:
            return count, "full"
        if preferred_count:
            return preferred_count, "preferred"
        if waited:
            return count, "delay"
        return (count, "drain") if self.is_draining else None

    def _cut(self, key: ShapeKey, lane: _Lane, start: int, end: int) -> list[QueuedRequest]:
        self._requests -= end - start
        if end - start == len(lane.ordered):
            del self._lanes[key]
            self._rows -= lane.rows
            return lane.ordered
        before_rows = lane.rows
        taken = lane.cut(start, end)
        self._rows -= before_rows - lane.rows
        return taken
