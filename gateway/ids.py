"""Request ids: UUIDv7, so that ids sort by time and a reader finds the right partition by id.

The milliseconds and the randomness are arguments of the pure function; `new_id` supplies them.
"""

from __future__ import annotations

import time
from random import Random, SystemRandom
from typing import Final

# Seeded once from the system; per-request randomness needs no secrecy, only spread.
_random: Final = Random(SystemRandom().getrandbits(128))


def uuid7(unix_ms: int, random_bits: int) -> bytes:
    """Return the 16 bytes of a UUIDv7 made of a time and 74 random bits (RFC 9562)."""
    value = (unix_ms & ((1 << 48) - 1)) << 80
    value |= 0x7 << 76 | (random_bits >> 62 & 0xFFF) << 64
    value |= 0b10 << 62 | random_bits & ((1 << 62) - 1)
    return value.to_bytes(16, "big")


def new_id() -> bytes:
    """Return a fresh id."""
    return uuid7(time.time_ns() // 1_000_000, _random.getrandbits(74))


def as_text(request_id: bytes) -> str:
    """Return an id in the usual form with dashes."""
    h = request_id.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"
