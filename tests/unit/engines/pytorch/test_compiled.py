"""Packages of AOTInductor: one is compiled here, where there is a C++ compiler."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch

from engines import pytorch
from engines.base import Engine, EngineConfig, TensorSpec
from engines.errors import DeviceUnavailable, EngineClosed, InvalidInput, ModelLoadError
from engines.pytorch import compiled, formats
from engines.pytorch.formats import Format, ModelFile
from tests.support.torch_models import Scaled, rows, write_compiled

X: Final = TensorSpec(name="INPUT__0", datatype="FP32", shape=(3,))
SCALE: Final = TensorSpec(name="scale", datatype="FP32", shape=(4,))
SCALED: Final = TensorSpec(name="scaled", datatype="FP32", shape=(4,))
OTHER: Final = TensorSpec(name="other", datatype="FP32", shape=(4,))
SUMS: Final = TensorSpec(name="rest.0", datatype="FP32", shape=())


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("AOTInductor not tested: there is no g++ to compile a package with")
    torch.manual_seed(0)
    return write_compiled(
        tmp_path_factory.mktemp("compiled") / "model.pt2",
        Scaled(),
        [torch.zeros(2, 3)],
        {"scale": torch.zeros(2, 4)},
        dynamic={"x": {0: rows(16)}, "scale": {0: rows(16)}},
    )


# Any: fields of EngineConfig.
def load(package: Path, **config: Any) -> Engine:
    declared: dict[str, Any] = {
        "max_batch_size": 16,
        "inputs": (X, SCALE),
        "outputs": (SUMS, SCALED),
    }
    return pytorch.load(package, EngineConfig(**(declared | config)))


def batch(count: int) -> dict[str, Any]:
    drawn = np.random.default_rng(count)
    x, scale = (drawn.random((count, n), np.float32) for n in (3, 4))
    return {"INPUT__0": x, "scale": scale}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_package_computes_what_the_model_does(package: Path) -> None:
    engine = load(package)
    torch.manual_seed(0)
    model = Scaled().eval()
    assert [spec.name for spec in engine.metadata.outputs] == ["rest.0", "scaled"]
    assert (engine.metadata.max_batch_size, engine.metadata.device) == (16, "cpu")
    for count in (1, 5, 16):
        given = batch(count)
        answer = engine.infer(given)
        with torch.inference_mode():
            x, scale = (torch.from_numpy(array) for array in given.values())
            expected = model(x, scale=scale)
        np.testing.assert_allclose(answer["scaled"], expected["scaled"].numpy(), rtol=1e-5)
        np.testing.assert_allclose(answer["rest.0"], x.sum(1).numpy(), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_the_package_was_not_compiled_for_is_refused_not_read(package: Path) -> None:
    engine = load(package, max_batch_size=32)
    with pytest.raises(InvalidInput, match="dim value is too large at 0"):
        engine.infer(batch(17))
    wrong = TensorSpec(name="INPUT__0", datatype="FP64", shape=(3,))
    with pytest.raises(InvalidInput, match="unmatched dtype"):
        load(package, inputs=(wrong, SCALE)).infer(batch(2) | {"INPUT__0": np.zeros((2, 3))})
    with pytest.raises(InvalidInput, match="unmatched dim value at 1"):
        engine.infer(batch(2) | {"INPUT__0": np.zeros((2, 5), np.float32)})
    with pytest.raises(InvalidInput, match="expected size"):
        engine.infer(batch(2) | {"scale": np.zeros((3, 4), np.float32)})
    assert engine.infer(batch(2))["scaled"].shape == (2, 4)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_answers_of_a_package_are_the_callers(package: Path) -> None:
    same = TensorSpec(name="rest.1", datatype="FP32", shape=(3,))
    engine = load(package, outputs=(SCALED, same))
    given = batch(4)
    first = engine.infer(given)
    kept = {name: array.copy() for name, array in first.items()}
    assert not np.shares_memory(first["rest.1"], given["INPUT__0"])
    for count in (4, 5):
        engine.infer(batch(count))
    given["INPUT__0"][:] = 0
    for name, array in kept.items():
        np.testing.assert_array_equal(first[name], array)
    engine.close()
    with pytest.raises(EngineClosed):
        engine.infer(given)
    np.testing.assert_array_equal(first["scaled"], kept["scaled"])


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"inputs": ()}, r"the inputs are not declared: .*\(scale\) or by position"),
        ({"inputs": (SCALE,)}, "input 'INPUT__0' is not declared"),
        ({"outputs": (OTHER,)}, "'other' is not in the model: it has scaled, rest.0, rest.1, or"),
    ],
)
# Any: see `load`.
def test_a_package_has_to_be_declared(package: Path, config: dict[str, Any], why: str) -> None:
    with pytest.raises(ModelLoadError, match=rf"model\.pt2: .*{why}"):
        load(package, **config)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_package_tells_what_it_was_built_for(package: Path) -> None:
    file = formats.identify(package)
    assert file.format is Format.COMPILED
    assert compiled.why_not_on(file, "cpu") == ""
    assert "was compiled for cpu" in compiled.why_not_on(file, "cuda:0")


def built(**facts: str) -> ModelFile:
    return ModelFile(Path("model.pt2"), Format.COMPILED, "model", facts)


def test_a_package_of_a_gpu_does_not_run_on_the_cpu() -> None:
    file = built(AOTI_DEVICE_KEY="cuda", AOTI_COMPUTE_CAPABILITY="89")
    with pytest.raises(DeviceUnavailable, match=r"model\.pt2 was compiled for cuda and runs there"):
        compiled.open_compiled(file, EngineConfig(), "cpu")


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"AOTI_CPU_ISA": "AVX99"}, "a CPU with AVX99, which this one has not"),
        ({"AOTI_MACHINE": "vax"}, "was compiled for vax"),
        ({}, ""),
    ],
)
def test_a_package_of_another_cpu_is_refused_before_it_is_run(
    facts: dict[str, str], why: str
) -> None:
    found = compiled.why_not_on(built(AOTI_DEVICE_KEY="cpu", **facts), "cpu")
    assert why in found
    assert bool(found) == bool(why)


@pytest.mark.parametrize(
    ("wanted", "has", "runs"),
    [("89", (8, 9), True), ("80", (8, 9), True), ("90", (8, 9), False), ("89", (8, 6), False),
     ("120", (12, 0), True), ("90", (12, 0), False), ("", (8, 0), True)],
)  # fmt: skip
def test_machine_code_of_a_gpu_runs_on_later_ones_of_its_generation(
    monkeypatch: pytest.MonkeyPatch, wanted: str, has: tuple[int, int], runs: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: has)
    file = built(AOTI_DEVICE_KEY="cuda", AOTI_COMPUTE_CAPABILITY=wanted)
    found = compiled.why_not_on(file, "cuda:0")
    assert (found == "") == runs
