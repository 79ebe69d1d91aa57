"""Running a program of torch: datatypes, whose memory is whose, threads, failures, closing."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from torch import nn

from engines import pytorch
from engines.base import Engine, EngineConfig
from engines.errors import EngineClosed, InvalidInput, OutOfMemory
from engines.pytorch.arrays import DTYPES
from engines.tensors import DATATYPES, Array
from tests.support.torch_models import example, rows, write_exported, write_identity

ROWS: Final = rows(16)
MALLOC_FIELDS: Final = "arena blocks fast maps mapped max fast_free used free keep"


# Any: see `write_exported`.
def load(folder: Path, module: nn.Module, *args: Any, **config: Any) -> Engine:
    names = ["x", "z"][: len(args)]
    dynamic = {name: {0: ROWS} for name in names}
    path = write_exported(folder / "model.pt2", module, args, dynamic=dynamic)
    return pytorch.load(path, EngineConfig(**config))


def values(datatype: str, shape: tuple[int, ...]) -> Array:
    """Return random bits as that datatype; what is no number is as good as another."""
    drawn = np.random.default_rng(7)
    if datatype == "BOOL":
        return drawn.random(shape) < 0.5
    dtype = DATATYPES[datatype].dtype
    return np.frombuffer(drawn.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)


@pytest.mark.parametrize("datatype", sorted(DTYPES))
def test_every_datatype_comes_back_bit_for_bit(tmp_path: Path, datatype: str) -> None:
    path = write_identity(tmp_path / "model.pt2", datatype, [3], True)
    engine = pytorch.load(path, EngineConfig(max_batch_size=8))
    assert engine.metadata.inputs[0].datatype == datatype
    for count in (1, 5):
        given = values(datatype, (count, 3))
        answer = engine.infer({"x": given})["y"]
        assert answer.dtype == given.dtype
        assert answer.tobytes() == given.tobytes()


@pytest.mark.parametrize("datatype", sorted(DTYPES))
def test_every_datatype_comes_back_out_of_memory_of_torchs(tmp_path: Path, datatype: str) -> None:
    engine = load(tmp_path, Shuffled(), example(datatype, 2, 4))
    given = values(datatype, (3, 4))
    answer = engine.infer({"x": given})["OUTPUT__0"]
    assert answer.tobytes() == np.ascontiguousarray(given[:, ::-1]).tobytes()


class Shuffled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[:, 3], x[:, 2], x[:, 1], x[:, 0]], 1)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 32), nn.ReLU(inplace=True), nn.Linear(32, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.layers(x)
        return answer


def test_a_batch_gives_what_its_rows_give_one_by_one(tmp_path: Path) -> None:
    engine = load(tmp_path, Network(), torch.zeros(2, 6))
    batch = np.random.default_rng(1).standard_normal((16, 6)).astype(np.float32)
    alone = [engine.infer({"x": batch[n : n + 1]})["OUTPUT__0"] for n in range(16)]
    for count in range(1, 17):
        answer = engine.infer({"x": batch[:count]})["OUTPUT__0"]
        np.testing.assert_allclose(answer, np.concatenate(alone[:count]), rtol=1e-5, atol=1e-6)


class Sharing(nn.Module):
    """Outputs that share the memory of the input, of each other and of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.arange(3.0))
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        twice = x * 2
        of_model = {"buffer": self.kept, "weight": self.weight}
        return {"input": x, "part": x[:, 1:], "one": twice, "other": twice.view(-1)} | of_model


def test_outputs_share_memory_with_nothing(tmp_path: Path) -> None:
    path = write_exported(tmp_path / "model.pt2", Sharing(), [torch.zeros(2, 3)])
    engine = pytorch.load(path, EngineConfig())
    given = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = {name: array.copy() for name, array in engine.infer({"x": given}).items()}
    answer = engine.infer({"x": given})
    arrays = list(answer.values())
    for number, array in enumerate(arrays):
        assert not np.shares_memory(array, given)
        assert not any(np.shares_memory(array, other) for other in arrays[:number])
    for array in arrays:
        array[:] = -1
    again = engine.infer({"x": given})
    for name, array in expected.items():
        np.testing.assert_array_equal(again[name], array)


def test_an_answer_is_not_changed_by_later_calls(tmp_path: Path) -> None:
    engine = load(tmp_path, Network(), torch.zeros(2, 6))
    first = engine.infer({"x": np.ones((4, 6), np.float32)})["OUTPUT__0"]
    kept = first.copy()
    for n in range(20):
        engine.infer({"x": np.full((4, 6), n, np.float32)})
    np.testing.assert_array_equal(first, kept)


class Writing(nn.Module):
    """Writes to its first input, through a view of it."""

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        x[:, 0].add_(1)
        return x + z.relu()


def test_a_program_that_writes_to_its_input_does_not_write_to_a_requests_bytes(
    tmp_path: Path,
) -> None:
    engine = load(tmp_path, Writing(), torch.zeros(2, 3), torch.zeros(2, 3))
    data = np.arange(6, dtype=np.float32).tobytes()
    given = np.frombuffer(data, np.float32).reshape(2, 3)
    other = np.zeros((2, 3), np.float32)
    for _ in range(3):
        answer = engine.infer({"x": given, "z": other})["OUTPUT__0"]
        assert answer.tolist() == [[1, 1, 2], [4, 4, 5]]
    assert data == np.arange(6, dtype=np.float32).tobytes()


