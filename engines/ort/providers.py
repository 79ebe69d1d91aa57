"""Execution providers by configuration: their names, their options, and what a model asks for.

Pure tables and checks; needs no onnxruntime, so that a configuration can be checked on a machine
without it. onnxruntime itself takes a wrong option for a warning in its log, or for a failure at
the first run; here each is refused with its key, before anything is loaded. Options that only this
program can set (device, addresses, CUDA graphs) are refused with what to say instead. Options of
providers that come in libraries are not known here and pass as they are.

The names are those that onnxruntime's CUDA and TensorRT providers parse, from its documentation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from engines import devices
from engines.base import EngineConfig
from engines.errors import ModelLoadError

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"
NAMES: Final[Mapping[str, str]] = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}
"""Words of the configuration -> onnxruntime's names."""
ENTRY_PREFIXES: Final = ("session.", "optimization.", "ep.")
"""Of parameters in a model's configuration that are entries of its session."""
PROFILE_KEYS: Final = (
    "trt_profile_min_shapes",
    "trt_profile_opt_shapes",
    "trt_profile_max_shapes",
)
"""Shapes that a TensorRT engine is made for: all three or none, smallest first."""

_Check = Callable[[str], str]
_MAX_SIZE: Final = (1 << 63) - 1
_WORDS: Final = {"0": "False", "false": "False", "1": "True", "true": "True"}
_PROFILE: Final = re.compile(r"([^,]+):([1-9][0-9]*(?:x[1-9][0-9]*)*|[1-9][0-9]*)")


def _flag(value: str) -> str:
    known = ("0", "1", "true", "false", "True", "False")
    return "" if value in known else f"{value!r} is not one of 0, 1, true, false"


def _number(low: int, high: int = _MAX_SIZE) -> _Check:
    def check(value: str) -> str:
        if re.fullmatch(r"-?[0-9]{1,19}", value) and low <= int(value) <= high:
            return ""
        return f"{value!r} is no number from {low}" + (f" to {high}" if high < _MAX_SIZE else "")

    return check


def _one_of(*names: str) -> _Check:
    return lambda value: "" if value in names else f"{value!r} is not one of {', '.join(names)}"


def _text(value: str) -> str:
    return "" if value.strip() else "it is empty"


def _shapes(value: str) -> str:
    try:
        profile_shapes(value)
    except ValueError as exc:
        return str(exc)
    return ""


_SIZE: Final = _number(1)
_COUNT: Final = _number(0)

_CUDA_OPTIONS: Final[Mapping[str, _Check]] = {
    "arena_extend_strategy": _one_of("kNextPowerOfTwo", "kSameAsRequested"),
    "cudnn_conv1d_pad_to_nc1d": _flag,
    "cudnn_conv_algo_search": _one_of("HEURISTIC", "EXHAUSTIVE", "DEFAULT"),
    "cudnn_conv_use_max_workspace": _flag,
    "do_copy_in_default_stream": _flag,
    "enable_skip_layer_norm_strict_mode": _flag,
    "fuse_conv_bias": _flag,
    "gpu_mem_limit": _SIZE,
    "prefer_nhwc": _flag,
    "sdpa_kernel": _COUNT,
    "tunable_op_enable": _flag,
    "tunable_op_max_tuning_duration_ms": _COUNT,
    "tunable_op_tuning_enable": _flag,
    "use_ep_level_unified_stream": _flag,
    "use_tf32": _flag,
}
_TENSORRT_OPTIONS: Final[Mapping[str, _Check]] = {
    "trt_auxiliary_streams": _number(-1),
    "trt_bf16_enable": _flag,
    "trt_build_heuristics_enable": _flag,
    "trt_builder_optimization_level": _number(0, 5),
    "trt_context_memory_sharing_enable": _flag,
    "trt_detailed_build_log": _flag,
    "trt_dla_core": _COUNT,
    "trt_dla_enable": _flag,
    "trt_dump_ep_context_model": _flag,
    "trt_dump_subgraphs": _flag,
    "trt_engine_cache_enable": _flag,
    "trt_engine_cache_path": _text,
    "trt_engine_cache_prefix": _text,
    "trt_engine_decryption_enable": _flag,
    "trt_engine_decryption_lib_path": _text,
    "trt_engine_hw_compatible": _flag,
    "trt_ep_context_embed_mode": _number(0, 1),
    "trt_ep_context_file_path": _text,
    "trt_extra_plugin_lib_paths": _text,
    "trt_force_sequential_engine_build": _flag,
    "trt_force_timing_cache": _flag,
    "trt_fp16_enable": _flag,
    "trt_int8_calibration_table_name": _text,
    "trt_int8_enable": _flag,
    "trt_int8_use_native_calibration_table": _flag,
    "trt_layer_norm_fp32_fallback": _flag,
    "trt_load_user_initializer": _flag,
    "trt_max_partition_iterations": _SIZE,
    "trt_max_workspace_size": _COUNT,
    "trt_min_subgraph_size": _SIZE,
    "trt_onnx_model_folder_path": _text,
    "trt_op_types_to_exclude": _text,
    "trt_preview_features": _text,
    **dict.fromkeys(PROFILE_KEYS, _shapes),
    "trt_sparsity_enable": _flag,
    "trt_tactic_sources": _text,
    "trt_timing_cache_enable": _flag,
    "trt_timing_cache_path": _text,
    "trt_weight_stripped_engine_enable": _flag,
}
OPTIONS: Final[Mapping[str, Mapping[str, _Check]]] = {
    CPU: {},
    CUDA: _CUDA_OPTIONS,
    TENSORRT: _TENSORRT_OPTIONS,
}

