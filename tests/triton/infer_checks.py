"""Checks of inference: every datatype and form, whom an answer comes from, parameters."""

from __future__ import annotations

from typing import Final

import ml_dtypes
import numpy as np

from tests.triton import names
from tests.triton.check import HTTP, Check, check, check_of
from tests.triton.flavours import Array, Flavour, Untyped

# Two rows each, with the ends of the range. Exact in JSON; `_binary_sample` adds what is not.
_SAMPLES: Final[dict[str, Array]] = {
    "BOOL": np.array([[True, False, True, True], [False, False, True, False]]),
    "FP16": np.array([[0.5, -1.25, 65504, -65504], [0, 6e-8, 1, 2]], np.float16),
    "FP32": np.array([[0.1, -1.5, 3.4e38, -3.4e38], [0, 1e-45, 1, 2]], np.float32),
    "FP64": np.array([[0.1, -1.5, 1.7e308, -1.7e308], [0, 5e-324, 1, 2]], np.float64),
    "BF16": np.array([[0.5, -1.5, 3.3e38, -3.3e38], [0, 1e-40, 1, 2]], ml_dtypes.bfloat16),
    "BYTES": np.array(
        [[b"", b"abc", "Grüße \U0001f600".encode(), b"x" * 300], [b"0", b'"\\', b"\n", b"z"]],
        dtype=object,
    ),
}
for _name in names.DATATYPES:
    if "INT" in _name:
        _dtype = np.dtype(_name.lower())
        _ends = np.iinfo(_dtype)
        _SAMPLES[_name] = np.array([[_ends.min, 0, 1, _ends.max], [2, 3, 4, 5]], _dtype)

_ECHO: Final = names.ECHO["FP32"]


def _binary_sample(datatype: str) -> Array:
    """Return a sample with what only the binary form carries: NaN and the infinities."""
    sample = _SAMPLES[datatype].copy()
    if datatype.startswith(("FP", "BF")):
        sample[1] = np.array([np.nan, np.inf, -np.inf, -0.0], sample.dtype)
    return sample


def expect_same(found: Array | None, wanted: Array) -> None:
    """Check that two arrays are the same bit for bit, and of the same type and shape."""
    assert found is not None, "the output is not in the answer"
    assert found.dtype == wanted.dtype, f"type {found.dtype}, expected {wanted.dtype}"
    assert found.shape == wanted.shape, f"shape {found.shape}, expected {wanted.shape}"
    if wanted.dtype == object:
        assert found.tolist() == wanted.tolist(), f"{found.tolist()} is not {wanted.tolist()}"
    else:
        assert found.tobytes() == wanted.tobytes(), f"{found} is not {wanted}"


def all_outputs_come_back(flavour: Flavour, datatype: str) -> None:
    sample = _binary_sample(datatype)
    result = flavour.infer(names.ECHO[datatype], flavour.tensor("x", datatype, sample))
    expect_same(result.as_numpy("y"), sample)


def binary_in_and_requested_binary_out(flavour: Flavour, datatype: str) -> None:
    sample = _binary_sample(datatype)
    inputs = flavour.tensor("x", datatype, sample)
    result = flavour.infer(names.ECHO[datatype], inputs, outputs=[flavour.output("y")])
    expect_same(result.as_numpy("y"), sample)
    if flavour.is_http:
        assert "data" not in result.get_output("y"), "the output came as JSON"


def json_in_and_json_out(flavour: Flavour, datatype: str) -> None:
    sample = _SAMPLES[datatype]
    inputs = flavour.tensor("x", datatype, sample, is_binary=False)
    outputs = [flavour.output("y", is_binary=False)]
    result = flavour.infer(names.ECHO[datatype], inputs, outputs=outputs)
    assert "data" in result.get_output("y"), "the output came in binary form"
    found = result.as_numpy("y")
    if datatype == "BYTES":  # JSON carries text
        found = np.array([[e.encode() for e in row] for row in found.tolist()], dtype=object)
    expect_same(found, sample)


def json_in_and_binary_out(flavour: Flavour, datatype: str) -> None:
    sample = _SAMPLES[datatype]
    inputs = flavour.tensor("x", datatype, sample, is_binary=False)
    result = flavour.infer(names.ECHO[datatype], inputs)
    assert "data" not in result.get_output("y"), "the output came as JSON"
    expect_same(result.as_numpy("y"), sample)


