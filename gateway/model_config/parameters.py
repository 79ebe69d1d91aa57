"""The parameters of a config.pbtxt: Triton's thread counts, and what only Sluice has.

Knows which keys there are and what their values may be. Other keys are handed to the engine as
they are, and named in a warning where no engine looks for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from engines.buckets import fault
from engines.ort.providers import ENTRY_PREFIXES
from gateway.model_config.fields import FieldError
from gateway.pb import model_config_pb2 as pb

MAX_THREADS: Final = 1024
MAX_LANES: Final = 8
DEFAULT_LANES: Final = 2
INTRA_OP_THREADS: Final = "intra_op_thread_count"
INTER_OP_THREADS: Final = "inter_op_thread_count"
BUCKETS: Final = "batch_buckets"
LANES: Final = "lanes"
MEMORY_LIMIT: Final = "memory_limit_bytes"
STRICT: Final = "strict"
ANSWER_PREFIX: Final = "sluice."
"""Parameters that a description adds: what the engine turned out to be. Not read back."""
_KNOWN: Final = (INTRA_OP_THREADS, INTER_OP_THREADS, BUCKETS)
OF_A_BUILD: Final = ("profiles", "optimization_level", "builder_flags")
"""Those of TensorRT, which checks them."""
_OF_A_GPU: Final[Mapping[str, tuple[str, ...]]] = {
    "onnxruntime": (LANES, MEMORY_LIMIT, STRICT),
    "tensorrt": (LANES, MEMORY_LIMIT, *OF_A_BUILD),
    "tensorrt_rtx": (LANES, MEMORY_LIMIT, *OF_A_BUILD),
    "pytorch": (LANES,),
}
_GRAPH_SPEC: Final = "optimization.cuda.graph_spec"


def parameters(config: pb.ModelConfig) -> dict[str, str]:
    """Return the file's parameters, except those that only repeat an answer of ours."""
    return {
        key: config.parameters[key].string_value
        for key in sorted(config.parameters)
        if not key.startswith(ANSWER_PREFIX)
    }


def intra_op_threads(config: pb.ModelConfig, *, default: int, share: int) -> int:
    """Return the threads of one instance: the file's, else the default, else its share of cores.

    Raises:
        FieldError: the file's is no count.
    """
    threads = _number(config, INTRA_OP_THREADS, "number of threads", (0, MAX_THREADS))
    return threads or default or max(1, share)


def inter_op_threads(config: pb.ModelConfig) -> int:
    """Return the threads across operators; absent or 0: one, because execution is sequential.

    Raises:
        FieldError: the file's is no count.
    """
    return _number(config, INTER_OP_THREADS, "number of threads", (0, MAX_THREADS)) or 1


def lanes(config: pb.ModelConfig) -> int:
    """Return the batches that a GPU has under way at once.

    Raises:
        FieldError: it is no such number.
    """
    return _number(config, LANES, "number of lanes", (1, MAX_LANES), default=DEFAULT_LANES)


def memory_limit_bytes(config: pb.ModelConfig) -> int:
    """Return the most that the runtime may take on a GPU; 0: no limit.

    Raises:
        FieldError: it is no number of bytes.
    """
    return _number(config, MEMORY_LIMIT, "number of bytes", (0, (1 << 63) - 1))


def check_strict(config: pb.ModelConfig) -> None:
    """Check the switch that keeps every node of a model on the GPU; the engine reads it.

    Raises:
        FieldError: it is neither 0 nor 1.
    """
    _number(config, STRICT, "switch", (0, 1), default=1)


def buckets(config: pb.ModelConfig, maximum: int | None) -> tuple[int, ...]:
    """Return the row counts that batches are padded up to; empty: the engine's own.

    `maximum` is the configured one; where it is None, the last bucket becomes the maximum.

    Raises:
        FieldError: they are no list of ascending counts that ends with the maximum.
    """
    text = config.parameters[BUCKETS].string_value if BUCKETS in config.parameters else ""
    if not text.strip():
        return ()
    at, parts = f"parameters[{BUCKETS!r}]", [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 10 for part in parts):
        raise FieldError(at, f"{text!r} is no list of row counts such as '1,4,8'")
    found = tuple(int(part) for part in parts)
    if why := fault(found, max(found[-1], 1) if maximum is None else maximum):
        raise FieldError(at, why)
    return found


def graph_buckets(config: pb.ModelConfig, maximum: int | None, rows: int) -> tuple[int, ...]:
    """Return the row counts that CUDA graphs are asked for, with the largest batch; or none.

    Args:
        config: the model's.
        maximum: the configured one; 0: no batch axis.
        rows: of the largest batch, if there is a batch axis.

    Raises:
        FieldError: a graph of more rows than a batch has, or of none.
    """
    found = set()
    for number, graph in enumerate(config.optimization.cuda.graph_spec):
        at, size = f"{_GRAPH_SPEC}[{number}].batch_size", graph.batch_size
        if maximum == 0:
            if size:
                raise FieldError(at, f"{size} is not 0: the model has no batch axis")
            continue
        if not 1 <= size <= rows:
            raise FieldError(at, f"{size} is not between 1 and the largest batch, {rows}")
        found.add(size)
    return tuple(sorted(found | {rows})) if found else ()


def without_effect(config: pb.ModelConfig, backend: str, *, is_cpu: bool) -> set[str]:
    """Return the parameters that nobody looks at, and what asks for CUDA graphs in vain."""
    known = set(_KNOWN)
    if not is_cpu:
        known |= set(_OF_A_GPU.get(backend, ()))
    out = {
        f"parameters.{key}"
        for key in parameters(config)
        if key not in known and not (backend == "onnxruntime" and key.startswith(ENTRY_PREFIXES))
    }
    cuda = config.optimization.cuda
    if cuda.graphs and is_cpu:
        out.add("optimization.cuda.graphs")
    if cuda.graph_spec and (is_cpu or not cuda.graphs or buckets(config, None)):
        out.add(f"{_GRAPH_SPEC}.batch_size")
    return out


def _number(
    config: pb.ModelConfig, key: str, what: str, bounds: tuple[int, int], default: int = 0
) -> int:
    """Return the number under a key, the default if it is absent or empty."""
    text = config.parameters[key].string_value.strip() if key in config.parameters else ""
    if not text:
        return default
    least, most = bounds
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(most))
    if not is_number or not least <= int(text) <= most:
        sentence = f"{text!r} is no {what} from {least} to {most}"
        raise FieldError(f"parameters[{key!r}]", sentence)
    return int(text)
