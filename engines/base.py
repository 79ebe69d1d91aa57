"""What an engine is: the contract between the batcher and a device runtime.

An engine is synchronous and is called by its instance, one batch at a time, in the instance's
worker thread or (a steady one, with a short batch) in the event loop's. It knows the
tensors of one model version and nothing about queues, requests or protocols. `Engine` is the whole
interface; a new runtime is one file beside ort.py and one line in the registry that app.py passes
to the repository. `engines/fake.py` is a real member of the family, used by tests and load tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

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
    buckets: tuple[int, ...] = ()
    """Row counts that the engine runs, ascending, the last is `max_batch_size`: every batch is
    padded up to one of them. Empty: it runs any number of rows."""
    precision: str = ""
    """What the weights are kept in, as far as the file tells: FP32, FP16, INT8 QDQ ..."""
    memory_bytes: int = 0
    """Held on the device by this copy, as far as the runtime tells; 0: it does not."""
    fallback: str = ""
    """Why an engine that could choose (`auto`) does not run on a GPU; empty: it does, or had no
    choice."""
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
    """cpu, cuda:N, or auto: cuda:0 where it can be had, else the CPU. A device that is asked for
    and not there is an error; only auto may take another, and says so in the metadata."""
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
    buckets: tuple[int, ...] = ()
    """Row counts to pad batches up to; empty: what the engine itself needs."""
    cache: Path | None = None
    """Folder for what is made of model files (optimised graphs, plans); None: nothing is kept."""
    libraries: Mapping[str, Path] = field(default_factory=dict)
    """Libraries of execution providers that the runtime does not carry, by name."""
    lanes: int = 2
    """Batches that a GPU engine has under way at once: one computes while another is copied."""
    has_graphs: bool = False
    """Whether a GPU engine records a CUDA graph per bucket and replays it."""
    memory_limit_bytes: int = 0
    """Most that the runtime's arena may take on a GPU; 0: no limit of ours."""
    memory_reserve_bytes: int = 0
    """Free GPU memory that a load must leave, by estimate, else it is refused; 0: none is made."""


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
    """Of every instance, but for the device where `devices` names several."""
    batching: BatchPolicy | None
    """None: decide from the loaded engine (dynamic batching if it has a batch axis)."""
    versions: VersionPolicy
    warmup_batch_sizes: tuple[int, ...] = ()
    """Rows; empty: powers of two up to the maximum, and the preferred sizes."""
    max_queue_rows: int = 4096
    """Bound of the queue where `batching` is None."""
    devices: tuple[str, ...] = ()
    """Device of each instance in turn; empty: that of `engine`."""

    def engine_of(self, instance: int) -> EngineConfig:
        """Return how the instance of that number is to be loaded."""
        if not self.devices:
            return self.engine
        return replace(self.engine, device=self.devices[instance % len(self.devices)])


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
            OutOfMemory: the batch does not fit; a smaller one may.
            DeviceFailed: this copy is lost, and every later call will fail.
            EngineClosed: after close.
        """

    def close(self) -> None:
        """Release the device memory. Idempotent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneStatistics:
    """What a laned engine has done since its load, and holds."""

    graph_hits: int = 0
    """Batches that replayed a CUDA graph."""
    graph_misses: int = 0
    """Batches that ran without one, though graphs were asked for."""
    graphs: int = 0
    """Recorded so far."""
    device_bytes: int = 0
    """Of the lanes' buffers."""
    pinned_bytes: int = 0
    """Of the lanes' buffers."""


class Lease(Protocol):
    """One lane of a `LanedEngine`, held for one batch from `acquire` to `release`."""

    @property
    def inputs(self) -> Mapping[str, Array]:
        """Host arrays of the shapes asked for, to be written; what they hold is undefined."""


@runtime_checkable
class LanedEngine(Engine, Protocol):
    """An engine that takes the next batch while it runs one: a GPU with several sets of buffers.

    `acquire` and `submit` are called from one thread, `collect` and `release` from another one, in
    the order of the submits; a lease that was not submitted is released where it was acquired.
    `infer` is the four in a row and must not be mixed with them.
    """

    @property
    def lanes(self) -> int:
        """Most leases at once."""

    @property
    def warmup_runs(self) -> int:
        """Calls of `infer` with one shape after which every lane is warm for it."""

    def statistics(self) -> LaneStatistics:
        """Return the counters; from any thread."""

    def acquire(self, shapes: Mapping[str, tuple[int, ...]]) -> Lease:
        """Take a free lane for a batch of these whole shapes; there must be one.

        Raises:
            InvalidInput: no lane has room for such shapes.
            DeviceFailed: this copy is lost.
        """

    def submit(self, lease: Lease) -> None:
        """Start copying in, computing and copying out; returns at once.

        Raises:
            DeviceFailed: this copy is lost; the lease still has to be released.
        """

    def collect(self, lease: Lease) -> Mapping[str, Array]:
        """Wait for a submitted batch; its outputs are views that end with the lease.

        Raises:
            DeviceFailed: this copy is lost; the lease still has to be released.
        """

    def release(self, lease: Lease) -> None:
        """Give the lane back."""


class EngineLoader(Protocol):
    """Makes an engine from a model file; blocking, called off the event loop."""

    def __call__(self, path: Path, config: EngineConfig) -> Engine:
        """Load.

        Raises:
            ModelLoadError: the file is broken or contradicts its declaration.
            DeviceUnavailable: the device asked for is not there.
        """