def bytes_that_are_no_text_come_back(flavour: Flavour) -> None:
    sample = np.array([[b"\xff\x00\x80"], [b""], [bytes(range(256))]], dtype=object)
    result = flavour.infer(names.BLOB, flavour.tensor("x", "BYTES", sample))
    expect_same(result.as_numpy("y"), sample)


def a_model_answers_under_its_name(flavour: Flavour) -> None:
    answer = flavour.response(flavour.infer(_ECHO, flavour.floats()))
    assert (answer["model_name"], answer["model_version"]) == (_ECHO, "1"), answer


def a_model_without_version_answers_with_its_highest(flavour: Flavour) -> None:
    result = flavour.infer(names.LOOKUP, flavour.indices(7))
    assert _version(flavour, result) == "2"
    expect_same(result.as_numpy("y"), np.array([[207]], np.float32))


def a_version_is_answered_by_that_version(flavour: Flavour, name: str) -> None:
    for version, value in (("1", 107), ("2", 207)):
        result = flavour.infer(name, flavour.indices(7), model_version=version)
        answer = flavour.response(result)
        assert (answer["model_name"], answer["model_version"]) == (names.LOOKUP, version), answer
        expect_same(result.as_numpy("y"), np.array([[value]], np.float32))


def a_route_answers_from_both_versions(flavour: Flavour) -> None:
    versions = [_ask_route(flavour) for _ in range(40)]
    assert set(versions) == {"1", "2"}, f"40 requests were answered by {set(versions)}"


def a_key_in_a_header_sticks_to_its_version(flavour: Flavour) -> None:
    users = [f"user-{n}" for n in range(20)]
    first = [_ask_route(flavour, headers={names.KEY_HEADER: user}) for user in users]
    second = [_ask_route(flavour, headers={names.KEY_HEADER: user}) for user in users]
    assert first == second, "a key changed its version"
    assert set(first) == {"1", "2"}, "all keys go to one version"


def a_key_in_a_parameter_is_the_same_key(flavour: Flavour) -> None:
    for user in ("user-1", "user-2", "user-3", "user-4"):
        by_header = _ask_route(flavour, headers={names.KEY_HEADER: user})
        by_parameter = _ask_route(flavour, parameters={names.KEY_PARAMETER: user})
        assert by_header == by_parameter, f"{user}: {by_header} by header, not by parameter"


def the_request_id_comes_back(flavour: Flavour) -> None:
    for name in (_ECHO, names.LEVELS):
        answer = flavour.response(flavour.infer(name, flavour.floats(), request_id="id-1 ü"))
        assert answer["id"] == "id-1 ü", answer
    answer = flavour.response(flavour.infer(_ECHO, flavour.floats()))
    assert "id" not in answer, answer


def all_outputs_come_in_the_order_of_the_model(flavour: Flavour) -> None:
    result = flavour.infer(names.PAIR, *_pair(flavour))
    assert _output_names(flavour, result) == ["double", "copy", "total"]
    _check_pair(result)


def requested_outputs_come_in_the_order_asked_for(flavour: Flavour) -> None:
    outputs = [flavour.output("total"), flavour.output("copy")]
    result = flavour.infer(names.PAIR, *_pair(flavour), outputs=outputs)
    assert _output_names(flavour, result) == ["total", "copy"]
    assert result.as_numpy("double") is None
    expect_same(result.as_numpy("total"), np.array([[3], [7]], np.float32))
    expect_same(result.as_numpy("copy"), np.array([[b"a"], [b"bc"]], dtype=object))


def inputs_may_come_in_any_order(flavour: Flavour) -> None:
    x, label = _pair(flavour)
    _check_pair(flavour.infer(names.PAIR, label, x))


def binary_and_json_tensors_may_be_mixed(flavour: Flavour) -> None:
    for x_is_binary in (True, False):
        x = flavour.tensor("x", "FP32", _X, is_binary=x_is_binary)
        label = flavour.tensor("label", "BYTES", _LABEL, is_binary=not x_is_binary)
        outputs = [
            flavour.output("double", is_binary=not x_is_binary),
            flavour.output("copy", is_binary=True),
            flavour.output("total", is_binary=x_is_binary),
        ]
        result = flavour.infer(names.PAIR, x, label, outputs=outputs)
        assert ("data" in result.get_output("double")) is x_is_binary
        assert ("data" in result.get_output("total")) is not x_is_binary
        _check_pair(result)


