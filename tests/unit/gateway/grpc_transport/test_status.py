"""Statuses and metadata as header fields."""

from __future__ import annotations

from urllib.parse import unquote

import hpack
import pytest

from gateway.grpc_transport import status
from gateway.grpc_transport.status import decode_binary, encode_metadata, percent_encoded


def decoded(block: bytes) -> list[tuple[str, str]]:
    return [(str(name), str(value)) for name, value in hpack.Decoder().decode(block)]


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("", b""),
        ("plain words, (punctuation) & ~", b"plain words, (punctuation) & ~"),
        ("100 %", b"100 %25"),
        ("a\nb\x00", b"a%0Ab%00"),
        ("käse", b"k%C3%A4se"),
        ("\u2028", b"%E2%80%A8"),
        ("\ud800", b"?"),
    ],
)
def test_a_message_is_percent_encoded_where_it_must_be(text: str, encoded: bytes) -> None:
    assert percent_encoded(text) == encoded
    assert unquote(encoded.decode()) == text.encode("utf-8", "replace").decode()


def test_the_constant_blocks_say_what_they_should_and_leave_the_table_alone() -> None:
    decoder = hpack.Decoder()
    before = len(decoder.header_table.dynamic_entries)
    fields = decoder.decode(status.HEAD + status.OK_TRAILERS)
    assert [(str(name), str(value)) for name, value in fields] == [
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("grpc-accept-encoding", "identity, deflate, gzip"),
        ("grpc-status", "0"),
    ]
    assert len(decoder.header_table.dynamic_entries) == before


def test_trailers_have_the_status_the_text_and_the_handlers_fields() -> None:
    extra = encode_metadata([("a", "1")])
    assert decoded(status.trailers(5, "no %", extra)) == [
        ("grpc-status", "5"),
        ("grpc-message", "no %25"),
        ("a", "1"),
    ]
    assert decoded(status.trailers(0, "", extra)) == [("grpc-status", "0"), ("a", "1")]


def test_metadata_are_text_or_base64_without_padding() -> None:
    pairs: list[tuple[str, str | bytes]] = [
        ("a", "1"),
        ("a", "2"),
        ("b-bin", b"\x00\xff\x10"),
        ("c-bin", b"\x00"),
        ("long", "v" * 300),
    ]
    assert decoded(encode_metadata(pairs)) == [
        ("a", "1"),
        ("a", "2"),
        ("b-bin", "AP8Q"),
        ("c-bin", "AA"),
        ("long", "v" * 300),
    ]


@pytest.mark.parametrize(
    "pair",
    [("A", "1"), ("", "1"), (":path", "/"), ("a", "1\n2"), ("a", " 1"), ("a", "ä"), ("ä", "a")],
)
def test_metadata_that_may_not_stand_in_a_field_are_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the codec's own errors are ValueErrors too
        encode_metadata([pair])


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (b"", [b""]),
        (b"aGk=", [b"hi"]),
        (b"aGk", [b"hi"]),
        (b"aGk==", [b"hi"]),
        (b"aGk,aG8=, AAE", [b"hi", b"ho", b"\x00\x01"]),
    ],
)
def test_binary_values_may_be_padded_or_not_and_joined_by_commas(
    value: bytes, parts: list[bytes]
) -> None:
    assert decode_binary(value) == parts


@pytest.mark.parametrize("value", [b"a", b"a!", b"-_-_", b"aG k", b"aGk=x", b"aG=k"])
def test_what_is_no_base64_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_binary(value)