def test_inputs_of_any_memory_layout_are_taken(tmp_path: Path) -> None:
    engine = load(tmp_path, Network(), torch.zeros(2, 6))
    plain = np.random.default_rng(3).random((4, 6), np.float32)
    expected = engine.infer({"x": plain})["OUTPUT__0"]
    backwards = np.ascontiguousarray(plain[::-1])[::-1]
    for given in (np.asfortranarray(plain), backwards, np.frombuffer(plain.tobytes(), np.float32)):
        answer = engine.infer({"x": given.reshape(4, 6)})["OUTPUT__0"]
        np.testing.assert_allclose(answer, expected, rtol=1e-6)


class Lookup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.table(x)
        return found


class Gather(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.arange(5)[x]


@pytest.mark.parametrize("module", [Lookup(), Gather()])
def test_a_value_that_the_program_cannot_take_is_the_callers_mistake(
    tmp_path: Path, module: nn.Module
) -> None:
    engine = load(tmp_path, module, example("INT64", 2, 3))
    with pytest.raises(InvalidInput, match=r"index.* out of"):
        engine.infer({"x": np.full((1, 3), 99)})
    assert engine.infer({"x": np.full((1, 3), 4)})["OUTPUT__0"].shape[:2] == (1, 3)


class Vast(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(x.shape[0], 1 << 47)


def test_an_allocation_that_fails_is_out_of_memory(tmp_path: Path) -> None:
    engine = load(tmp_path, Vast(), torch.zeros(2, 3))
    with pytest.raises(OutOfMemory, match="cpu has no memory"):
        engine.infer({"x": np.zeros((2, 3), np.float32)})


def test_a_closed_engine_refuses_and_may_be_closed_again(tmp_path: Path) -> None:
    engine = load(tmp_path, Network(), torch.zeros(2, 6))
    kept = engine.infer({"x": np.ones((1, 6), np.float32)})["OUTPUT__0"]
    engine.close()
    engine.close()
    with pytest.raises(EngineClosed):
        engine.infer({"x": np.ones((1, 6), np.float32)})
    assert engine.metadata.max_batch_size == 16
    assert np.isfinite(kept).all()


def in_thread(work: Callable[[], int]) -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_each_engine_computes_with_its_own_number_of_threads(tmp_path: Path) -> None:
    """In whatever thread it is called, and whatever ran there or elsewhere before."""
    path = write_exported(tmp_path / "model.pt2", Network(), [torch.zeros(1, 6)])
    one = pytorch.load(path, EngineConfig(intra_op_threads=1))
    two = pytorch.load(path, EngineConfig(intra_op_threads=2))
    x = {"x": np.ones((1, 6), np.float32)}

    def run(*engines: Engine) -> int:
        for engine in engines:
            engine.infer(x)
        return torch.get_num_threads()

    before = torch.get_num_threads()
    assert in_thread(lambda: run(one)) == 1
    assert in_thread(lambda: run(two)) == 2
    assert in_thread(lambda: run(two, one, two, one)) == 1
    ready, changed = threading.Event(), threading.Event()

    def wait_between() -> int:
        run(one)
        ready.set()
        changed.wait(10)
        return torch.get_num_threads()

    found: list[int] = []
    waiting = threading.Thread(target=lambda: found.append(wait_between()))
    waiting.start()
    ready.wait(10)
    assert in_thread(lambda: run(two)) == 2
    changed.set()
    waiting.join()
    assert found == [1]
    torch.set_num_threads(before)


class Heavy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1 << 23))
        self.kept: torch.Tensor
        self.register_buffer("kept", torch.ones(1 << 22))
        self.loose = torch.ones(1 << 22)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight[:3] * self.kept[:3] * self.loose[:3]


class MallocInfo(ctypes.Structure):
    """What glibc's mallinfo2 tells; of interest: mapped blocks, and what is used of the heap."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in MALLOC_FIELDS.split())
    mapped: int
    used: int


def allocated_bytes() -> int:
    """Return what is allocated; the process may be larger by what malloc keeps for later."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        pytest.skip("this C library does not tell what is allocated")
    library.mallinfo2.restype = MallocInfo
    told: MallocInfo = library.mallinfo2()
    return told.used + told.mapped


def test_weights_are_given_back_at_close_without_a_garbage_collection(tmp_path: Path) -> None:
    path = write_exported(tmp_path / "model.pt2", Heavy(), [torch.zeros(2, 3)])
    weights_bytes = 64 << 20
    assert pytorch.load(path, EngineConfig()).metadata.memory_bytes == weights_bytes
    gc.collect()
    gc.disable()
    try:
        before = allocated_bytes()
        for _ in range(6):
            engine = pytorch.load(path, EngineConfig())
            engine.infer({"x": np.ones((2, 3), np.float32)})
            engine.close()
            assert allocated_bytes() - before < weights_bytes // 8
    finally:
        gc.enable()


def test_memory_stays_flat_over_loads_and_runs(tmp_path: Path) -> None:
    path = write_exported(tmp_path / "model.pt2", Network(), [torch.zeros(2, 6)])

    def cycle() -> None:
        engine = pytorch.load(path, EngineConfig())
        for _ in range(5):
            engine.infer({"x": np.ones((2, 6), np.float32)})
        engine.close()

    for _ in range(30):
        cycle()
    gc.collect()
    before, objects = allocated_bytes(), len(gc.get_objects())
    for _ in range(100):
        cycle()
    gc.collect()
    assert len(gc.get_objects()) - objects < 100 * 100  # a program has more; others here make some
    assert allocated_bytes() - before < 4 << 20