def custom_parameters_are_taken(flavour: Flavour) -> None:
    given = {"text": "a", "flag": True, "number": 7, "share": 0.5}
    result = flavour.infer(_ECHO, flavour.floats(), parameters=given)
    assert result.as_numpy("y").shape == (2, names.ECHO_WIDTH)


def query_parameters_and_unknown_headers_are_taken(flavour: Flavour) -> None:
    options = {"query_params": {"trace": "1"}, "headers": {"X-Whatever": "yes"}}
    result = flavour.infer(_ECHO, flavour.floats(), **options)
    assert result.as_numpy("y").shape == (2, names.ECHO_WIDTH)


def sequence_parameters_are_taken(flavour: Flavour) -> None:
    options = {"sequence_id": 5, "sequence_start": True, "sequence_end": True}
    result = flavour.infer(_ECHO, flavour.floats(), **options)
    assert result.as_numpy("y").shape == (2, names.ECHO_WIDTH)


def every_priority_of_the_model_is_taken(flavour: Flavour) -> None:
    for priority in range(names.PRIORITY_LEVELS + 1):
        result = flavour.infer(names.LEVELS, flavour.floats(), priority=priority)
        assert result.as_numpy("y").shape == (2, names.ECHO_WIDTH)


def a_timeout_that_is_long_enough_is_taken(flavour: Flavour) -> None:
    result = flavour.infer(names.SLOW, flavour.floats(), timeout=10_000_000)
    assert result.as_numpy("y").shape == (2, names.ECHO_WIDTH)


_X: Final = np.array([[1, 2], [3, 4]], np.float32)
_LABEL: Final = np.array([[b"a"], [b"bc"]], dtype=object)


def _pair(flavour: Flavour) -> tuple[Untyped, Untyped]:
    return flavour.tensor("x", "FP32", _X), flavour.tensor("label", "BYTES", _LABEL)


def _check_pair(result: Untyped) -> None:
    expect_same(result.as_numpy("double"), _X * 2)
    expect_same(result.as_numpy("copy"), _LABEL)
    expect_same(result.as_numpy("total"), np.array([[3], [7]], np.float32))


def _output_names(flavour: Flavour, result: Untyped) -> list[str]:
    return [output["name"] for output in flavour.response(result)["outputs"]]


def _version(flavour: Flavour, result: Untyped) -> str:
    version: str = flavour.response(result)["model_version"]
    return version


def _ask_route(flavour: Flavour, **options: object) -> str:
    """Ask the route; return the version that answered, which the value must confirm."""
    result = flavour.infer(names.ROUTE, flavour.indices(3), **options)
    version = _version(flavour, result)
    expect_same(result.as_numpy("y"), np.array([[100 * int(version) + 3]], np.float32))
    return version


_JSON_DATATYPES: Final = tuple(d for d in names.DATATYPES if d != "BF16")  # it has no JSON form
CHECKS: Final[tuple[Check, ...]] = (
    *(check_of(all_outputs_come_back, d) for d in names.DATATYPES),
    *(check_of(binary_in_and_requested_binary_out, d) for d in names.DATATYPES),
    *(check_of(json_in_and_json_out, d, HTTP) for d in _JSON_DATATYPES),
    *(check_of(json_in_and_binary_out, d, HTTP) for d in _JSON_DATATYPES),
    check(bytes_that_are_no_text_come_back),
    check(a_model_answers_under_its_name),
    check(a_model_without_version_answers_with_its_highest),
    check_of(a_version_is_answered_by_that_version, names.LOOKUP, shown="of a model"),
    check_of(a_version_is_answered_by_that_version, names.ROUTE, shown="of a route"),
    check(a_route_answers_from_both_versions),
    check(a_key_in_a_header_sticks_to_its_version),
    check(a_key_in_a_parameter_is_the_same_key),
    check(the_request_id_comes_back),
    check(all_outputs_come_in_the_order_of_the_model),
    check(requested_outputs_come_in_the_order_asked_for),
    check(inputs_may_come_in_any_order),
    check(binary_and_json_tensors_may_be_mixed, HTTP),
    check(custom_parameters_are_taken),
    check(query_parameters_and_unknown_headers_are_taken, HTTP),
    check(sequence_parameters_are_taken),
    check(every_priority_of_the_model_is_taken),
    check(a_timeout_that_is_long_enough_is_taken),
)
