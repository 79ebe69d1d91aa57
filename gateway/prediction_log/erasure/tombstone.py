"""What an erasure leaves in Redis so that every gateway takes part, also one that comes late.

Knows keys and documents; knows no client and no file.

The order of an erasure (eraser.py), each step safe to repeat:
  1. the tombstone, *open*, with the subject's tags; the subject's sealing keys are deleted;
  2. round 1: every gateway that runs destroys in its spool what bears a tag, says in `found_key`
     what that was, and acknowledges; the command does it in the spools of those that do not run;
  3. the command searches the streams and adds what it found there; sealing keys that gateways made
     meanwhile are deleted;
  4. round 2: labels, shadows' answers and whole tensors that bear no tag of their own are destroyed
     by the request ids in `found_key` and the callers' ids in `cids_key`, and files by their names
     in `files_key`;
  5. streams are rebuilt without the records;
  6. the tombstone is *closed*: its tags are deleted, their SHA-256 stays; if nothing is left to be
     done the rest is deleted as well, else the next run opens it again;
  7. Redis rewrites its files; the receipt is written.

An open tombstone covers whatever bears its tags. A closed one is for spools that were out of reach:
a gateway judges by it what it finds in its own spool, before it ships anything, but only records
that came in before the erasure ended, so that a subject who comes back is served as anybody. A
record that comes in while the command runs may go or stay.

A tag is random to whoever lacks the key file, and its SHA-256 leads nowhere without a tag to
compare; after step 6 no tag of the subject stands anywhere in Redis or its files.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

import msgspec

from gateway.prediction_log.streams import StreamKind

TOMBSTONES_KEY: Final = "pl:erasures"
"""Hash: id of an erasure -> its tombstone, as JSON."""
STAMP_KEY: Final = "pl:erasures:stamp"
"""A random text that changes with every change of a tombstone: what gateways look at."""
REPLICAS_KEY: Final = "pl:erasures:replicas"
"""Set of the gateways that may have a spool."""
LOCK_KEY: Final = "pl:erasures:lock"
"""Held by the one erasure that runs."""
SUBJECT_KEYS_KEY: Final = "pl:keys"
"""Hash: "tag:key id", both in hex -> a subject's wrapped sealing key."""
KEPT_S: Final = 400 * 86_400
"""How long a closed tombstone waits for spools that come late."""
ALIVE_S: Final = 15
"""A gateway that has not looked for this long does not run, or has no connection."""
ROUND_KEPT_S: Final = 30 * 86_400
"""How long what belongs to an erasure that was never finished stays."""


def alive_key(replica: str) -> str:
    """Return the key that stands as long as a gateway looks for erasures: its spool's token."""
    return f"pl:erasures:alive:{replica}"


def acks_key(erasure: str, round_number: int) -> str:
    """Return the key of the set of gateways that have done a round."""
    return f"pl:erasures:{erasure}:acks:{round_number}"


def found_key(erasure: str) -> str:
    """Return the key of the set of what was found, and is destroyed: packed `Found`."""
    return f"pl:erasures:{erasure}:found"


def cids_key(erasure: str) -> str:
    """Return the key of the set of callers' ids that no request of others has."""
    return f"pl:erasures:{erasure}:cids"


def files_key(erasure: str) -> str:
    """Return the key of the set of files of tensors that no record of others refers to."""
    return f"pl:erasures:{erasure}:files"


def copies_key(name: str) -> str:
    """Return the key of the set of copies of streams that are being made, or were left behind."""
    return f"pl:{{{name}}}:copies"


def digest(tag: bytes) -> bytes:
    """Return what a closed tombstone knows of a tag."""
    return sha256(tag).digest()


class Tombstone(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One erasure, as everybody knows of it."""

    id: str
    begun_ms: int
    round: int = 1
    """Counts up; a gateway acknowledges each round once."""
    names: list[str] = []
    """Public names whose records go; empty: all."""
    tags: list[bytes] = []
    """Of the subject, while the erasure is open."""
    digests: list[bytes] = []
    """Of the tags."""
    until_ms: int = 0
    """When the last run ended: younger records are not covered. 0: it is open."""
    is_complete: bool = False
    """Nothing was left to be done."""

    @property
    def is_open(self) -> bool:
        """Whether the command runs, or was interrupted."""
        return self.until_ms == 0

    def closed(self, until_ms: int, *, is_complete: bool) -> Tombstone:
        """Return what stays when the command has ended."""
        return msgspec.structs.replace(self, tags=[], until_ms=until_ms, is_complete=is_complete)


class Found(msgspec.Struct, frozen=True, array_like=True):
    """One record that is erased: what the others that belong to it are found by."""

    name: str
    kind: StreamKind
    worker: str
    seq: int
    rid: bytes
    """Of a shadow's record: that of the request which it copies."""
    cid: str = ""
    uris: tuple[str, ...] = ()
    """Files that hold tensors of it."""


_json_encode: Final = msgspec.json.Encoder().encode
_json_decode: Final = msgspec.json.Decoder(Tombstone).decode
_pack: Final = msgspec.msgpack.Encoder().encode
_unpack: Final = msgspec.msgpack.Decoder(Found).decode


def encode(tombstone: Tombstone) -> bytes:
    """Return the JSON of a tombstone."""
    return _json_encode(tombstone)


def decode(text: bytes) -> Tombstone:
    """Read the JSON of a tombstone. Raises msgspec.DecodeError for anything else."""
    return _json_decode(text)


def pack(found: Found) -> bytes:
    """Return a member of the set at `found_key`."""
    return _pack(found)


def unpack(member: bytes) -> Found:
    """Read such a member. Raises msgspec.DecodeError for anything else."""
    return _unpack(member)
