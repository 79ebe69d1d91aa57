"""HPACK (RFC 7541): decodes the header blocks of a peer, and encodes ours without any state.

Knows bytes and the two tables; no frame, no stream, and not which header fields are legal.

Rules:
  * Blocks are decoded in the order of arrival, each to its end, because every one may change
    the table that the next one refers to. So a header list over the limit is refused after it was
    read (HeaderListTooLarge: the connection goes on), while any other HpackError leaves a table
    that nobody can trust (the connection has to end).
  * A block gives a list of references: to the entries of the table and to slices of the block. It
    holds at most a pointer for each byte of the block, however large the list that it describes is.
  * What we send is literal fields without indexing and without Huffman: bytes that can be prepared
    once and sent on every connection.

Theory of operation: one list holds both tables, the static one in front, at the indices of the
format; the newest dynamic entry is inserted behind the static ones, the oldest popped from the end.
Reading beyond the list or the block is an IndexError, turned into the HpackError in one place
instead of being looked for at every byte; what a slice would not notice is checked. The size of the
list is summed only where an upper bound of it is over the limit: as if each field were the largest
entry ever seen, plus twice the block for literals (a Huffman string grows by 8/5 at most).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Final

from gateway.http2.huffman import HuffmanError
from gateway.http2.huffman import decode as decode_huffman
from gateway.http2.static_table import STATIC_TABLE

Field = tuple[bytes, bytes]
"""Name and value."""

INITIAL_TABLE_BYTES: Final = 4_096
"""What a peer may use before it has seen our settings."""
ENTRY_BYTES: Final = 32
"""What each field counts on top of its name and value."""

_LARGEST_STATIC_BYTES: Final = max(len(n) + len(v) + ENTRY_BYTES for n, v in STATIC_TABLE)
_NO_FIELD: Final[Field] = (b"", b"")
_NEWEST: Final = len(STATIC_TABLE) + 1
_MAX_INTEGER_SHIFT: Final = 28


class HpackError(ValueError):
    """The block is no HPACK, or is over a limit."""


class HeaderListTooLarge(HpackError):
    """The header list is over the limit; the table is as it should be."""


class Decoder:
    """Decodes the header blocks of one connection, in order.

    Args:
        max_list_bytes: largest header list, counted as RFC 9113 does for its setting.
        max_table_bytes: the setting that we announce; at least INITIAL_TABLE_BYTES.
    """

    __slots__ = (
        "_dynamic_bytes",
        "_largest_bytes",
        "_max_list_bytes",
        "_max_table_bytes",
        "_table",
        "_table_bytes",
        "generation",
    )

    def __init__(self, max_list_bytes: int, max_table_bytes: int = INITIAL_TABLE_BYTES) -> None:
        if max_table_bytes < INITIAL_TABLE_BYTES:
            raise ValueError(f"max_table_bytes must be at least {INITIAL_TABLE_BYTES}")
        self._max_list_bytes = max_list_bytes
        self._max_table_bytes = max_table_bytes
        self._table: list[Field] = [_NO_FIELD, *STATIC_TABLE]
        self._table_bytes = INITIAL_TABLE_BYTES
        """Limit that the peer has chosen."""
        self._dynamic_bytes = 0
        """Size of the dynamic entries."""
        self._largest_bytes = _LARGEST_STATIC_BYTES
        """Largest entry that there ever was."""
        self.generation = 0
        """Grows with every block that inserts into the table or resizes it."""

    def decode(self, block: bytes) -> list[Field]:
        """Return the fields of a complete header block.

        Raises:
            HeaderListTooLarge: the block was decoded, but its list is over the limit.
            HpackError: anything else; this decoder must not be used again.
        """
        fields: list[Field] = []
        try:
            self._decode(block, fields)
        except IndexError:
            raise HpackError("a header block ends early or refers to no entry") from None
        except HuffmanError as error:
            raise HpackError(str(error)) from None
        if (
            len(fields) * self._largest_bytes + 2 * len(block) > self._max_list_bytes
            and _list_bytes(fields) > self._max_list_bytes
        ):
            raise HeaderListTooLarge(
                f"the header list is larger than the limit of {self._max_list_bytes} bytes"
            )
        return fields

    def _decode(self, block: bytes, fields: list[Field]) -> None:
        table = self._table
        at = 0
        end = len(block)
        while at < end:
            first = block[at]
            at += 1
            if first >= 0x80:
                index = first & 0x7F
                if index == 0x7F:
                    index, at = _integer(block, at, 0x7F)
                elif not index:
                    raise HpackError("a header block refers to entry 0")
                fields.append(table[index])
            elif first >= 0x40:
                field, at = self._literal(block, at, first & 0x3F, 0x3F)
                fields.append(field)
                self._insert(field)
            elif first < 0x20:
                field, at = self._literal(block, at, first & 0x0F, 0x0F)
                fields.append(field)
            else:
                if fields:
                    raise HpackError("a table size update follows a field")
                at = self._resize(block, at, first & 0x1F)

    def _literal(self, block: bytes, at: int, index: int, prefix: int) -> tuple[Field, int]:
        """Return a literal field whose first byte was read, and the place after it."""
        if not index:
            name, at = _string(block, at)
        else:
            if index == prefix:
                index, at = _integer(block, at, prefix)
            name = self._table[index][0]
        value, at = _string(block, at)
        return (name, value), at

    def _insert(self, field: Field) -> None:
        """Make a field the newest entry; too large a one only empties the table."""
        self.generation += 1
        entry_bytes = len(field[0]) + len(field[1]) + ENTRY_BYTES
        if entry_bytes > self._largest_bytes:
            self._largest_bytes = entry_bytes
        self._table.insert(_NEWEST, field)
        self._dynamic_bytes += entry_bytes
        if self._dynamic_bytes > self._table_bytes:
            self._evict()

    def _evict(self) -> None:
        """Remove the oldest entries until the others fit."""
        while self._dynamic_bytes > self._table_bytes:
            name, value = self._table.pop()
            self._dynamic_bytes -= len(name) + len(value) + ENTRY_BYTES

    def _resize(self, block: bytes, at: int, table_bytes: int) -> int:
        """Apply a table size update whose first byte was read; return the place after it."""
        if table_bytes == 0x1F:
            table_bytes, at = _integer(block, at, 0x1F)
        if table_bytes > self._max_table_bytes:
            raise HpackError(f"a table size update is over {self._max_table_bytes} bytes")
        self.generation += 1
        self._table_bytes = table_bytes
        self._evict()
        return at


def _list_bytes(fields: list[Field]) -> int:
    """Return the size of a header list as RFC 9113 counts it."""
    return sum(map(len, chain.from_iterable(fields))) + ENTRY_BYTES * len(fields)


def _integer(block: bytes, at: int, prefix: int) -> tuple[int, int]:
    """Return an integer whose prefix is full, and the place after it; five more bytes at most."""
    value = prefix
    shift = 0
    while True:
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > _MAX_INTEGER_SHIFT:
            raise HpackError("an integer in a header block is too long")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    """Return a string literal and the place after it."""
    first = block[at]
    at += 1
    length = first & 0x7F
    if length == 0x7F:
        length, at = _integer(block, at, 0x7F)
    end = at + length
    if end > len(block):
        raise HpackError("a string reaches beyond its header block")
    if first < 0x80:
        return block[at:end], end
    return decode_huffman(block[at:end]), end


def literal(name: bytes, value: bytes) -> bytes:
    """Return a field as a literal without indexing and without Huffman."""
    if len(name) < 0x7F and len(value) < 0x7F:
        return b"\x00%c%b%c%b" % (len(name), name, len(value), value)
    return b"\x00%b%b%b%b" % (_length(name), name, _length(value), value)


def literals(fields: Iterable[Field]) -> bytes:
    """Return a header block, or a part of one, of literal fields."""
    return b"".join([literal(name, value) for name, value in fields])


def _length(string: bytes) -> bytes:
    """Return the length of a plain string as the integer in front of it."""
    rest = len(string) - 0x7F
    if rest < 0:
        return bytes((len(string),))
    encoded = bytearray(b"\x7f")
    while rest >= 0x80:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)
