from __future__ import annotations

import json

import pytest

from gateway.demo import ask
from gateway.demo.screen import DemoFailed
from tests.support.gateway import GatewayInProcess, free_port

PIXELS = [0] * 64


def test_the_body_is_compact_json_of_one_row() -> None:
    body = ask.request_json(PIXELS)
    assert " " not in body
    (tensor,) = json.loads(body)["inputs"]
    assert (tensor["name"], tensor["shape"], tensor["data"]) == ("image", [1, 64], PIXELS)


def test_where_nobody_listens_the_error_says_so_on_both_protocols() -> None:
    nowhere = ("127.0.0.1", free_port())
    with pytest.raises(DemoFailed, match=r"no answer over HTTP: .*refused"):
        ask.by_http(nowhere, PIXELS, "user-1")
    with pytest.raises(DemoFailed, match="no answer over gRPC: UNAVAILABLE: "):
        ask.by_grpc(nowhere, PIXELS, "user-1")


def test_a_gateway_without_the_model_is_quoted_on_both_protocols(
    gateway: GatewayInProcess,
) -> None:
    http, grpc = (_address(at) for at in (gateway.at.http, gateway.at.grpc))
    with pytest.raises(DemoFailed, match=r"answered HTTP 404: .*digits"):
        ask.by_http(http, PIXELS, "user-1")
    with pytest.raises(DemoFailed, match=r"no answer over gRPC: NOT_FOUND: .*digits"):
        ask.by_grpc(grpc, PIXELS, "user-1")


def _address(at: str) -> tuple[str, int]:
    host, _, port = at.rpartition(":")
    return host, int(port)
