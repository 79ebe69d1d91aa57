"""One answered request as the prediction log keeps it, and its bytes.

Knows the envelope (short keys, tensors as raw little-endian bytes) and nothing about Redis, buffers
or time. A blob is one codec tag byte and a msgpack map; keys that a reader does not know are
ignored, keys that are absent have the default below. Adding a key is free; changing the meaning of
one needs a new tag. Read next: buffer.py, writer.py.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from engines.tensors import BYTES, DATATYPES, Array, Raw, Tensor, decode_bytes, to_array

CODEC_MSGPACK: Final = b"\x01"
"""First byte of every blob: what follows is the map below."""
_VERSION: Final = 1
_CUT: Final = "trunc"
_LENGTH: Final = struct.Struct("<I")

# msgspec leaves a default out by identity, and a float computed elsewhere may be equal to it
# without being it. Empty strings, empty bytes and small integers are single objects in CPython.
_UNKNOWN_PROPENSITY: Final = 0.0


class MalformedRecord(ValueError):
    """The bytes are no prediction record of a codec that is known here."""


@dataclass(slots=True, kw_only=True)
class PredictionRecord:
    """What the pipeline knows when it answers; encoded later, off the request path."""

    rid: bytes
    """The 16 bytes of a UUIDv7, told to the caller as x-request-id."""
    name: str
    """Public name asked for; names the stream."""
    ts_us: int
    """Arrival, microseconds since the epoch."""
    status: int
    """HTTP status number of the answer, on both protocols."""
    cid: str = ""
    """The caller's own id."""
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
    propensity: float = _UNKNOWN_PROPENSITY
    """Probability of the choice: 1 where nothing was drawn, 0 where it is not known."""
    reason: str = ""
    """Why this variant: see gateway/directory.py; shadow for a shadow's answer."""
    error: str = ""
    """Class of the error answered; empty: none."""
    queue_us: int = 0
    batch_us: int = 0
    infer_us: int = 0
    total_us: int = 0
    batch_rows: int = 0
    device: str = ""
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    """Data may be views: whoever holds the record keeps the batch's output alive."""
    parent_rid: bytes = b""
    """Of a shadow's record: the `rid` of the live request that it copies; else empty."""
    is_shadow: bool = False
    """Nobody was given this answer; the record goes to a stream apart from the live ones."""


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
_KEYS: Final = {
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


class LoggedPrediction(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename=_KEYS):
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
    propensity: float = _UNKNOWN_PROPENSITY
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


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(LoggedPrediction)


def nbytes(record: PredictionRecord) -> int:
    """Return the bytes of tensor data that a buffered record holds."""
    total = 0
    for tensor in record.inputs:
        total += len(tensor.data)
    for tensor in record.outputs:
        total += len(tensor.data)
    return total


def encode(record: PredictionRecord, *, worker: str, seq: int, capture_max_bytes: int) -> bytes:
    """Return the blob of a record; a tensor over `capture_max_bytes` is cut and flagged."""
    logged = LoggedPrediction(
        schema=_VERSION,
        rid=record.rid,
        ts_us=record.ts_us,
        name=record.name,
        status=record.status,
        weight=1.0,
        sampled_as="error" if record.status >= 400 else "base",
        worker=worker,
        seq=seq,
        cid=record.cid,
        model=record.model,
        version=record.version,
        artefact=record.artefact,
        revision=record.revision,
        variant=record.variant,
        served=record.served,
        propensity=record.propensity or _UNKNOWN_PROPENSITY,
        reason=record.reason,
        error=record.error,
        queue_us=record.queue_us,
        batch_us=record.batch_us,
        infer_us=record.infer_us,
        total_us=record.total_us,
        batch_rows=record.batch_rows,
        device=record.device,
        inputs={t.name: _captured(t, capture_max_bytes) for t in record.inputs},
        outputs={t.name: _captured(t, capture_max_bytes) for t in record.outputs},
        parent_rid=record.parent_rid,
        is_shadow=record.is_shadow,
    )
    return CODEC_MSGPACK + _encoder.encode(logged)


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


def _captured(tensor: Tensor, limit_bytes: int) -> LoggedTensor:
    data = tensor.data
    if len(data) <= limit_bytes:
        whole = data if type(data) is bytes else bytes(data)
        return LoggedTensor(tensor.datatype, tensor.shape, whole)
    kept = bytes(memoryview(data)[: _whole_elements(tensor.datatype, data, limit_bytes)])
    cut = Reduced(kind=_CUT, kept_bytes=len(kept), data=kept)
    return LoggedTensor(tensor.datatype, tensor.shape, cut)


def _whole_elements(datatype: str, data: Raw, limit_bytes: int) -> int:
    """Return the end of the last element that lies wholly within the first `limit_bytes`."""
    if datatype != BYTES:
        return limit_bytes - limit_bytes % DATATYPES[datatype].item_bytes
    end = 0
    while end + _LENGTH.size <= limit_bytes:
        following = end + _LENGTH.size + _LENGTH.unpack_from(data, end)[0]
        if following > limit_bytes:
            break
        end = following
    return end
