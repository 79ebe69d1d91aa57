from __future__ import annotations

import pytest

from loadtests import idle_connections
from loadtests.bench.results import StageCost
from loadtests.micro import pipeline


def frame(kind: int, flags: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + b"\0\0\0\0" + payload


def test_an_http2_connection_has_greeted_when_our_settings_are_acknowledged() -> None:
    settings = frame(4, 0, b"\0\3\0\0\0\x64")
    window = frame(8, 0, b"\0\0\4\1")
    assert not idle_connections.has_greeted(settings + window, is_http2=True)
    assert idle_connections.has_greeted(settings + window + frame(4, 1), is_http2=True)


def test_an_http1_connection_has_greeted_with_a_whole_head() -> None:
    assert not idle_connections.has_greeted(b"HTTP/1.1 200 OK\r\n", is_http2=False)
    assert idle_connections.has_greeted(b"HTTP/1.1 200 OK\r\n\r\n", is_http2=False)


def test_a_stage_costs_what_its_absence_saves_round_by_round() -> None:
    found = pipeline.costs(
        {"full": [20.0, 30.0], "log": [16.0, 27.0], "metrics": [19.0, 29.5], "routing": [20.5, 29]}
    )
    assert found == [
        StageCost(stage="full", rounds_us=[20.0, 30.0]),
        StageCost(stage="log", rounds_us=[4.0, 3.0]),
        StageCost(stage="metrics", rounds_us=[1.0, 0.5]),
        StageCost(stage="routing", rounds_us=[-0.5, 1.0]),
    ]
    assert found[1].median_us == pytest.approx(3.5)
