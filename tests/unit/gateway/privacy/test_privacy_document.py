"""docs/privacy.md: its configuration is one, and does what the document says of it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from engines.tensors import encode_bytes
from gateway import config as configuration
from gateway.prediction_log.privacy.features import KEEP, FeatureRules
from tests.support.privacy import tap_of

DOCUMENT = Path(__file__).parents[4] / "docs" / "privacy.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)


@pytest.fixture
def rules(tmp_path: Path) -> FeatureRules:
    (toml,) = blocks("toml")
    toml = toml.replace("secrets/log-keys", "keys").replace("secrets/log-master-key", "master")
    path = tmp_path / "sluice.toml"
    path.write_text(toml)
    config = configuration.load(path, {}).prediction_log
    return tap_of(tmp_path, config).rules("credit")


def test_the_example_rounds_a_column_and_blanks_another(rules: FeatureRules) -> None:
    change = rules.treatment("x", "FP32", (1, 3), True).change
    assert change is not None
    made = np.frombuffer(change(np.array([37, 1_500, 10_115], "<f4").tobytes())[2], "<f4")
    np.testing.assert_array_equal(made, [35, 1_500, np.nan])


def test_the_example_hashes_seals_and_keeps_text_and_drops_the_rest(rules: FeatureRules) -> None:
    change = rules.treatment("email", "BYTES", (1,), True).change
    assert change is not None
    assert len(change(encode_bytes([b"alice@example.org"]))[2]) == 4 + 32
    assert rules.treatment("note", "BYTES", (1,), True).is_sealed
    assert rules.treatment("reason", "BYTES", (1,), False) is KEEP
    assert rules.treatment("other", "BYTES", (1,), False).is_dropped


def test_the_examples_in_python_are_python() -> None:
    (code,) = blocks("python")
    assert ast.parse(code).body
