"""The headers of a request as one block of bytes, from the front to where they are looked up.

Routing may ask for any header, so all of them travel; most requests ask for one or two, so the
engine process searches the block and never parses it. A block is, per header, a line break, the
lower-case name, NUL and the value, and a line break at its end. Neither character can stand in a
header; a value that holds one nevertheless (decoded binary metadata) is written in base64, after a
mark that no header begins with. The first of repeated headers counts, as everywhere.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Any, Final

from gateway.memo import Memo
from gateway.request import HeaderLookup

_MARK: Final = b"\x01"
_REMEMBERED: Final = 512
"""Owners of headers whose blocks are remembered, twice."""


class HeaderBlock:
    """Looks headers up in a block."""

    __slots__ = ("block",)

    def __init__(self, block: bytes) -> None:
        self.block = block

    def find(self, name: str) -> str | None:
        """Return a header by lower-case name, one character per byte."""
        sought = b"\n%b\0" % name.encode("latin-1", "replace")
        at = self.block.find(sought)
        if at < 0:
            return None
        start = at + len(sought)
        value = self.block[start : self.block.find(b"\n", start)]
        return (value if value[:1] != _MARK else _unmarked(value)).decode("latin-1")


def _unmarked(value: bytes) -> bytes:
    try:
        return base64.b64decode(value[1:], validate=True)
    except binascii.Error:
        return value


def block_of(pairs: Iterable[tuple[bytes | str, bytes | str]]) -> bytes:
    """Return the block of some headers; text is one character per byte."""
    lines = []
    for name, value in pairs:
        key = name.encode("latin-1", "replace") if isinstance(name, str) else name
        data = value.encode("latin-1", "replace") if isinstance(value, str) else value
        if b"\n" in key or b"\0" in key:
            continue
        if b"\n" in data or b"\0" in data or data[:1] == _MARK:
            data = _MARK + base64.b64encode(data)
        lines.append(b"\n%b\0%b" % (key, data))
    if not lines:
        return b""
    lines.append(b"\n")
    return b"".join(lines)


def _quick_block(pairs: list[tuple[bytes, bytes]]) -> bytes:
    """Return what `block_of` returns, for headers as an HTTP parser gives them."""
    block = b"\n%b\n" % b"\n".join([b"\0".join(pair) for pair in pairs]) if pairs else b""
    size = len(pairs)
    is_plain = (
        b"\0\x01" not in block
        and block.count(b"\0") == size
        and block.count(b"\n") == size + (size > 0)
    )
    return block if is_plain else block_of(pairs)


def _are_bytes(pairs: Any) -> bool:  # Any: list of pairs, of text or bytes
    return type(pairs) is list and bool(pairs) and type(pairs[0][0]) is bytes


class HeaderBlocks:
    """Makes the blocks of requests by their lookups.

    A lookup is a bound method, and the object it is bound to has all headers: as `headers` (of one
    request), or as `lines` or `metadata` (HTTP, gRPC: one object may serve many requests that are
    alike, so its block is remembered). A lookup of another kind comes without headers.
    """

    __slots__ = ("_blocks",)

    def __init__(self) -> None:
        # The owner is kept with its block: while it lives, no other object has its id.
        self._blocks: Memo[int, tuple[object, bytes]] = Memo(_REMEMBERED)

    def of(self, lookup: HeaderLookup) -> bytes:
        """Return the block of a request's headers."""
        owner: Any = getattr(lookup, "__self__", None)  # Any: of a transport's own type
        if owner is None:
            return b""
        known = self._blocks.recent.get(id(owner)) or self._blocks.get(id(owner))
        if known is not None:
            return known[1]
        lines = getattr(owner, "lines", None)
        if lines is not None:
            block = _quick_block(lines)
        elif (metadata := getattr(owner, "metadata", None)) is not None:
            block = block_of(metadata)
        else:
            headers: Any = getattr(owner, "headers", ())  # Any: as its owner
            return _quick_block(headers) if _are_bytes(headers) else block_of(headers)
        self._blocks.put(id(owner), (owner, block))
        return block
