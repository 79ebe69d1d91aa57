from __future__ import annotations

import math

import numpy as np
import pytest

from engines.tensors import DATATYPES, Tensor, check_data
from gateway.grpc_api import codec as grpc_codec
from gateway.http_api import codec as http_codec
from loadtests import payloads
from loadtests.payloads import WITHOUT_JSON, Signature, TensorShape

ALL = sorted(DATATYPES)


def taking(datatype: str, shape: tuple[int, ...] = (-1, 3, -1)) -> Signature:
    spec = TensorShape(name="x", datatype=datatype, shape=shape)
    return Signature(name="m", inputs=(spec,), outputs=(spec,))


def row(datatype: str, shape: tuple[int, ...] = (-1, 3, -1)) -> tuple[Tensor, ...]:
    return payloads.random_row(taking(datatype, shape), np.random.default_rng(5))


def plain(tensors: tuple[Tensor, ...]) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    return [(t.name, t.datatype, tuple(t.shape), bytes(t.data)) for t in tensors]


@pytest.mark.parametrize("datatype", ALL)
def test_a_row_is_valid_and_finite_and_takes_1_for_what_varies(datatype: str) -> None:
    (tensor,) = row(datatype)
    check_data(tensor)
    assert tensor.shape == (1, 3, 1)
    array = tensor.array()
    if array.dtype.kind == "f":
        assert np.isfinite(array).all()
    if datatype == "BF16":
        assert (array < 0x3F80).all()  # the bit pattern of 1.0


@pytest.mark.parametrize("datatype", ALL)
def test_rows_differ(datatype: str) -> None:
    rng = np.random.default_rng(5)
    drawn = {plain(payloads.random_row(taking(datatype, (-1, 8)), rng))[0][3] for _ in range(20)}
    assert len(drawn) > 10


@pytest.mark.parametrize("datatype", [d for d in ALL if d not in WITHOUT_JSON])
def test_json_reaches_the_gateway_as_the_tensors_that_were_drawn(datatype: str) -> None:
    tensors = row(datatype)
    request, form = http_codec.decode("m", "", payloads.as_json(tensors), None)
    assert plain(request.inputs) == plain(tensors)
    assert not form.is_binary("x")


@pytest.mark.parametrize("datatype", ALL)
def test_binary_reaches_the_gateway_as_the_tensors_that_were_drawn(datatype: str) -> None:
    tensors = (*row(datatype), *row("INT64"))
    body, json_bytes = payloads.as_binary(tensors)
    request, form = http_codec.decode("m", "", body, json_bytes)
    assert plain(request.inputs) == plain(tensors)
    assert form.is_binary("anything")


@pytest.mark.parametrize("datatype", ALL)
def test_grpc_reaches_the_gateway_as_the_tensors_that_were_drawn(datatype: str) -> None:
    tensors = (*row(datatype), *row("INT64"))
    request = grpc_codec.decode(payloads.as_grpc("m", tensors))
    assert request.name == "m"
    assert plain(request.inputs) == plain(tensors)


def test_bf16_has_no_json_form() -> None:
    assert not taking("BF16").has_json_form
    assert taking("FP16").has_json_form
    with pytest.raises(ValueError, match="input 'x': BF16 has no JSON form"):
        payloads.as_json(row("BF16"))


def test_a_signature_is_read_from_metadata() -> None:
    metadata = {
        "name": "digits",
        "versions": ["1"],
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 64]}],
        "outputs": [{"name": "label", "datatype": "INT64", "shape": [-1, 1]}],
    }
    found = payloads.signature(metadata)
    assert found.name == "digits"
    assert found.inputs == (TensorShape(name="image", datatype="FP32", shape=(-1, 64)),)
    assert found.outputs == (TensorShape(name="label", datatype="INT64", shape=(-1, 1)),)
    assert math.prod(payloads.random_row(found, np.random.default_rng())[0].shape) == 64


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ([], "model 'm' has no inputs"),
        ([{"name": "x", "datatype": "FP8", "shape": [1]}], "model 'm' has the unknown datatype"),
    ],
)
def test_metadata_that_nothing_can_be_made_of_is_refused(
    inputs: list[object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        payloads.signature({"name": "m", "inputs": inputs, "outputs": []})
