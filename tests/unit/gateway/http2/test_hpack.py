"""HPACK: the examples of RFC 7541, every limit, and what the decoder promises its callers."""

from __future__ import annotations

from typing import Final

import hpack as reference
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

from gateway.http2 import huffman
from gateway.http2.hpack import Decoder, HeaderListTooLarge, HpackError, literal, literals
from gateway.http2.static_table import STATIC_TABLE

LIST_BYTES: Final = 1 << 16
NEWEST: Final = b"\xbe"


def huffman_of(text: bytes) -> bytes:
    """Return the reference's Huffman string."""
    return HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(text)


def inserted(name: bytes, value: bytes) -> bytes:
    """Return a literal that goes into the table; strings shorter than 127 bytes."""
    return b"\x40%c%b%c%b" % (len(name), name, len(value), value)


def decoder(max_list_bytes: int = LIST_BYTES) -> Decoder:
    """Return a fresh decoder."""
    return Decoder(max_list_bytes)


def test_the_static_table_is_the_one_of_the_rfc() -> None:
    assert tuple(reference.table.HeaderTable.STATIC_TABLE) == STATIC_TABLE


def test_every_static_entry_is_at_its_index() -> None:
    block = bytes(0x80 | index for index in range(1, 62))
    assert decoder().decode(block) == list(STATIC_TABLE)


@pytest.mark.parametrize("symbol", range(256))
def test_every_symbol_has_the_code_of_the_rfc(symbol: int) -> None:
    text = bytes((symbol,)) * 9
    assert huffman.decode(huffman_of(text)) == text


RFC_C4: Final = [
    (
        "828684418cf1e3c2e5f23a6ba0ab90f4ff",
        [
            (b":method", b"GET"),
            (b":scheme", b"http"),
            (b":path", b"/"),
            (b":authority", b"www.example.com"),
        ],
    ),
    (
        "828684be5886a8eb10649cbf",
        [
            (b":method", b"GET"),
            (b":scheme", b"http"),
            (b":path", b"/"),
            (b":authority", b"www.example.com"),
            (b"cache-control", b"no-cache"),
        ],
    ),
    (
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        [
            (b":method", b"GET"),
            (b":scheme", b"https"),
            (b":path", b"/index.html"),
            (b":authority", b"www.example.com"),
            (b"custom-key", b"custom-value"),
        ],
    ),
]


def test_the_requests_of_rfc_appendix_c4_decode_on_one_connection() -> None:
    subject = decoder()
    assert [subject.decode(bytes.fromhex(block)) for block, _ in RFC_C4] == [f for _, f in RFC_C4]


@pytest.mark.parametrize(
    ("block", "field"),
    [
        (b"\x40\x0acustom-key\x0dcustom-header", (b"custom-key", b"custom-header")),
        (b"\x04\x0c/sample/path", (b":path", b"/sample/path")),
        (b"\x10\x08password\x06secret", (b"password", b"secret")),
        (b"\x0f\x00\x01x", (b"accept-charset", b"x")),
        (b"\x1f\x2e\x01x", (b"www-authenticate", b"x")),
        (b"\x00\x00\x00", (b"", b"")),
    ],
)
def test_each_kind_of_literal_is_understood(block: bytes, field: tuple[bytes, bytes]) -> None:
    assert decoder().decode(block) == [field]


