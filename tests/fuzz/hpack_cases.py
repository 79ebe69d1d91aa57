"""Header blocks, good and bad, and the comparison of our decoder with the `hpack` library's.

The two decoders are to agree on every byte: accept the same blocks of a connection, as the same
fields, and leave the same table. One difference is by design, and the comparison stays out of its
way: over the limit of the header list the library gives up, and we go on for the table's sake.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

import hpack as reference
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

from gateway.http2.hpack import Decoder, HpackError
from gateway.http2.static_table import STATIC_TABLE

UNLIMITED: Final = 1 << 40
NEWEST_INDEX: Final = len(STATIC_TABLE) + 1
_HUFFMAN: Final = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)
_NAMES: Final = (
    *dict(STATIC_TABLE),
    b"grpc-timeout",
    b"grpc-encoding",
    b"te",
    b"traceparent",
    b"x-request-id",
    b"blob-bin",
)
_VALUES: Final = (
    *(value for _, value in STATIC_TABLE if value),
    b"application/grpc",
    b"trailers",
    b"/inference.GRPCInferenceService/ModelInfer",
    b"1000m",
)


class Disagreement(AssertionError):
    """The two decoders differ."""


def compare(blocks: list[bytes], max_table_bytes: int = 4_096) -> int:
    """Decode the blocks of one connection with both; return how many both accepted."""
    ours = Decoder(UNLIMITED, max_table_bytes)
    theirs = reference.Decoder(UNLIMITED)
    theirs.max_allowed_table_size = max_table_bytes
    for accepted, block in enumerate(blocks):
        generation = ours.generation
        mine = _ours(ours, block)
        if mine != (other := _theirs(theirs, block)):
            raise Disagreement(f"{mine!r} is not {other!r} for {block!r} in {blocks!r}")
        if mine is None:
            return accepted
        if ours.generation == generation and _ours(ours, block) != mine:
            raise Disagreement(f"the table changed and its generation did not: {blocks!r}")
    _compare_tables(ours, theirs, blocks)
    return len(blocks)


def _compare_tables(ours: Decoder, theirs: reference.Decoder, blocks: list[bytes]) -> None:
    entries = list(theirs.header_table.dynamic_entries)
    indices = range(NEWEST_INDEX, NEWEST_INDEX + len(entries))
    if _ours(ours, b"".join([integer(index, 7, 0x80) for index in indices])) != entries:
        raise Disagreement(f"the tables differ after {blocks!r}")
    if _ours(ours, integer(NEWEST_INDEX + len(entries), 7, 0x80)) is not None:
        raise Disagreement(f"our table is longer after {blocks!r}")


def _ours(decoder: Decoder, block: bytes) -> list[tuple[bytes, bytes]] | None:
    try:
        return decoder.decode(block)
    except HpackError:
        return None


def _theirs(decoder: reference.Decoder, block: bytes) -> list[tuple[bytes, bytes]] | None:
    try:
        return [(field[0], field[1]) for field in decoder.decode(block, raw=True)]
    except reference.HPACKError:
        return None


def integer(value: int, prefix_bits: int, flags: int = 0, surplus: int = 0) -> bytes:
    """Return an integer of the format, with surplus bytes that add nothing to it."""
    full = (1 << prefix_bits) - 1
    if value < full:
        return bytes((flags | value,))
    encoded = bytearray((flags | full,))
    value -= full
    while value >= 0x80 or surplus:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
        surplus -= value == 0 and surplus > 0
    encoded.append(value)
    return bytes(encoded)


def string(random: Random, text: bytes) -> bytes:
    """Return a string literal, plain or Huffman, sometimes with a length that is wrong."""
    is_huffman = random.random() < 0.5
    data = _HUFFMAN.encode(text) if is_huffman else text
    if random.random() < 0.02:
        data = random.randbytes(random.randrange(12))
    length = len(data)
    if random.random() < 0.01:
        length = max(0, length + random.choice((-1, 1, 128, 1 << 28)))
    surplus = random.randrange(6) if random.random() < 0.02 else 0
    return integer(length, 7, 0x80 if is_huffman else 0, surplus) + data


def _name(random: Random) -> bytes:
    return random.choice(_NAMES) if random.random() < 0.8 else random.randbytes(random.randrange(9))


def _value(random: Random) -> bytes:
    kind = random.random()
    if kind < 0.5:
        return random.choice(_VALUES)
    if kind < 0.8:
        return b"%x" % random.getrandbits(random.randrange(1, 256))
    if kind < 0.99:
        return random.randbytes(random.randrange(24))
    return random.randbytes(random.choice((126, 127, 128, 255, 300, 4_100)))


def _index(random: Random, entries: int) -> int:
    if random.random() < 0.02:
        return random.choice((0, NEWEST_INDEX + entries, 126, 127, 128, 255, 1 << 20))
    return random.randrange(1, NEWEST_INDEX + max(1, entries))


def instructions(random: Random, entries: int) -> bytes:
    """Return a block made of the format's own instructions: most of them legal, few usual."""
    parts: list[bytes] = []
    if random.random() < 0.1:
        size = random.choice((0, 31, 33, 100, 400, 4_095, 4_096, 4_097, 8_192))
        parts.append(integer(size, 5, 0x20))
    for _ in range(random.randrange(8)):
        prefix_bits, flags = random.choice(((7, 0x80), (6, 0x40), (6, 0x40), (4, 0x00), (4, 0x10)))
        if flags == 0x80:
            parts.append(integer(_index(random, entries), 7, 0x80))
            continue
        if random.random() < 0.5:
            parts.append(integer(_index(random, entries), prefix_bits, flags))
        else:
            parts += (bytes((flags,)), string(random, _name(random)))
        parts.append(string(random, _value(random)))
        entries += flags == 0x40
    if random.random() < 0.01:
        parts.append(b"\x20")
    return b"".join(parts)


def usual(random: Random, encoder: reference.Encoder) -> bytes:
    """Return a block as a peer's encoder makes it."""
    if random.random() < 0.05:
        encoder.header_table_size = random.choice((0, 64, 200, 1_000, 4_096))
    fields = [
        (_name(random), _value(random), random.random() < 0.2) for _ in range(random.randrange(10))
    ]
    return encoder.encode(fields, huffman=random.random() < 0.5)


def mutated(random: Random, block: bytes) -> bytes:
    """Return a block with a byte changed, removed, repeated or put in, or cut short."""
    data = bytearray(block or b"\x00")
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        at = random.randrange(len(data) + 1)
        data[at : at + random.choice((0, 1, 1, 1, 2))] = random.choice(_MUTATIONS)(random)
    return bytes(data[: random.randrange(len(data) + 1)] if random.random() < 0.1 else data)


_MUTATIONS: Final[tuple[Callable[[Random], bytes], ...]] = (
    lambda random: random.randbytes(1),
    lambda random: random.choice((b"\x80", b"\xff", b"\x7f", b"\x00", b"\x20", b"\x3f", b"\xbe")),
    lambda random: b"",
    lambda random: random.randbytes(3),
)


def connection(random: Random) -> list[bytes]:
    """Return the blocks of one connection."""
    encoder = reference.Encoder()
    blocks: list[bytes] = []
    entries = 0
    for _ in range(random.randrange(1, 9)):
        kind = random.random()
        if kind < 0.45:
            block = usual(random, encoder)
        elif kind < 0.9:
            block = instructions(random, entries)
            entries += 2
        else:
            block = random.randbytes(random.randrange(40))
        blocks.append(mutated(random, block) if random.random() < 0.1 else block)
    return blocks
