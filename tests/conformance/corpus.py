"""The corpus: every RPC that both gRPC transports must answer alike.

Against the repository of tests/support/served.py. The parts are in corpus_*.py, by what is
particular about their calls.
"""

from __future__ import annotations

from typing import Final

from tests.conformance import corpus_calls, corpus_framing, corpus_heads, corpus_streams
from tests.conformance.rpc import Rpc

PARTS: Final = (
    corpus_calls.rpcs,
    corpus_heads.rpcs,
    corpus_framing.rpcs,
    corpus_streams.rpcs,
)


def rpcs() -> list[Rpc]:
    """Return all; names are distinct."""
    found = [rpc for part in PARTS for rpc in part()]
    assert len({rpc.name for rpc in found}) == len(found)
    return found


def compressed() -> list[Rpc]:
    """Return those for a gateway that compresses its answers."""
    found: list[Rpc] = []
    for accepted in (
        "gzip",
        "deflate",
        "identity",
        "gzip, deflate",
        "identity,deflate,gzip",
        "br",
        "",
    ):
        found += corpus_framing.accepting(accepted)
    return found
