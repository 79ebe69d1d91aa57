"""Where a model runs, by its config.pbtxt: how many instances, on what device, with which threads.

Knows instance_group, execution accelerators and the parameters of Triton's ONNX Runtime backend;
whether the device is there is the engine's to say. A GPU that is asked for in any of these ways is
never traded for the CPU; one that is not asked for is never taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gateway.model_config.fields import FieldError
from gateway.pb import model_config_pb2 as pb

CPU: Final = "cpu"
MAX_THREADS: Final = 1024
INTRA_OP_THREADS: Final = "intra_op_thread_count"
INTER_OP_THREADS: Final = "inter_op_thread_count"
ENGINE_PREFIX: Final = "session."
"""Parameters that the ONNX Runtime engine takes as session configuration entries."""

ACCELERATORS: Final = ("tensorrt", "cuda")
"""Those known, in the order in which ONNX Runtime is to prefer them."""
_ACCELERATORS_AT: Final = "optimization.execution_accelerators.gpu_execution_accelerator"
_KINDS: Final = pb.ModelInstanceGroup
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


def instances(config: pb.ModelConfig) -> int:
    """Return the copies to load of each version; a count that is absent or 0 means 1.

    Raises:
        FieldError: a count is negative.
    """
    for number, group in enumerate(config.instance_group):
        if group.count < 0:
            raise FieldError(f"instance_group[{number}].count", f"{group.count} is negative")
    return sum(group.count or 1 for group in config.instance_group) or 1


def device_of(config: pb.ModelConfig) -> str:
    """Return the one device of all instances.

    Raises:
        FieldError: a kind and GPUs that contradict each other, or more than one device.
    """
    has_accelerator = bool(config.optimization.execution_accelerators.gpu_execution_accelerator)
    groups = config.instance_group or [pb.ModelInstanceGroup()]
    found = [
        _group_device(f"instance_group[{number}]", group, has_accelerator=has_accelerator)
        for number, group in enumerate(groups)
    ]
    if len(set(found)) > 1:
        sentence = f"instances on several devices ({', '.join(found)}) are not supported"
        raise FieldError("instance_group", sentence)
    return found[0]


def _group_device(location: str, group: pb.ModelInstanceGroup, *, has_accelerator: bool) -> str:
    """Return a group's device. Automatic means the GPU that something else asks for, or the CPU."""
    if group.kind not in _KINDS.Kind.values():
        raise FieldError(f"{location}.kind", f"{group.kind} is no kind")
    gpus = list(group.gpus)
    if any(gpu < 0 for gpu in gpus):
        raise FieldError(f"{location}.gpus", f"{min(gpus)} is negative")
    if len(gpus) > 1:
        raise FieldError(f"{location}.gpus", f"several GPUs {gpus} are not supported")
    if group.kind in (_KINDS.KIND_CPU, _KINDS.KIND_MODEL):
        if gpus:
            sentence = f"a group of {_KINDS.Kind.Name(group.kind)} cannot name GPUs"
            raise FieldError(f"{location}.gpus", sentence)
        return CPU
    if group.kind == _KINDS.KIND_GPU or gpus or has_accelerator:
        return f"cuda:{gpus[0] if gpus else 0}"
    return CPU


def providers(config: pb.ModelConfig, device: str) -> tuple[tuple[str, Mapping[str, str]], ...]:
    """Return the accelerators of a GPU with their options, TensorRT first; none on the CPU.

    Raises:
        FieldError: one that is not known, or is given twice.
    """
    found: dict[str, Mapping[str, str]] = {}
    asked = config.optimization.execution_accelerators.gpu_execution_accelerator
    for number, accelerator in enumerate(asked):
        at, name = f"{_ACCELERATORS_AT}[{number}]", accelerator.name
        if name not in ACCELERATORS:
            raise FieldError(f"{at}.name", f"{name!r} is not one of {', '.join(ACCELERATORS)}")
        if name in found:
            raise FieldError(f"{at}.name", f"{name!r} is given twice")
        options = dict(accelerator.parameters)
        found[name] = _tensorrt_options(at, options) if name == "tensorrt" else options
    if device == CPU:
        return ()
    return tuple((name, found[name]) for name in ACCELERATORS if name in found)


def _tensorrt_options(location: str, options: Mapping[str, str]) -> Mapping[str, str]:
    out = {_TENSORRT_KEYS.get(k, k): v for k, v in options.items() if k != "precision_mode"}
    precision = options.get("precision_mode", "FP32")
    if precision not in _PRECISIONS:
        sentence = f"{precision!r} is not one of {', '.join(_PRECISIONS)}"
        raise FieldError(f"{location}.parameters['precision_mode']", sentence)
    return {**out, **_PRECISIONS[precision]}


def intra_op_threads(config: pb.ModelConfig, *, default: int, usable_cores: int) -> int:
    """Return the threads of one instance: the file's, else the default, else its share of cores.

    Raises:
        FieldError: the file's is no count.
    """
    share = max(1, usable_cores // instances(config))
    return _threads(config, INTRA_OP_THREADS) or default or share


def inter_op_threads(config: pb.ModelConfig) -> int:
    """Return the threads across operators; absent or 0: one, because execution is sequential.

    Raises:
        FieldError: the file's is no count.
    """
    return _threads(config, INTER_OP_THREADS) or 1


def _threads(config: pb.ModelConfig, key: str) -> int:
    text = parameters(config).get(key, "0").strip()
    if not text.isdecimal() or int(text) > MAX_THREADS:
        sentence = f"{text!r} is no number of threads from 0 to {MAX_THREADS}"
        raise FieldError(f"parameters[{key!r}]", sentence)
    return int(text)


def parameters(config: pb.ModelConfig) -> dict[str, str]:
    """Return the file's parameters, all of them."""
    return {key: config.parameters[key].string_value for key in sorted(config.parameters)}


def without_effect(config: pb.ModelConfig, device: str) -> set[str]:
    """Return the honoured fields whose values ask for something that is not done."""
    known = (INTRA_OP_THREADS, INTER_OP_THREADS)
    out = {
        f"parameters.{key}"
        for key in config.parameters
        if key not in known and not key.startswith(ENGINE_PREFIX)
    }
    if device == CPU and config.optimization.execution_accelerators.gpu_execution_accelerator:
        out.add(_ACCELERATORS_AT)
    return out
