"""The rules of a name's features: what becomes of a tensor of each form."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from engines.tensors import Raw, Tensor, decode_bytes, encode_bytes
from gateway.config_fields import ConfigError
from gateway.prediction_log.privacy.features import (
    DROP,
    KEEP,
    MAX_HASHED_ELEMENTS,
    FeatureRules,
    Treatment,
)
from gateway.prediction_log.privacy.keyring import Keyring
from gateway.prediction_log_config import FeatureAction, FeatureRule, NameConfig
from tests.support.privacy import write_keys

COLUMNS = {"x": ["age", "income", "height"]}
Given = Mapping[str, FeatureAction | FeatureRule]


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    return Keyring.load(write_keys(tmp_path / "keys"))


def rules_of(ring: Keyring | None, features: Given, *, subject_input: str = "") -> FeatureRules:
    settings = NameConfig(columns=COLUMNS, features=dict(features))
    return FeatureRules("digits", settings, ring, subject_input)


def changed(treatment: Treatment, data: Raw) -> tuple[str, tuple[int, ...], bytes]:
    assert treatment.change is not None
    datatype, shape, made = treatment.change(data)
    return datatype, shape, bytes(made)


def table(*rows: tuple[float, float, float]) -> bytes:
    return np.array(rows, "<f4").tobytes()


def floats(data: Raw) -> list[float]:
    return [float(element) for element in np.frombuffer(data, "<f4")]


@pytest.mark.parametrize("is_input", [True, False])
def test_without_a_rule_numbers_are_kept_and_text_is_dropped(is_input: bool) -> None:
    rules = rules_of(None, {})
    assert rules.treatment("x", "FP32", (1, 3), is_input) is KEEP
    assert rules.treatment("x", "BOOL", (1, 3), is_input) is KEEP
    assert rules.treatment("x", "BYTES", (1, 3), is_input) is DROP
    assert rules.treatment("x", "WHAT", (1, 3), is_input) is DROP


def test_a_rule_by_name_keeps_text_and_drops_numbers() -> None:
    rules = rules_of(None, {"a.b": "keep", "x": FeatureRule(action="drop")})
    assert rules.treatment("a.b", "BYTES", (1,), True) is KEEP
    assert rules.treatment("x", "FP32", (1, 3), False) is DROP
    assert rules.treatment("b", "BYTES", (1,), True) is DROP


def test_the_input_that_names_the_subject_is_dropped_unless_a_rule_names_it(ring: Keyring) -> None:
    rules = rules_of(ring, {}, subject_input="who")
    assert rules.treatment("who", "INT64", (1,), True) is DROP
    assert rules.treatment("who", "INT64", (1,), False) is KEEP
    hashing = rules_of(ring, {"who": "hash"}, subject_input="who")
    assert hashing.treatment("who", "INT64", (1,), True).change is not None


def test_columns_are_blanked_and_rounded_down_in_every_row() -> None:
    rules = rules_of(
        None, {"x.age": FeatureRule(bucket=10), "x.height": "drop", "x.income": "keep"}
    )
    data = table((37, 1_234.5, 1.8), (math.nan, 5, 1.7))
    datatype, shape, made = changed(rules.treatment("x", "FP32", (2, 3), True), memoryview(data))
    assert (datatype, shape) == ("FP32", (2, 3))
    np.testing.assert_array_equal(
        np.frombuffer(made, "<f4"), [30, 1_234.5, np.nan, np.nan, 5, np.nan]
    )
    assert data == table((37, 1_234.5, 1.8), (math.nan, 5, 1.7))  # the request's own stays


def test_blanked_integers_are_zero() -> None:
    rules = rules_of(None, {"x.income": "drop"})
    data = np.array([[1, 2, 3], [4, 5, 6]], "<i8")
    made = changed(rules.treatment("x", "INT64", (2, 3), True), data.tobytes())[2]
    assert np.frombuffer(made, "<i8").tolist() == [1, 0, 3, 4, 0, 6]


def test_only_kept_columns_of_a_tensor_change_nothing() -> None:
    assert rules_of(None, {"x.age": "keep"}).treatment("x", "FP32", (1, 3), True) is KEEP


def test_columns_of_text_that_is_kept_are_emptied() -> None:
    rules = rules_of(None, {"x": "keep", "x.age": "drop", "x.height": FeatureRule(bucket=2)})
    data = encode_bytes([b"a", b"b", b"c", b"d", b"e", b"f"])
    made = changed(rules.treatment("x", "BYTES", (2, 3), True), data)[2]
    assert decode_bytes(made) == [b"", b"b", b"", b"", b"e", b""]


def test_a_whole_tensor_is_rounded_down() -> None:
    rules = rules_of(None, {"y": FeatureRule(bucket=0.5)})
    made = changed(rules.treatment("y", "FP32", (3,), False), table((0.7, 0.4, -0.1)))
    assert made[:2] == ("FP32", (3,))
    assert floats(made[2]) == [0.5, 0.0, -0.5]


@pytest.mark.parametrize(
    ("features", "datatype", "shape"),
    [
        ({"x.age": "drop"}, "FP32", (1, 4)),
        ({"x.age": "drop"}, "FP32", (3, 1)),
        ({"x.age": "drop"}, "FP32", ()),
        ({"x": FeatureRule(bucket=5)}, "BYTES", (1, 3)),
        ({"x": "hash"}, "FP32", (1, MAX_HASHED_ELEMENTS + 1)),
    ],
)
def test_what_a_rule_cannot_be_applied_to_is_dropped_and_told_once(
    ring: Keyring,
    caplog: pytest.LogCaptureFixture,
    features: Given,
    datatype: str,
    shape: tuple[int, ...],
) -> None:
    rules = rules_of(ring, features)
    assert [rules.treatment("x", datatype, shape, True) for _ in range(2)] == [DROP] * 2
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_each_text_becomes_its_keyed_hash(ring: Keyring) -> None:
    treatment = rules_of(ring, {"e": "hash"}).treatment("e", "BYTES", (2, 2), True)
    values = [b"alice@example.org", b"", b"bob", b"alice@example.org"]
    datatype, shape, made = changed(treatment, encode_bytes(values))
    assert (datatype, shape) == ("BYTES", (2, 2))
    hashed = Tensor("e", datatype, shape, made).array()
    assert hashed.shape == (2, 2)
    assert hashed.reshape(-1).tolist() == ring.hashes(values)
    assert hashed[0, 0] == hashed[1, 1]
    assert all(len(bytes.fromhex(element.decode())) == 16 for element in hashed.reshape(-1))


def test_each_number_becomes_the_hash_of_its_bytes(ring: Keyring) -> None:
    treatment = rules_of(ring, {"id": "hash"}).treatment("id", "INT64", (3, 1), True)
    data = np.array([7, 8, 7], "<i8").tobytes()
    datatype, shape, made = changed(treatment, memoryview(data))
    assert (datatype, shape) == ("BYTES", (3, 1))
    first, second, third = decode_bytes(made)
    assert first == third == ring.hashes([data[:8]])[0]
    assert second != first


def test_columns_are_changed_before_their_tensor_is_hashed_or_sealed(ring: Keyring) -> None:
    rules = rules_of(ring, {"x": "hash", "x.age": "drop"})
    treatment = rules.treatment("x", "FP32", (1, 3), True)
    blanked = np.array([np.nan, 2, 3], "<f4").tobytes()
    made = decode_bytes(changed(treatment, table((1, 2, 3)))[2])
    assert made == ring.hashes([blanked[at : at + 4] for at in (0, 4, 8)])

    treatment = rules_of(ring, {"x": "seal", "x.age": "drop"}).treatment("x", "FP32", (1, 3), True)
    assert treatment.is_sealed
    assert changed(treatment, table((1, 2, 3)))[2] == blanked


def test_an_empty_tensor_stays_empty(ring: Keyring) -> None:
    rules = rules_of(ring, {"e": "hash", "x.age": "drop"})
    assert changed(rules.treatment("e", "BYTES", (0, 5), True), b"") == ("BYTES", (0, 5), b"")
    assert changed(rules.treatment("x", "FP32", (0, 3), True), b"") == ("FP32", (0, 3), b"")


@pytest.mark.parametrize(
    ("tensor", "datatype", "shape", "data"),
    [
        ("x", "FP32", (1, 3), bytes(11)),
        ("x", "FP32", (1, 3), bytes(16)),
        ("e", "BYTES", (1,), b"\x09\0\0\0short"),
        ("e", "BYTES", (3,), encode_bytes([b"one"])),
        ("e", "INT64", (1,), bytes(7)),
    ],
)
def test_of_bytes_that_contradict_their_shape_nothing_is_kept(
    ring: Keyring, tensor: str, datatype: str, shape: tuple[int, ...], data: bytes
) -> None:
    rules = rules_of(ring, {"e": "hash", "x.age": "drop"})
    datatype, shape, made = changed(rules.treatment(tensor, datatype, shape, True), data)
    assert Tensor(tensor, datatype, shape, made).array().size == 0


def test_a_change_may_run_in_many_threads_while_the_key_rotates(
    tmp_path: Path, ring: Keyring
) -> None:
    change = rules_of(ring, {"e": "hash"}).treatment("e", "BYTES", (200,), True).change
    assert change is not None
    values = [str(n).encode() for n in range(200)]
    data = encode_bytes(values)
    made: list[bytes] = []

    def work() -> None:
        made.extend(bytes(change(data)[2]) for _ in range(20))

    old = ring.hashes(values)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    write_keys(tmp_path / "keys", *(f"{n} {n:032x}" for n in range(2)))
    assert ring.reload_if_changed()
    for thread in threads:
        thread.join()
    assert len(made) == 80
    assert {tuple(decode_bytes(each)) for each in made} <= {tuple(old), tuple(ring.hashes(values))}


@pytest.mark.parametrize(
    ("features", "sentence"),
    [
        ({"e": "hash"}, r"features\.e: a hash needs privacy\.key_file"),
        ({"x": FeatureRule(bucket=math.inf)}, "a bucket is a finite number"),
        ({"x.age": FeatureRule(bucket=math.inf)}, "a bucket is a finite number"),
    ],
)
def test_rules_that_cannot_be_kept_are_refused_at_the_start(features: Given, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        rules_of(None, features)
