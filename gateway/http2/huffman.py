"""Decoding of HPACK's Huffman code (RFC 7541, section 5.2 and appendix B). Knows no header.

Theory of operation: the code is canonical, so the lengths of its symbols are all the data there is.
Decoding is an automaton that eats whole bytes. Its state is the bits of a symbol that has begun but
not ended; a step, chosen by state and byte, is the text of the symbols that end in the byte and the
state after it. A step is computed when it is first taken and kept for the process: header text
takes a few hundred of them. There are at most 256 states of 256 steps, some 6 MB, which only bytes
made for it would reach. A state is the list of its steps and nothing else, because indexing a list
is the cheapest lookup there is; which bits it stands for is found by its identity.

What many calls repeat is not decoded again: the last REMEMBERED strings are kept whole.

The two rules that an automaton without an end cannot hold: the bits after the last symbol are at
most seven, and all of them ones.
"""

from __future__ import annotations

from typing import Any, Final

REMEMBERED: Final = 1_024
"""Decoded strings that are kept; beyond that all are forgotten."""
REMEMBERED_BYTES: Final = 64
"""Longer strings are not kept."""

END_OF_STRING: Final = 256
"""The symbol that no string may contain."""

_SYMBOLS_BY_BITS: Final[dict[int, bytes]] = {
    5: b"012aceiost",
    6: b" %-./3456789=A_bdfghlmnpru",
    7: b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: b"&*,;XZ",
    10: b'!"()?',
    11: b"'+|",
    12: b"#>",
    13: b"\x00$@[]~",
    14: b"^}",
    15: b"<`{",
    19: bytes.fromhex("5cc3d0"),
    20: bytes.fromhex("808283a2b8c2e0e2"),
    21: bytes.fromhex("99a1a7acb0b1b3d1d8d9e3e5e6"),
    22: bytes.fromhex("818485868892 9a9ca0a3a4a9aaad b2b5b9babbbdbec4 c6e4e8e9"),
    23: bytes.fromhex("0187898a8b8c8d8f 9395969798 9b9d9ea5a6a8aeaf b4b6b7bcbfc5e7ef"),
    24: bytes.fromhex("098e9091949fabced7e1eced"),
    25: bytes.fromhex("c7cfeaeb"),
    26: bytes.fromhex("c0c1c8c9cacdd2d5dadbeef0f2f3ff"),
    27: bytes.fromhex("cbccd3d4d6dddedff1f4f5f6f7f8fafbfcfdfe"),
    28: bytes.fromhex("020304050607080b 0c0e0f10111213 1415171819 1a1b1c1d1e1f7fdcf9"),
    30: b"\n\r\x16",
}
"""Symbols by the length of their codes, in the order of the codes; END_OF_STRING is last of all."""


class HuffmanError(ValueError):
    """The bytes are not a Huffman string."""


_State = list["tuple[bytes, _State]"]
"""A step for each byte: the text of the symbols that end in it, and the state after it."""
_Bits = tuple[int, int]
"""Bits of a symbol that has begun: how many, and which."""


def _codes() -> dict[_Bits, int]:
    """Return the symbol of each code, by length in bits and value."""
    symbols: dict[_Bits, int] = {}
    code = previous_bits = 0
    for bits, members in _SYMBOLS_BY_BITS.items():
        code <<= bits - previous_bits
        for symbol in members:
            symbols[bits, code] = symbol
            code += 1
        previous_bits = bits
    symbols[previous_bits, code] = END_OF_STRING
    return symbols


_SYMBOLS: Final = _codes()
_UNKNOWN_STEP: Final[Any] = None  # Any: stands in a state for a step; to unpack it is a TypeError
_states: Final[dict[_Bits, _State]] = {}
_bits_of: Final[dict[int, _Bits]] = {}
_remembered: Final[dict[bytes, bytes]] = {}


def _state(bits: _Bits) -> _State:
    """Return the state of some bits; it lives as long as the process, and so does its identity."""
    state = _states.get(bits)
    if state is None:
        state = _states[bits] = [_UNKNOWN_STEP] * 256
        _bits_of[id(state)] = bits
    return state


_START: Final = _state((0, 0))


def decode(data: bytes) -> bytes:
    """Return the text of a Huffman string.

    Raises:
        HuffmanError: it contains the end of string, or does not end in a legal padding.
    """
    text = _remembered.get(data)
    if text is not None:
        return text
    text = _decode(data)
    if len(data) <= REMEMBERED_BYTES:
        if len(_remembered) >= REMEMBERED:
            _remembered.clear()
        _remembered[data] = text
    return text


def _decode(data: bytes) -> bytes:
    parts: list[bytes] = []
    state = _START
    for byte in data:
        try:
            part, state = state[byte]
        except TypeError:
            part, state = _step(state, byte)
        parts.append(part)
    if state is not _START:
        count, code = _bits_of[id(state)]
        if count > 7 or code + 1 != 1 << count:
            raise HuffmanError("a Huffman string has a wrong padding")
    return b"".join(parts)


def _step(state: _State, byte: int) -> tuple[bytes, _State]:
    """Return what follows from a byte in a state, and keep it there."""
    text = bytearray()
    count, code = _bits_of[id(state)]
    for shift in range(7, -1, -1):
        count += 1
        code = code << 1 | byte >> shift & 1
        symbol = _SYMBOLS.get((count, code))
        if symbol is None:
            continue
        if symbol == END_OF_STRING:
            raise HuffmanError("a Huffman string contains the end of string")
        text.append(symbol)
        count = code = 0
    step = state[byte] = bytes(text), _state((count, code))
    return step
