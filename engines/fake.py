"""A deterministic engine with scripted latency and faults, for tests, docs and load tests.

Shipped and loaded like any other: a version folder holds `model.json`, such as

    {"inputs":  [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
     "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
     "max_batch_size": 8, "latency_ms": 2.0, "per_row_ms": 0.1, "fail_on": 13}

Output number i is input number i (modulo their count), element for element: an answer proves which
request it belongs to. `fail_on` makes a batch raise if any of its numeric inputs holds that value;
`bad_on` does the same with an error of the caller's, and `hang_on` makes the batch block its thread
until the engine is closed from another one. `fail_after` and `hang_after` do so with every batch
after the first so many; the warm-up counts, one batch for each of its sizes, so that a fake of
``"max_batch_size": 1, "hang_after": 1`` becomes ready and then answers nothing.

`die_on` is a device's end: the batch that holds that value raises DeviceFailed, and so does every
later one, as a GPU would after an illegal access. A copy that is loaded after it runs again. With
``"buckets": [1, 4, 8]`` the fake runs batches of just these rows, and fails those of others, so
that whoever pads batches can be tried on it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from engines.base import EngineConfig, ModelMetadata, TensorSpec
from engines.declared import Declared, declare
from engines.errors import (
    DeviceFailed,
    DeviceUnavailable,
    EngineClosed,
    InvalidInput,
    ModelLoadError,
)
from engines.tensors import BYTES, DATATYPES, Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What the fake does when it is called."""

    latency_s: float = 0.0
    per_row_s: float = 0.0
    fail_on: float | None = None
    """A batch holding this value raises a foreign exception."""
    bad_on: float | None = None
    """A batch holding this value raises InvalidInput."""
    hang_on: float | None = None
    """A batch holding this value does not return before `close`."""
    fail_after: int | None = None
    """Batches, of this engine; every later one raises as with `fail_on`."""
    hang_after: int | None = None
    """Batches, of this engine; every later one hangs as with `hang_on`."""
    die_on: float | None = None
    """A batch holding this value raises DeviceFailed, and so does every later one."""


def load(path: Path, config: EngineConfig) -> FakeEngine:
    """Load a script file.

    Raises:
        ModelLoadError: it is no JSON, describes no model, or not the one that is declared.
        DeviceUnavailable: the configuration asks for a GPU; auto becomes the CPU.
    """
    if config.device not in ("cpu", "auto") or config.providers:
        raise DeviceUnavailable(f"device {config.device!r} was asked for, the fake has only a cpu")
    try:
        # Any: the file is free JSON; the constructors below are its check.
        document = json.loads(path.read_text())
        inputs, outputs = (
            tuple(
                TensorSpec(
                    name=str(t["name"]),
                    datatype=str(t["datatype"]),
                    shape=tuple(int(dimension) for dimension in t["shape"]),
                )
                for t in document[side]
            )
            for side in ("inputs", "outputs")
        )
        batch = int(document.get("max_batch_size", config.default_max_batch_size))
        script = Script(
            latency_s=float(document.get("latency_ms", 0)) / 1e3,
            per_row_s=float(document.get("per_row_ms", 0)) / 1e3,
            fail_on=_number(document.get("fail_on")),
            bad_on=_number(document.get("bad_on")),
            hang_on=_number(document.get("hang_on")),
            fail_after=_count(document.get("fail_after")),
            hang_after=_count(document.get("hang_after")),
            die_on=_number(document.get("die_on")),
        )
        buckets = tuple(int(rows) for rows in document.get("buckets", ()))
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ModelLoadError(f"{path.name} does not load: {exc!r}") from exc
    rows = batch if config.max_batch_size is None else config.max_batch_size
    _check_specs(inputs, outputs)
    config = replace(config, max_batch_size=rows, buckets=config.buckets or buckets)
    fallback = "the fake has only a cpu" if config.device == "auto" else ""
    return FakeEngine.of(declare(config, inputs, outputs), script, fallback)


