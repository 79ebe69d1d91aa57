"""What an engine is: the contract between the batcher and a device runtime.

An engine is synchronous and is called by its instance, one batch at a time, in the instance's
worker thread or (a steady one, with a short batch) in the event loop's. It knows the
tensors of one model version and nothing about queues, requests or protocols. `Engine` is the whole
interface; a new runtime is one file beside ort.py and one line in the registry that app.py passes
to the repository. `engines/fake.py` is a real member of the family, used by tests and load tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from engines.tensors import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output of a model."""

    name: str
    datatype: str
    """Protocol name: FP32, INT64, BYTES ..."""
    shape: tuple[int, ...]
    """Whole shape with the batch axis, if there is one; -1 is a dimension that varies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetadata:
    """What a loaded version takes, gives, and runs on."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    """Rows of the largest batch; 0: the model has no batch axis and runs one request at a time."""
    platform: str
    """Triton's word for the format and runtime, such as onnxruntime_onnx."""
    engine: str
    """Runtime and its version, such as 'onnxruntime 1.31.1'."""
    device: str
    """Where it really runs: cpu, cuda:0 ..."""
    providers: tuple[str, ...] = ()
    """Execution providers in use, best first, where the runtime has such a notion."""
    artifact_sha256: str = ""
    """Digest of the model file."""
    is_steady: bool = False
    """A batch of so many rows always takes about the same time, whatever is in it, and waits for no
    device: such an engine may be run on the event loop where its batches are short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How one instance of a version is to be loaded."""

    max_batch_size: int | None = None
    """Rows; 0: no batch axis; None: let the engine tell from the model."""
    default_max_batch_size: int = 64
    """Rows; what None above becomes for a model that can be batched."""
    device: str = "cpu"
    """cpu, or cuda:N. Asked for and not there is an error."""
    providers: tuple[tuple[str, Mapping[str, str]], ...] = ()
    """Accelerators before the plain device, with their options: ('tensorrt', {...})."""
    intra_op_threads: int = 1
    inter_op_threads: int = 1
    inputs: tuple[TensorSpec, ...] = ()
    """Declared signature; empty: take the model's own. A contradiction is a load error.

    The shapes here leave out the batch axis of a model that has one, as config.pbtxt does.
    """
    outputs: tuple[TensorSpec, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Engine-specific settings from the model's configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPolicy:
    """When a queue of requests becomes a batch. Rows are batch-axis rows, never requests."""

    max_batch_size: int
    """Rows of the largest batch, >= 1. A request is never split and never exceeds it."""
    dynamic: bool = True
    """False: every request is a batch of its own."""
    preferred_batch_sizes: tuple[int, ...] = ()
    """Row counts that go at once when queued requests add up to one of them exactly."""
    max_queue_delay_us: int = 0
    """Longest wait for companions, from the oldest request. 0: take what is there."""
    max_queue_rows: int = 4096
    """Bound of the queue; a request over it is refused with QueueFull."""
    max_queue_requests: int = 0
    """Triton's bound, in requests; 0: none."""
    priority_levels: int = 0
    """0: priorities are ignored; else 1 is the highest of that many."""
    default_priority_level: int = 0
    default_timeout_us: int = 0
    """Deadline of a request that brings none; 0: none."""
    allow_timeout_override: bool = True
    """Whether a request's own timeout may shorten the default one."""
    is_plain: bool = field(init=False)
    """Whether a request without parameters has no priority and no deadline but its caller's."""

    def __post_init__(self) -> None:
        plain = not self.priority_levels and not self.default_timeout_us
        object.__setattr__(self, "is_plain", plain)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model of the repository as configured, before any version is loaded."""

    name: str
    directory: Path
    backend: str
    """Key into the engine registry: onnxruntime, fake ..."""
    filename: str
    """Model file inside each version's folder."""
    instances: int
    """Copies loaded per version, each with its own worker thread."""
    engine: EngineConfig
    batching: BatchPolicy | None
    """None: decide from the loaded engine (dynamic batching if it has a batch axis)."""
    versions: VersionPolicy
    warmup_batch_sizes: tuple[int, ...] = ()
    """Rows; empty: powers of two up to the maximum, and the preferred sizes."""
    max_queue_rows: int = 4096
    """Bound of the queue where `batching` is None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionPolicy:
    """Which versions found on disk are served."""

    latest: int = 0
    """The N highest; 0: not limited."""
    specific: tuple[str, ...] = ()
    """Just these; empty: not limited."""

    def select(self, found: Sequence[str]) -> tuple[str, ...]:
        """Choose among version names, given in ascending numeric order."""
        if self.specific:
            return tuple(v for v in found if v in self.specific)
        return tuple(found[-self.latest :] if self.latest else found)


class Engine(Protocol):
    """One loaded copy of a version on one device. Not thread safe: one call at a time."""

    @property
    def metadata(self) -> ModelMetadata:
        """What the version takes and gives; constant after load."""

    def infer(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch: every input, shape `(rows, *item_shape)`, to every output.

        The outputs belong to the caller; a later call does not change them.

        Raises:
            InvalidInput: a value (not a shape) that the model cannot take.
            EngineClosed: after close.
        """

    def close(self) -> None:
        """Release the device memory. Idempotent."""


class EngineLoader(Protocol):
    """Makes an engine from a model file; blocking, called off the event loop."""

    def __call__(self, path: Path, config: EngineConfig) -> Engine:
        """Load.

        Raises:
            ModelLoadError: the file is broken or contradicts its declaration.
            DeviceUnavailable: the device asked for is not there.
        """
