"""The binary extension and compression over HTTP: what goes behind the JSON header, and how."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Final

import httpx
import numpy as np
import pytest

from tests.support.http import (
    ECHO,
    LENGTH,
    Document,
    binary,
    body,
    post,
    size,
    tensor,
)
from tests.support.transports import Outcome, raw_bytes, read_http

MANY_DIGITS: Final = pytest.param("9" * 5_000, id="many digits")
"""More than Python turns into a number without being told to."""


@pytest.mark.parametrize("value", ["-1", "one", "1e2", "999999", MANY_DIGITS, "", "1.0"])
def test_a_bad_header_length_is_refused(
    client: httpx.Client, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    content = body(tensor())
    answer = post(client, content, {LENGTH: value})
    assert answer.came_to(Outcome.INVALID)
    assert answer.error.startswith(f"Inference-Header-Content-Length is '{value[:100]}")
    assert caplog.records == []


def test_a_header_length_within_the_json_leaves_broken_json(client: httpx.Client) -> None:
    answer = post(client, body(tensor()), {LENGTH: "10"})
    assert answer.came_to(Outcome.INVALID)
    assert answer.error.startswith("request body: Input data was truncated")


def pair_inputs(first: Document, second: Document) -> bytes:
    """Return a JSON header for the model `pair`."""
    a = {"name": "a", "datatype": "FP32", "shape": [1, 2], **first}
    b = {"name": "b", "datatype": "INT64", "shape": [1, 1], **second}
    return body(a, b)


@pytest.mark.parametrize("is_first_binary", [True, False])
def test_json_and_binary_tensors_may_be_mixed(client: httpx.Client, is_first_binary: bool) -> None:
    if is_first_binary:
        head, tail = pair_inputs(size(8), {"data": [3]}), struct.pack("<2f", 1.5, 2.5)
    else:
        head, tail = pair_inputs({"data": [1.5, 2.5]}, size(8)), struct.pack("<q", 3)
    answer = post(client, *binary(head, tail), path="/v2/models/pair/infer")
    assert answer.outputs["u"].elements == [1.5, 2.5]
    assert answer.outputs["v"].elements == [3]


@pytest.mark.parametrize(
    ("byte_count", "sentence"),
    [
        (9, "input 'b': binary_data_size is 9, the body has 8 bytes left"),
        (-1, "input 'b': binary_data_size -1 is no byte count"),
        (8.0, "input 'b': binary_data_size 8.0 is no byte count"),
        (True, "input 'b': binary_data_size True is no byte count"),
        ("8", "input 'b': binary_data_size '8' is no byte count"),
        (7, "request body: 1 bytes follow the last binary tensor"),
    ],
)
def test_a_size_that_is_not_that_of_the_bytes_is_refused(
    client: httpx.Client, byte_count: object, sentence: str
) -> None:
    head = pair_inputs({"data": [1.5, 2.5]}, size(byte_count))
    answer = post(client, *binary(head, b"\3" + b"\0" * 7), path="/v2/models/pair/infer")
    assert answer.came_to(Outcome.INVALID)
    assert answer.error == sentence


def test_bytes_after_a_json_only_body_with_a_header_length_are_refused(
    client: httpx.Client,
) -> None:
    answer = post(client, *binary(body(tensor()), b"rest"))
    assert answer.came_to(Outcome.INVALID)
    assert answer.error == "request body: 4 bytes follow the last binary tensor"


def test_each_output_comes_in_the_form_asked_for(client: httpx.Client) -> None:
    head = json.loads(pair_inputs({"data": [1.5, 2.5]}, {"data": [3]}))
    head["parameters"] = {"binary_data_output": True}
    head["outputs"] = [
        {"name": "v", "parameters": {"binary_data": False}},
        {"name": "u"},
    ]
    reply = client.post("/v2/models/pair/infer", json=head)
    assert reply.headers["content-type"] == "application/octet-stream"
    length = int(reply.headers[LENGTH])
    v, u = json.loads(reply.content[:length])["outputs"]
    assert v == {"name": "v", "datatype": "INT64", "shape": [1, 1], "data": [3]}
    assert u == {
        "name": "u",
        "datatype": "FP32",
        "shape": [1, 2],
        "parameters": {"binary_data_size": 8},
    }
    assert reply.content[length:] == struct.pack("<2f", 1.5, 2.5)


def test_a_json_answer_says_so_and_has_no_binary_header(client: httpx.Client) -> None:
    reply = client.post(ECHO, content=body(tensor()))
    assert reply.headers["content-type"] == "application/json"
    assert LENGTH not in reply.headers
    assert set(reply.json()) == {"model_name", "model_version", "outputs"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_an_output_that_json_cannot_carry_is_refused_with_advice(
    client: httpx.Client, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    head = body({"name": "x", "datatype": "FP32", "shape": [1, 1], **size(4)})
    answer = post(client, *binary(head, struct.pack("<f", value)))
    assert answer.came_to(Outcome.INVALID)
    assert answer.error == (
        "output 'y' holds NaN or infinity, which JSON cannot carry: ask for it with binary_data"
    )
    assert caplog.records == []


@pytest.mark.parametrize(
    ("datatype", "data", "sentence"),
    [
        ("BF16", b"\x80\x3f", "output 'y': BF16 has no JSON form, ask for it with binary_data"),
        (
            "BYTES",
            b"\1\0\0\0\xff",
            "output 'y' holds bytes that are no UTF-8 text: ask for it with binary_data",
        ),
    ],
)
def test_other_outputs_without_a_json_form_are_refused_with_advice(
    client: httpx.Client, datatype: str, data: bytes, sentence: str
) -> None:
    fields = {"name": "x", "datatype": datatype, "shape": [1, 1], **size(len(data))}
    path = f"/v2/models/echo_{datatype.lower()}/infer"
    answer = post(client, *binary(body(fields), data), path=path)
    assert answer.came_to(Outcome.INVALID)
    assert answer.error == sentence
    head = body(fields, parameters={"binary_data_output": True})
    assert post(client, *binary(head, data), path=path).came_to(Outcome.OK)


def test_a_raw_request_is_one_row_of_the_only_input(client: httpx.Client) -> None:
    data = struct.pack("<4f", 1, 2, 3, 4)
    for model in ("mlp", "split", "echo_fp32"):
        answer = post(client, data, {LENGTH: "0"}, f"/v2/models/{model}/infer")
        assert answer.came_to(Outcome.OK), answer.error
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.outputs["y"].shape[0] == 1
    assert answer.outputs["y"].shape == (1, 4)
    assert answer.outputs["y"].elements == [1.0, 2.0, 3.0, 4.0]


def test_a_raw_request_to_a_version_is_served_by_it(client: httpx.Client) -> None:
    data = struct.pack("<4f", 1, 2, 3, 4)
    answer = post(client, data, {LENGTH: "0"}, "/v2/models/mlp/versions/1/infer")
    assert answer.version == "1"


def test_a_raw_request_of_bytes_is_one_element(client: httpx.Client) -> None:
    answer = post(client, b"hello", {LENGTH: "0"}, "/v2/models/echo_bytes/infer")
    assert answer.outputs["y"].elements == [b"hello"]


@pytest.mark.parametrize(
    ("model", "content", "sentence"),
    [
        ("pair", b"\0" * 8, "a raw request needs a model with one input, 'pair' has several"),
        ("mlp", b"\0" * 15, "input 'x': 15 bytes given, shape [1, 4] of FP32 takes 16"),
        ("echo_fp32", b"\0" * 5, "input 'x': 5 bytes given, shape [1, 1] of FP32 takes 4"),
    ],
)
def test_a_raw_request_that_cannot_be_one_is_refused(
    client: httpx.Client, model: str, content: bytes, sentence: str
) -> None:
    answer = post(client, content, {LENGTH: "0"}, f"/v2/models/{model}/infer")
    assert answer.came_to(Outcome.INVALID)
    assert answer.error == sentence


def test_a_raw_request_to_an_unknown_model_is_not_found(client: httpx.Client) -> None:
    answer = post(client, b"\0" * 8, {LENGTH: "0"}, "/v2/models/nobody/infer")
    assert answer.came_to(Outcome.NOT_FOUND)


def test_a_large_body_below_the_limit_is_served_whole(client: httpx.Client) -> None:
    count = (20 << 20) // 4
    data = np.arange(count, dtype="<f4").tobytes()
    head = body(
        {"name": "x", "datatype": "FP32", "shape": [1, count], **size(len(data))},
        parameters={"binary_data_output": True},
    )
    content, headers = binary(head, data)
    reply = client.post(ECHO, content=content, headers=headers)
    assert reply.status_code == 200
    assert reply.content[int(reply.headers[LENGTH]) :] == data


def raw_deflate(data: bytes) -> bytes:
    """Return deflate without the zlib wrapper, as some clients send it."""
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


ENCODERS: Final[Mapping[str, tuple[str, Callable[[bytes], bytes]]]] = {
    "gzip": ("gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
    "capitals": ("GZIP", gzip.compress),
    "identity": ("identity", bytes),
}


@pytest.mark.parametrize("is_binary", [True, False])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_compressed_request_is_read(client: httpx.Client, encoder: str, is_binary: bool) -> None:
    encoding, encode = ENCODERS[encoder]
    values = [float(n) for n in range(1_000)]
    fields = {"name": "x", "datatype": "FP32", "shape": [1, 1_000]}
    if is_binary:  # the header's length is that of the uncompressed JSON
        data = raw_bytes("FP32", values)
        content, headers = binary(body({**fields, **size(len(data))}), data)
    else:
        content, headers = body({**fields, "data": values}), {}
    headers["content-encoding"] = encoding
    answer = post(client, encode(content), headers)
    assert answer.came_to(Outcome.OK), answer.error
    assert answer.outputs["y"].elements == values


@pytest.mark.parametrize("is_binary", [True, False])
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_large_answer_is_compressed_for_who_asks(
    client: httpx.Client, encoding: str, is_binary: bool
) -> None:
    values = [1.0] * 10_000
    content = body(
        tensor(shape=[1, 10_000], data=values), parameters={"binary_data_output": is_binary}
    )
    reply = client.post(ECHO, content=content, headers={"accept-encoding": encoding})
    assert reply.headers["content-encoding"] == encoding
    assert int(reply.headers["content-length"]) < 5_000
    assert read_http(reply).outputs["y"].elements == values


@pytest.mark.parametrize("accepted", ["identity", "gzip;q=0", "br", ""])
def test_an_answer_is_not_compressed_for_who_does_not_take_it(
    client: httpx.Client, accepted: str
) -> None:
    content = body(tensor(shape=[1, 10_000], data=[1.0] * 10_000))
    reply = client.post(ECHO, content=content, headers={"accept-encoding": accepted})
    assert "content-encoding" not in reply.headers


def test_a_small_answer_is_not_worth_compressing(client: httpx.Client) -> None:
    reply = client.post(ECHO, content=body(tensor()), headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in reply.headers


@pytest.mark.parametrize(
    ("encoding", "content", "sentence"),
    [
        ("gzip", b"no gzip", "request body is no valid gzip data"),
        ("gzip", gzip.compress(body(tensor()))[:-9], "request body is no valid gzip data"),
        ("gzip", gzip.compress(body(tensor())) + b"rest", "request body is no valid gzip data"),
        ("deflate", b"\xff\xff", "request body is no valid deflate data"),
        ("br", b"x", "Content-Encoding 'br' is neither gzip nor deflate"),
    ],
)
def test_a_body_that_is_not_compressed_as_it_says_is_refused(
    client: httpx.Client, encoding: str, content: bytes, sentence: str
) -> None:
    answer = post(client, content, {"content-encoding": encoding})
    assert answer.came_to(Outcome.INVALID)
    assert answer.error.startswith(sentence)
