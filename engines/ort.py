"""ONNX Runtime behind the Engine contract: CPU, or CUDA and TensorRT by configuration.

Knows one session. A provider that was asked for and is not there is a load error, never a silent
run on the CPU: onnxruntime itself would only log a line (engines note, section 3). Threads are
explicit and do not spin, because the gateway shares its cores with its own event loop: two spinning
sessions on two cores reach half the throughput of two that wait (batching note, 5.5).
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from engines.base import EngineConfig, ModelMetadata, TensorSpec
from engines.errors import DeviceUnavailable, EngineClosed, InvalidInput, ModelLoadError
from engines.tensors import BYTES, Array

# onnxruntime's element type names -> protocol datatypes.
_DATATYPES: Final[Mapping[str, str]] = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(bfloat16)": "BF16",
    "tensor(string)": BYTES,
}
_PROVIDERS: Final[Mapping[str, str]] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_DEVICE_KINDS: Final = ("cpu", "cuda")
_BF16_ONNX_TYPE: Final = 16
# Provider options that the engines note recommends; the configuration overrides them.
_CUDA_DEFAULTS: Final[Mapping[str, str]] = {
    "arena_extend_strategy": "kSameAsRequested",
    "cudnn_conv_algo_search": "HEURISTIC",
}


def load(path: Path, config: EngineConfig) -> OrtEngine:
    """Load an ONNX file. Blocking.

    Raises:
        ModelLoadError: the file is broken or contradicts the declared signature.
        DeviceUnavailable: a provider that the configuration asks for is not there or not usable.
    """
    wanted = _wanted_providers(config)
    names = [name for name, _ in wanted]
    missing = [name for name in names if name not in ort.get_available_providers()]
    if missing:
        raise DeviceUnavailable(
            f"{missing[0]} was asked for and this onnxruntime has only "
            f"{', '.join(ort.get_available_providers())}"
        )
    try:
        session = ort.InferenceSession(
            str(path),
            _session_options(config, strict=names[0] != _PROVIDERS["cpu"]),
            providers=wanted,
        )
    except Exception as exc:  # foreign: onnxruntime raises a class per cause, several undocumented
        raise ModelLoadError(f"{path.name} does not load: {_first_line(exc)}") from exc
    active = session.get_providers()
    if active[: len(names)] != names:
        raise DeviceUnavailable(f"{names[0]} was asked for, the session runs on {active[0]}")
    return OrtEngine(session, config, _sha256(path))


def _wanted_providers(config: EngineConfig) -> list[tuple[str, dict[str, str]]]:
    wanted: list[tuple[str, dict[str, str]]] = []
    kind, _, index = config.device.partition(":")
    for name, options in config.providers:
        if name not in _PROVIDERS:
            known = ", ".join(sorted(_PROVIDERS))
            raise ModelLoadError(f"execution accelerator {name!r} is not one of {known}")
        wanted.append((_PROVIDERS[name], dict(options)))
    if kind not in _DEVICE_KINDS:
        raise ModelLoadError(f"device {config.device!r} is neither cpu nor cuda:N")
    if kind == "cuda" and _PROVIDERS["cuda"] not in [name for name, _ in wanted]:
        wanted.append((_PROVIDERS["cuda"], {}))
    out = []
    for name, options in wanted:
        defaults = dict(_CUDA_DEFAULTS) if name == _PROVIDERS["cuda"] else {}
        if name != _PROVIDERS["cpu"]:
            defaults["device_id"] = index or "0"
        out.append((name, defaults | options))
    return out or [(_PROVIDERS["cpu"], {})]


def _session_options(config: EngineConfig, *, strict: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = config.intra_op_threads
    options.inter_op_num_threads = config.inter_op_threads
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    entries = {"session.intra_op.allow_spinning": "0", "session.inter_op.allow_spinning": "0"}
    if strict:
        entries["session.disable_cpu_ep_fallback"] = "1"
    entries |= {k: v for k, v in config.parameters.items() if k.startswith("session.")}
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return options


class OrtEngine:
    """One ONNX Runtime session. Call it from one thread."""

    def __init__(self, session: ort.InferenceSession, config: EngineConfig, sha256: str) -> None:
        self._session: ort.InferenceSession | None = session
        inputs = _specs(session.get_inputs(), "input")
        outputs = _specs(session.get_outputs(), "output")
        max_batch_size = _max_batch_size(config, inputs, outputs)
        has_batch_axis = max_batch_size > 0
        inputs, outputs = _declared(config, inputs, outputs, with_batch_axis=has_batch_axis)
        self._output_names = [spec.name for spec in outputs]
        self._text = frozenset(spec.name for spec in inputs if spec.datatype == BYTES)
        self._bf16 = any(spec.datatype == "BF16" for spec in (*inputs, *outputs))
        if self._bf16 and self._text:
            raise ModelLoadError("onnxruntime's Python API cannot feed BF16 beside BYTES inputs")
        self._metadata = ModelMetadata(
            inputs=inputs,
            outputs=outputs,
            max_batch_size=max_batch_size,
            platform="onnxruntime_onnx",
            engine=f"onnxruntime {ort.__version__}",
            device=_device(config, session.get_providers()[0]),
            providers=tuple(session.get_providers()),
            artifact_sha256=sha256,
            is_steady=_is_steady(session, inputs, has_batch_axis=has_batch_axis),
        )

    @property
    def metadata(self) -> ModelMetadata:
        """What the model takes and gives, with the batch axis as -1."""
        return self._metadata

    def infer(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch; see `engines.base.Engine.infer`."""
        if self._session is None:
            raise EngineClosed
        feed = {
            name: _as_text(name, array) if name in self._text else array
            for name, array in batch.items()
        }
        if self._bf16:
            return self._infer_bf16(self._session, feed)
        outputs = self._session.run(self._output_names, feed)
        return {
            name: _as_bytes(array) if array.dtype == object else array
            for name, array in zip(self._output_names, outputs, strict=True)
        }

    def _infer_bf16(
        self, session: ort.InferenceSession, feed: dict[str, Array]
    ) -> dict[str, Array]:
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
                out[spec.name] = _bf16_bits(value)
                continue
            array = value.numpy()
            if spec.name in feed:  # an input that is an output as well is handed through as it is
                array = array.copy()
            out[spec.name] = _as_bytes(array) if array.dtype == object else array
        return out

    def close(self) -> None:
        """Drop the session and its memory."""
        self._session = None


