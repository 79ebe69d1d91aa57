"""Models that compute with numpy on the raw addresses of a HostMemory, as a GPU's runtime would.

The computation is queued on the stream that the executor is given and reads its tensors when it
runs, from where the lane was bound: what was not copied in by then is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np

from engines.base import ModelMetadata, TensorSpec
from engines.errors import InvalidInput
from engines.gpu.engine import LaneEngine
from engines.gpu.host import HostMemory
from engines.gpu.memory import Stream
from engines.tensors import DATATYPES, Array

Shapes = Mapping[str, tuple[int, ...]]
Arrays = Mapping[str, Array]

MAX_ROWS: Final = 8
MAX_WIDTH: Final = 5


@dataclass(frozen=True)
class Model:
    """What an executor computes."""

    metadata: ModelMetadata
    output_shapes: Callable[[Shapes], dict[str, tuple[int, ...]]]
    compute: Callable[[Arrays], dict[str, Array]]
    largest: Mapping[str, int]
    """Bytes of what the metadata do not bound."""


def _metadata(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> ModelMetadata:
    return ModelMetadata(
        inputs=inputs,
        outputs=outputs,
        max_batch_size=MAX_ROWS,
        platform="test",
        engine="numpy on a HostMemory",
        device="host",
    )


def scaled() -> Model:
    """Return `y = 3 x + 1` over rows of any width up to `MAX_WIDTH`."""
    return Model(
        metadata=_metadata(
            (TensorSpec(name="x", datatype="FP32", shape=(-1, -1)),),
            (TensorSpec(name="y", datatype="FP32", shape=(-1, -1)),),
        ),
        output_shapes=lambda shapes: {"y": shapes["x"]},
        compute=lambda given: {"y": given["x"] * 3 + 1},
        largest=dict.fromkeys(("x", "y"), MAX_ROWS * MAX_WIDTH * 4),
    )


def mixed() -> Model:
    """Return a model of two inputs and two outputs, of four datatypes."""

    def compute(given: Arrays) -> dict[str, Array]:
        total = given["x"].sum(axis=1, dtype=np.float64) + given["k"]
        return {"total": total, "is_large": given["x"] > 100}

    return Model(
        metadata=_metadata(
            (
                TensorSpec(name="x", datatype="FP16", shape=(-1, -1)),
                TensorSpec(name="k", datatype="INT64", shape=(-1,)),
            ),
            (
                TensorSpec(name="total", datatype="FP64", shape=(-1,)),
                TensorSpec(name="is_large", datatype="BOOL", shape=(-1, -1)),
            ),
        ),
        output_shapes=lambda shapes: {"total": shapes["x"][:1], "is_large": shapes["x"]},
        compute=compute,
        largest={"x": MAX_ROWS * MAX_WIDTH * 2, "is_large": MAX_ROWS * MAX_WIDTH},
    )


@dataclass(frozen=True)
class _Bound:
    shapes: Shapes
    output_shapes: Shapes
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]


class NumpyExecutor:
    """An `Executor` over a HostMemory.

    Args:
        allocates: whether `enqueue` takes device memory, as a runtime does that is not recordable.
        refused_width: one that `output_shapes` refuses, as a model may.
    """

    def __init__(
        self,
        memory: HostMemory,
        model: Model,
        *,
        can_capture: bool = True,
        allocates: bool = False,
        refused_width: int | None = None,
    ) -> None:
        self.can_capture = can_capture
        self.binds: list[tuple[int, Shapes]] = []
        """Lane and shapes, in order."""
        self.enqueued = 0
        self.computed = 0
        """Batches whose computation has run."""
        self.computed_at_close: int | None = None
        self.closed = 0
        self.streams: set[int] = set()
        self.fails_next: dict[str, Exception] = {}
        """By method: raised once."""
        self._memory = memory
        self._model = model
        self._allocates = allocates
        self._refused_width = refused_width
        self._bound: dict[int, _Bound] = {}

    @property
    def metadata(self) -> ModelMetadata:
        """The model's."""
        return self._model.metadata

    def output_shapes(self, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        """Return what the model says, but for the width that it refuses."""
        self._fail("output_shapes")
        if shapes["x"][1] == self._refused_width:
            raise InvalidInput(f"width {self._refused_width} is refused")
        return self._model.output_shapes(shapes)

    def bind(
        self,
        lane: int,
        shapes: Shapes,
        inputs: Mapping[str, int],
        outputs: Mapping[str, int],
        stream: Stream,
    ) -> None:
        """Remember where a lane's tensors are."""
        del stream
        self._bound.pop(lane, None)
        self._fail("bind")
        self.binds.append((lane, shapes))
        self._bound[lane] = _Bound(shapes, self._model.output_shapes(shapes), inputs, outputs)

    def enqueue(self, lane: int, stream: Stream) -> None:
        """Queue the computation as it is bound now."""
        self.enqueued += 1
        self.streams.add(stream.handle)
        if self._allocates:
            self._memory.free(self._memory.allocate(256))
        self._fail("enqueue")
        self._memory.call(stream, partial(self._run, self._bound[lane]))

    def close(self) -> None:
        """Count, and note what has run by then."""
        self.closed += 1
        self.computed_at_close = self.computed
        self._fail("close")

    def _fail(self, what: str) -> None:
        exc = self.fails_next.pop(what, None)
        if exc is not None:
            raise exc

    def _run(self, bound: _Bound) -> None:
        metadata, at = self._model.metadata, self._memory.array_at
        self.computed += 1
        given = {
            spec.name: at(
                bound.inputs[spec.name], DATATYPES[spec.datatype].dtype, bound.shapes[spec.name]
            )
            for spec in metadata.inputs
        }
        answer = self._model.compute(given)
        for spec in metadata.outputs:
            dtype, shape = DATATYPES[spec.datatype].dtype, bound.output_shapes[spec.name]
            at(bound.outputs[spec.name], dtype, shape)[...] = answer[spec.name]


def build(
    memory: HostMemory,
    model: Model | None = None,
    *,
    lanes: int = 2,
    has_graphs: bool = False,
    buckets: tuple[int, ...] = (),
    executor: NumpyExecutor | None = None,
) -> tuple[LaneEngine, NumpyExecutor]:
    """Make an engine of the model over the memory."""
    model = model or scaled()
    if buckets:
        model = replace(model, metadata=replace(model.metadata, buckets=buckets))
    made = executor or NumpyExecutor(memory, model)
    engine = LaneEngine(made, memory, lanes=lanes, has_graphs=has_graphs, largest=model.largest)
    return engine, made


def batch_of(model: Model, rows: int, width: int, seed: int) -> dict[str, Array]:
    """Return inputs that no other seed has."""
    draw = np.random.default_rng(seed)
    batch = {}
    for spec in model.metadata.inputs:
        shape = (rows, width)[: len(spec.shape)]
        values = draw.integers(-500, 500, shape)
        batch[spec.name] = values.astype(DATATYPES[spec.datatype].dtype)
    return batch


def shapes_of(batch: Arrays) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a batch."""
    return {name: array.shape for name, array in batch.items()}


def assert_answers(outputs: Arrays, model: Model, batch: Arrays) -> None:
    """Compare outputs with what the model says of the batch, exactly."""
    expected = model.compute(batch)
    assert set(outputs) == set(expected)
    for name, array in expected.items():
        assert outputs[name].dtype == array.dtype
        np.testing.assert_array_equal(outputs[name], array)