_ADDRESS: Final = "it is an address in a running process and cannot be configured"
_GRAPHS: Final = "it is set where the model's configuration has optimization.cuda.graphs"
# Why options that the providers have are not to be given in a configuration.
_RESERVED: Final[Mapping[str, str]] = {
    "device_id": "it is set by the model's device",
    "enable_cuda_graph": _GRAPHS,
    "gpu_external_alloc": _ADDRESS,
    "gpu_external_empty_cache": _ADDRESS,
    "gpu_external_free": _ADDRESS,
    "has_user_compute_stream": _ADDRESS,
    "trt_cuda_graph_enable": "CUDA graphs of this provider are not supported: "
    "use the backend tensorrt",
    "trt_external_data_bytestream": _ADDRESS,
    "trt_external_data_bytestream_size": _ADDRESS,
    "trt_onnx_bytestream": _ADDRESS,
    "trt_onnx_bytestream_size": _ADDRESS,
    "user_compute_stream": _ADDRESS,
}


def option_faults(provider: str, options: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return what is wrong with the options of a provider: (key, sentence), in order of the keys.

    Args:
        provider: cuda, tensorrt, or onnxruntime's name; options of others are not known, and fine.
        options: as configured.
    """
    name = NAMES.get(provider, provider)
    known = OPTIONS.get(name)
    if known is None:
        return []
    found = [(key, _fault(name, known, key, options[key])) for key in sorted(options)]
    faults = [(key, sentence) for key, sentence in found if sentence]
    if not faults and name == TENSORRT:
        faults += _profile_faults(options)
    return faults


def _fault(provider: str, known: Mapping[str, _Check], key: str, value: str) -> str:
    if key in known:
        return known[key](value)
    if key in _RESERVED and provider != CPU:
        return _RESERVED[key]
    for other, theirs in OPTIONS.items():
        if key in theirs:
            return f"it is an option of {other}, not of {provider}"
    near = get_close_matches(key, known, n=1)
    return f"it is no option of {provider}" + (f"; did you mean {near[0]!r}?" if near else "")


def profile_shapes(text: str) -> dict[str, tuple[int, ...]]:
    """Read ``x:1x3x224x224,y:1x8`` as shapes by input name.

    Raises:
        ValueError: with a sentence, for what is none or names an input twice.
    """
    out: dict[str, tuple[int, ...]] = {}
    for part in text.split(","):
        found = _PROFILE.fullmatch(part.strip())
        if found is None:
            raise ValueError(f"{part!r} is no shape such as 'input:1x3x224x224'")
        if found[1] in out:
            raise ValueError(f"{found[1]!r} has two shapes")
        out[found[1]] = tuple(int(dimension) for dimension in found[2].split("x"))
    return out


def in_words(provider: str, options: Mapping[str, str]) -> dict[str, str]:
    """Return options with True and False for 1 and 0, where the option is a flag.

    onnxruntime's own parser takes either; that of TensorRT's options in its Python interface takes
    the words only, and refuses the session over a 1 (microsoft/onnxruntime#14091).
    """
    known = OPTIONS[provider]
    return {
        key: _WORDS.get(value.lower(), value) if known.get(key) is _flag else value
        for key, value in options.items()
    }


def _profile_faults(options: Mapping[str, str]) -> list[tuple[str, str]]:
    given = [key for key in PROFILE_KEYS if key in options]
    if not given:
        return []
    if len(given) < len(PROFILE_KEYS):
        missing = next(key for key in PROFILE_KEYS if key not in options)
        return [(given[0], f"{missing} is missing: a profile has all three or none")]
    low, best, high = (profile_shapes(options[key]) for key in PROFILE_KEYS)
    for key, shapes in ((PROFILE_KEYS[1], best), (PROFILE_KEYS[2], high)):
        if {n: len(s) for n, s in shapes.items()} != {n: len(s) for n, s in low.items()}:
            return [(key, f"it has other inputs or ranks than {PROFILE_KEYS[0]}")]
    for name, smallest in low.items():
        for a, b, c in zip(smallest, best[name], high[name], strict=True):
            if not a <= b <= c:
                sentence = f"the shapes of {name!r} do not ascend from least to best to largest"
                return [(PROFILE_KEYS[1], sentence)]
    return []


@dataclass(frozen=True, slots=True)
class Wanted:
    """One provider that a session is to have."""

    name: str
    """onnxruntime's name, or that of the library which brings it."""
    options: Mapping[str, str]
    is_library: bool = False


def device_of(config: EngineConfig) -> tuple[str, int]:
    """Return kind (cpu, cuda, auto) and number of the configured device.

    Raises:
        ModelLoadError: it is none.
    """
    try:
        return devices.parse(config.device)
    except ValueError:
        sentence = f"device {config.device!r} is neither cpu nor cuda:N nor auto"
        raise ModelLoadError(sentence) from None


def wanted(config: EngineConfig) -> tuple[Wanted, ...]:
    """Return the providers that a configuration asks for, best first, with all their options.

    A GPU adds the CUDA provider behind TensorRT's; a provider from a library stands alone.

    Raises:
        ModelLoadError: a provider, a device or an option is not known.
    """
    kind, index = device_of(config)
    named = [_named(config, name, options) for name, options in config.providers]
    is_alone = any(provider.is_library for provider in named)
    if kind == "cuda" and not is_alone and CUDA not in [provider.name for provider in named]:
        named.append(Wanted(CUDA, {}))
    named = [provider for provider in named if provider.name != CPU]  # it is behind every other
    if not named:
        return (Wanted(CPU, {}),)
    return tuple(
        Wanted(one.name, {**_defaults(one.name, config, index), **one.options}, one.is_library)
        for one in named
    )


def _named(config: EngineConfig, name: str, options: Mapping[str, str]) -> Wanted:
    if name in config.libraries:
        return Wanted(name, dict(options), is_library=True)
    if name not in NAMES:
        known = ", ".join((*sorted(NAMES), *sorted(config.libraries)))
        raise ModelLoadError(f"execution accelerator {name!r} is not one of {known}")
    for key, sentence in option_faults(name, options):
        raise ModelLoadError(f"option {key} of execution accelerator {name!r}: {sentence}")
    return Wanted(NAMES[name], dict(options))


def _defaults(provider: str, config: EngineConfig, index: int) -> dict[str, str]:
    """Return what a provider gets where the configuration says nothing.

    The arena grows by what is asked, because what it once took it never gives back; convolution
    kernels are chosen by rule, because measuring them stops a new shape for half a second.
    """
    if provider == CUDA:
        limit = config.memory_limit_bytes
        return {
            "device_id": str(index),
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",
            **({"gpu_mem_limit": str(limit)} if limit else {}),
        }
    if provider == TENSORRT:
        return {"device_id": str(index)}
    return {}


def is_strict(config: EngineConfig) -> bool:
    """Whether every node must run where it was asked to: the parameter ``strict`` is not 0.

    Raises:
        ModelLoadError: the parameter is neither 0 nor 1.
    """
    value = config.parameters.get("strict", "1").strip()
    if value not in ("0", "1"):
        raise ModelLoadError(f"parameter strict: {value!r} is neither 0 nor 1")
    return value == "1"
