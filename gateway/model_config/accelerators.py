"""Execution accelerators of a config.pbtxt: ONNX Runtime's providers and their options.

Knows Triton's own names of TensorRT options; which options a provider has, and with which values,
is the engine's table. Libraries that the settings name are accelerators of these names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from engines.ort.providers import option_faults
from gateway.model_config.fields import FieldError
from gateway.pb import model_config_pb2 as pb

ACCELERATORS_AT: Final = "optimization.execution_accelerators.gpu_execution_accelerator"
ACCELERATORS: Final = ("tensorrt", "cuda")
"""Those known, in the order in which ONNX Runtime is to prefer them."""
_BACKEND: Final = "onnxruntime"
_PRECISION: Final = "precision_mode"
# Triton's own names of TensorRT options -> ONNX Runtime's; other keys are ONNX Runtime's already.
_TENSORRT_KEYS: Final[Mapping[str, str]] = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}
_PRECISIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "FP32": {},
    "FP16": {"trt_fp16_enable": "1"},
    "INT8": {"trt_int8_enable": "1"},
}

Providers = tuple[tuple[str, Mapping[str, str]], ...]


def providers(config: pb.ModelConfig, backend: str, libraries: Collection[str]) -> Providers:
    """Return the accelerators with their options: libraries first, then TensorRT, then CUDA.

    Raises:
        FieldError: one that is not known, is given twice, has an option that it cannot have, or
            belongs to a backend that has none.
    """
    known = (*sorted(libraries), *ACCELERATORS)
    found: dict[str, Mapping[str, str]] = {}
    asked = config.optimization.execution_accelerators.gpu_execution_accelerator
    for number, accelerator in enumerate(asked):
        at, name = f"{ACCELERATORS_AT}[{number}]", accelerator.name
        if backend != _BACKEND:
            raise FieldError(f"{at}.name", f"the backend {backend!r} has no accelerators")
        if name not in known:
            raise FieldError(f"{at}.name", f"{name!r} is not one of {', '.join(known)}")
        if name in found:
            raise FieldError(f"{at}.name", f"{name!r} is given twice")
        found[name] = _options(at, name, dict(accelerator.parameters))
    return tuple((name, found[name]) for name in known if name in found)


def _options(at: str, name: str, given: Mapping[str, str]) -> Mapping[str, str]:
    """Return the options in ONNX Runtime's names, each of them checked."""
    if name not in ACCELERATORS:
        return given  # a library's own, which only the library knows
    keys = _TENSORRT_KEYS if name == "tensorrt" else {}
    options = {keys.get(key, key): value for key, value in given.items()}
    if name == "tensorrt":
        options |= _precision(at, options.pop(_PRECISION, "FP32"))
    shown = {keys.get(key, key): key for key in given}
    for key, sentence in option_faults(name, options):
        raise FieldError(f"{at}.parameters[{shown.get(key, key)!r}]", sentence)
    return options


def _precision(at: str, precision: str) -> Mapping[str, str]:
    if precision not in _PRECISIONS:
        sentence = f"{precision!r} is not one of {', '.join(_PRECISIONS)}"
        raise FieldError(f"{at}.parameters[{_PRECISION!r}]", sentence)
    return _PRECISIONS[precision]
