"""An engine over lanes: copies, computation and answers of several batches at once on one device.

Knows how work is ordered; knows no runtime (executor.py) and no device library (memory.py). Read
lanes.py first.

A batch goes through its lane's own stream for the copies and through one stream, shared by all
lanes, for the computation:

    lane's stream     copy in, event            wait, copy out, event
    compute stream                   wait, compute, event

So while batch k-1 computes, k is copied in and k-2 is copied out; the event at the end is what
`collect` waits for. Each lane has one event, recorded three times: a wait means its last record.

Why one compute stream, and not each lane's own. Two batches on two streams share the processors:
both end late, where one after the other the first ends early and the second no later. In order,
a runtime never runs two batches at once on the device, and needs not be able to: an ONNX Runtime
session has one stream, and contexts may share their scratch memory. Where one batch leaves most
of a GPU idle, two instances on it run side by side; that is a matter of configuration.

Graphs. Where asked for and possible, a lane's computation is recorded per input shapes, right after
its second plain run with them (by then the runtime has allocated and tuned all it needs), and
replayed from the third batch on. The copies stay outside: a graph is one unit on one stream, so
with the copies in it nothing would overlap. A recording that fails ends all recording, with one
warning; what was recorded stays in use.

After a `DeviceFailed` nothing is asked of the device any more: every call but `release` and `close`
raises that same error.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Final

import numpy as np

from engines.base import LaneStatistics, Lease, ModelMetadata
from engines.errors import DeviceFailed, EngineClosed, OutOfMemory
from engines.gpu.executor import Executor
from engines.gpu.lanes import Arrangement, Lane, State, side_of
from engines.gpu.memory import CaptureFailed, Graph, Memory, Stream
from engines.tensors import Array

logger = logging.getLogger(__name__)

PLAIN_RUNS: Final = 2
"""Batches of one shape that a lane runs before their work is recorded."""
_unclosed: Final[list[Executor]] = []
"""Of devices that are lost for good; see `LaneEngine.close`."""


class LaneLease:
    """A lane, held for one batch."""

    __slots__ = ("_inputs", "lane")

    def __init__(self, lane: Lane, inputs: Mapping[str, Array]) -> None:
        self.lane = lane
        self._inputs = inputs

    @property
    def inputs(self) -> Mapping[str, Array]:
        """Pinned arrays of the shapes asked for, to be written until `submit`."""
        return self._inputs


class LaneEngine:
    """A `base.LanedEngine` over an executor; see the top of the file.

    Takes over the executor and the memory: they are closed with the engine, and if it cannot be
    made. Allocates when it is made and at no other time, graphs aside.

    Args:
        lanes: batches under way at once, from 1.
        has_graphs: whether the computation is recorded and replayed.
        largest: bytes of those tensors whose size the metadata do not bound, by name.
        compute: the stream to compute on, where the runtime had to know it first; it is left to
            the executor or to the memory to end it. None: one is made.

    Raises:
        ModelLoadError: a tensor's size cannot be told, or it holds text.
        OutOfMemory: the buffers do not fit.
        DeviceFailed: the device does.
    """

    def __init__(
        self,
        executor: Executor,
        memory: Memory,
        *,
        lanes: int,
        has_graphs: bool = False,
        largest: Mapping[str, int] | None = None,
        compute: Stream | None = None,
    ) -> None:
        self._executor = executor
        self._memory = memory
        self._has_graphs = has_graphs
        self._may_record = has_graphs and executor.can_capture
        self._hits = self._misses = self._graphs = 0
        self._failure: DeviceFailed | None = None
        self._is_closed = False
        self._held = ExitStack()
        self._lanes: list[Lane] = []
        try:
            self._make_lanes(lanes, largest or {}, compute)
        except BaseException:
            self.close()
            raise
        self._free = deque(self._lanes)

    def _make_lanes(self, lanes: int, largest: Mapping[str, int], compute: Stream | None) -> None:
        if lanes < 1:
            raise ValueError(f"an engine needs at least one lane, not {lanes}")
        given = self._executor.metadata
        inputs = side_of("input", given.inputs, given.max_batch_size, largest)
        outputs = side_of("output", given.outputs, given.max_batch_size, largest)
        if compute is None:
            compute = self._memory.stream()
            self._held.callback(self._memory.drop, compute)
        self._compute = compute
        for number in range(lanes):
            self._lanes.append(Lane(number, self._memory, inputs, outputs, self._held))
        self._buffer_bytes = lanes * (inputs.size_bytes + outputs.size_bytes)
        total = given.memory_bytes and given.memory_bytes + self._buffer_bytes
        self._metadata = replace(given, memory_bytes=total)

    @property
    def metadata(self) -> ModelMetadata:
        """The executor's, its memory with the lanes' buffers."""
        return self._metadata

    @property
    def lanes(self) -> int:
        """Most leases at once."""
        return len(self._lanes)

    @property
    def warmup_runs(self) -> int:
        """Calls of `infer` with one shape until every lane is warm for it.

        Free lanes are taken in turn, so that so many calls one after the other give each its plain
        runs, in which runtimes tune and record, and the first replay, which uploads a graph.
        """
        return len(self._lanes) * (PLAIN_RUNS + 1)

    def statistics(self) -> LaneStatistics:
        """Return the counters; from any thread."""
        return LaneStatistics(
            graph_hits=self._hits,
            graph_misses=self._misses,
            graphs=self._graphs,
            device_bytes=self._buffer_bytes,
            pinned_bytes=self._buffer_bytes,
        )

    def acquire(self, shapes: Mapping[str, tuple[int, ...]]) -> LaneLease:
        """Take a free lane for a batch of these whole shapes.

        Raises:
            InvalidInput: an input or output is larger than the lanes' room for it.
            RuntimeError: no lane is free.
        """
        self._refuse()
        if not self._free:
            raise RuntimeError(f"all {len(self._lanes)} lanes are in use")
        lane = self._free.popleft()
        try:
            arrangement = lane.arrange(shapes, self._executor.output_shapes)
            lane.move("acquire")
        except BaseException as exc:
            self._free.appendleft(lane)
            self._note(exc)
            raise
        lease = LaneLease(lane, arrangement.inputs)
        lane.lease = lease
        return lease

    def submit(self, lease: Lease) -> None:
        """Queue copying in, computing and copying out."""
        lane, arrangement = _held_by(lease)
        lane.move("submit")
        try:
            self._refuse()
            self._start(lane, arrangement)
            is_ripe = arrangement.graph is None and arrangement.plain_runs >= PLAIN_RUNS
            if self._may_record and is_ripe:
                self._record(lane, arrangement)
        except BaseException as exc:
            lane.move("fail")
            self._note(exc)
            self._settle(lane)
            raise

    def collect(self, lease: Lease) -> Mapping[str, Array]:
        """Wait for a submitted batch; its outputs are read-only views that end with the lease."""
        lane, arrangement = _held_by(lease)
        lane.move("collect")
        try:
            self._refuse()
            self._memory.wait(lane.event)
        except BaseException as exc:
            lane.move("fail")
            self._note(exc)
            raise
        return arrangement.outputs

    def release(self, lease: Lease) -> None:
        """Give the lane back; from either thread.

        Raises:
            RuntimeError: it was given back before, or its batch is not collected.
        """
        lane, _ = _held_by(lease)
        lane.move("release")
        lane.lease = None
        self._free.append(lane)

    def infer(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch through the next lane and copy its outputs."""
        lease = self.acquire({name: array.shape for name, array in batch.items()})
        try:
            for name, array in lease.inputs.items():
                np.copyto(array, batch[name], casting="equiv")
            self.submit(lease)
            outputs = self.collect(lease)
            return {name: array.copy() for name, array in outputs.items()}
        finally:
            self.release(lease)

    def close(self) -> None:
        """Release everything, the executor and the memory too. Idempotent, and never raises.

        Whatever is under way is waited for; views of its outputs end here. Where the device answers
        nothing any more, the executor is kept as it is for ever: destructors of runtimes (recorded
        graphs of ONNX Runtime, memory pools of torch) end the process if they can give nothing
        back, and models on other devices with it.
        """
        if self._is_closed:
            return
        for lane in self._lanes:
            if lane.state is not State.FREE:
                self._settle(lane)
        self._is_closed = True
        # What is held is given back in reverse: graphs, the runtime that they call, the lanes.
        if self._failure is None or self._answers():
            self._held.callback(self._executor.close)
        else:
            _unclosed.append(self._executor)
        for lane in self._lanes:
            for graph in lane.graphs():
                self._held.callback(self._memory.drop, graph)
        for close in (self._held.close, self._memory.close):
            try:
                close()
            except Exception as exc:  # a lost device refuses even this; there is nothing to retry
                logger.warning("engine closed uncleanly", extra={"reason": str(exc)})

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "failed" if self._failure else "open"
        free, lanes = len(self._free), len(self._lanes)
        return f"<LaneEngine on {self._memory.device}, {state}, {free} of {lanes} lanes free>"

    def _start(self, lane: Lane, arrangement: Arrangement) -> None:
        """Queue a batch; see the top of the file."""
        memory, stream, event, compute = self._memory, lane.stream, lane.event, self._compute
        if size := arrangement.copied_in_bytes:
            memory.copy_in(lane.device_in, lane.pinned_in, size, stream)
        memory.record(event, stream)
        memory.hold(compute, event)
        self._run(lane, arrangement)
        memory.record(event, compute)
        memory.hold(stream, event)
        if size := arrangement.copied_out_bytes:
            memory.copy_out(lane.pinned_out, lane.device_out, size, stream)
        memory.record(event, stream)

    def _run(self, lane: Lane, arrangement: Arrangement) -> None:
        """Queue the computation, recorded or plain."""
        if arrangement.graph is not None:
            self._memory.launch(arrangement.graph, self._compute)
            self._hits += 1
            return
        self._bind(lane, arrangement)
        self._executor.enqueue(lane.number, self._compute)
        arrangement.plain_runs += 1
        self._misses += self._has_graphs

    def _bind(self, lane: Lane, arrangement: Arrangement) -> None:
        if lane.bound is arrangement:
            return
        lane.bound = None  # whatever fails half way has to be told again
        self._executor.bind(
            lane.number,
            arrangement.shapes,
            arrangement.input_addresses,
            arrangement.output_addresses,
            self._compute,
        )
        lane.bound = arrangement

    def _record(self, lane: Lane, arrangement: Arrangement) -> None:
        """Record what was just run; the batch itself is queued already and is not harmed."""
        try:
            arrangement.graph = self._recorded(lane)
            self._graphs += 1
        except (CaptureFailed, OutOfMemory) as exc:
            self._may_record = False
            lane.bound = None
            extra = {"device": self._memory.device, "reason": str(exc)}
            extra["shapes"] = str(dict(arrangement.shapes))
            logger.warning("CUDA graph not recorded, running without", extra=extra)

    def _recorded(self, lane: Lane) -> Graph:
        self._memory.begin_capture(self._compute)
        try:
            self._executor.enqueue(lane.number, self._compute)
        except BaseException as exc:
            with suppress(CaptureFailed, OutOfMemory):
                self._memory.drop(self._memory.end_capture(self._compute))
            if not isinstance(exc, Exception):
                raise
            # Of a runtime that cannot be recorded any error may come, DeviceFailed too. Whether
            # the device is lost shows when the batch is collected.
            raise CaptureFailed(str(exc)) from exc
        return self._memory.end_capture(self._compute)

    def _settle(self, lane: Lane) -> None:
        """Wait until the device has done with a lane's buffers, if it can be waited for.

        Called in the thread that submits: in another one, what is recorded here could end up in
        the graph that it is recording.
        """
        if self._failure is not None or self._is_closed:
            return
        try:
            for stream in (self._compute, lane.stream):
                self._memory.record(lane.event, stream)
                self._memory.wait(lane.event)
        except Exception as exc:  # the batch has failed with a better reason
            self._note(exc)

    def _answers(self) -> bool:
        """Whether the device still does anything: a lost one gives its error to every question."""
        try:
            self._memory.memory_info()
        except Exception:  # whatever it is, it is no answer
            return False
        return True

    def _note(self, exc: BaseException) -> None:
        if isinstance(exc, DeviceFailed) and self._failure is None:
            self._failure = exc

    def _refuse(self) -> None:
        if self._is_closed:
            raise EngineClosed
        if self._failure is not None:
            raise self._failure.with_traceback(None)  # or it grows with every raise


def _held_by(lease: Lease) -> tuple[Lane, Arrangement]:
    """Return a lease's lane and what it was arranged for."""
    if not isinstance(lease, LaneLease):
        raise TypeError(f"{lease!r} is no lease of a lane engine")
    lane = lease.lane
    if lane.lease is not lease or lane.arrangement is None:
        raise RuntimeError(f"the lease of lane {lane.number} was released before")
    return lane, lane.arrangement
