"""What only HTTP has: broken JSON, nested data, limits of bodies, methods, clients that go away."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final

import httpx
import pytest

from tests.support.gateway import GatewayInProcess, wait_until
from tests.support.http import (
    ECHO,
    body,
    connect,
    converse,
    post,
    receive,
    tensor,
)
from tests.support.served import LIMIT_BYTES
from tests.support.transports import Outcome

MANY_DIGITS: Final = pytest.param("9" * 5_000, id="many digits")
"""More than Python turns into a number without being told to."""
MALFORMED: Final[Mapping[str, tuple[bytes, str]]] = {
    "nothing": (b"", "request body: Input data was truncated"),
    "no JSON": (b"{inputs}", "request body: JSON is malformed: "),
    "cut off": (body(tensor())[:-4], "request body: Input data was truncated"),
    "more than one value": (body(tensor()) + b"{}", "request body: JSON is malformed: "),
    "no object": (b"[]", "request body: Expected `object`, got `array`"),
    "no inputs": (b"{}", "request body: Object missing required field `inputs`"),
    "an input without a name": (
        b'{"inputs": [{"shape": [1], "datatype": "FP32", "data": [1]}]}',
        "request body: Object missing required field `name` - at `$.inputs[0]`",
    ),
    "a shape of text": (
        body(tensor(shape=["1"])),
        "request body: Expected `int`, got `str` - at `$.inputs[0].shape[0]`",
    ),
    "a fractional shape": (
        body(tensor(shape=[1.5])),
        "request body: Expected `int`, got `float` - at `$.inputs[0].shape[0]`",
    ),
    "parameters within parameters": (
        body(tensor(), parameters={"a": {"b": 1}}),
        "request body: Expected `",
    ),
    "an id that is a number": (
        body(tensor(), id=7),
        "request body: Expected `str`, got `int` - at `$.id`",
    ),
    "NaN": (body(tensor(data=[1.0, float("nan")])), "request body: JSON is malformed: "),
    "infinity": (body(tensor(data=[1.0, float("inf")])), "request body: JSON is malformed: "),
    "no UTF-8": (b'{"inputs": [], "id": "\xff"}', "request body: "),
    "half a surrogate pair": (
        b'{"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": ["\\ud800"]}]}',
        "request body: ",
    ),
    "neither data nor bytes": (
        body({"name": "x", "datatype": "FP32", "shape": [1, 2]}),
        "input 'x': has neither data nor binary_data_size",
    ),
    "both data and bytes": (
        body(tensor(parameters={"binary_data_size": 8})),
        "input 'x': has both data and binary_data_size",
    ),
    "null for data": (body(tensor(data=None)), "input 'x': data is no array"),
    "one number for data": (body(tensor(data=1.0)), "input 'x': data is no array"),
    "text among numbers": (
        body(tensor(data=[1.0, "2"])),
        "input 'x': data for FP32: Expected `float`, got `str` - at `$[1]`",
    ),
    "a flag among numbers": (
        body(tensor(data=[1.0, True])),
        "input 'x': data for FP32: Expected `float`, got `bool` - at `$[1]`",
    ),
    "null among numbers": (
        body(tensor(data=[1.0, None])),
        "input 'x': data for FP32: Expected `float`, got `null` - at `$[1]`",
    ),
    "nested beyond the shape": (
        body(tensor(data=[[[1.0], [2.0]]])),
        "input 'x': data for FP32: Expected `float`, got `array` - at `$[0]`",
    ),
    "nested otherwise than the shape": (
        body(tensor(data=[[1.0], [2.0]])),
        "input 'x': data is not nested as shape [1, 2]",
    ),
    "nested unevenly": (
        body(tensor(shape=[2, 2], data=[[1.0, 2.0, 3.0], [4.0]])),
        "input 'x': data is not nested as shape [2, 2]",
    ),
    "nested in part": (
        body(tensor(shape=[2, 2], data=[[1.0, 2.0], 3.0, 4.0])),
        "input 'x': data is not nested as shape [2, 2]",
    ),
    "a number beyond FP32": (
        body(tensor(data=[1.0, 1e39])),
        "input 'x': an element is out of range for FP32",
    ),
    "a number beyond FP64": (
        b'{"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [1e999]}]}',
        "input 'x': data: ",
    ),
    "BF16 as JSON": (
        body(tensor(datatype="BF16")),
        "input 'x': BF16 has no JSON form, send it as binary data",
    ),
    "shared memory": (
        body(tensor(parameters={"shared_memory_region": "r"})),
        "input 'x': shared memory is not supported",
    ),
    "shared memory for an output": (
        body(tensor(), outputs=[{"name": "y", "parameters": {"shared_memory_region": "r"}}]),
        "output 'y': shared memory is not supported",
    ),
    "classification": (
        body(tensor(), outputs=[{"name": "y", "parameters": {"classification": 3}}]),
        "output 'y': the classification extension is not supported",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_body_is_refused_by_field(
    client: httpx.Client, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    content, sentence = MALFORMED[case]
    answer = post(client, content)
    assert answer.came_to(Outcome.INVALID)
    assert answer.error.startswith(sentence)
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert post(client, body(tensor())).came_to(Outcome.OK)


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        ([1, 2, 3, 4], [2, 2]),
        ([[1, 2], [3, 4]], [2, 2]),
        ([[1.0, 2.0], [3.0, 4.0]], [2, 2]),
        ([[1, 2, 3, 4]], [1, 4]),
    ],
)
def test_data_may_be_flat_or_nested_as_the_shape(
    client: httpx.Client, data: list[Any], shape: list[int]
) -> None:  # Any: JSON
    answer = post(client, body(tensor(data=data, shape=shape)))
    assert answer.outputs["y"].elements == [1.0, 2.0, 3.0, 4.0]
    assert answer.outputs["y"].shape == tuple(shape)


def test_unknown_keys_are_ignored(client: httpx.Client) -> None:
    content = body(tensor(future={"a": 1}), model_name="x", future=[1])
    assert post(client, content).came_to(Outcome.OK)


def test_a_timeout_beyond_all_numbers_is_refused(client: httpx.Client) -> None:
    answer = post(client, body(tensor(), parameters={"timeout": 10**400}))
    assert answer.came_to(Outcome.INVALID)
    assert post(client, body(tensor())).came_to(Outcome.OK)


TOO_LARGE: Final = f"the request is larger than the limit of {LIMIT_BYTES} bytes"


def test_a_body_that_declares_too_much_is_refused_before_it_is_sent(
    gateway: GatewayInProcess,
) -> None:
    reply = converse(
        gateway,
        b"POST /v2/models/echo_fp32/infer HTTP/1.1\r\nhost: x\r\n"
        b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % (LIMIT_BYTES + 1),
        until=b"}",
    )
    assert reply.startswith(b"HTTP/1.1 413 ")
    assert TOO_LARGE.encode() in reply


def test_a_chunked_body_over_the_limit_is_refused(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(LIMIT_BYTES // (4 << 20) + 1):
            yield b" " * (4 << 20)

    reply = client.post(ECHO, content=chunks())
    assert reply.status_code == 413
    assert reply.json() == {"error": TOO_LARGE}


def test_a_body_that_decompresses_to_too_much_is_refused(client: httpx.Client) -> None:
    bomb = zlib.compress(b" " * (LIMIT_BYTES + 1), 9)
    assert len(bomb) < LIMIT_BYTES / 500
    answer = post(client, bomb, {"content-encoding": "deflate"})
    assert answer.came_to(Outcome.TOO_LARGE)
    assert answer.error == TOO_LARGE


@pytest.mark.parametrize("value", ["0", "-1", "soon", "1.5", "1" * 13, MANY_DIGITS, ""])
def test_a_bad_timeout_header_is_refused(client: httpx.Client, value: str) -> None:
    answer = post(client, body(tensor()), {"x-sluice-timeout-ms": value})
    assert answer.came_to(Outcome.INVALID)
    assert answer.error.startswith(f"header x-sluice-timeout-ms: '{value[:100]}")


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
@pytest.mark.parametrize("path", [ECHO, "/v2/models/mlp/versions/1/infer"])
def test_infer_takes_only_post(client: httpx.Client, method: str, path: str) -> None:
    reply = client.request(method, path)
    assert reply.status_code == 405
    assert reply.headers["allow"] == "POST"
    if method != "HEAD":
        assert reply.json() == {"error": f"{method} is not allowed on {path!r}"}


def test_a_connection_serves_on_after_a_refused_request(gateway: GatewayInProcess) -> None:
    good = body(tensor())
    head = b"POST /v2/models/echo_fp32/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
    two = head % 1 + b"{" + head % len(good) + good
    reply = converse(gateway, two, until=b'"outputs"')
    assert reply.startswith(b"HTTP/1.1 400 ")
    assert b"HTTP/1.1 200 OK" in reply


def is_at(gateway: GatewayInProcess, expected: tuple[int, int]) -> bool:
    """Whether the slow model queues and executes so many requests."""
    return gateway.busy("slow") == expected


def test_a_client_that_goes_away_takes_its_request_out_of_the_queue(
    gateway: GatewayInProcess, client: httpx.Client
) -> None:
    wait_until(lambda: gateway.busy("slow") == (0, 0), "slow is idle")
    row = body(tensor(shape=[1, 4], data=[1.0] * 4))
    head = b"POST /v2/models/slow/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
    connections = []
    for expected in ((0, 1), (1, 1)):
        connections.append(connect(gateway))
        connections[-1].sendall(head % len(row) + row)
        wait_until(partial(is_at, gateway, expected), f"slow is at {expected}")
    connections[1].close()
    wait_until(lambda: gateway.busy("slow")[0] == 0, "the queue is empty")
    assert b'"model_name":"slow"' in receive(connections[0], until=b'"outputs"')
    connections[0].close()
    cancelled = gateway.loop.call(
        lambda: gateway.app.repository.get("slow", "1").batcher.statistics().cancelled
    )
    assert cancelled >= 1


def test_a_client_that_goes_away_in_its_body_is_forgotten(
    gateway: GatewayInProcess, client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(gateway) as connection:
        connection.sendall(
            b"POST /v2/models/slow/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"
        )
    assert post(client, body(tensor())).came_to(Outcome.OK)
    assert caplog.records == []
