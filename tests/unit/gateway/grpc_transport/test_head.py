"""What a header list means for gRPC."""

from __future__ import annotations

import pytest

from gateway.grpc_transport.head import MAX_TIMEOUT_NS, CallHead, HeadReader
from tests.support.grpc_transport import ECHO

FIELDS = {
    b":method": b"POST",
    b":scheme": b"http",
    b":path": b"/t.S/Echo",
    b":authority": b"x",
    b"te": b"trailers",
    b"content-type": b"application/grpc",
}


def read(
    changed: dict[bytes, bytes | None] | None = None,
    *extra: tuple[bytes, bytes],
    compression: str = "none",
) -> CallHead:
    fields = {**FIELDS, **(changed or {})}
    present = [(name, value) for name, value in fields.items() if value is not None]
    return HeadReader(ECHO, 1_000, compression).read([*present, *extra])


def test_a_plain_call_needs_no_more_than_its_message() -> None:
    head = read()
    assert (head.path, head.is_streaming, head.is_eager) == (b"/t.S/Echo", False, False)
    assert head.start is ECHO["/t.S/Echo"].start
    assert (head.timeout_ns, head.refusal, head.metadata) == (None, None, ())


def test_a_streaming_call_begins_with_its_head() -> None:
    head = read({b":path": b"/t.S/Stream"})
    assert head.is_streaming
    assert head.is_eager


@pytest.mark.parametrize(
    ("value", "timeout_ns"),
    [
        (b"5S", 5_000_000_000),
        (b"2H", 7_200_000_000_000),
        (b"3M", 180_000_000_000),
        (b"250m", 250_000_000),
        (b"1u", 1_000),
        (b"7n", 7),
        (b"5 S", 5_000_000_000),
        (b"123456789S", 123_456_789_000_000_000),
        (b"9" * 40 + b"H", MAX_TIMEOUT_NS),
    ],
)
def test_a_timeout_is_read(value: bytes, timeout_ns: int) -> None:
    assert read({b"grpc-timeout": value}).timeout_ns == timeout_ns


UNPARSABLE = "Error parsing '{}' metadata"
REFUSALS = [
    *[
        ({b"grpc-timeout": value}, 13, UNPARSABLE.format("grpc-timeout"))
        for value in (b"", b"5", b"S", b"5s", b"-1S", b"+1S", b"1.5S", b"5SS", b"abc", b"\xb2S")
    ],
    *[
        ({b"grpc-encoding": value}, 13, UNPARSABLE.format("grpc-encoding"))
        for value in (b"", b"GZIP", b"snappy", b"gzip, deflate")
    ],
    ({b":scheme": b"ftp"}, 13, UNPARSABLE.format(":scheme")),
    ({b"x-bin": b"a!"}, 13, UNPARSABLE.format("x-bin") + ": illegal base64 encoding"),
    *[
        ({b":path": path}, 12, "Method not found!")
        for path in (b"*", b"/", b"/t.S/Nope", b"/t.S/Echo/", b"/t.S/Echo?x=1", b"\xff")
    ],
    ({b"grpc-timeout": b"0n"}, 4, "Deadline Exceeded"),
]


@pytest.mark.parametrize(("changed", "code", "text"), REFUSALS)
def test_a_head_that_is_wrong_is_refused_as_grpcio_does(
    changed: dict[bytes, bytes | None], code: int, text: str
) -> None:
    head = read(changed)
    assert head.refusal == (code, text)
    assert head.is_eager


@pytest.mark.parametrize("method", [b"GET", b"PUT", b"post"])
def test_another_method_than_post_is_not_allowed(method: bytes) -> None:
    head = read({b":method": method})
    assert head.http_refusal is not None
    assert b"405" in head.http_refusal


@pytest.mark.parametrize("content_type", [b"application/json", b"", None])
def test_another_content_type_is_unsupported(content_type: bytes | None) -> None:
    head = read({b"content-type": content_type})
    assert head.http_refusal is not None
    assert b"415" in head.http_refusal


@pytest.mark.parametrize("content_type", [b"application/grpc+proto", b"application/grpc;x=y"])
def test_variants_of_the_content_type_are_taken(content_type: bytes) -> None:
    assert read({b"content-type": content_type}).http_refusal is None


def test_metadata_are_what_the_client_has_added_in_order() -> None:
    head = read(
        {b"grpc-timeout": b"1S", b"user-agent": b"me"},
        (b"x-a", b"1"),
        (b"x-bin", b"aGk,aG8="),
        (b"x-a", b"\xe4"),
        (b"grpc-trace-bin", b"AAAA"),
    )
    expected = (
        ("user-agent", "me"),
        ("x-a", "1"),
        ("x-bin", b"hi"),
        ("x-bin", b"ho"),
        ("x-a", "\xe4"),
    )
    assert head.metadata == expected
    assert head.metadata is head.metadata, "decoded once"
    assert (head.header("x-a"), head.header("x-bin")) == ("1", "hi")
    assert head.header("grpc-timeout") is None


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [(b"identity, deflate, gzip", "gzip"), (b"gzip", "gzip"), (b"deflate", ""), (None, "")],
)
def test_answers_are_compressed_if_the_client_takes_that(
    accepted: bytes | None, coding: str
) -> None:
    head = read({b"grpc-accept-encoding": accepted}, compression="gzip")
    assert head.coding == coding
    assert (b"grpc-encoding" in head.response_head) is bool(coding)


def test_a_malformed_list_has_no_meaning() -> None:
    head = read({b":path": None})
    assert head.is_malformed
    assert head.is_eager
