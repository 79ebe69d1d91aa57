from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from engines import ort as engine
from engines.base import EngineConfig
from gateway.config import ModelsConfig
from gateway.demo import digits
from gateway.demo.digits import Data, Digits
from gateway.model_config import ModelConfigs


@contextmanager
def silent(text: str) -> Iterator[None]:
    assert text
    yield


@pytest.fixture(scope="module")
def data() -> Data:
    return digits.load()


@pytest.fixture(scope="module")
def linear(data: Data) -> Any:  # Any: scikit-learn ships no types
    return digits.fitted(digits.fit_linear, data)


@pytest.fixture(scope="module")
def network(data: Data) -> Any:  # Any: scikit-learn ships no types
    return digits.fitted(digits.fit_network, data)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Digits]:
    directory = tmp_path_factory.mktemp("trained")
    return directory, digits.make(directory, silent)


@pytest.fixture
def again(trained: tuple[Path, Digits], tmp_path: Path) -> Path:
    """Return a copy of a trained folder, to spoil."""
    source, _ = trained
    for path in source.rglob("*"):
        if path.is_file():
            target = tmp_path / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return tmp_path


def session(content: bytes) -> ort.InferenceSession:
    return ort.InferenceSession(content, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", ["linear", "network"])
def test_a_graph_answers_raw_pixels_as_the_fitted_estimator_answers_scaled_ones(
    name: str, data: Data, request: pytest.FixtureRequest
) -> None:
    estimator = request.getfixturevalue(name)
    graph = digits.graph(digits.layers(estimator)).SerializeToString()
    pixels = data.held_out.astype(np.float32)
    probabilities, label = session(graph).run(["probabilities", "label"], {"image": pixels})
    expected = estimator.predict_proba(data.held_out / digits.WHITE)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    np.testing.assert_array_equal(label[:, 0], estimator.predict(data.held_out / digits.WHITE))


def test_the_classes_of_an_estimator_are_the_digits_in_order(linear: Any, network: Any) -> None:
    assert linear.classes_.tolist() == list(range(10))
    assert network.classes_.tolist() == list(range(10))


def test_the_linear_model_has_one_layer_and_the_network_two(linear: Any, network: Any) -> None:
    assert [layer.weights.shape for layer in digits.layers(linear)] == [(64, 10)]
    assert [layer.weights.shape for layer in digits.layers(network)] == [(64, 64), (64, 10)]


def test_held_out_pictures_are_not_trained_on_and_span_the_pixel_range(data: Data) -> None:
    seen = {row.tobytes() for row in data.train}
    assert not any(row.tobytes() in seen for row in data.held_out)
    assert len(data.train) + len(data.held_out) == 1797
    assert (data.held_out.min(), data.held_out.max()) == (0, digits.WHITE)


def test_the_same_data_give_the_same_bytes_every_time(data: Data) -> None:
    first, second = (
        digits.graph(digits.layers(digits.fitted(digits.fit_network, data))).SerializeToString(
            deterministic=True
        )
        for _ in range(2)
    )
    assert first == second


def test_both_versions_name_most_held_out_pictures_rightly(
    trained: tuple[Path, Digits],
) -> None:
    _, made = trained
    assert [version.version for version in made.versions] == ["1", "2"]
    assert all(0.95 < version.accuracy <= 1 for version in made.versions)
    assert made.held_out == 450


def test_the_pictures_kept_are_one_of_each_digit_in_order(trained: tuple[Path, Digits]) -> None:
    _, made = trained
    assert [picture.digit for picture in made.pictures] == list(range(10))
    assert all(len(picture.pixels) == digits.PIXELS for picture in made.pictures)
    assert all(0 <= pixel <= digits.WHITE for picture in made.pictures for pixel in picture.pixels)


@pytest.mark.parametrize("version", ["1", "2"])
def test_the_gateway_reads_the_repository_as_two_batched_models_of_one_signature(
    trained: tuple[Path, Digits], version: str
) -> None:
    directory, _ = trained
    configs = ModelConfigs(settings=ModelsConfig(), usable_cores=1)
    spec = configs.read_spec(directory / "models" / digits.NAME)
    assert spec.batching is not None
    assert spec.batching.dynamic
    assert spec.batching.max_batch_size == 64
    loaded = engine.load(digits.model_path(directory, version), spec.engine)
    signature = [
        (tensor.name, tensor.datatype, tensor.shape)
        for tensor in (*loaded.metadata.inputs, *loaded.metadata.outputs)
    ]
    loaded.close()
    assert signature == [
        ("image", "FP32", (-1, 64)),
        ("probabilities", "FP32", (-1, 10)),
        ("label", "INT64", (-1, 1)),
    ]


def test_a_model_can_be_batched_without_any_configuration(trained: tuple[Path, Digits]) -> None:
    directory, _ = trained
    config = EngineConfig(default_max_batch_size=16)
    loaded = engine.load(digits.model_path(directory, "2"), config)
    assert loaded.metadata.max_batch_size == 16
    loaded.close()


def test_an_untouched_folder_is_found_again(again: Path, trained: tuple[Path, Digits]) -> None:
    assert digits.find(again) == trained[1]


def test_nothing_is_found_in_an_empty_folder(tmp_path: Path) -> None:
    assert digits.find(tmp_path) is None


@pytest.mark.parametrize(
    "spoiled",
    ["digits.json", "models/digits/1/model.onnx", "models/digits/2/model.onnx"],
)
@pytest.mark.parametrize("how", ["missing", "cut", "other"])
def test_a_spoiled_folder_is_not_found(again: Path, spoiled: str, how: str) -> None:
    path = again / spoiled
    content = path.read_bytes()
    path.unlink()
    if how != "missing":
        path.write_bytes(content[:-7] if how == "cut" else b'{"recipe": 1}')
    assert digits.find(again) is None


def test_a_missing_configuration_counts_as_not_found(again: Path) -> None:
    digits.config_path(again).unlink()
    assert digits.find(again) is None


def test_models_of_another_recipe_are_not_found(
    again: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "recipe", lambda: "of another day")
    assert digits.find(again) is None


def test_making_anew_mends_a_spoiled_folder_and_leaves_no_parts_behind(again: Path) -> None:
    digits.model_path(again, "1").write_bytes(b"no model")
    made = digits.make(again, silent)
    assert digits.find(again) == made
    assert not list(again.rglob("*.part"))
