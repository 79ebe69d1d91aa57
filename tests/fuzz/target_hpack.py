"""HPACK: blocks of one connection, each behind its length in two bytes, in both decoders."""

from __future__ import annotations

from random import Random
from typing import Final

from tests.fuzz.hpack_cases import compare, connection

WORDS: Final = (b"\x00\x01", b"\xbe", b"\x3f\xe1\x1f", b"\x20", b"\xff\x80\x80", b"\x40\x01a\x01b")


def seeds() -> list[bytes]:
    """Return connections as the long run makes them."""
    random = Random(1)
    return [joined(connection(random)) for _ in range(200)]


def joined(blocks: list[bytes]) -> bytes:
    """Return blocks as one input."""
    return b"".join([len(block).to_bytes(2, "big") + block for block in blocks])


def one(data: bytes) -> None:
    """Compare the decoders on the blocks of an input."""
    blocks = []
    while len(data) >= 2:
        end = 2 + int.from_bytes(data[:2], "big")
        blocks.append(data[2:end])
        data = data[end:]
    compare(blocks)
