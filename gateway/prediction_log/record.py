"""One answered request as the prediction log keeps it, and its bytes.

Knows the envelope (short keys, tensors as raw little-endian bytes) and nothing about Redis, buffers
or time. A blob is one codec tag byte and a msgpack map; keys that a reader does not know are
ignored, keys that are absent have the default below. Adding a key is free; changing the meaning of
one needs a new tag. Read next: encoder.py (record to blob), buffer.py, writer.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from engines.batcher import Execution
from engines.tensors import BYTES, DATATYPES, Array, Tensor, decode_bytes, to_array

CODEC_MSGPACK: Final = b"\x01"
"""First byte of every blob: what follows is the map below."""

# msgspec leaves a default out by identity, and a float computed elsewhere may be equal to it
# without being it. Empty strings, empty bytes and small integers are single objects in CPython.
UNKNOWN_PROPENSITY: Final = 0.0


class MalformedRecord(ValueError):
    """The bytes are no prediction record of a codec that is known here."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Origin:
    """What the records of one choice have in common; whoever makes records keeps it.

    Compared by identity: an encoder keeps the bytes of those that it has seen.
    """

    name: str
    """Public name asked for; names the stream."""
    model: str = ""
    version: str = ""
    artefact: bytes = b""
    """First 8 bytes of the model file's digest; may be empty."""
    revision: int = 0
    """Of the route; 0 without one."""
    variant: str = ""
    """Assigned by the route; empty without one."""
    served: str = ""
    """The variant that answered."""
    propensity: float = UNKNOWN_PROPENSITY
    """Probability of the choice: 1 where nothing was drawn, 0 where it is not known."""
    reason: str = ""
    """Why this variant: see gateway/directory.py; shadow for a shadow's answer."""
    device: str = ""
    is_shadow: bool = False
    """Nobody was given these answers; the records go to a stream apart from the live ones."""


@dataclass(slots=True, eq=False)
class PredictionRecord:
    """What the pipeline knows when it answers; encoded later, off the request path."""

    origin: Origin
    rid: bytes
    """The 16 bytes of a UUIDv7, told to the caller as x-request-id."""
    ts_us: int
    """Arrival, microseconds since the epoch."""
    status: int
    """HTTP status number of the answer, on both protocols."""
    total_us: int = 0
    cid: str = ""
    """The caller's own id."""
    error: str = ""
    """Class of the error answered; empty: none."""
    queue_us: int = 0
    execution: Execution | None = None
    """The batch that it was in."""
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    """Data may be views: whoever holds the record keeps the batch's output alive."""
    parent_rid: bytes = b""
    """Of a shadow's record: the `rid` of the live request that it copies; else empty."""


class Reduced(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is kept of a tensor that is not kept whole; kinds that come later decode as well."""

    kind: str = msgspec.field(name="k")
    kept_bytes: int = msgspec.field(name="n", default=0)
    data: bytes = msgspec.field(name="d", default=b"")


class LoggedTensor(msgspec.Struct, frozen=True, array_like=True):
    """A tensor in a record; `shape` is that of the whole tensor, also where only a part is kept."""

    datatype: str
    shape: tuple[int, ...]
    payload: bytes | Reduced | None = None
    """None: redacted."""

    @property
    def is_whole(self) -> bool:
        """Whether all elements are here."""
        return isinstance(self.payload, bytes)

    @property
    def data(self) -> bytes:
        """The raw bytes that were kept, whole elements from the start."""
        if isinstance(self.payload, Reduced):
            return self.payload.data
        return self.payload or b""

    def array(self) -> Array:
        """Return the elements in their shape, or those kept of a cut tensor as shape (n,).

        BF16 arrays hold uint16 bit patterns, BYTES arrays hold `bytes`.

        Raises:
            MalformedRecord: the bytes contradict datatype and shape.
        """
        try:
            if self.is_whole:
                return to_array(self.datatype, self.shape, self.data)
            if self.datatype == BYTES:
                kept = decode_bytes(self.data)
                return to_array(BYTES, (len(kept),), self.data)
            return np.frombuffer(self.data, DATATYPES[self.datatype].dtype)
        except (ValueError, KeyError) as exc:
            raise MalformedRecord(f"tensor of {self.datatype} {list(self.shape)}: {exc}") from exc


# Field names of LoggedPrediction to the envelope's keys.
KEYS: Final = {
    "schema": "v",
    "ts_us": "ts",
    "name": "n",
    "model": "m",
    "version": "ver",
    "artefact": "art",
    "revision": "rev",
    "variant": "va",
    "served": "vs",
    "propensity": "pp",
    "reason": "rsn",
    "status": "st",
    "error": "err",
    "queue_us": "tq",
    "batch_us": "tb",
    "infer_us": "ti",
    "total_us": "tt",
    "batch_rows": "bs",
    "device": "dev",
    "weight": "w",
    "sampled_as": "sp",
    "inputs": "in",
    "outputs": "out",
    "worker": "wk",
    "parent_rid": "prid",
    "is_shadow": "sh",
}


class LoggedPrediction(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename=KEYS):
    """A record as it stands in the stream. A field at its default is absent from the blob."""

    schema: int
    rid: bytes
    ts_us: int
    name: str
    status: int
    weight: float
    """One over the probability that this request was logged."""
    sampled_as: str
    """Why it was logged: base or error."""
    worker: str
    """One life of one gateway process."""
    seq: int
    """Counts the records of this worker, name and kind (live or shadow) from 1, written or dropped:
    gaps are losses."""
    cid: str = ""
    model: str = ""
    version: str = ""
    artefact: bytes = b""
    revision: int = 0
    variant: str = ""
    served: str = ""
    propensity: float = UNKNOWN_PROPENSITY
    reason: str = ""
    error: str = ""
    queue_us: int = 0
    batch_us: int = 0
    infer_us: int = 0
    total_us: int = 0
    batch_rows: int = 0
    device: str = ""
    inputs: dict[str, LoggedTensor] = {}
    outputs: dict[str, LoggedTensor] = {}
    parent_rid: bytes = b""
    is_shadow: bool = False

    def arrays(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return inputs and outputs by name, each as `LoggedTensor.array` gives it."""
        return (
            {name: tensor.array() for name, tensor in self.inputs.items()},
            {name: tensor.array() for name, tensor in self.outputs.items()},
        )


_decoder: Final = msgspec.msgpack.Decoder(LoggedPrediction)


def nbytes(record: PredictionRecord) -> int:
    """Return the bytes of tensor data that a buffered record holds."""
    total = 0
    for tensor in record.inputs:
        total += len(tensor[3])
    for tensor in record.outputs:
        total += len(tensor[3])
    return total


def decode(blob: bytes) -> LoggedPrediction:
    """Return the record of a blob.

    Raises:
        MalformedRecord: another codec, or not the envelope's shape.
    """
    if blob[:1] != CODEC_MSGPACK:
        raise MalformedRecord(f"unknown codec tag {blob[:1].hex() or '(empty)'}")
    try:
        return _decoder.decode(memoryview(blob)[1:])
    except msgspec.DecodeError as exc:
        raise MalformedRecord(str(exc)) from exc
