"""An onnxruntime session as the executor of a `LaneEngine`: tensors stay where the lanes have them.

Knows IOBinding and one session; the lanes' buffers, copies and waiting are the engine's. Read
engines/gpu/engine.py first.

Streams. A session computes on one stream, told when it is made (`user_compute_stream`). The lanes
compute on one stream too, so it is the same: `provider_options` has it for the session, and the
`LaneEngine` is given it. A run returns when its kernels are queued
(`disable_synchronize_execution_providers`); inputs and outputs are bound to device addresses, so
that onnxruntime copies nothing and has nothing to wait for. That holds for tensors that the session
has on the GPU. What it reads on the CPU (the axis of a CumSum, what a node left to the CPU takes)
it would copy from a bound address at once, when the address is bound and nothing is there yet, and
never again: such models have no lanes (`why_no_lanes`).

Graphs. onnxruntime runs can not be recorded from outside: it fails, and ends the process with it
(microsoft/onnxruntime#32081). So `can_capture` is False, and where graphs are asked for
onnxruntime records its own (`enable_cuda_graph`): the first run of a `gpu_graph_id` in a thread
runs plainly until the arena has grown, records and replays. A graph has its addresses built in, so
there is an id per lane and shapes. Only shapes of a declared bucket get one, because each holds
memory for ever; others run with id -1, which means plainly. onnxruntime keeps graphs per calling
thread: those of the warm-up are recorded again by the thread that serves, at its first batch.

What is bound here has been run on the CPU provider, over host memory; nothing in this file has run
on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import onnxruntime as ort

from engines.base import ModelMetadata
from engines.errors import EngineClosed
from engines.gpu.memory import Stream
from engines.ort.datatypes import ONNX_NUMBERS
from engines.ort.description import is_fixed
from engines.ort.failures import of_run
from engines.ort.providers import CUDA, TENSORRT, Wanted

_NO_GRAPH: Final = -1
_NO_WAIT: Final = "disable_synchronize_execution_providers"
_GRAPH_ID: Final = "gpu_graph_id"
_HOST_PLACES: Final = ("Cpu", "CudaPinned")
"""onnxruntime's names of the host's memory; that of a GPU is "Cuda"."""

Shapes = Mapping[str, tuple[int, ...]]
Start = Callable[[Stream, Callable[[], None]], None]
"""Puts a run on a stream: calls it at once where the run itself only queues work."""
_Key = tuple[int, tuple[tuple[str, tuple[int, ...]], ...]]


def is_for_lanes(metadata: ModelMetadata) -> bool:
    """Whether lanes can drive such a model: their buffers are made once, for the largest batch."""
    has_batch_axis = metadata.max_batch_size > 0
    return is_fixed((*metadata.inputs, *metadata.outputs), has_batch_axis=has_batch_axis)


def why_no_lanes(session: Any, metadata: ModelMetadata) -> str:  # Any: untyped session
    """Return why lanes cannot drive a session, to be said of the model; empty: they can."""
    if not is_for_lanes(metadata):
        return "it has dimensions that vary, or text"
    if not hasattr(session, "get_input_memory_infos"):
        return f"onnxruntime {ort.__version__} does not tell what of it is on the CPU"
    names = on_host(session)
    return f"it has {', '.join(names)} on the CPU" if names else ""


def on_host(session: Any) -> list[str]:  # Any: untyped session
    """Return the inputs and outputs that a session reads or writes in the host's memory."""
    tensors = (*session.get_inputs(), *session.get_outputs())
    places = (*session.get_input_memory_infos(), *session.get_output_memory_infos())
    return [
        tensor.name
        for tensor, place in zip(tensors, places, strict=True)
        if place.name.startswith(_HOST_PLACES)
    ]


def on_stream(wanted: Wanted, stream: Stream, *, has_graphs: bool) -> Wanted:
    """Return a provider that computes on a stream, and records its runs if asked to."""
    if wanted.is_library or wanted.name not in (CUDA, TENSORRT):
        return wanted
    # Alone: "has_user_compute_stream" follows from it, and is no option of TensorRT's in Python.
    added = {"user_compute_stream": str(stream.handle)}
    if has_graphs and wanted.name == CUDA:
        added["enable_cuda_graph"] = "1"
    return Wanted(wanted.name, {**wanted.options, **added})


def at_once(stream: Stream, run: Callable[[], None]) -> None:
    """Start a run that queues its work by itself, on the stream that its session was made with."""
    del stream
    run()