def test_an_empty_block_is_an_empty_list() -> None:
    assert decoder().decode(b"") == []


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b"\x80", id="index 0"),
        pytest.param(b"\xbe", id="index beyond an empty table"),
        pytest.param(b"\xff\x80\x80\x80\x80\x0f", id="index of 32 bits"),
        pytest.param(b"\x7e\x01x", id="name beyond the table"),
        pytest.param(b"\xff", id="integer without an end"),
        pytest.param(b"\xff\x80", id="integer that goes on without an end"),
        pytest.param(b"\xff\x80\x80\x80\x80\x80\x00", id="integer of six bytes"),
        pytest.param(b"\x00", id="no name"),
        pytest.param(b"\x00\x01", id="name shorter than it says"),
        pytest.param(b"\x00\x01x", id="no value"),
        pytest.param(b"\x00\x01x\x02y", id="value shorter than it says"),
        pytest.param(b"\x00\x7f\xff\xff\xff\xff\x0fx", id="length of 32 bits"),
        pytest.param(b"\x00\x81\x00\x00", id="padding that is not all ones"),
        pytest.param(b"\x00\x82\x07\xff\x00", id="padding of more than 7 bits"),
        pytest.param(b"\x00\x81\xff\x00", id="padding of 8 bits and no symbol"),
        pytest.param(b"\x00\x84\xff\xff\xff\xff\x00", id="end of string"),
        pytest.param(b"\x82\x20", id="size update after a field"),
        pytest.param(b"\x3f\xe2\x1f", id="size update over the maximum"),
        pytest.param(b"\x3f", id="size update without an end"),
    ],
)
def test_a_block_that_breaks_a_rule_is_an_hpack_error(block: bytes) -> None:
    with pytest.raises(HpackError) as caught:
        decoder().decode(block)
    assert not isinstance(caught.value, HeaderListTooLarge)


def test_no_prefix_of_a_block_raises_anything_but_hpack_errors() -> None:
    whole = literals([(b"n" * 200, b"v" * 300)]) + inserted(b"a", b"b") + b"\x82\x0f\x20\x01x"
    assert len(decoder().decode(whole)) == 4
    refused = 0
    for end in range(len(whole)):
        try:
            decoder().decode(whole[:end])
        except HpackError:
            refused += 1
    assert refused == len(whole) - 4


def test_the_newest_entry_comes_first_and_the_oldest_goes_first() -> None:
    subject = decoder()
    names = [b"k%03d" % number for number in range(200)]
    for name in names:
        subject.decode(inserted(name, b"v" * 60))
    kept = 4_096 // (4 + 60 + 32)
    block = bytes(0x80 | 62 + place for place in range(kept))
    assert [name for name, _ in subject.decode(block)] == names[: -kept - 1 : -1]
    with pytest.raises(HpackError):
        subject.decode(bytes((0x80 | 62 + kept,)))


def test_an_entry_larger_than_the_table_empties_it() -> None:
    subject = decoder()
    subject.decode(b"\x20\x3f\x45" + inserted(b"a", b"b"))
    assert subject.decode(NEWEST) == [(b"a", b"b")]
    assert subject.decode(inserted(b"a", b"v" * 99)) == [(b"a", b"v" * 99)]
    with pytest.raises(HpackError):
        subject.decode(NEWEST)


def test_a_name_may_come_from_the_entry_that_its_field_evicts() -> None:
    subject = decoder()
    subject.decode(b"\x3f\x09" + inserted(b"name", b"old"))
    assert subject.decode(b"\x7e\x03new") == [(b"name", b"new")]
    assert subject.decode(NEWEST) == [(b"name", b"new")]
    with pytest.raises(HpackError):
        subject.decode(b"\xbf")


def test_a_size_of_zero_empties_the_table_and_the_next_size_opens_it() -> None:
    subject = decoder()
    subject.decode(inserted(b"a", b"b"))
    assert subject.decode(b"\x20\x3f\xe1\x1f" + inserted(b"c", b"d")) == [(b"c", b"d")]
    with pytest.raises(HpackError):
        subject.decode(b"\xbf")


def test_a_larger_table_is_used_only_after_the_peer_asks_for_it() -> None:
    subject = Decoder(LIST_BYTES, 8_192)
    for number in range(100):
        subject.decode(inserted(b"k%03d" % number, b"v" * 64))
    assert len(subject.decode(b"\xbe" * 40)) == 40
    with pytest.raises(HpackError):
        subject.decode(bytes((0x80 | 62 + 40,)))
    wider = Decoder(LIST_BYTES, 8_192)
    wider.decode(b"\x3f\xe1\x3f")
    for number in range(100):
        wider.decode(inserted(b"k%03d" % number, b"v" * 64))
    assert wider.decode(b"\xff\x0d") == [(b"k%03d" % (99 - (127 + 13 - 62)), b"v" * 64)]


