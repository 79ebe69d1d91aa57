"""Which batches an engine runs before it serves, and what a failing one means."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from engines.base import (
    BatchPolicy,
    EngineConfig,
    ModelMetadata,
    ModelSpec,
    TensorSpec,
    VersionPolicy,
)
from engines.errors import ModelLoadError
from engines.tensors import Array
from engines.warmup import MAX_WARMUP_ROWS, warm_up, warmup_sizes, zeros


class Recorder:
    """Remembers the batches that it ran; refuses those of a given number of rows."""

    def __init__(self, *inputs: TensorSpec, max_batch_size: int, refuses: int = -1) -> None:
        self.batches: list[dict[str, Array]] = []
        self._refuses = refuses
        self.metadata = ModelMetadata(
            inputs=inputs,
            outputs=(),
            max_batch_size=max_batch_size,
            platform="test",
            engine="test 1",
            device="cpu",
        )

    def infer(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Remember the batch."""
        self.batches.append(dict(batch))
        if len(batch["x"]) == self._refuses:
            raise RuntimeError("the runtime's own words")
        return {}

    def close(self) -> None:
        """Nothing to release."""


def model(*, sizes: tuple[int, ...] = (), preferred: tuple[int, ...] = ()) -> ModelSpec:
    batching = BatchPolicy(max_batch_size=8, preferred_batch_sizes=preferred) if preferred else None
    return ModelSpec(
        name="m",
        directory=Path(),
        backend="test",
        filename="model",
        instances=1,
        engine=EngineConfig(),
        batching=batching,
        versions=VersionPolicy(),
        warmup_batch_sizes=sizes,
    )


FIXED = TensorSpec(name="x", datatype="FP32", shape=(-1, 3))
VARYING = TensorSpec(name="x", datatype="FP32", shape=(-1, -1))


@pytest.mark.parametrize(
    ("maximum", "sizes", "preferred", "expected"),
    [
        (8, (), (), [8, 4, 2, 1]),
        (6, (), (), [6, 4, 2, 1]),
        (1, (), (), [1]),
        (8, (), (3, 12), [8, 4, 3, 2, 1]),
        (8, (5, 2, 99), (), [5, 2]),
        (0, (5,), (), [1]),
        (100_000, (), (), [1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1]),
    ],
)
def test_warm_up_runs_the_sizes_to_be_expected_the_largest_first(
    maximum: int, sizes: tuple[int, ...], preferred: tuple[int, ...], expected: list[int]
) -> None:
    assert warmup_sizes(model(sizes=sizes, preferred=preferred), maximum) == expected
    assert max(expected) <= MAX_WARMUP_ROWS


def test_every_size_is_run_once() -> None:
    engine = Recorder(FIXED, max_batch_size=4)
    warm_up(engine, model())
    assert [batch["x"].shape for batch in engine.batches] == [(4, 3), (2, 3), (1, 3)]


def test_a_failing_batch_of_the_models_own_shape_is_a_load_error() -> None:
    engine = Recorder(FIXED, max_batch_size=4, refuses=2)
    with pytest.raises(ModelLoadError, match="warm-up with 2 rows failed: the runtime's own words"):
        warm_up(engine, model())


def test_a_failing_batch_of_a_made_up_shape_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    engine = Recorder(VARYING, max_batch_size=4, refuses=2)
    with caplog.at_level(logging.WARNING):
        warm_up(engine, model())
    assert [record.getMessage() for record in caplog.records] == ["warm-up skipped"]
    assert len(engine.batches) == 2


@pytest.mark.parametrize(
    ("tensor", "rows", "shape"),
    [
        (FIXED, 4, (4, 3)),
        (VARYING, 4, (4, 1)),
        (TensorSpec(name="x", datatype="FP32", shape=(2, 3)), 1, (2, 3)),
        (TensorSpec(name="x", datatype="FP32", shape=()), 1, ()),
    ],
)
def test_dimensions_that_vary_are_tried_as_rows_and_then_as_one(
    tensor: TensorSpec, rows: int, shape: tuple[int, ...]
) -> None:
    assert zeros(tensor, rows).shape == shape


def test_text_is_tried_as_empty_strings_and_the_rest_as_zeros() -> None:
    text = zeros(TensorSpec(name="x", datatype="BYTES", shape=(-1, 2)), 2)
    assert text.tolist() == [[b"", b""], [b"", b""]]
    bits = zeros(TensorSpec(name="x", datatype="BF16", shape=(-1, 2)), 1)
    assert bits.dtype == np.uint16
    assert not bits.any()
