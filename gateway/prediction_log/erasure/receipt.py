"""The receipt of an erasure: what was destroyed, in numbers, signed with the key file's key.

Knows neither the subject nor any request id, so that it can be kept for as long as the proof is
needed. The signature says that whoever had the key file wrote it; `is_genuine` checks it for as
long as that key is in the file.
"""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec

from gateway.prediction_log.privacy.keyring import Keyring

_encode: Final = msgspec.json.Encoder(order="sorted").encode


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What was destroyed, in the runs of the command that this receipt is of."""

    requests: int
    """Of which anything was found, anywhere."""
    records: dict[str, int]
    """In streams, by kind."""
    spooled: int
    """In spools of gateways that do not run, shipped or not: those in streams too are counted
    twice. Gateways that run do not say how many."""
    sealing_keys: int
    files: int
    """Of tensors that were kept beside the records, where the command could reach them."""
    streams_rebuilt: int


class Replicas(msgspec.Struct, frozen=True, kw_only=True):
    """Whose spools were gone through, and by whom."""

    acknowledged: int
    """Running gateways, which did it themselves."""
    done_here: int
    """Spools of gateways that do not run."""
    declared_gone: int
    """Gateways whose disks, as the caller says, do not exist any more."""


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """A Redis that wrote its files anew."""

    append_only_s: float | None
    snapshot_s: float
    replicas: int


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """What is signed."""

    erasure: str
    """The erasure's own random id, under which its tombstone stands."""
    begun: str
    ended: str
    is_complete: bool
    left: list[str]
    """What could not be done, in sentences."""
    names: list[str]
    """Public names; empty: all."""
    counts: Counts
    replicas: Replicas
    servers: list[Server]
    version: int = 1


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """A body, its SHA-256, and the signature by one key of the key file."""

    body: Body
    sha256: str
    key: int
    """Number of the key."""
    signature: str


def time_text(ms: int) -> str:
    """Return a time as ISO 8601 in UTC."""
    return datetime.fromtimestamp(ms / 1e3, UTC).isoformat(timespec="milliseconds")


def signed(body: Body, keyring: Keyring) -> Receipt:
    """Return the receipt of a body."""
    document = _encode(body)
    number, signature = keyring.sign(document)
    return Receipt(
        body=body,
        sha256=sha256(document).hexdigest(),
        key=number,
        signature=signature.hex(),
    )


def is_genuine(receipt: Receipt, keyring: Keyring) -> bool:
    """Whether a receipt is as it was signed, by a key that is in the key file."""
    document = _encode(receipt.body)
    try:
        signature = bytes.fromhex(receipt.signature)
    except ValueError:
        return False
    if sha256(document).hexdigest() != receipt.sha256:
        return False
    return keyring.verify(document, receipt.key, signature)


def to_json(receipt: Receipt) -> bytes:
    """Return the file's content."""
    return msgspec.json.format(_encode(receipt), indent=2) + b"\n"


def load(path: Path) -> Receipt:
    """Read a receipt's file. Raises OSError or msgspec.DecodeError."""
    return msgspec.json.decode(path.read_bytes(), type=Receipt)
