"""What every transport answers to good requests: values, ids, the outputs asked for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import pytest

from engines import ort
from engines.base import EngineConfig
from tests.support.gateway import GatewayInProcess
from tests.support.served import DATATYPES
from tests.support.transports import Ask, Given, Outcome, Transport

# Elements that each datatype holds exactly, its limits among them; BF16 as bit patterns.
ELEMENTS: Final[dict[str, list[Any]]] = {  # Any: as in Given
    "BOOL": [True, False, False, True],
    "UINT8": [0, 1, 127, 255],
    "UINT16": [0, 1, 256, 65_535],
    "UINT32": [0, 1, 65_536, 4_294_967_295],
    "UINT64": [0, 1, 1 << 53, (1 << 64) - 1],
    "INT8": [-128, -1, 0, 127],
    "INT16": [-32_768, -1, 0, 32_767],
    "INT32": [-2_147_483_648, -1, 0, 2_147_483_647],
    "INT64": [-(1 << 63), -1, 0, (1 << 63) - 1],
    "FP16": [-65_504.0, -0.5, 0.0, 2.0**-24],
    "FP32": [-1.5, 0.0, 2.0**-149, 3.4028234663852886e38],
    "FP64": [-0.1, 0.0, 5e-324, 1.7976931348623157e308],
    "BF16": [0x3F80, 0x0000, 0xC000, 0x7F7F],
    "BYTES": [b"", b"digits", "größer 数".encode(), b'\\"\n'],
}


def row(*values: float, name: str = "x") -> Given:
    """Return one FP32 row."""
    return Given(name=name, datatype="FP32", shape=(1, len(values)), elements=list(values))


def pair(**fields: Any) -> Ask:  # Any: fields of Ask
    """Return a request to the model with two inputs and two outputs."""
    a = Given(name="a", datatype="FP32", shape=(1, 2), elements=[1.0, 2.0])
    b = Given(name="b", datatype="INT64", shape=(1, 1), elements=[3])
    return Ask(**{"model": "pair", "inputs": (a, b), **fields})


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_comes_back_exactly(transport: Transport, datatype: str) -> None:
    elements = ELEMENTS[datatype]
    given = Given(name="x", datatype=datatype, shape=(2, 2), elements=elements)
    answer = transport.infer(Ask(model=f"echo_{datatype.lower()}", inputs=(given,)))
    if datatype in transport.cannot_carry:
        assert answer.came_to(Outcome.INVALID)
        assert f"input 'x': {datatype} has" in answer.error
        return
    assert answer.came_to(Outcome.OK), answer.error
    output = answer.outputs["y"]
    assert output.datatype == datatype
    assert output.shape == (2, 2)
    assert output.elements == elements


def test_a_model_answers_as_the_same_session_called_directly(
    transport: Transport, gateway: GatewayInProcess
) -> None:
    rows = np.random.default_rng(7).normal(size=(5, 4)).astype(np.float32)
    given = Given(name="x", datatype="FP32", shape=(5, 4), elements=rows.reshape(-1).tolist())
    path = gateway.app.repository.get("mlp", "2").spec.directory / "2" / "model.onnx"
    expected = ort.load(path, EngineConfig()).infer({"x": rows})["y"]
    answer = transport.infer(Ask(model="mlp", version="2", inputs=(given,)))
    assert answer.came_to(Outcome.OK), answer.error
    assert answer.outputs["y"].shape == (5, 3)
    received = np.array(answer.outputs["y"].elements).reshape(5, 3)
    np.testing.assert_allclose(received, expected, rtol=1e-5)


def test_all_outputs_come_in_the_models_order_if_none_is_named(transport: Transport) -> None:
    answer = transport.infer(pair())
    assert list(answer.outputs) == ["u", "v"]
    assert answer.outputs["u"].elements == [1.0, 2.0]
    assert answer.outputs["v"].elements == [3]


@pytest.mark.parametrize("names", [("v", "u"), ("v",), ("u",)])
def test_the_outputs_asked_for_come_in_the_order_asked_for(
    transport: Transport, names: tuple[str, ...]
) -> None:
    answer = transport.infer(pair(outputs=names))
    assert tuple(answer.outputs) == names
    assert answer.outputs[names[0]].elements == {"u": [1.0, 2.0], "v": [3]}[names[0]]


def test_inputs_may_come_in_any_order(transport: Transport) -> None:
    answer = transport.infer(pair(inputs=pair().inputs[::-1]))
    assert answer.came_to(Outcome.OK), answer.error
    assert answer.outputs["u"].elements == [1.0, 2.0]


@pytest.mark.parametrize("caller_id", ["order-66", "größer 数", "a" * 300])
def test_the_callers_id_is_echoed(transport: Transport, caller_id: str) -> None:
    assert transport.infer(pair(id=caller_id)).id == caller_id


def test_an_answer_to_a_request_without_an_id_has_none(transport: Transport) -> None:
    assert transport.infer(pair()).id == ""


def test_a_model_without_a_batch_axis_takes_its_whole_shape(transport: Transport) -> None:
    given = Given(name="x", datatype="FP32", shape=(3,), elements=[1.0, 2.0, 3.0])
    answer = transport.infer(Ask(model="unbatched", inputs=(given,)))
    assert answer.came_to(Outcome.OK), answer.error
    assert answer.outputs["y"].shape == (3,)
    assert answer.outputs["y"].elements == [1.0, 2.0, 3.0]


def test_custom_parameters_are_no_reason_to_refuse(transport: Transport) -> None:
    parameters = {"user": "u1", "number": 3, "share": 0.5, "flag": True, "triton_x": True}
    assert transport.infer(pair(parameters=parameters)).came_to(Outcome.OK)


def test_a_priority_within_the_models_levels_is_taken(transport: Transport) -> None:
    given = row(1.0, 2.0, 3.0, 4.0)
    answer = transport.infer(Ask(model="graded", inputs=(given,), parameters={"priority": 2}))
    assert answer.came_to(Outcome.OK), answer.error


def test_a_priority_means_nothing_to_a_model_without_levels(transport: Transport) -> None:
    assert transport.infer(pair(parameters={"priority": 7})).came_to(Outcome.OK)


def test_many_callers_at_once_each_get_their_own_rows(transport: Transport) -> None:
    def ask(number: int) -> list[Any]:  # Any: elements
        shape = (1 + number % 3, 2)
        elements = [float(number)] * (2 * shape[0])
        given = Given(name="x", datatype="FP32", shape=shape, elements=elements)
        answer = transport.infer(Ask(model="echo_fp32", inputs=(given,), id=str(number)))
        assert answer.came_to(Outcome.OK), answer.error
        assert answer.id == str(number)
        assert answer.outputs["y"].shape == shape
        return answer.outputs["y"].elements

    with ThreadPoolExecutor(8) as threads:
        for number, elements in enumerate(threads.map(ask, range(64))):
            assert elements == [float(number)] * (2 * (1 + number % 3))
