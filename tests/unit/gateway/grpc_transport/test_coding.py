"""Compression of messages."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest

from gateway.grpc_transport.coding import TOLD_BYTES, MessageRefused, deflate, inflate

TEXT = b"all work and no play " * 20
COMPRESSED = {b"gzip": gzip.compress(TEXT), b"deflate": zlib.compress(TEXT)}


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate"])
def test_a_compressed_message_is_inflated(encoding: bytes) -> None:
    assert inflate(COMPRESSED[encoding], encoding, len(TEXT)) == TEXT


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_an_answer_is_compressed_where_that_helps(coding: str) -> None:
    data = deflate(TEXT, coding)
    assert data is not None
    assert len(data) < len(TEXT)
    assert inflate(data, coding.encode(), len(TEXT)) == TEXT
    assert deflate(b"short", coding) is None
    assert deflate(bytes(range(256)), coding) is None


def test_no_bytes_are_an_empty_message() -> None:
    assert inflate(b"", b"gzip", 10) == b""


GZIPPED = gzip.compress(TEXT)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"no gzip at all", "zlib error"),
        (GZIPPED[:-8] + b"\0" * 8, "zlib error"),
        (GZIPPED[:-3], "data error"),
        (GZIPPED[:15], "data error"),
        (GZIPPED + b"x", "not all input consumed"),
        (GZIPPED + GZIPPED, "not all input consumed"),
    ],
)
def test_broken_data_are_refused_with_their_reason(data: bytes, why: str) -> None:
    with pytest.raises(MessageRefused) as refused:
        inflate(data, b"gzip", 1_000)
    assert (refused.value.code, refused.value.text) == (13, f"Decompression failed due to {why}")


def test_a_flag_without_an_encoding_is_refused() -> None:
    with pytest.raises(MessageRefused, match="Compression bit set but no encoding configured"):
        inflate(GZIPPED, b"identity", 1_000)


def test_a_message_a_little_too_large_is_told_its_size() -> None:
    with pytest.raises(MessageRefused) as refused:
        inflate(GZIPPED, b"gzip", len(TEXT) - 1)
    assert refused.value.code == 8
    assert f"larger than max ({len(TEXT)} vs. {len(TEXT) - 1})" in refused.value.text


def test_a_bomb_is_inflated_no_further_than_the_limit() -> None:
    bomb = gzip.compress(b"\0" * (64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(MessageRefused, match="Decompressed message larger than max"):
            inflate(bomb, b"gzip", 1_000_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000
    assert TOLD_BYTES < 1_000_000