def test_a_table_smaller_than_what_a_peer_may_assume_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 4096"):
        Decoder(LIST_BYTES, 4_095)


def test_a_list_of_exactly_the_limit_is_taken_and_one_byte_more_is_not() -> None:
    size = len(b"name") + len(b"value") + 32
    assert len(decoder(3 * size).decode(literal(b"name", b"value") * 3)) == 3
    with pytest.raises(HeaderListTooLarge):
        decoder(3 * size - 1).decode(literal(b"name", b"value") * 3)


def test_indexed_fields_count_as_much_as_literal_ones() -> None:
    subject = decoder(4_000)
    subject.decode(b"\x40\x01a\x7f\xe9\x06" + b"v" * 1_000)
    assert len(subject.decode(NEWEST * 3)) == 3
    with pytest.raises(HeaderListTooLarge):
        subject.decode(NEWEST * 4)


def test_a_bomb_of_references_holds_no_more_than_its_block() -> None:
    subject = decoder()
    big = b"v" * 4_000
    subject.decode(b"\x40\x01a\x7f\xa1\x1e" + big)
    with pytest.raises(HeaderListTooLarge):
        subject.decode(NEWEST * 100_000)


def test_a_list_that_is_too_large_leaves_the_table_right() -> None:
    subject = decoder(200)
    with pytest.raises(HeaderListTooLarge):
        subject.decode(
            inserted(b"first", b"1") + literal(b"x", b"y" * 500) + inserted(b"last", b"2")
        )
    assert subject.decode(b"\xbe\xbf") == [(b"last", b"2"), (b"first", b"1")]


def test_a_broken_block_is_no_too_large_list_even_if_it_is_also_that() -> None:
    with pytest.raises(HpackError) as caught:
        decoder(100).decode(literal(b"x", b"y" * 500) + b"\x80")
    assert not isinstance(caught.value, HeaderListTooLarge)


@pytest.mark.parametrize(
    ("block", "grows"),
    [
        (inserted(b"a", b"b"), True),
        (b"\x20", True),
        (b"\x82\x86" + NEWEST, False),
        (literal(b"a", b"b"), False),
        (b"\x10\x01a\x01b", False),
    ],
)
def test_the_generation_grows_only_with_changes_of_the_table(block: bytes, grows: bool) -> None:
    subject = decoder()
    subject.decode(inserted(b"k", b"v"))
    before = subject.generation
    subject.decode(block)
    assert (subject.generation > before) is grows


@pytest.mark.parametrize("length", [0, 1, 126, 127, 128, 254, 255, 300, 20_000, 1 << 21])
def test_literals_of_any_length_come_back(length: int) -> None:
    field = (b"n" * (length & 0xFFFF), b"v" * length)
    assert reference.Decoder(1 << 23).decode(literal(*field), raw=True) == [field]
    assert decoder(1 << 23).decode(literal(*field)) == [field]


def test_literals_are_the_fields_one_after_the_other() -> None:
    fields = [(b":status", b"200"), (b"content-type", b"application/grpc")]
    subject = decoder()
    assert subject.decode(literals(iter(fields))) == fields
    assert subject.generation == 0


def test_huffman_strings_are_remembered_within_bounds_and_rightly() -> None:
    texts = [b"text-%d" % number for number in range(3 * huffman.REMEMBERED)]
    encoded = [(huffman_of(text), text) for text in texts]
    for _ in range(2):
        for data, text in encoded:
            assert huffman.decode(data) == text
    assert len(huffman._remembered) <= huffman.REMEMBERED


def test_long_huffman_strings_are_decoded_and_not_kept() -> None:
    text = b"0123456789abcdef" * 64
    data = huffman_of(text)
    assert huffman.decode(data) == text
    assert data not in huffman._remembered


def test_a_broken_huffman_string_is_refused_each_time() -> None:
    for _ in range(2):
        with pytest.raises(huffman.HuffmanError, match="padding"):
            huffman.decode(b"\x00")
        with pytest.raises(huffman.HuffmanError, match="end of string"):
            huffman.decode(b"\xff\xff\xff\xff")
