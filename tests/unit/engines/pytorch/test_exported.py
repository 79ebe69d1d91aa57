"""What is served of an exported program: names, shapes, and which batches it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

from engines import pytorch
from engines.base import Engine, EngineConfig, TensorSpec
from engines.errors import InvalidInput, ModelLoadError
from engines.pytorch import exported
from tests.support.torch_models import Identity, Scaled, rows, write_exported, write_identity

ROWS: Final = rows(16)


def fp32(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype="FP32", shape=shape)


# Any: see `write_exported`.
def load(
    path: Path, module: nn.Module, args: list[Any], dynamic: Any = None, **config: Any
) -> Engine:
    write_exported(path / "model.pt2", module, args, dynamic=dynamic)
    return pytorch.load(path / "model.pt2", EngineConfig(**config))


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_exported(
        tmp_path_factory.mktemp("scaled") / "model.pt2",
        Scaled(),
        [torch.zeros(2, 3)],
        {"scale": torch.zeros(2, 4)},
        dynamic={"x": {0: ROWS}, "scale": {0: ROWS}},
    )


def test_inputs_by_position_and_keyword_and_nested_outputs_keep_their_names(scaled: Path) -> None:
    engine = pytorch.load(scaled, EngineConfig())
    assert engine.metadata.inputs == (fp32("x", -1, 3), fp32("scale", -1, 4))
    assert engine.metadata.outputs == (
        fp32("scaled", -1, 4),
        fp32("rest.0", -1),
        fp32("rest.1", -1, 3),
    )
    x, scale = np.ones((5, 3), np.float32), np.zeros((5, 4), np.float32)
    answer = engine.infer({"scale": scale, "x": x})
    np.testing.assert_array_equal(answer["scaled"], np.tile(np.arange(4.0), (5, 1)))
    np.testing.assert_array_equal(answer["rest.0"], np.full(5, 3.0))
    np.testing.assert_array_equal(answer["rest.1"], x)


def test_metadata_tell_runtime_precision_and_memory(scaled: Path) -> None:
    metadata = pytorch.load(scaled, EngineConfig()).metadata
    assert metadata.platform == "pytorch_libtorch"
    assert metadata.engine == f"pytorch {torch.__version__}"
    assert (metadata.device, metadata.fallback) == ("cpu", "")
    assert metadata.precision == "FP32"
    assert metadata.memory_bytes == 4 * (3 * 4 + 4 + 4)
    assert len(metadata.artifact_sha256) == 64
    assert metadata.is_steady


def pair(count: int) -> list[torch.Tensor]:
    """Return two example inputs; of one tensor, given twice, torch.export makes one input."""
    return [torch.zeros(count, 3), torch.ones(count, 3)]


class Two(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return a + b, a - b


def test_outputs_of_a_tuple_are_named_by_position(tmp_path: Path) -> None:
    engine = load(tmp_path, Two(), pair(2), {"a": {0: ROWS}, "b": {0: ROWS}})
    assert [spec.name for spec in engine.metadata.outputs] == ["OUTPUT__0", "OUTPUT__1"]


def test_declared_names_by_position_are_served(tmp_path: Path) -> None:
    engine = load(
        tmp_path,
        Two(),
        pair(2),
        {"a": {0: ROWS}, "b": {0: ROWS}},
        max_batch_size=8,
        inputs=(fp32("INPUT__1", 3), fp32("a", 3)),
        outputs=(fp32("difference__1", 3),),
    )
    a, b = np.full((2, 3), 5, np.float32), np.full((2, 3), 2, np.float32)
    answer = engine.infer({"a": a, "INPUT__1": b})
    assert list(answer) == ["difference__1"]
    np.testing.assert_array_equal(answer["difference__1"], a - b)


@pytest.mark.parametrize(
    ("declared", "why"),
    [
        ([fp32("c", 3), fp32("b", 3)], r"declared input 'c' is not in the model: it has a, b"),
        ([fp32("a", 3)], "the model's input 'b' is not declared"),
        ([fp32("a", 3), fp32("INPUT__0", 3), fp32("b", 3)], "are the same input"),
        ([fp32("a", 4), fp32("b", 3)], r"'a' is declared with the shape \[-1, 4\]"),
    ],
)
def test_a_declaration_that_contradicts_the_program_is_a_load_error(
    tmp_path: Path, declared: list[TensorSpec], why: str
) -> None:
    args, dynamic = pair(2), {"a": {0: ROWS}, "b": {0: ROWS}}
    with pytest.raises(ModelLoadError, match=why):
        load(tmp_path, Two(), args, dynamic, max_batch_size=8, inputs=tuple(declared))


def test_a_declared_dimension_narrows_one_that_varies(tmp_path: Path) -> None:
    dynamic = {"x": {0: ROWS, 1: Dim("columns", min=1)}}
    declared = (fp32("x", 7),)
    engine = load(
        tmp_path, Identity(), [torch.zeros(2, 3)], dynamic, max_batch_size=4, inputs=declared
    )
    assert engine.metadata.inputs == (fp32("x", -1, 7),)
    assert engine.metadata.is_steady
    free = load(tmp_path, Identity(), [torch.zeros(2, 3)], dynamic)
    assert free.metadata.inputs == (fp32("x", -1, -1),)
    assert not free.metadata.is_steady
    for columns in (1, 2, 9):
        x = np.random.default_rng(columns).random((3, columns), np.float32)
        np.testing.assert_array_equal(free.infer({"x": x})["y"], x)


def test_the_programs_bound_of_rows_is_the_default_batch_size(tmp_path: Path) -> None:
    args = [torch.zeros(2, 3)]
    for most, default, expected in ((16, 64, 16), (16, 8, 8), (None, 64, 64)):
        dynamic = {"x": {0: rows(most)}}
        engine = load(tmp_path, Identity(), args, dynamic, default_max_batch_size=default)
        assert engine.metadata.max_batch_size == expected


def test_more_rows_than_the_program_was_exported_for_is_a_load_error(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"at most 16 rows: export it with Dim\(..., max=32\)"):
        load(tmp_path, Identity(), [torch.zeros(2, 3)], {"x": {0: ROWS}}, max_batch_size=32)


class Growing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x])


class Apart(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sums": a.sum(1), "total": b.sum()[None]}


def test_outputs_whose_rows_are_not_those_of_the_inputs_are_not_batched(tmp_path: Path) -> None:
    args, dynamic = [torch.zeros(2, 3)], {"x": {0: ROWS}}
    assert load(tmp_path, Growing(), args, dynamic).metadata.max_batch_size == 0
    with pytest.raises(ModelLoadError, match="rows would not come back as they went in"):
        load(tmp_path, Growing(), args, dynamic, max_batch_size=4)
    both = {"a": {0: rows(8)}, "b": {0: Dim("others", min=1, max=8)}}
    assert load(tmp_path, Apart(), pair(2), both).metadata.max_batch_size == 0


def test_a_batch_axis_that_is_a_number_becomes_a_bucket(tmp_path: Path) -> None:
    engine = load(tmp_path, Identity(), [torch.zeros(4, 3)], max_batch_size=4)
    assert (engine.metadata.max_batch_size, engine.metadata.buckets) == (4, (4,))
    assert engine.metadata.inputs == (fp32("x", -1, 3),)
    assert load(tmp_path, Identity(), [torch.zeros(4, 3)]).metadata.max_batch_size == 0


@pytest.mark.parametrize("dimension", [Dim.DYNAMIC, Dim("rows", min=5, max=9)])
# Any: a dimension of torch.export, which has no common type.
def test_fewer_rows_than_the_program_was_exported_for_are_filled_up(
    tmp_path: Path, dimension: Any
) -> None:
    dynamic = {"a": {0: dimension}, "b": {0: dimension}}
    engine = load(tmp_path, Two(), pair(6), dynamic, max_batch_size=9)
    for count in range(1, 10):
        a, b = np.random.default_rng(count).random((2, count, 3), np.float32)
        answer = engine.infer({"a": a, "b": b})
        np.testing.assert_array_equal(answer["OUTPUT__0"], a + b)
        np.testing.assert_array_equal(answer["OUTPUT__1"], a - b)


def test_a_batch_size_below_the_programs_least_rows_is_a_load_error(tmp_path: Path) -> None:
    dynamic = {"x": {0: Dim("rows", min=5, max=9)}}
    for config in ({"max_batch_size": 4}, {"default_max_batch_size": 4}):
        with pytest.raises(ModelLoadError, match="at least 5 rows, more than max_batch_size 4"):
            load(tmp_path, Identity(), [torch.zeros(6, 3)], dynamic, **config)


def test_shapes_that_the_program_has_no_room_for_are_the_callers_mistake(scaled: Path) -> None:
    engine = pytorch.load(scaled, EngineConfig())
    good = {"x": np.ones((2, 3), np.float32), "scale": np.ones((2, 4), np.float32)}
    wrong = {
        "x.*1.* == 3": {"x": np.ones((2, 5), np.float32)},
        "scale.*0.* == x.*0": {"scale": np.ones((3, 4), np.float32)},
        "x.*0.* <= 16": {"x": np.ones((17, 3), np.float32), "scale": np.ones((17, 4), np.float32)},
    }
    for why, change in wrong.items():
        with pytest.raises(InvalidInput, match=why):
            engine.infer(good | change)
    assert engine.infer(good)["scaled"].shape == (2, 4)


class Optional(nn.Module):
    def forward(
        self, x: torch.Tensor, times: int = 2, shift: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | None, ...]:
        return None, x * times if shift is None else x + shift


def test_constants_of_the_call_stay_what_they_were_and_none_is_left_out(tmp_path: Path) -> None:
    engine = load(tmp_path, Optional(), [torch.ones(2, 3), 5])
    assert [spec.name for spec in engine.metadata.inputs] == ["x"]
    assert [spec.name for spec in engine.metadata.outputs] == ["OUTPUT__0"]
    (answer,) = engine.infer({"x": np.ones((2, 3), np.float32)}).values()
    np.testing.assert_array_equal(answer, np.full((2, 3), 5.0))


class Sized(nn.Module):
    def forward(self, x: torch.Tensor, count: int) -> tuple[torch.Tensor, int]:
        return x * count, x.shape[0]


def test_numbers_that_vary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="'count' is a number that varies"):
        load(tmp_path, Sized(), [torch.ones(2, 3), 5], {"x": None, "count": Dim.DYNAMIC})
    with pytest.raises(ModelLoadError, match="output 1 is not a tensor"):
        load(tmp_path, Sized(), [torch.ones(2, 3), 5])


def test_a_datatype_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"model\.pt2: input 'x' is a torch\.complex64"):
        load(tmp_path, Identity(), [torch.zeros(2, dtype=torch.complex64)])


def test_text_is_declared_in_vain(tmp_path: Path) -> None:
    path = write_identity(tmp_path / "model.pt2", "INT64", [3], True)
    declared = (TensorSpec(name="x", datatype="BYTES", shape=(3,)),)
    with pytest.raises(ModelLoadError, match="declared BYTES, the model has INT64"):
        pytorch.load(path, EngineConfig(max_batch_size=4, inputs=declared))


def test_a_program_that_is_refused_gives_its_weights_back(tmp_path: Path) -> None:
    path = write_exported(
        tmp_path / "model.pt2", nn.Linear(3, 4), [torch.zeros(2, 3)], dynamic={"input": {0: ROWS}}
    )
    emptied: list[torch.Tensor] = []
    empty = exported._empty

    def noted(held: tuple[torch.Tensor, ...]) -> None:
        emptied.extend(held)
        empty(held)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(exported, "_empty", noted)
        with pytest.raises(ModelLoadError, match=r"model\.pt2: declared output 'y'"):
            pytorch.load(path, EngineConfig(max_batch_size=4, outputs=(fp32("y", 4),)))
        with pytest.raises(ModelLoadError, match=r"'OUTPUT__0' is declared with the shape"):
            pytorch.load(path, EngineConfig(max_batch_size=4, outputs=(fp32("OUTPUT__0", 5),)))
    assert [tensor.numel() for tensor in emptied] == [0] * 4


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": torch.cond(x.sum() > 0, torch.neg, torch.abs, (x,))}


class Finds(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": x + x.nonzero().sum()}


@pytest.mark.parametrize("module", [Branches(), Finds()])
def test_where_values_say_how_much_there_is_to_do_a_program_is_not_steady(
    tmp_path: Path, module: nn.Module
) -> None:
    engine = load(tmp_path, module, [torch.zeros(2, 3)], {"x": {0: ROWS}})
    assert not engine.metadata.is_steady
    assert engine.infer({"x": np.ones((2, 3), np.float32)})["y"].shape == (2, 3)