def _number(value: object) -> float | None:
    return None if value is None else float(str(value))


def _count(value: object) -> int | None:
    return None if value is None else int(str(value))


def _check_specs(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    """Refuse what the fake could not echo."""
    if not inputs or not outputs:
        raise ModelLoadError("the fake needs at least one input and one output")
    for spec in (*inputs, *outputs):
        if spec.datatype not in DATATYPES:
            raise ModelLoadError(f"{spec.name!r} has the unknown datatype {spec.datatype!r}")
    for n, spec in enumerate(outputs):
        source = inputs[n % len(inputs)]
        if (spec.datatype == BYTES) != (source.datatype == BYTES):
            raise ModelLoadError(f"{spec.name!r} cannot echo {source.name!r}: one of them is BYTES")


class FakeEngine:
    """Answers every output with an input's elements, after the scripted time."""

    def __init__(
        self,
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        max_batch_size: int = 8,
        buckets: tuple[int, ...] = (),
        script: Script | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.script = script or Script()
        self.batches_run = 0
        self.rows_run = 0
        self._sleep = sleep
        self._closed = threading.Event()
        self._is_dead = False
        self._metadata = ModelMetadata(
            inputs=inputs,
            outputs=outputs,
            max_batch_size=max_batch_size,
            buckets=buckets,
            platform="fake",
            engine="fake 1",
            device="cpu",
        )

    @classmethod
    def of(cls, declared: Declared, script: Script, fallback: str) -> FakeEngine:
        """Make the fake of what is served of a script file."""
        made = cls(
            inputs=declared.inputs,
            outputs=declared.outputs,
            max_batch_size=declared.max_batch_size,
            buckets=declared.buckets,
            script=script,
        )
        made._metadata = replace(made._metadata, fallback=fallback)
        return made

    @property
    def metadata(self) -> ModelMetadata:
        """The scripted signature."""
        return self._metadata

    def infer(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Sleep, hang, die, fail or echo, as scripted."""
        if self.is_closed:
            raise EngineClosed
        arrays = [batch[spec.name] for spec in self._metadata.inputs]
        rows = arrays[0].shape[0] if self._metadata.max_batch_size and arrays else 1
        self.batches_run += 1
        self.rows_run += rows
        if self._metadata.buckets and rows not in self._metadata.buckets:
            raise RuntimeError(f"{rows} rows are none of the buckets {self._metadata.buckets}")
        self._perform(arrays, rows)
        return {
            spec.name: _convert(arrays[n % len(arrays)], spec)
            for n, spec in enumerate(self._metadata.outputs)
        }

    def _perform(self, arrays: Sequence[Array], rows: int) -> None:
        """Take the time that the script says, and come to the end that it says."""
        script = self.script
        if pause_s := script.latency_s + rows * script.per_row_s:
            self._sleep(pause_s)
        if _is_over(script.hang_after, self.batches_run) or _any_holds(arrays, script.hang_on):
            self._closed.wait()
            raise EngineClosed
        self._is_dead = self._is_dead or _any_holds(arrays, script.die_on)
        if self._is_dead:
            raise DeviceFailed(self._metadata.device, "scripted death")
        if _is_over(script.fail_after, self.batches_run) or _any_holds(arrays, script.fail_on):
            raise RuntimeError("scripted failure")
        if _any_holds(arrays, script.bad_on):
            raise InvalidInput(f"the model cannot take the value {script.bad_on:g}")

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed.is_set()

    def close(self) -> None:
        """Refuse further batches and end those that hang; from any thread."""
        self._closed.set()


def _is_over(limit: int | None, count: int) -> bool:
    return limit is not None and count > limit


def _any_holds(arrays: Sequence[Array], value: float | None) -> bool:
    return value is not None and any(
        array.dtype != object and bool((array == value).any()) for array in arrays
    )


def _convert(array: Array, spec: TensorSpec) -> Array:
    if spec.datatype == BYTES or array.dtype == object:
        return array.copy()
    return np.array(array, DATATYPES[spec.datatype].dtype)
