"""TorchScript: what has to be declared, under which names, and what a script may return."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from engines import pytorch
from engines.base import Engine, EngineConfig, TensorSpec
from engines.errors import EngineClosed, InvalidInput, ModelLoadError
from tests.support.torch_models import write_script


def fp32(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype="FP32", shape=shape)


def load(
    folder: Path,
    module: nn.Module,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    *,
    max_batch_size: int | None = 8,
) -> Engine:
    path = write_script(folder / "model.pt", module)
    config = EngineConfig(max_batch_size=max_batch_size, inputs=inputs, outputs=outputs)
    return pytorch.load(path, config)


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(
        self, a: torch.Tensor, b: torch.Tensor, extra: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if a.size(0) > 6:
            raise ValueError("more than six")
        total = a - b
        if extra is not None:
            total = total + extra
        return total, self.linear(a)


A, B = np.full((2, 3), 5, np.float32), np.full((2, 3), 3, np.float32)


def test_what_is_not_declared_is_asked_for_by_the_names_of_forward(tmp_path: Path) -> None:
    path = write_script(tmp_path / "model.pt", Both())
    for inputs in ((), (fp32("a", 3), fp32("b", 3))):
        with pytest.raises(ModelLoadError) as refused:
            pytorch.load(path, EngineConfig(inputs=inputs))
        side = "outputs" if inputs else "inputs"
        assert f"the {side} are not declared" in str(refused.value)
        assert "named as in the model (a, b, extra) or by position, INPUT__0" in str(refused.value)


@pytest.mark.parametrize("names", [("a", "b"), ("INPUT__0", "INPUT__1"), ("a", "other__1")])
def test_inputs_are_named_as_in_forward_or_by_position(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    inputs = (fp32(names[1], 3), fp32(names[0], 3))  # declared in another order
    engine = load(tmp_path, Both(), inputs, (fp32("OUTPUT__0", 3),))
    answer = engine.infer({names[0]: A, names[1]: B})
    np.testing.assert_array_equal(answer["OUTPUT__0"], A - B)
    assert engine.metadata.inputs == (fp32(names[1], -1, 3), fp32(names[0], -1, 3))


def test_an_argument_with_a_default_may_be_declared_or_not(tmp_path: Path) -> None:
    inputs = (fp32("a", 3), fp32("b", 3), fp32("extra", 3))
    engine = load(tmp_path, Both(), inputs, (fp32("OUTPUT__0", 3),))
    answer = engine.infer({"a": A, "b": B, "extra": A})["OUTPUT__0"]
    np.testing.assert_array_equal(answer, A - B + A)
    with pytest.raises(ModelLoadError, match="the model's input 'b' is not declared"):
        load(tmp_path, Both(), (fp32("a", 3), fp32("extra", 3)), (fp32("OUTPUT__0", 3),))


def test_outputs_are_taken_by_the_numbers_in_their_names_or_in_order(tmp_path: Path) -> None:
    inputs = (fp32("a", 3), fp32("b", 3))
    by_number = load(tmp_path, Both(), inputs, (fp32("OUTPUT__1", 3), fp32("OUTPUT__0", 3)))
    in_order = load(tmp_path, Both(), inputs, (fp32("difference", 3), fp32("linear", 3)))
    for engine, name in ((by_number, "OUTPUT__0"), (in_order, "difference")):
        np.testing.assert_array_equal(engine.infer({"a": A, "b": B})[name], A - B)


@pytest.mark.parametrize(
    ("outputs", "why"),
    [
        ((fp32("only", 3),), "1 outputs are declared, the model has 2"),
        ((fp32("OUTPUT__2", 3),), "output 2 is declared, the model has 2"),
        ((fp32("OUTPUT__0", 3), fp32("other", 3)), "'other' has no position"),
        ((fp32("a__0", 3), fp32("b__0", 3)), "the same position"),
        ((TensorSpec(name="t", datatype="BYTES", shape=(3,)),), "'t' is declared BYTES"),
    ],
)
def test_outputs_that_the_script_has_not_are_a_load_error(
    tmp_path: Path, outputs: tuple[TensorSpec, ...], why: str
) -> None:
    with pytest.raises(ModelLoadError, match=why):
        load(tmp_path, Both(), (fp32("a", 3), fp32("b", 3)), outputs)


def test_an_input_that_the_script_has_not_is_a_load_error(tmp_path: Path) -> None:
    inputs = (fp32("a", 3), fp32("c", 3))
    with pytest.raises(ModelLoadError, match="declared input 'c' is not in the model: it has a, b"):
        load(tmp_path, Both(), inputs, (fp32("OUTPUT__0", 3),))


class OfDictionary(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"same": x, "more": x + 1}


class OfList(nn.Module):
    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x, x + 1]


class Parts(NamedTuple):
    same: torch.Tensor
    more: torch.Tensor


class OfNames(nn.Module):
    def forward(self, x: torch.Tensor) -> Parts:
        return Parts(x, x + 1)


class Alone(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (OfDictionary(), "more"),
        (OfList(), "OUTPUT__1"),
        (OfNames(), "OUTPUT__1"),
        (Alone(), "OUTPUT__0"),
        (Alone(), "whatever"),
    ],
)
def test_a_script_may_return_a_tensor_or_a_container_of_them(
    tmp_path: Path, module: nn.Module, name: str
) -> None:
    engine = load(tmp_path, module, (fp32("x", 3),), (fp32(name, 3),))
    np.testing.assert_array_equal(engine.infer({"x": A})[name], A + 1)


class OfNumber(nn.Module):
    def forward(self, x: torch.Tensor) -> int:
        return x.size(0)


class OfBoth(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
        return x, x.size(0)


class Counted(nn.Module):
    def forward(self, x: torch.Tensor, count: int) -> torch.Tensor:
        return x * count


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (OfNumber(), "forward returns a int"),
        (OfBoth(), "forward returns a int among others"),
        (Counted(), "forward's argument 'count' is a int"),
    ],
)
def test_a_script_of_other_things_than_tensors_is_refused(
    tmp_path: Path, module: nn.Module, why: str
) -> None:
    with pytest.raises(ModelLoadError, match=why):
        load(tmp_path, module, (fp32("x", 3),), (fp32("OUTPUT__0", 3),))


@pytest.mark.parametrize(
    ("output", "why"),
    [
        (
            TensorSpec(name="y", datatype="FP64", shape=(3,)),
            r"is a torch\.float32 .* torch\.float64",
        ),
        (fp32("y", 4), r"of shape \[2, 3\], and served as torch\.float32 of shape \[-1, 4\]"),
        (fp32("y", 3, 1), r"of shape \[-1, 3, 1\]"),
    ],
)
def test_an_output_that_is_not_as_declared_fails_the_run_and_so_the_warm_up(
    tmp_path: Path, output: TensorSpec, why: str
) -> None:
    engine = load(tmp_path, Alone(), (fp32("x", 3),), (output,))
    with pytest.raises(ValueError, match=why):
        engine.infer({"x": A})


def test_a_key_that_is_not_returned_fails_the_run(tmp_path: Path) -> None:
    engine = load(tmp_path, OfDictionary(), (fp32("x", 3),), (fp32("less", 3),))
    with pytest.raises(ValueError, match="returned no 'less', only more, same"):
        engine.infer({"x": A})


def test_what_the_script_raises_itself_is_the_callers_mistake(tmp_path: Path) -> None:
    engine = load(tmp_path, Both(), (fp32("a", 3), fp32("b", 3)), (fp32("OUTPUT__0", 3),))
    assert not engine.metadata.is_steady, "nothing tells what it does with the values"
    seven = np.ones((7, 3), np.float32)
    with pytest.raises(InvalidInput, match=r"^the model does not take this input: more than six$"):
        engine.infer({"a": seven, "b": seven})
    assert engine.infer({"a": A, "b": B})["OUTPUT__0"].shape == (2, 3)


def test_without_a_batch_axis_the_declared_shapes_are_whole(tmp_path: Path) -> None:
    for max_batch_size in (None, 0):
        engine = load(
            tmp_path,
            Alone(),
            (fp32("x", -1, 3),),
            (fp32("y", -1, 3),),
            max_batch_size=max_batch_size,
        )
        assert engine.metadata.max_batch_size == 0
        assert engine.metadata.inputs == (fp32("x", -1, 3),)
        assert not engine.metadata.is_steady
        np.testing.assert_array_equal(engine.infer({"x": A})["y"], A + 1)


class InPlace(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2)


def test_a_script_that_writes_to_its_input_does_not_write_to_a_requests_bytes(
    tmp_path: Path,
) -> None:
    engine = load(tmp_path, InPlace(), (fp32("x", 3),), (fp32("y", 3),))
    data = A.tobytes()
    given = np.frombuffer(data, np.float32).reshape(A.shape)
    for _ in range(3):
        np.testing.assert_array_equal(engine.infer({"x": given})["y"], A * 2)
    assert data == A.tobytes()


class Keeping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kept = torch.arange(3.0)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return x, self.kept, torch.ones(1)


def test_outputs_of_a_frozen_script_share_memory_with_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated
        frozen = torch.jit.freeze(torch.jit.script(Keeping().eval()))
        torch.jit.save(frozen, str(tmp_path / "model.pt"))
    outputs = (fp32("same__0", 2, 3), fp32("kept__1", 3))
    config = EngineConfig(max_batch_size=0, inputs=(fp32("x", 2, 3),), outputs=outputs)
    engine = pytorch.load(tmp_path / "model.pt", config)
    for _ in range(3):
        answer = engine.infer({"x": A})
        assert not np.shares_memory(answer["same__0"], A)
        assert answer["kept__1"].tolist() == [0, 1, 2]
        answer["kept__1"][:] = -1


def test_a_closed_script_refuses_to_run(tmp_path: Path) -> None:
    engine = load(tmp_path, Alone(), (fp32("x", 3),), (fp32("y", 3),))
    engine.close()
    with pytest.raises(EngineClosed):
        engine.infer({"x": A})


def test_a_script_cut_short_is_a_load_error(tmp_path: Path) -> None:
    path = write_script(tmp_path / "model.pt", Both())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ModelLoadError, match=r"model\.pt"):
        pytorch.load(path, EngineConfig(inputs=(fp32("a", 3),), outputs=(fp32("y", 3),)))
