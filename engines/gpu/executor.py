"""What a runtime is to the lanes: something that computes on device addresses, on a stream.

Knows no runtime. engines/trt, engines/pytorch and engines/ort each have an executor; the copies,
the waiting and the recorded graphs are the `LaneEngine`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from engines.base import ModelMetadata
from engines.gpu.memory import Stream


class Executor(Protocol):
    """One model in a runtime, able to compute for several lanes in turn.

    Called by one thread at a time, though not always the same one. All lanes compute on one stream,
    in the order in which they are enqueued, so that whatever the runtime keeps to itself on the
    device (scratch memory, a session's arena) is never used by two batches at once.
    """

    @property
    def metadata(self) -> ModelMetadata:
        """What the model takes and gives; constant."""

    @property
    def can_capture(self) -> bool:
        """Whether `enqueue` may be recorded as a graph: it waits for nothing and allocates nothing
        once it has run twice with a lane's shapes."""

    def output_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Return the whole shapes of all outputs for inputs of these whole shapes.

        Raises:
            InvalidInput: the model does not take them.
        """

    def bind(
        self,
        lane: int,
        shapes: Mapping[str, tuple[int, ...]],
        inputs: Mapping[str, int],
        outputs: Mapping[str, int],
        stream: Stream,
    ) -> None:
        """Tell a lane its input shapes and where its tensors are on the device, until the next one.

        Called before the first `enqueue` of a lane and whenever its shapes change, at no time when
        the lane's last batch is still under way. A graph that was recorded for other shapes of the
        lane is replayed all the same: what the runtime made for it (a context's activations, a
        pool) must stay where it is until `close`.

        Args:
            lane: from 0, below the number of lanes.
            inputs: device addresses by name, multiples of 256.
            outputs: as above, of the outputs in `metadata`; where the model has more of them, the
                executor finds a place for those.
            stream: where the lane will compute; the same for all.
        """

    def enqueue(self, lane: int, stream: Stream) -> None:
        """Queue the computation of a lane as it was bound last; returns at once.

        Raises:
            OutOfMemory: the runtime found no room; the lane's next batch may fit.
            DeviceFailed: the device's state is lost.
        """

    def close(self) -> None:
        """Release what the runtime holds. Called once, when nothing is under way."""
