"""Request ids: UUIDv7, so that ids sort by time and a reader finds the right partition by id.

The milliseconds and the randomness are arguments of the pure function; `new_id` supplies them.
"""

from __future__ import annotations

import struct
import time
from random import Random, SystemRandom
from typing import Final

# Seeded once from the system; per-request randomness needs no secrecy, only spread.
_random: Final = Random(SystemRandom().getrandbits(128))
_pack: Final = struct.Struct(">QQ").pack
_MS_MASK: Final = (1 << 48) - 1
_VERSION: Final = 0x7000
_VARIANT: Final = 0b10 << 62
_LOW_BITS: Final = 62
_LOW_MASK: Final = (1 << _LOW_BITS) - 1


def uuid7(unix_ms: int, random_bits: int) -> bytes:
    """Return the 16 bytes of a UUIDv7 made of a time and 74 random bits (RFC 9562)."""
    high = (unix_ms & _MS_MASK) << 16 | _VERSION | random_bits >> _LOW_BITS & 0xFFF
    return _pack(high, _VARIANT | random_bits & _LOW_MASK)


def new_id(unix_ms: int | None = None) -> bytes:
    """Return a fresh id of this moment, or of the moment given."""
    if unix_ms is None:
        unix_ms = time.time_ns() // 1_000_000
    return uuid7(unix_ms, _random.getrandbits(74))


def as_text(request_id: bytes) -> str:
    """Return an id in the usual form with dashes."""
    h = request_id.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"
