from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gateway.quantize import comparison, graphs
from gateway.quantize.comparison import Output, Sessions
from gateway.quantize.faults import CannotQuantize
from tests.support.models import write_lookup


def test_differences_are_the_largest_of_all_batches_and_relative_to_the_parents_largest() -> None:
    output = Output("y")
    output.add(np.array([[1.0, 2.0]]), np.array([[1.5, 2.0]]))
    output.add(np.array([[-8.0, 0.25]]), np.array([[-8.0, 0.0]]))
    assert (output.difference, output.largest, output.relative) == (0.5, 8.0, 0.0625)


def test_agreement_of_scores_is_that_of_the_largest() -> None:
    output = Output("scores")
    output.add(np.array([[1, 2, 3], [3, 2, 1.0]]), np.array([[0, 1, 9], [1, 2, 3.0]]))
    assert (output.agreement, output.what) == (0.5, "argmax")


def test_agreement_of_whole_numbers_and_text_is_equality() -> None:
    labels, words = Output("label"), Output("word")
    labels.add(np.array([[1], [2], [3], [4]]), np.array([[1], [2], [3], [5]]))
    words.add(np.array(["a", "b"], object), np.array(["a", "c"], object))
    assert (labels.agreement, labels.what) == (0.75, "equal")
    assert labels.difference == 0
    assert words.agreement == 0.5
    assert comparison.worst([labels, words, Output("price")]) == 0.5


def test_a_single_number_per_row_has_no_agreement() -> None:
    output = Output("price")
    output.add(np.array([[1.0], [2.0]]), np.array([[1.5], [2.0]]))
    assert output.agreement is None
    assert comparison.worst([output]) is None


def test_answers_of_another_shape_agree_in_nothing() -> None:
    output = Output("boxes")
    output.add(np.zeros((2, 4), np.float32), np.zeros((3, 4), np.float32))
    assert output.agreement == 0


def test_elements_that_are_finite_in_the_parent_only_are_counted_and_refused() -> None:
    output = Output("y")
    both = np.array([np.nan, np.inf, 1.0])
    output.add(np.array([np.nan, np.inf, 1.0]), both)
    comparison.check_finite([output])
    assert output.difference == 0
    output.add(np.array([np.nan, np.inf, np.inf]), both)
    with pytest.raises(CannotQuantize, match="output 'y' has 1 elements that are not finite"):
        comparison.check_finite([output])


def test_a_model_is_its_own_equal(mlp: Path) -> None:
    parent = graphs.read(mlp)
    content = graphs.content(parent.model)
    sessions = Sessions(content, content, parent.signature)
    rows = np.random.default_rng(0).normal(size=(20, 16)).astype(np.float32)
    (output,) = sessions.compare([{"x": rows}])
    assert (output.difference, output.agreement, output.answers) == (0, 1, 20)


def test_what_does_not_load_or_run_is_told(mlp: Path, tmp_path: Path) -> None:
    parent = graphs.read(mlp)
    content = graphs.content(parent.model)
    with pytest.raises(CannotQuantize, match="onnxruntime does not load it: "):
        Sessions(content, b"nothing", parent.signature)
    lookup = graphs.read(write_lookup(tmp_path / "m.onnx", [1.0, 2.0]))
    content = graphs.content(lookup.model)
    found = Sessions(content, content, lookup.signature)
    with pytest.raises(CannotQuantize, match="onnxruntime does not run it: "):
        found.compare([{"x": np.array([[7]])}])
