from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from gateway.quantize import comparison, fp16, graphs, ranges
from gateway.quantize.comparison import Sessions
from gateway.quantize.faults import CannotQuantize
from gateway.quantize.graphs import Parent
from gateway.quantize.samples import Sample
from tests.support.models import write_graph


@pytest.fixture
def growing(tmp_path: Path) -> Parent:
    """Return a model whose values pass what FP16 can hold on the way to a small answer."""
    constants = {"big": np.full((4, 4), 300, np.float32), "small": np.array(1e-5, np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "big"], ["a"], name="grow"),
        helper.make_node("MatMul", ["a", "big"], ["b"], name="grow_more"),
        helper.make_node("Mul", ["b", "small"], ["y"], name="shrink"),
    ]
    path = write_graph(
        tmp_path / "model.onnx",
        nodes=nodes,
        inputs={"x": ("FP32", ["n", 4])},
        outputs={"y": ("FP32", ["n", 4])},
        constants=constants,
    )
    return graphs.read(path)


def rows(value: float) -> list[Sample]:
    return [{"x": np.full((2, 4), 0.01, np.float32)}, {"x": np.full((3, 4), value, np.float32)}]


def check(parent: Parent, batches: Sequence[Sample], *exclude: str) -> None:
    ranges.check(parent.model, fp16.quantize(parent.model, exclude=exclude), batches)


def test_values_that_fp16_cannot_hold_are_told_by_the_node_that_makes_them(
    growing: Parent,
) -> None:
    check(growing, rows(0.02))
    with pytest.raises(CannotQuantize, match=r"up to 65504, .* from grow_more \(2.88e\+06\): "):
        check(growing, rows(2))
    with pytest.raises(CannotQuantize, match=r"from grow \(7.2e\+04\), grow_more \(8.64e\+07\)"):
        check(growing, rows(60))


def test_an_input_that_is_too_large_is_told_by_its_name(growing: Parent) -> None:
    with pytest.raises(CannotQuantize, match=r"from input 'x' \(1e\+05\), grow "):
        check(growing, rows(1e5))


def test_excluding_a_node_and_its_reader_leaves_the_value_in_fp32(growing: Parent) -> None:
    with pytest.raises(CannotQuantize, match="grow_more"):
        check(growing, rows(2), "grow_more")  # its reader takes it in FP16
    check(growing, rows(2), "grow_more", "shrink")
    child = fp16.quantize(growing.model, exclude=["grow_more", "shrink"])
    contents = graphs.content(growing.model), graphs.content(child)
    (output,) = Sessions(*contents, growing.signature).compare(rows(2))
    assert output.relative < 0.01
    comparison.check_finite([output])


def test_excluding_all_that_reads_an_input_takes_it_as_it_is(growing: Parent) -> None:
    check(growing, rows(1e5), "grow", "grow_more", "shrink")


def test_masks_stand_for_infinity_and_are_no_fault(tmp_path: Path) -> None:
    lowest = np.array(np.finfo(np.float32).min)
    nodes = [
        helper.make_node("Mul", ["mask", "lowest"], ["hidden"]),
        helper.make_node("Add", ["x", "hidden"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["y"]),
    ]
    path = write_graph(
        tmp_path / "model.onnx",
        nodes=nodes,
        inputs={"x": ("FP32", ["n", 4]), "mask": ("FP32", ["n", 4])},
        outputs={"y": ("FP32", ["n", 4])},
        constants={"lowest": lowest},
    )
    x = np.ones((1, 4), np.float32)
    check(graphs.read(path), [{"x": x, "mask": np.array([[0, 0, 1, 1]], np.float32)}])


def test_an_ordinary_network_passes(mlp: Path, convolutional: Path) -> None:
    for path, shape in ((mlp, (8, 16)), (convolutional, (8, 3, 12, 12))):
        drawn = np.random.default_rng(2).normal(size=shape).astype(np.float32)
        check(graphs.read(path), [{"x": drawn}])
