"""Where a model of torch runs, and what is said where it cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engines import devices, pytorch
from engines.base import EngineConfig
from engines.errors import DeviceUnavailable, ModelLoadError
from tests.support.torch_models import write_identity


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_identity(tmp_path_factory.mktemp("identity") / "model.pt2", "FP32", [3], True)


@pytest.fixture
def no_gpu() -> None:
    if not devices.why_not("cuda:0"):
        pytest.skip("there is a GPU: what is said without one cannot be seen")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
def test_a_gpu_that_is_asked_for_and_not_there_is_never_replaced(path: Path, device: str) -> None:
    name = "cuda:3" if device.endswith("3") else "cuda:0"
    with pytest.raises(DeviceUnavailable, match=f"^{name} was asked for and cannot be used: "):
        pytorch.load(path, EngineConfig(device=device))


@pytest.mark.usefixtures("no_gpu")
def test_a_free_choice_takes_the_cpu_and_says_why(path: Path) -> None:
    metadata = pytorch.load(path, EngineConfig(device="auto")).metadata
    assert metadata.device == "cpu"
    assert metadata.fallback == devices.why_not("cuda:0")


def test_a_torch_without_cuda_says_so_where_there_is_a_gpu(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.version.cuda is not None:
        pytest.skip("this torch is built with CUDA")
    monkeypatch.setattr(devices, "why_not", lambda _: "")
    why = f"this torch {torch.__version__} is built without CUDA"
    with pytest.raises(DeviceUnavailable) as refused:
        pytorch.load(path, EngineConfig(device="cuda:0"))
    assert str(refused.value).endswith(why)
    assert pytorch.load(path, EngineConfig(device="auto")).metadata.fallback == why


def test_what_is_no_device_is_a_load_error(path: Path) -> None:
    with pytest.raises(ModelLoadError, match="'gpu' is no device"):
        pytorch.load(path, EngineConfig(device="gpu"))


def test_torch_has_no_execution_accelerators(path: Path) -> None:
    with pytest.raises(ModelLoadError, match="torch has no execution accelerator 'tensorrt'"):
        pytorch.load(path, EngineConfig(providers=(("tensorrt", {}),)))


def test_buckets_are_those_of_the_configuration(path: Path) -> None:
    engine = pytorch.load(path, EngineConfig(max_batch_size=8, buckets=(2, 8)))
    assert engine.metadata.buckets == (2, 8)
    with pytest.raises(ModelLoadError, match="buckets: the last of"):
        pytorch.load(path, EngineConfig(max_batch_size=8, buckets=(2, 4)))


def test_a_load_in_a_fresh_process_warns_of_nothing_and_opens_no_gpu(path: Path) -> None:
    script = f"""
import warnings; warnings.simplefilter("error")
import numpy, pathlib, sys
from engines import pytorch
from engines.base import EngineConfig
engine = pytorch.load(pathlib.Path({str(path)!r}), EngineConfig(intra_op_threads=1))
given = numpy.frombuffer(bytes(24), numpy.float32).reshape(2, 3)
assert engine.infer({{"x": given}})["y"].shape == (2, 3)
assert "engines.gpu.cuda" not in sys.modules
import torch
assert torch.get_num_threads() == torch.get_num_interop_threads() == 1
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
