"""HPACK: on any bytes our decoder and the `hpack` library's say the same, block after block."""

from __future__ import annotations

from random import Random
from typing import Final

import hpack as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http2.hpack import ENTRY_BYTES, Decoder, HeaderListTooLarge, HpackError, literals
from gateway.http2.static_table import STATIC_TABLE
from tests.fuzz.hpack_cases import UNLIMITED, compare, connection

NAMES: Final = st.sampled_from([name for name, _ in STATIC_TABLE]) | st.binary(max_size=12)
VALUES: Final = (
    st.sampled_from([value for _, value in STATIC_TABLE])
    | st.binary(max_size=40)
    | st.text("0123456789abcdef-", max_size=60).map(str.encode)
    | st.integers(100, 5_000).map(lambda length: b"v" * length)
)
FIELDS: Final = st.lists(st.tuples(NAMES, VALUES, st.booleans()), max_size=10)
SIZES: Final = st.none() | st.integers(0, 4_096)
CONNECTIONS: Final = st.lists(st.tuples(FIELDS, st.booleans(), SIZES), max_size=8)


def encoded(blocks: list[tuple[list[tuple[bytes, bytes, bool]], bool, int | None]]) -> list[bytes]:
    """Return the blocks as the library's encoder makes them, one after the other."""
    encoder = reference.Encoder()
    made = []
    for fields, is_huffman, table_bytes in blocks:
        if table_bytes is not None:
            encoder.header_table_size = table_bytes
        made.append(encoder.encode(fields, huffman=is_huffman))
    return made


@settings(max_examples=200)
@given(CONNECTIONS)
def test_what_an_encoder_made_comes_back_field_by_field(
    blocks: list[tuple[list[tuple[bytes, bytes, bool]], bool, int | None]],
) -> None:
    subject = Decoder(UNLIMITED)
    for block, (fields, _, _) in zip(encoded(blocks), blocks, strict=True):
        assert subject.decode(block) == [(name, value) for name, value, _ in fields]


@settings(max_examples=200)
@given(CONNECTIONS, st.data())
def test_a_changed_byte_is_taken_or_refused_as_the_library_does(
    blocks: list[tuple[list[tuple[bytes, bytes, bool]], bool, int | None]], data: st.DataObject
) -> None:
    made = [bytearray(block) for block in encoded(blocks)]
    for block in made:
        if block and data.draw(st.booleans()):
            block[data.draw(st.integers(0, len(block) - 1))] = data.draw(st.integers(0, 255))
    compare([bytes(block) for block in made])


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=60), max_size=4))
def test_any_bytes_are_taken_or_refused_as_the_library_does(blocks: list[bytes]) -> None:
    compare(blocks)


@settings(max_examples=300)
@given(st.integers(0, (1 << 64) - 1), st.sampled_from((4_096, 8_192)))
def test_the_cases_of_the_long_run_hold(seed: int, max_table_bytes: int) -> None:
    compare(connection(Random(seed)), max_table_bytes)


@settings(max_examples=200)
@given(CONNECTIONS, st.integers(0, 4_000))
def test_the_limit_of_the_list_is_exact_and_never_disturbs_the_table(
    blocks: list[tuple[list[tuple[bytes, bytes, bool]], bool, int | None]], max_list_bytes: int
) -> None:
    subject = Decoder(max_list_bytes)
    for block, (fields, _, _) in zip(encoded(blocks), blocks, strict=True):
        size = sum(len(name) + len(value) + ENTRY_BYTES for name, value, _ in fields)
        try:
            assert subject.decode(block) == [(name, value) for name, value, _ in fields]
            assert size <= max_list_bytes
        except HeaderListTooLarge:
            assert size > max_list_bytes


@settings(max_examples=200)
@given(st.lists(st.tuples(NAMES, VALUES), max_size=10))
def test_our_literals_are_read_by_both_and_touch_no_table(
    fields: list[tuple[bytes, bytes]],
) -> None:
    block = literals(fields)
    theirs = reference.Decoder(UNLIMITED)
    subject = Decoder(UNLIMITED)
    assert [(f[0], f[1]) for f in theirs.decode(block, raw=True)] == fields
    assert subject.decode(block) == fields
    assert subject.generation == 0
    assert not theirs.header_table.dynamic_entries


@settings(max_examples=200)
@given(st.binary(max_size=200), st.integers(0, 300))
def test_any_bytes_give_fields_or_an_hpack_error(block: bytes, max_list_bytes: int) -> None:
    try:
        fields = Decoder(max_list_bytes).decode(block)
    except HpackError:
        return
    assert sum(len(name) + len(value) + ENTRY_BYTES for name, value in fields) <= max_list_bytes
