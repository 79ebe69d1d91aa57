"""A laned engine whose device is a script: what it may be asked is checked at every call.

It echoes `x` as `y` through real buffers, one pair per lane. What they hold before a batch and
after it is garbage, so whoever reads too early or keeps a view too long gets wrong rows; the answer
is made in `collect`, so whoever writes into a lane under way changes it. Calls that break the
contract of `LanedEngine` are kept in `broken`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from engines.base import LaneStatistics, Lease, ModelMetadata
from engines.errors import DeviceFailed, EngineClosed, OutOfMemory
from engines.tensors import Array
from tests.support.batching import ECHO_INPUT, ECHO_OUTPUT, HANG_S, Gate

GARBAGE: Final = -777.0
DEVICE: Final = "cuda:7"


@dataclass(frozen=True, slots=True, kw_only=True)
class LanedScript:
    """What happens to which batch; a value is sought among the batch's rows."""

    most_rows: int = 1_000
    """A batch of more has no lane: OutOfMemory from `acquire`."""
    submit_fails_on: float | None = None
    collect_fails_on: float | None = None
    no_memory_on: float | None = None
    """`collect` raises OutOfMemory; the value alone has room."""
    dies_in_submit_on: float | None = None
    dies_in_collect_on: float | None = None
    die_after: int | None = None
    """Batches collected; then the device is dead."""


@dataclass(slots=True, eq=False)
class ScriptedLease:
    """One lane, as long as it is held."""

    number: int
    inputs: Mapping[str, Array]
    state: str = "leased"


@dataclass(slots=True)
class Calls:
    """What was called, in order, and by which threads."""

    names: list[str] = field(default_factory=list)
    threads: dict[str, set[str]] = field(default_factory=dict)


class ScriptedLaned:
    """A laned engine under the orders of a test.

    Args:
        wait: called in `collect` before the answer is made; a Gate holds the batch there.
    """

    def __init__(
        self,
        lanes: int = 2,
        *,
        max_batch_size: int = 8,
        buckets: tuple[int, ...] = (),
        script: LanedScript | None = None,
        wait: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.metadata = ModelMetadata(
            inputs=(ECHO_INPUT,),
            outputs=(ECHO_OUTPUT,),
            max_batch_size=max_batch_size,
            buckets=buckets,
            platform="test",
            engine="test 1",
            device=DEVICE,
        )
        self.lanes = lanes
        self.warmup_runs = lanes
        self.script = script or LanedScript()
        self.is_closed = False
        self.most_leases = 0
        """At once, ever."""
        self.rows: list[int] = []
        """Of each batch that was submitted."""
        self.broken: list[str] = []
        self.calls = Calls()
        self._wait = wait
        self._lock = threading.Lock()
        self._free = list(range(lanes))
        self._submitted: deque[ScriptedLease] = deque()
        self._collected = 0
        self._is_dead = False

    def statistics(self) -> LaneStatistics:
        """Return counters that a test can tell apart."""
        return LaneStatistics(graph_hits=len(self.rows), graph_misses=1)

    def acquire(self, shapes: Mapping[str, tuple[int, ...]]) -> ScriptedLease:
        """Take a lane, full of garbage."""
        with self._call("acquire"):
            if not self._free:
                self.broken.append("acquire without a free lane")
            if shapes["x"][0] > self.script.most_rows:
                raise OutOfMemory(DEVICE)
            lease = ScriptedLease(self._free.pop(), {"x": np.full(shapes["x"], GARBAGE, "f4")})
            self.most_leases = max(self.most_leases, self.lanes - len(self._free))
            return lease

    def submit(self, lease: Lease) -> None:
        """Start a batch, or fail to."""
        with self._call("submit"):
            own = self._expect(lease, "leased")
            array = own.inputs["x"]
            self.rows.append(len(array))
            if _holds(array, self.script.dies_in_submit_on):
                self._die("scripted death in submit")
            if _holds(array, self.script.submit_fails_on):
                raise RuntimeError("scripted failure in submit")
            own.state = "submitted"
            self._submitted.append(own)

    def collect(self, lease: Lease) -> Mapping[str, Array]:
        """Wait as told, and return views that end with the lease."""
        with self._call("collect"):
            own = self._expect(lease, "submitted")
            if self._submitted.popleft() is not own:
                self.broken.append("collect out of order")
            own.state = "collected"
        self._wait(0.0)
        with self._lock:
            array = own.inputs["x"]
            self._collected += 1
            is_over = self.script.die_after is not None and self._collected > self.script.die_after
            if self._is_dead or is_over or _holds(array, self.script.dies_in_collect_on):
                self._die("scripted death in collect")
            if len(array) > 1 and _holds(array, self.script.no_memory_on):
                raise OutOfMemory(DEVICE)
            if _holds(array, self.script.collect_fails_on):
                raise RuntimeError("scripted failure in collect")
            return {"y": array[:]}

    def release(self, lease: Lease) -> None:
        """Take the lane back and spoil what it holds."""
        with self._call("release", is_safe=True):
            own = self._expect(lease, "leased", "submitted", "collected")
            own.inputs["x"][:] = GARBAGE
            own.state = "free"
            self._free.append(own.number)

    def infer(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Run the four in a row."""
        lease = self.acquire({name: array.shape for name, array in batch.items()})
        try:
            lease.inputs["x"][:] = batch["x"]
            self.submit(lease)
            return {name: array.copy() for name, array in self.collect(lease).items()}
        finally:
            self.release(lease)

    def close(self) -> None:
        """Refuse everything from now on; nothing may be under way."""
        with self._lock:
            self.calls.names.append("close")
            self.calls.threads.setdefault("close", set()).add(threading.current_thread().name)
            if len(self._free) != self.lanes:
                self.broken.append("closed with a lane in use")
            self.is_closed = True

    def die(self) -> None:
        """Let the device fail now: every call from here on raises."""
        with self._lock:
            self._is_dead = True

    @contextmanager
    def _call(self, name: str, *, is_safe: bool = False) -> Iterator[None]:
        with self._lock:
            self.calls.names.append(name)
            self.calls.threads.setdefault(name, set()).add(threading.current_thread().name)
            if self.is_closed:
                self.broken.append(f"{name} after close")
                raise EngineClosed
            if self._is_dead and not is_safe and name != "collect":
                raise DeviceFailed(DEVICE, "it is dead")
            yield

    def _expect(self, lease: Lease, *states: str) -> ScriptedLease:
        assert isinstance(lease, ScriptedLease)
        if lease.state not in states:
            self.broken.append(f"a lease is {lease.state}, not {' or '.join(states)}")
        return lease

    def _die(self, why: str) -> None:
        self._is_dead = True
        raise DeviceFailed(DEVICE, why)


class Hold(Gate):
    """A gate for tests without an event loop."""

    def wait_entered(self) -> None:
        """Return when one more batch is held."""
        if not self._entered.acquire(timeout=HANG_S):
            raise TimeoutError("no batch was collected")


def _holds(array: Array, value: float | None) -> bool:
    return value is not None and bool((array == value).any())