def _is_steady(
    session: ort.InferenceSession, inputs: Sequence[TensorSpec], *, has_batch_axis: bool
) -> bool:
    """Whether a batch's time follows from its rows: the CPU alone, and no dimension that varies."""
    first = 1 if has_batch_axis else 0
    is_fixed = all(-1 not in spec.shape[first:] and spec.datatype != BYTES for spec in inputs)
    return is_fixed and session.get_providers() == [_PROVIDERS["cpu"]]


def _device(config: EngineConfig, provider: str) -> str:
    """Return where the session really runs: a provider may move it off the configured device."""
    if provider == _PROVIDERS["cpu"]:
        return "cpu"
    kind, _, index = config.device.partition(":")
    return f"cuda:{index or 0}" if kind == "cuda" else "cuda:0"


def _bf16_bits(value: ort.OrtValue) -> Array:
    """Copy a BF16 tensor out of the runtime as bit patterns: numpy has no type for it."""
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(raw, np.uint16).reshape(value.shape())


def _specs(nodes: Sequence[Any], kind: str) -> tuple[TensorSpec, ...]:  # Any: untyped NodeArg
    specs = []
    for node in nodes:
        datatype = _DATATYPES.get(node.type)
        if datatype is None:
            raise ModelLoadError(f"{kind} {node.name!r} is a {node.type}, which cannot be served")
        shape = tuple(d if isinstance(d, int) and d >= 0 else -1 for d in node.shape)
        specs.append(TensorSpec(name=node.name, datatype=datatype, shape=shape))
    return tuple(specs)


def _max_batch_size(
    config: EngineConfig, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> int:
    """Return the configured size, or what the first axes allow: all must vary to be batched."""
    is_batchable = bool(inputs) and all(spec.shape[:1] == (-1,) for spec in (*inputs, *outputs))
    if config.max_batch_size is None:
        return config.default_max_batch_size if is_batchable else 0
    if config.max_batch_size > 0 and not inputs:
        raise ModelLoadError(f"max_batch_size is {config.max_batch_size}, but there are no inputs")
    if config.max_batch_size > 0 and not is_batchable:
        fixed = next(s for s in (*inputs, *outputs) if s.shape[:1] != (-1,))
        raise ModelLoadError(
            f"max_batch_size is {config.max_batch_size}, but {fixed.name!r} has the shape "
            f"{list(fixed.shape)} without a first axis that varies"
        )
    return config.max_batch_size


def _declared(
    config: EngineConfig,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    *,
    with_batch_axis: bool,
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Check the declared signature against the file's; declared fixed dimensions narrow it.

    Declared outputs choose and order what is served; declared inputs must be all of them.
    """
    declared_inputs = _match("input", config.inputs, inputs, with_batch_axis)
    if config.inputs and (missing := {s.name for s in inputs} - {s.name for s in config.inputs}):
        raise ModelLoadError(f"the model's input {min(missing)!r} is not declared")
    return declared_inputs, _match("output", config.outputs, outputs, with_batch_axis)


def _match(
    kind: str, declared: Sequence[TensorSpec], found: Sequence[TensorSpec], with_batch_axis: bool
) -> tuple[TensorSpec, ...]:
    by_name = {spec.name: spec for spec in found}
    out = []
    for spec in declared:
        actual = by_name.get(spec.name)
        if actual is None:
            raise ModelLoadError(f"declared {kind} {spec.name!r} is not in the model")
        if actual.datatype != spec.datatype:
            raise ModelLoadError(
                f"{kind} {spec.name!r} is declared {spec.datatype}, the model has {actual.datatype}"
            )
        shape = (-1, *spec.shape) if with_batch_axis else spec.shape
        fits = len(shape) == len(actual.shape) and all(
            -1 in (a, b) or a == b for a, b in zip(shape, actual.shape, strict=True)
        )
        if not fits:
            raise ModelLoadError(
                f"{kind} {spec.name!r} is declared with the shape {list(shape)}, "
                f"the model has {list(actual.shape)}"
            )
        narrowed = tuple(a if b == -1 else b for a, b in zip(shape, actual.shape, strict=True))
        out.append(TensorSpec(name=spec.name, datatype=spec.datatype, shape=narrowed))
    return tuple(out) or tuple(found)


def _as_text(name: str, array: Array) -> Array:
    """Return BYTES elements as the str objects that onnxruntime takes."""
    try:
        text = [element.decode() for element in array.reshape(-1).tolist()]
    except UnicodeDecodeError:
        raise InvalidInput(f"input {name!r}: an element is not UTF-8 text") from None
    out = np.empty(len(text), dtype=object)
    out[:] = text
    return out.reshape(array.shape)


def _as_bytes(array: Array) -> Array:
    out = np.empty(array.size, dtype=object)
    out[:] = [element.encode() for element in array.reshape(-1).tolist()]
    return out.reshape(array.shape)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(exc: Exception) -> str:
    return str(exc).strip().partition("\n")[0]
