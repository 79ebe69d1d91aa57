"""Programs of torch through lanes, on host memory that keeps a device's rules.

Real programs and the real lanes; only the place is not a GPU: tensors lie over host addresses, and
what torch computes is queued on the streams of `HostMemory`. What CudaPlace does with torch.cuda
was not run here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

from engines.base import EngineConfig, ModelMetadata, TensorSpec
from engines.declared import declare
from engines.errors import DeviceFailed, EngineClosed, InvalidInput, OutOfMemory
from engines.gpu.engine import LaneEngine
from engines.gpu.host import HostMemory
from engines.gpu.memory import Stream, buffer_at
from engines.pytorch.executor import CudaPlace, TorchExecutor
from engines.pytorch.exported import open_exported
from engines.pytorch.formats import identify
from engines.pytorch.plan import plan_of
from engines.pytorch.program import Program
from engines.pytorch.script import open_script
from tests.support.torch_models import Scaled, rows, write_exported, write_identity, write_script

ROWS: Final = rows(8)


class HostPlace:
    """What CudaPlace is to a GPU, to host memory."""

    def __init__(self, memory: HostMemory) -> None:
        self.memory = memory

    def tensor(self, address: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        size_bytes = int(np.prod(shape)) * dtype.itemsize
        if not size_bytes:
            return torch.empty(shape, dtype=dtype)
        flat = torch.frombuffer(buffer_at(address, size_bytes), dtype=torch.uint8)
        return flat.view(dtype).view(shape)

    def queue(self, stream: Stream, work: Callable[[], None]) -> None:
        self.memory.call(stream, work)

    def close(self) -> None:
        """Nothing is kept."""


# Any: fields of EngineConfig.
def program_of(path: Path, **config: Any) -> Program:
    return open_exported(identify(path), EngineConfig(**config), "cpu")


def metadata_of(program: Program) -> ModelMetadata:
    declared = declare(program.config, program.inputs, program.outputs)
    return ModelMetadata(
        inputs=declared.inputs,
        outputs=declared.outputs,
        max_batch_size=declared.max_batch_size,
        platform="pytorch_libtorch",
        engine="pytorch",
        device="host",
    )


def engine_of(program: Program, memory: HostMemory, *, has_graphs: bool = False) -> LaneEngine:
    declared = declare(program.config, program.inputs, program.outputs)
    plan = plan_of(program, declared)
    assert plan is not None
    executor = TorchExecutor(program, metadata_of(program), HostPlace(memory))
    return LaneEngine(executor, memory, lanes=2, has_graphs=has_graphs, largest=plan.largest)


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_exported(
        tmp_path_factory.mktemp("scaled") / "model.pt2",
        Scaled(),
        [torch.zeros(2, 3)],
        {"scale": torch.zeros(2, 4)},
        dynamic={"x": {0: ROWS}, "scale": {0: ROWS}},
    )


def batch(count: int, seed: int = 0) -> dict[str, Any]:
    drawn = np.random.default_rng(seed)
    x, scale = (drawn.random((count, n), np.float32) for n in (3, 4))
    return {"x": x, "scale": scale}


@pytest.mark.parametrize("haste", [None, 1, 2])
@pytest.mark.parametrize("has_graphs", [False, True])
def test_batches_through_lanes_give_what_the_program_gives(
    scaled: Path, has_graphs: bool, haste: int | None
) -> None:
    memory = HostMemory(haste=None if haste is None else random.Random(haste))
    program = program_of(scaled)
    engine = engine_of(program, memory, has_graphs=has_graphs)
    for turn in range(6):
        for count in (1, 3, 8):
            given = batch(count, seed=turn)
            answer = engine.infer(given)
            x, scale = (torch.from_numpy(array) for array in given.values())
            expected = program.run([x, scale])
            assert list(answer) == ["scaled", "rest.0", "rest.1"]
            for array, tensor in zip(answer.values(), expected, strict=True):
                np.testing.assert_array_equal(array, tensor.detach().numpy())
    assert (engine.statistics().graph_hits > 0) == has_graphs
    engine.close()
    assert memory.leaks == ()


def test_two_batches_under_way_do_not_mix(scaled: Path) -> None:
    engine = engine_of(program_of(scaled), HostMemory())
    batches = [batch(3, seed=1), batch(5, seed=2)]
    leases = [engine.acquire({name: a.shape for name, a in b.items()}) for b in batches]
    for lease, given in zip(leases, batches, strict=True):
        for name, array in lease.inputs.items():
            array[:] = given[name]
        engine.submit(lease)
    for lease, given in zip(leases, batches, strict=True):
        np.testing.assert_array_equal(engine.collect(lease)["rest.1"], given["x"])
    for lease in leases:
        engine.release(lease)
    engine.close()


@pytest.mark.parametrize("datatype", ["BF16", "BOOL", "UINT64", "INT8", "FP16", "FP64"])
def test_every_width_of_element_goes_through_an_address(tmp_path: Path, datatype: str) -> None:
    path = write_identity(tmp_path / "model.pt2", datatype, [3], True)
    engine = engine_of(program_of(path, max_batch_size=4), HostMemory())
    dtype = engine.acquire({"x": (2, 3)}).inputs["x"].dtype
    given = np.random.default_rng(0).integers(0, 2, (3, 3)).astype(dtype)
    assert engine.infer({"x": given})["y"].tobytes() == given.tobytes()
    engine.close()


def test_only_declared_outputs_are_copied(scaled: Path) -> None:
    outputs = (TensorSpec(name="rest.0", datatype="FP32", shape=()),)
    engine = engine_of(program_of(scaled, max_batch_size=8, outputs=outputs), HostMemory())
    given = batch(4)
    answer = engine.infer(given)
    assert list(answer) == ["rest.0"]
    np.testing.assert_allclose(answer["rest.0"], given["x"].sum(1), rtol=1e-6)
    engine.close()


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x * 2], 1)


def test_output_shapes_follow_from_those_of_the_inputs(tmp_path: Path) -> None:
    dynamic = {"x": {0: ROWS, 1: Dim("columns", min=1, max=5)}}
    path = write_exported(tmp_path / "model.pt2", Doubled(), [torch.zeros(2, 3)], dynamic=dynamic)
    program = program_of(path)
    executor = TorchExecutor(program, metadata_of(program), HostPlace(HostMemory()))
    assert executor.output_shapes({"x": (3, 4)}) == {"OUTPUT__0": (3, 8)}
    engine = engine_of(program, HostMemory())
    for columns in (1, 5):
        x = np.ones((2, columns), np.float32)
        answer = engine.infer({"x": x})["OUTPUT__0"]
        np.testing.assert_array_equal(answer, np.concatenate([x, x * 2], 1))
    with pytest.raises(InvalidInput, match="the limit is"):
        engine.infer({"x": np.ones((8, 6), np.float32)})
    engine.close()


def test_inputs_that_do_not_fit_each_other_are_the_callers_mistake(scaled: Path) -> None:
    engine = engine_of(program_of(scaled), HostMemory())
    with pytest.raises(InvalidInput, match=r"input 'scale': shape \[3, 4\] does not fit"):
        engine.infer(batch(2) | {"scale": np.ones((3, 4), np.float32)})
    assert engine.infer(batch(2))["scaled"].shape == (2, 4)
    engine.close()


class Refusing:
    """A place that fails as torch on a GPU would."""

    def __init__(self, exc: Exception) -> None:
        self.exc = exc

    def tensor(self, address: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    def queue(self, stream: Stream, work: Callable[[], None]) -> None:
        raise self.exc

    def close(self) -> None:
        """Nothing is kept."""


@pytest.mark.parametrize(
    ("exc", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory),
        (torch.AcceleratorError("CUDA error: an illegal memory access"), DeviceFailed),
        (AssertionError("Guard failed: x.size()[0] <= 8"), InvalidInput),
        (RuntimeError("something else"), RuntimeError),
    ],
)
def test_failures_while_work_is_queued_are_told_apart(
    scaled: Path, exc: Exception, kind: type[Exception]
) -> None:
    program = program_of(scaled)
    executor = TorchExecutor(program, metadata_of(program), Refusing(exc))
    addresses = dict.fromkeys(("scaled", "rest.0", "rest.1"), 0)
    shapes = {"x": (2, 3), "scale": (2, 4)}
    executor.bind(0, shapes, {"x": 0, "scale": 0}, addresses, Stream(0))
    with pytest.raises(kind) as raised:
        executor.enqueue(0, Stream(0))
    assert type(raised.value) is kind


def test_a_closed_executor_refuses(scaled: Path) -> None:
    program = program_of(scaled)
    executor = TorchExecutor(program, metadata_of(program), HostPlace(HostMemory()))
    executor.close()
    with pytest.raises(EngineClosed):
        executor.output_shapes({"x": (2, 3), "scale": (2, 4)})


def test_a_result_of_another_shape_is_not_repeated_to_fit(tmp_path: Path) -> None:
    class Summed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum(0, keepdim=True)

    path = write_script(tmp_path / "model.pt", Summed())
    spec = TensorSpec(name="x", datatype="FP32", shape=(3,))
    wanted = TensorSpec(name="y", datatype="FP32", shape=(3,))
    config = EngineConfig(max_batch_size=4, inputs=(spec,), outputs=(wanted,))
    scripted = open_script(identify(path), config, "cpu")
    program = Program(
        run=scripted.run,
        inputs=scripted.inputs,
        outputs=scripted.outputs,
        config=scripted.config,
        output_shapes=lambda shapes: {"y": shapes["x"]},
    )
    engine = engine_of(program, HostMemory())
    with pytest.raises(DeviceFailed, match=r"'y' has the shape \[1, 3\]"):
        engine.infer({"x": np.ones((2, 3), np.float32)})
    engine.close()


def test_a_span_of_device_memory_is_shown_as_torch_expects_it() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: the marked tests run on it")
    with pytest.raises((RuntimeError, AssertionError)):  # torch read it, and has no CUDA
        CudaPlace("cuda:0").tensor(4096, (2, 3), torch.float32)
