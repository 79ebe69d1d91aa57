"""One onnxruntime session behind the Engine contract, whatever its provider, by plain `run`.

Knows a session and what it serves; how it was made is loading.py's. A session on a GPU is driven by
lanes instead (cuda.py) where that can be; this one copies in and out at every run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import onnxruntime as ort

from engines.base import ModelMetadata
from engines.errors import EngineClosed, ModelLoadError
from engines.ort.datatypes import as_bytes, as_text, bf16_bits
from engines.ort.failures import of_run
from engines.tensors import BYTES, Array

_BF16_ONNX_TYPE: Final = 16


class OrtEngine:
    """One ONNX Runtime session. Call it from one thread.

    Args:
        session: made for this engine alone.
        metadata: what it serves.
        on_close: gives back what the session ran on; called once, after it is gone.
    """

    def __init__(
        self,
        session: Any,  # Any: untyped session
        metadata: ModelMetadata,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._session: Any | None = session
        self._on_close = on_close
        self._metadata = metadata
        inputs, outputs = metadata.inputs, metadata.outputs
        self._output_names = [spec.name for spec in outputs]
        self._text = frozenset(spec.name for spec in inputs if spec.datatype == BYTES)
        self._bf16 = any(spec.datatype == "BF16" for spec in (*inputs, *outputs))
        if self._bf16 and self._text:
            raise ModelLoadError("onnxruntime's Python API cannot feed BF16 beside BYTES inputs")

    @property
    def metadata(self) -> ModelMetadata:
        """What the model takes and gives, with the batch axis as -1."""
        return self._metadata

    def infer(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch; see `engines.base.Engine.infer`."""
        session = self._session
        if session is None:
            raise EngineClosed
        feed = {
            name: as_text(name, array) if name in self._text else array
            for name, array in batch.items()
        }
        try:
            if self._bf16:
                return self._infer_bf16(session, feed)
            outputs = session.run(self._output_names, feed)
        except Exception as exc:  # foreign: left as it is, unless the device is lost or full
            known = of_run(self._metadata.device, exc)
            if known is exc:
                raise
            raise known from exc
        return {
            name: as_bytes(array) if array.dtype == object else array
            for name, array in zip(self._output_names, outputs, strict=True)
        }

    # Any: untyped session.
    def _infer_bf16(self, session: Any, feed: dict[str, Array]) -> dict[str, Array]:
        """Run a model that has BF16 tensors, which numpy cannot express either way."""
        types = {spec.name: spec.datatype for spec in self._metadata.inputs}
        values = {
            name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _BF16_ONNX_TYPE)
            if types[name] == "BF16"
            else ort.OrtValue.ortvalue_from_numpy(array)
            for name, array in feed.items()
        }
        outputs = session.run_with_ort_values(self._output_names, values)
        out = {}
        for spec, value in zip(self._metadata.outputs, outputs, strict=True):
            if spec.datatype == "BF16":
                out[spec.name] = bf16_bits(value)
                continue
            array = value.numpy()
            if spec.name in feed:  # an input that is an output as well is handed through as it is
                array = array.copy()
            out[spec.name] = as_bytes(array) if array.dtype == object else array
        return out

    def close(self) -> None:
        """Drop the session and its memory."""
        self._session = None
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()
