"""Writes slots.json: vectors of the key-to-slot function, from its definition in exact fractions.

Independent of router/slots.py on purpose: no shift, no shared code. Another language that agrees
with the file agrees with the router. Run: python -m tests.golden.make_slots
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from hashlib import sha256
from math import floor
from pathlib import Path

FILE = Path(__file__).with_name("slots.json")
SALTS = ("exp1", "fraud-7f3a", "", "sälz", "exp1/shadow/v14")


def keys() -> Iterator[bytes]:
    """Yield keys of many kinds: numbered users, text of any script, raw bytes, long ones."""
    yield b""
    for text in (
        "é",
        "e\u0301",
        "User-0",
        "user-0 ",
        " user-0",
        "\U0001f40d",
        "0",
        "用户-1",
        "a\0b",
    ):
        yield text.encode()
    yield from (b"\xff", b"\x00", b"\x00\x00", bytes(range(256)), b"x" * 1_000)
    for n in range(190):
        yield f"user-{n}".encode()


def slot(salt: str, key: bytes) -> int:
    """Return the slot: the digest's first eight bytes as a fraction of one, in millionths."""
    digest = sha256(salt.encode("utf-8") + bytes([0]) + key).hexdigest()
    share = Fraction(int(digest[:16], 16), 2**64)
    return floor(share * 1_000_000)


def document() -> dict[str, object]:
    """Return the file's content."""
    vectors = [[salt, key.hex(), slot(salt, key)] for salt in SALTS for key in keys()]
    return {
        "function": "floor(first 8 bytes, big-endian, of SHA-256(utf8(salt) 00 key) / 2^64 * 10^6)",
        "columns": ["salt", "key in hexadecimal", "slot"],
        "vectors": vectors,
    }


def text() -> str:
    """Return the file as written: one vector per line, so that a change shows."""
    made = document()
    head = {name: made[name] for name in ("function", "columns")}
    vectors = made["vectors"]
    assert isinstance(vectors, list)
    lines = ",\n".join(json.dumps(vector, ensure_ascii=False) for vector in vectors)
    return json.dumps(head, ensure_ascii=False)[:-1] + ', "vectors": [\n' + lines + "\n]}\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