@dataclass(slots=True, eq=False)
class _Bound:
    """A lane with certain shapes."""

    # Any: untyped IOBinding and RunOptions.
    binding: Any
    options: Any
    addresses: tuple[tuple[str, int], ...]


class OrtExecutor:
    """A `gpu.executor.Executor` over one session.

    Args:
        session: made on the stream that the lanes compute on.
        metadata: what it serves; `is_for_lanes`.
        device: kind (cuda, or cpu for host memory) and number of where the addresses are.
        has_graphs: whether the session was made to record its runs.
        start: how a run gets onto the stream.
    """

    def __init__(
        self,
        session: Any,  # Any: untyped session
        metadata: ModelMetadata,
        *,
        device: tuple[str, int],
        has_graphs: bool = False,
        start: Start = at_once,
    ) -> None:
        self._session: Any | None = session
        self._metadata = metadata
        self._kind, self._index = device
        self._has_graphs = has_graphs
        self._start = start
        self._inputs = {spec.name: ONNX_NUMBERS[spec.datatype] for spec in metadata.inputs}
        self._outputs = {spec.name: ONNX_NUMBERS[spec.datatype] for spec in metadata.outputs}
        self._current: dict[int, _Bound] = {}
        """What each lane runs next, by lane."""
        self._recorded: dict[_Key, _Bound] = {}
        """Lanes and shapes that have a graph."""
        self._next_graph = 1

    @property
    def metadata(self) -> ModelMetadata:
        """What the model takes and gives."""
        return self._metadata

    @property
    def can_capture(self) -> bool:
        """Never: see the top of the file."""
        return False

    def output_shapes(self, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        """Return the outputs' shapes: they follow from the rows."""
        metadata = self._metadata
        if not metadata.max_batch_size:
            return {spec.name: spec.shape for spec in metadata.outputs}
        rows = shapes[metadata.inputs[0].name][0]
        return {spec.name: (rows, *spec.shape[1:]) for spec in metadata.outputs}

    def bind(
        self,
        lane: int,
        shapes: Shapes,
        inputs: Mapping[str, int],
        outputs: Mapping[str, int],
        stream: Stream,
    ) -> None:
        """Bind a lane's tensors to device addresses, until the next time."""
        del stream
        addresses = (*inputs.items(), *outputs.items())
        if not self._is_recorded(shapes):
            bound = self._current.get(lane)
            if bound is None or bound in self._recorded.values():
                bound = self._made(_NO_GRAPH)
            self._point(bound, shapes, addresses)
        else:
            key = (lane, tuple(sorted(shapes.items())))
            found = self._recorded.get(key)
            if found is None or found.addresses != addresses:
                found = self._made(self._next_graph)
                self._next_graph += 1
                self._point(found, shapes, addresses)
                self._recorded[key] = found
            bound = found
        self._current[lane] = bound

    def enqueue(self, lane: int, stream: Stream) -> None:
        """Run a lane as it was bound last; returns when the work is queued."""
        bound = self._current[lane]

        def run() -> None:
            if self._session is None:
                raise EngineClosed
            try:
                self._session.run_with_iobinding(bound.binding, bound.options)
            except Exception as exc:  # foreign: left as it is, unless the device is lost or full
                known = of_run(self._metadata.device, exc)
                if known is exc:
                    raise
                raise known from exc

        self._start(stream, run)

    def close(self) -> None:
        """Drop the session, its graphs and bindings."""
        self._current.clear()
        self._recorded.clear()
        self._session = None

    def _is_recorded(self, shapes: Shapes) -> bool:
        metadata = self._metadata
        if not self._has_graphs:
            return False
        return not metadata.max_batch_size or shapes[metadata.inputs[0].name][0] in metadata.buckets

    def _made(self, graph_id: int) -> _Bound:
        if self._session is None:
            raise EngineClosed
        options = ort.RunOptions()
        options.add_run_config_entry(_NO_WAIT, "1")
        if self._has_graphs:
            options.add_run_config_entry(_GRAPH_ID, str(graph_id))
        return _Bound(self._session.io_binding(), options, ())

    def _point(self, bound: _Bound, shapes: Shapes, addresses: tuple[tuple[str, int], ...]) -> None:
        """Bind every tensor; a name that is bound already is bound anew."""
        at = dict(addresses)
        binding, kind, index = bound.binding, self._kind, self._index
        for name, number in self._inputs.items():
            binding.bind_input(name, kind, index, number, list(shapes[name]), at[name])
        whole = self.output_shapes(shapes)
        for name, number in self._outputs.items():
            binding.bind_output(name, kind, index, number, list(whole[name]), at[name])
        bound.addresses = addresses
