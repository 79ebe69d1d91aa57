"""The key space of a route: one million slots, and the hash that puts a key into one.

    h    = first 8 bytes, big-endian, of SHA-256( utf8(salt) || 0x00 || key )
    slot = (h * 1_000_000) >> 64

SHA-256 because every standard library and SQL engine has it: a data team can recompute who saw
what. The high word of the product has no modulo bias. Keys are taken byte for byte as received: no
trimming, no case folding, no Unicode normalisation. Who owns which slots: slot_map.py.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

SLOTS: Final = 1_000_000


class KeySpace:
    """Slots of keys under one salt."""

    __slots__ = ("_salted",)

    def __init__(self, salt: str) -> None:
        self._salted = sha256(salt.encode() + b"\0")

    def hash(self, key: bytes) -> int:
        """Return the hash of a key, 0 to 2**64 - 1."""
        digest = self._salted.copy()  # hashing the salt once saves half the cost of a key
        digest.update(key)
        return int.from_bytes(digest.digest()[:8], "big")

    def slot(self, key: bytes) -> int:
        """Return the slot of a key, 0 to 999_999."""
        digest = self._salted.copy()
        digest.update(key)
        return (int.from_bytes(digest.digest()[:8], "big") * SLOTS) >> 64
