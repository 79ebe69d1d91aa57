"""One answered request as the prediction log keeps it, and its bytes.

Knows the envelope (short keys, tensors as raw little-endian bytes) and nothing about Redis, files
or time. A blob is one codec tag byte and a msgpack map; keys that a reader does not know are
ignored, keys that are absent have the default below. Adding a key is free; changing the meaning of
one needs a new tag. Three tags: a prediction, an audit (what a worker counted), a label (ground
truth that came back). Read next: encoder.py (record to blob), log.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from engines.executed import Execution
from engines.tensors import BYTES, DATATYPES, Array, Tensor, decode_bytes, to_array

CODEC_MSGPACK: Final = b"\x01"
"""First byte of a blob: what follows is a LoggedPrediction."""
CODEC_AUDIT: Final = b"\x02"
"""First byte of a blob: a LoggedAudit follows."""
CODEC_LABEL: Final = b"\x03"
"""First byte of a blob: a LoggedLabel follows."""
ERASED: Final = b"\x00"
"""First byte of what an erasure left in a segment file: no record."""
SCHEMA: Final = 1
BASE: Final = "base"
ERROR: Final = "error"
SLOW: Final = "slow"

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
    subject: str = ""
    """Whose data it is, as the caller says it; never written, only its tag is. Empty: nobody's."""
    weight: float = 1.0
    """One over the probability that the request is logged; set by the log."""
    sampled_as: str = BASE
    """Why it is logged: base, error or slow; set by the log."""


class Reduced(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is kept of a tensor that is not kept whole; kinds that come later decode as well.

    Kinds: trunc (the first bytes, whole elements), stat, thumb (stat and a small picture), ref
    (stat and a file), seal (encrypted), erased, skipped (there was no room to reduce it) and lost
    (the process ended first).
    """

    kind: str = msgspec.field(name="k")
    kept_bytes: int = msgspec.field(name="n", default=0)
    data: bytes = msgspec.field(name="d", default=b"")
    """trunc: elements; thumb: FP32 elements of `thumb_shape`; seal: nonce and ciphertext."""
    digest: bytes = msgspec.field(name="h", default=b"")
    """BLAKE2b of the whole tensor's bytes, 16 bytes."""
    uri: str = msgspec.field(name="u", default="")
    """ref: where the whole bytes are, relative to the folder of references."""
    key_id: bytes = msgspec.field(name="kid", default=b"")
    """seal: which key of the subject."""
    thumb_shape: tuple[int, ...] = msgspec.field(name="ts", default=())
    statistics: dict[str, float] = msgspec.field(name="st", default={})
    """count, nan, inf, min, max, mean, std of the finite elements; bytes for BYTES tensors:
    count, min, max, mean of their lengths."""
    channels: list[tuple[float, float]] = msgspec.field(name="ch", default=[])
    """Mean and standard deviation per channel of [rows, channels, height, width]."""
    histogram: list[int] = msgspec.field(name="hg", default=[])
    """Counts of 32 equal bins from min to max."""


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
    "subject": "sub",
    "columns": "sch",
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
    """Why it was logged: base, error or slow."""
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
    subject: bytes = b""
    """Tag of the data subject: a key's number and 15 bytes of a keyed hash."""
    columns: bytes = b""
    """Digest of the names of the tensors' columns: field of the hash `schema_key(name)`."""

    def arrays(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return inputs and outputs by name, each as `LoggedTensor.array` gives it."""
        return (
            {name: tensor.array() for name, tensor in self.inputs.items()},
            {name: tensor.array() for name, tensor in self.outputs.items()},
        )


class AuditCounts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The counts of one kind of records of one name, since the worker began.

    answered + recovered = sampled_out + shipped + spooled + sum(dropped)
    """

    answered: int = 0
    """Records offered: answers and errors, or labels, or whole copies for the big stream."""
    recovered: int = 0
    """Found in the spool at start, unshipped, of earlier workers; or forgotten by Redis."""
    sampled_out: int = 0
    shipped: int = 0
    spooled: int = 0
    """Written here and not yet known to stand in Redis."""
    dropped: dict[str, int] = {}
    """By reason."""
    sequence: int = 0
    """The last sequence number given, whether written or dropped."""


AUDIT_KEYS: Final = {
    "schema": "v",
    "worker": "wk",
    "ts_us": "ts",
    "name": "n",
    "trimmed_unread": "tu",
    "spool_bytes": "sb",
    "oldest_unshipped_us": "ou",
    "is_final": "fin",
}


class LoggedAudit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename=AUDIT_KEYS):
    """What one worker has counted of one public name since it began; stands in the live stream."""

    schema: int
    worker: str
    ts_us: int
    name: str
    kinds: dict[str, AuditCounts] = {}
    """By StreamKind: live, shadow, big, labels."""
    trimmed_unread: int = 0
    """Entries that retention removed before every known consumer group had read them."""
    spool_bytes: int = 0
    oldest_unshipped_us: int = 0
    """Age."""
    is_final: bool = False
    """The worker has ended: it gave no numbers after these. Written by itself, or by its successor,
    who found its spool; then the counts are those that the files show."""


LABEL_KEYS: Final = {
    "schema": "v",
    "worker": "wk",
    "ts_us": "ts",
    "received_us": "rts",
    "name": "n",
    "target": "y",
    "source": "src",
    "weight": "w",
    "version": "lv",
    "idempotency_key": "ik",
}


class LoggedLabel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename=LABEL_KEYS):
    """Ground truth for one prediction; of several the highest `version` holds, then the latest."""

    schema: int
    worker: str
    seq: int
    ts_us: int
    """When the truth was known, as its sender says, else when it was received."""
    received_us: int
    name: str
    target: Any  # Any: a JSON value of the sender's: number, text, list or map of them
    rid: bytes = b""
    """Of the prediction; empty: `cid` names it."""
    cid: str = ""
    source: str = ""
    weight: float = 1.0
    version: int = 0
    idempotency_key: str = ""


Logged = LoggedPrediction | LoggedAudit | LoggedLabel
_decoder: Final = msgspec.msgpack.Decoder(LoggedPrediction)
_DECODERS: Final[dict[bytes, msgspec.msgpack.Decoder[Any]]] = {  # Any: one of Logged
    CODEC_MSGPACK: _decoder,
    CODEC_AUDIT: msgspec.msgpack.Decoder(LoggedAudit),
    CODEC_LABEL: msgspec.msgpack.Decoder(LoggedLabel),
}
_TAGS: Final = {LoggedPrediction: CODEC_MSGPACK, LoggedAudit: CODEC_AUDIT, LoggedLabel: CODEC_LABEL}
_encode: Final = msgspec.msgpack.Encoder().encode


def nbytes(record: PredictionRecord) -> int:
    """Return the bytes of tensor data that a buffered record holds."""
    total = 0
    for tensor in record.inputs:
        total += len(tensor[3])
    for tensor in record.outputs:
        total += len(tensor[3])
    return total


def encode_logged(logged: Logged) -> bytes:
    """Return the blob of a document."""
    return _TAGS[type(logged)] + _encode(logged)


def decode_any(blob: bytes) -> Logged:
    """Return what a blob holds.

    Raises:
        MalformedRecord: another codec, or not the shape of its tag.
    """
    decoder = _DECODERS.get(blob[:1])
    if decoder is None:
        raise MalformedRecord(f"unknown codec tag {blob[:1].hex() or '(empty)'}")
    try:
        logged: Logged = decoder.decode(memoryview(blob)[1:])
    except msgspec.DecodeError as exc:
        raise MalformedRecord(str(exc)) from exc
    return logged


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
