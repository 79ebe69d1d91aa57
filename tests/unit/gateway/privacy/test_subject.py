"""Where a request names its data subject."""

from __future__ import annotations

import logging
import struct

import pytest

from engines.tensors import Tensor, encode_bytes
from gateway.config_fields import ConfigError
from gateway.prediction_log.privacy.subject import subject_finder, subject_input
from gateway.request import InferRequest


def with_header(value: str | None) -> InferRequest:
    return InferRequest("digits", header=lambda name: value if name == "x-customer" else None)


def with_input(datatype: str, shape: tuple[int, ...], data: bytes) -> InferRequest:
    others = Tensor("x", "FP32", (1,), bytes(4))
    return InferRequest("digits", inputs=(others, Tensor("who", datatype, shape, data)))


def test_nobody_is_named_where_no_place_is() -> None:
    assert subject_finder("")(with_header("alice")) == ""


@pytest.mark.parametrize(("value", "subject"), [("alice", "alice"), (None, ""), ("", "")])
def test_a_header_names_the_subject_whatever_case_it_is_configured_in(
    value: str | None, subject: str
) -> None:
    assert subject_finder("header:X-Customer")(with_header(value)) == subject


def test_a_header_in_utf8_names_the_same_subject_as_a_tensor_and_a_parameter() -> None:
    name = "Jürgen ☂"
    on_the_wire = name.encode().decode("latin-1")
    assert subject_finder("header:x-customer")(with_header(on_the_wire)) == name
    tensor = with_input("BYTES", (1,), encode_bytes([name.encode()]))
    assert subject_finder("input:who")(tensor) == name
    parameter = InferRequest("digits", parameters={"who": name})
    assert subject_finder("parameter:who")(parameter) == name


def test_bytes_that_are_no_utf8_name_the_same_subject_by_header_and_tensor() -> None:
    raw = b"\xff\xfea"
    by_header = subject_finder("header:x-customer")(with_header(raw.decode("latin-1")))
    by_tensor = subject_finder("input:who")(with_input("BYTES", (1,), encode_bytes([raw])))
    assert by_header == by_tensor != ""


@pytest.mark.parametrize(
    ("value", "subject"), [("alice", "alice"), (42, "42"), (0, "0"), (1.5, "1.5")]
)
def test_a_parameter_of_any_type_names_the_subject(value: str | float, subject: str) -> None:
    request = InferRequest("digits", parameters={"who": value})
    assert subject_finder("parameter:who")(request) == subject
    assert subject_finder("parameter:other")(request) == ""


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "subject"),
    [
        ("BYTES", (1, 1), encode_bytes([b"alice"]), "alice"),
        ("BYTES", (3,), encode_bytes([b"alice"] * 3), "alice"),
        ("INT64", (1,), struct.pack("<q", -5), "-5"),
        ("UINT32", (2,), struct.pack("<2I", 7, 7), "7"),
        ("BYTES", (0,), b"", ""),
        ("BYTES", (1,), encode_bytes([b""]), ""),
        ("BYTES", (1,), b"\x09\0\0\0short", ""),
        ("INT64", (1,), b"\x01", ""),
        ("WHAT", (1,), b"\x01", ""),
    ],
)
def test_an_input_names_the_subject_if_all_its_elements_do(
    datatype: str, shape: tuple[int, ...], data: bytes, subject: str
) -> None:
    find = subject_finder("input:who")
    assert find(with_input(datatype, shape, data)) == subject
    assert find(InferRequest("digits")) == ""


def test_a_tensor_that_is_a_view_names_the_subject() -> None:
    data = memoryview(b"..." + encode_bytes([b"alice"] * 2))[3:]
    request = InferRequest("digits", inputs=(Tensor("who", "BYTES", (2,), data),))
    assert subject_finder("input:who")(request) == "alice"


@pytest.mark.parametrize("names", [[b"alice", b"bob"], [b"alice", b"alice", b"carol"], [b"a", b""]])
def test_several_subjects_are_none_and_that_is_told_once(
    names: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    find = subject_finder("input:who")
    request = with_input("BYTES", (len(names),), encode_bytes(names))
    assert [find(request), find(request)] == ["", ""]
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "alice" not in caplog.text


def test_a_header_that_is_written_as_it_is_cannot_name_the_subject() -> None:
    with pytest.raises(ConfigError) as refusal:
        subject_finder("header:X-Request-Id")
    assert refusal.value.path == "$.prediction_log.privacy.subject"


def test_the_tensor_that_names_the_subject_is_known_by_name() -> None:
    assert subject_input("input:who") == "who"
    assert subject_input("header:who") == ""
