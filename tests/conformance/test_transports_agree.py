"""Every call of the corpus comes to the same on both gRPC transports, but for what is listed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Final

import pytest

from tests.conformance import corpus
from tests.conformance.agree import Pair, compare, describe, gateways
from tests.conformance.differences import DIFFERENCES, Difference, listing, reason
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


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    """What calls came to where answers are compressed."""
    folder = tmp_path_factory.mktemp("compressed")
    with gateways(folder, grpc_compression="gzip") as (reference, own):
        return compare(reference.at.grpc, own.at.grpc, corpus.compressed())


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


def test_what_is_listed_differs(pairs: list[Pair], compressed: list[Pair]) -> None:
    """A difference that is no longer there is struck from the list."""
    seen: dict[Difference, list[Pair]] = {listed: [] for listed in DIFFERENCES}
    for pair in pairs + compressed:
        listed = listing(pair.rpc.name)
        if listed is not None:
            seen[listed].append(pair)
    assert [listed.names for listed, found in seen.items() if not found] == []
    equal = [
        pair.rpc.name
        for listed, found in seen.items()
        for pair in found
        if not listed.is_sometimes and not pair.differences()
    ]
    assert equal == []


def test_compressed_answers_are_the_same(compressed: list[Pair]) -> None:
    """Decompressed, that is: which bytes a compressor writes is its own affair."""
    assert unlisted(compressed) == ""


def test_ours_still_serves_and_has_logged_no_error_but_those_of_models(
    both: Gateways, pairs: list[Pair]
) -> None:
    """After all that."""
    _, own = both
    entries = [json.loads(line) for line in own.log.splitlines() if line.startswith("{")]
    errors = {entry["event"] for entry in entries if entry["level"] == "error"}
    assert errors <= {"engine failed", "version unavailable"}
    assert "\nTraceback" not in own.log
