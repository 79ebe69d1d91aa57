"""Every call of the corpus comes to the same on both gRPC transports, but for what is listed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.conformance import corpus
from tests.conformance.agree import Pair, compare, describe, gateways
from tests.conformance.differences import DIFFERENCES, reason
from tests.support.gateway import GatewayProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

_LEAST: Final = 300

Gateways = Sequence[GatewayProcess]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateways]:
    """The reference, and ours."""
    with gateways(tmp_path_factory.mktemp("agree")) as started:
        yield started


@pytest.fixture(scope="module")
def pairs(both: Gateways) -> list[Pair]:
    """What the corpus came to."""
    reference, own = both
    return compare(reference.at.grpc, own.at.grpc, corpus.rpcs())


def unlisted(pairs: Sequence[Pair]) -> str:
    return "\n".join(
        describe(pair)
        for pair in pairs
        if pair.differences() and reason(pair.rpc.name, pair.differences()) is None
    )


def test_the_corpus_is_large() -> None:
    assert len(corpus.rpcs()) >= _LEAST


def test_calls_come_to_the_same(pairs: list[Pair]) -> None:
    assert unlisted(pairs) == ""


def test_what_is_listed_differs(pairs: list[Pair]) -> None:
    """A difference that is no longer there is struck from the list."""
    for listed in DIFFERENCES:
        matching = [pair for pair in pairs if listed.covers(pair.rpc.name)]
        assert matching, f"{listed.names} names no call"
        if not listed.is_sometimes:
            assert all(pair.differences() for pair in matching), listed.names


def test_compressed_answers_are_the_same(tmp_path: Path) -> None:
    """Decompressed, that is: which bytes a compressor writes is its own affair."""
    with gateways(tmp_path, grpc_compression="gzip") as (reference, own):
        assert unlisted(compare(reference.at.grpc, own.at.grpc, corpus.compressed())) == ""


def test_both_still_serve_and_have_logged_no_error_of_ours(both: Gateways) -> None:
    """After all that."""
    _, own = both
    assert own.events("request failed") == []
    assert "Traceback" not in own.log.replace("engine failed", ""), own.log[-3_000:]
