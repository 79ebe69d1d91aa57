"""Optimised models that are kept: same answers, made once, and never in the way of a load."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from engines.base import EngineConfig
from engines.errors import ModelLoadError
from engines.ort import load
from engines.ort.cache import LEAST_BYTES, key_of
from engines.ort.session import open_session
from tests.support.models import write_identity, write_mlp

SIZES = [512, 640, 8]  # some 1.3 MB of weights


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = write_mlp(tmp_path / "model.onnx", SIZES, seed=1)
    assert path.stat().st_size >= LEAST_BYTES
    return path


@pytest.fixture
def config(tmp_path: Path) -> EngineConfig:
    return EngineConfig(cache=tmp_path / "cache")


def kept(config: EngineConfig) -> list[Path]:
    assert config.cache is not None
    return sorted(config.cache.glob("*.onnx"))


def answers(path: Path, config: EngineConfig) -> np.ndarray:
    rows = np.random.default_rng(7).normal(size=(5, SIZES[0])).astype(np.float32)
    engine = load(path, config)
    answer = engine.infer({"x": rows})["y"]
    engine.close()
    return answer


def test_answers_and_metadata_are_the_same_with_and_without(
    model: Path, config: EngineConfig
) -> None:
    plain = load(model, EngineConfig())
    expected = answers(model, EngineConfig())
    for _ in range(2):
        assert load(model, config).metadata == plain.metadata
        np.testing.assert_array_equal(answers(model, config), expected)


def test_a_model_is_optimised_once(model: Path, config: EngineConfig) -> None:
    answers(model, config)
    [first] = kept(config)
    made = first.stat()
    answers(model, config)
    [second] = kept(config)
    assert (second.name, second.stat().st_mtime_ns) == (first.name, made.st_mtime_ns)
    assert made.st_ino == second.stat().st_ino
    written = json.loads(first.with_name(f"{first.name}.json").read_text())
    assert set(written) >= {"model_sha256", "onnxruntime", "hardware", "providers", "entries"}


def test_what_is_kept_is_what_is_loaded(model: Path, config: EngineConfig, tmp_path: Path) -> None:
    """Weights of another model in its place show in the answers."""
    answers(model, config)
    [file] = kept(config)
    other = write_mlp(tmp_path / "other.onnx", SIZES, seed=2)
    file.write_bytes(other.read_bytes())
    np.testing.assert_array_equal(answers(model, config), answers(other, EngineConfig()))


@pytest.mark.parametrize("left", [0, 100, 1_000_000])
def test_a_broken_file_is_warned_about_and_made_again(
    model: Path, config: EngineConfig, left: int, caplog: pytest.LogCaptureFixture
) -> None:
    expected = answers(model, config)
    [file] = kept(config)
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:left])
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(answers(model, config), expected)
    assert [r.message for r in caplog.records] == ["a kept optimised model does not load"]
    [again] = kept(config)
    assert (again.name, again.stat().st_size) == (file.name, size)


def test_other_entries_make_another_file(model: Path, config: EngineConfig) -> None:
    answers(model, config)
    answers(model, replace(config, parameters={"session.disable_prepacking": "1"}))
    assert len(kept(config)) == 2
    answers(model, replace(config, parameters={"session.intra_op.allow_spinning": "1"}))
    assert len(kept(config)) == 2


def test_everything_that_a_graph_depends_on_is_in_its_key(config: EngineConfig) -> None:
    key = key_of(config, "a" * 64)
    assert key["model_sha256"] == "a" * 64
    assert key["hardware"]
    assert "cpu_flags" in json.dumps(key["hardware"])


def test_a_small_file_is_not_kept(config: EngineConfig, tmp_path: Path) -> None:
    path = write_mlp(tmp_path / "small.onnx", [4, 4], seed=1)
    load(path, config)
    assert kept(config) == []


def test_without_a_folder_nothing_is_written(model: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    answers(model, EngineConfig())
    assert sorted(tmp_path.rglob("*")) == before


def test_weights_in_other_files_are_not_covered_and_not_kept(
    model: Path, config: EngineConfig, tmp_path: Path
) -> None:
    """Their change would not be seen: the digest is that of the first file."""
    expected = answers(model, EngineConfig())
    split = tmp_path / "split" / "model.onnx"
    split.parent.mkdir()
    document = onnx.load(model)
    node = document.graph.node[0]
    node.doc_string = "x" * LEAST_BYTES  # large enough to be kept but for its weights
    onnx.save_model(document, split, save_as_external_data=True)
    assert split.stat().st_size >= LEAST_BYTES
    np.testing.assert_array_equal(answers(split, config), expected)
    assert kept(config) == []


def test_a_broken_model_is_a_load_error_whether_or_not_it_could_be_kept(
    model: Path, config: EngineConfig, caplog: pytest.LogCaptureFixture
) -> None:
    whole = model.read_bytes()
    model.write_bytes(whole[: len(whole) - 50_000])
    with pytest.raises(ModelLoadError, match=r"model.onnx does not load: .*INVALID|Protobuf"):
        load(model, config)
    garbled = bytearray(whole)
    garbled[-200:] = bytes(200)
    model.write_bytes(garbled)
    with pytest.raises(ModelLoadError, match=r"^model.onnx does not load: "):
        load(model, config)
    assert kept(config) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_no_reason_not_to_load(
    model: Path, config: EngineConfig
) -> None:
    assert config.cache is not None
    config.cache.mkdir(mode=0o500)
    np.testing.assert_array_equal(answers(model, config), answers(model, EngineConfig()))


def test_a_folder_that_is_a_file_is_no_reason_not_to_load(
    model: Path, config: EngineConfig, caplog: pytest.LogCaptureFixture
) -> None:
    assert config.cache is not None
    config.cache.write_text("in the way")
    np.testing.assert_array_equal(answers(model, config), answers(model, EngineConfig()))
    assert "nothing can be kept of model files" in [r.message for r in caplog.records]


def test_text_models_and_their_metadata_survive(tmp_path: Path, config: EngineConfig) -> None:
    path = write_identity(tmp_path / "text.onnx", "BYTES", [1])
    document = onnx.load(path)
    document.graph.node[0].doc_string = "x" * LEAST_BYTES
    document.metadata_props.add(key="sluice.precision", value="INT8 QDQ")
    onnx.save_model(document, path)
    engine = load(path, config)
    assert len(kept(config)) == 1
    assert engine.metadata.precision == "INT8 QDQ"
    rows = np.array([["é".encode()], [b""]], dtype=object)
    assert engine.infer({"x": rows})["y"].tolist() == rows.tolist()


def test_what_is_made_of_a_file_that_was_replaced_meanwhile_is_not_kept(
    model: Path,
    config: EngineConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    content = model.read_bytes()

    def replace_first(path: Path, *rest: Any) -> Any:  # Any: as open_session
        if path == model:
            write_mlp(model, SIZES, seed=2)
        return open_session(path, *rest)

    monkeypatch.setattr("engines.ort.cache.open_session", replace_first)
    load(model, config).close()
    assert kept(config) == []
    assert vars(caplog.records[0])["reason"] == "model.onnx was replaced while it was read"
    monkeypatch.undo()
    model.write_bytes(content)
    np.testing.assert_array_equal(
        answers(model, config), answers(model, replace(config, cache=None))
    )
