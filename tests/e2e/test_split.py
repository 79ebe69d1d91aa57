"""The split as callers see it: 100,000 random keys over each protocol, through a live gateway.

Keys and salt are fixed, so the outcome is too. The interval is 10 % plus and minus 3.3 standard
deviations of a binomial share of 100,000.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import pytest

from loadtests import grpc_loop, http_loop, payloads
from loadtests.payloads import Signature, TensorShape
from tests.support.gateway import GatewayProcess
from tests.support.models import write_fake

KEYS: Final = 100_000
LOW, HIGH = 0.0969, 0.1031
ASKED_AGAIN: Final = 2_000
"""Of each protocol's keys."""
CONCURRENCY: Final = 64
ROUTE: Final = "split"
VERSION_OF: Final = {"stable": "1", "canary": "2"}
VARIANT_HEADER: Final = "x-sluice-variant"
CONFIG: Final = {
    "routes": {
        ROUTE: {
            "key": ["header:x-user-id"],
            "salt": "a salt that never changes",
            "variants": {
                "stable": {"model": "echo", "version": "1", "weight": 90},
                "canary": {"model": "echo", "version": "2", "weight": 10},
            },
        }
    }
}
ECHO: Final = Signature(
    name=ROUTE,
    inputs=(TensorShape(name="x", datatype="FP32", shape=(-1, 4)),),
    outputs=(TensorShape(name="y", datatype="FP32", shape=(-1, 4)),),
)
ROW: Final = payloads.random_row(ECHO, np.random.default_rng(0))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A live gateway with the route, and no prediction log."""
    folder = tmp_path_factory.mktemp("split")
    for version in VERSION_OF.values():
        write_fake(folder / "models" / "echo" / version / "model.json")
    with GatewayProcess(CONFIG, folder) as running:
        yield running


@pytest.fixture(scope="module")
def over_http(live: GatewayProcess) -> Mapping[str, str]:
    """The variant that each of HTTP's keys got."""
    return ask_http(live, random_keys(seed=1))


@pytest.fixture(scope="module")
def over_grpc(live: GatewayProcess) -> Mapping[str, str]:
    """The variant that each of gRPC's keys got."""
    return ask_grpc(live, random_keys(seed=2))


def random_keys(seed: int) -> list[str]:
    draw = random.Random(seed)
    keys = [f"user-{draw.getrandbits(64):016x}" for _ in range(KEYS)]
    assert len(set(keys)) == KEYS
    return keys


def split_address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def ask_http(live: GatewayProcess, keys: Sequence[str]) -> dict[str, str]:
    """Ask once per key; return the variants, which the headers and the answer must agree on."""
    body, json_bytes = payloads.as_binary(ROW)
    fixed = {payloads.HEADER_LENGTH: str(json_bytes)}
    path = f"/v2/models/{ROUTE}/infer"
    found: dict[str, str] = {}

    def on_answer(key: str, answer: http_loop.Answer) -> None:
        variant = answer.header(VARIANT_HEADER) or ""
        assert answer.status == 200, answer.body
        assert f'"model_version":"{VERSION_OF[variant]}"'.encode() in answer.body
        found[key] = variant

    asyncio.run(
        http_loop.closed_loop(
            split_address(live.at.http),
            ((key, http_loop.post(path, body, fixed | {"x-user-id": key})) for key in keys),
            on_answer,
            connections=CONCURRENCY,
        )
    )
    return found


def ask_grpc(live: GatewayProcess, keys: Sequence[str]) -> dict[str, str]:
    """As `ask_http`, over gRPC."""
    message = payloads.as_grpc(ROUTE, ROW)
    # Field 2 of ModelInferResponse, a string of one character: no need to parse the rest.
    versions = {name: b"\x12\x01" + version.encode() for name, version in VERSION_OF.items()}
    found: dict[str, str] = {}

    def on_answer(key: str, answer: bytes, trailers: Mapping[str, str]) -> None:
        variant = trailers[VARIANT_HEADER]
        assert versions[variant] in answer
        found[key] = variant

    asyncio.run(
        grpc_loop.closed_loop(
            split_address(live.at.grpc),
            ((key, message, (("x-user-id", key),)) for key in keys),
            on_answer,
            concurrency=CONCURRENCY,
        )
    )
    return found


def canary_share(variants: Mapping[str, str]) -> float:
    counts = Counter(variants.values())
    assert counts["stable"] + counts["canary"] == KEYS
    return counts["canary"] / KEYS


def test_a_tenth_of_the_keys_reaches_the_canary_over_http(over_http: Mapping[str, str]) -> None:
    assert LOW <= canary_share(over_http) <= HIGH


def test_a_tenth_of_the_keys_reaches_the_canary_over_grpc(over_grpc: Mapping[str, str]) -> None:
    assert LOW <= canary_share(over_grpc) <= HIGH


def test_a_key_gets_the_same_variant_again_on_either_protocol(
    live: GatewayProcess, over_http: Mapping[str, str], over_grpc: Mapping[str, str]
) -> None:
    first = dict(list(over_http.items())[:ASKED_AGAIN] + list(over_grpc.items())[:ASKED_AGAIN])
    assert set(first.values()) == {"stable", "canary"}
    assert ask_http(live, list(first)) == first
    assert ask_grpc(live, list(first)) == first
