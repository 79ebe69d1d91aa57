"""The doctor's judgement of packages that do not go together, on made-up facts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engines.doctor import Severity, Tried
from engines.doctor.packages import release
from tests.support.doctor import (
    BINDINGS,
    PLAIN,
    errors,
    found,
    with_gpu,
)


def test_two_onnxruntimes_are_an_error_that_says_which_to_keep() -> None:
    packages = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.0"}
    (error,) = found(replace(PLAIN, packages=packages), Severity.ERROR, "packages")
    assert error.sentence.startswith("onnxruntime 1.31.1 and onnxruntime-gpu 1.31.0 are both")
    uninstall = "pip uninstall --yes onnxruntime onnxruntime-gpu && "
    assert error.fix == uninstall + 'pip install "sluice-gateway[cpu]"'
    (error,) = errors(replace(with_gpu(), packages={**packages, "nvidia-ml-py": "13"}))
    assert error.fix == uninstall + 'pip install "sluice-gateway[gpu]"'


def test_packages_beside_onnxruntime_are_no_second_onnxruntime() -> None:
    packages = {"onnxruntime": "1.31.1", "onnxruntime-extensions": "0.14", "onnxruntime-ep-x": "1"}
    assert errors(replace(PLAIN, packages=packages)) == []


@pytest.mark.parametrize("version", ["11.4.0.106", "12.0"])
def test_tensorrt_11_beside_onnxruntimes_provider_is_a_warning(version: str) -> None:
    facts = with_gpu()
    packages = {**facts.packages, "tensorrt-cu13": version, "tensorrt-cu13-libs": version}
    tried = {**facts.tried, "tensorrt": Tried(version=version)}
    (warning,) = errors(replace(facts, packages=packages, tried=tried))
    assert warning.severity is Severity.WARNING
    assert f"needs TensorRT 10 and cannot load {version}" in warning.sentence
    assert '"tensorrt-cu13<11"' in warning.fix


def test_tensorrt_10_beside_onnxruntimes_provider_is_good() -> None:
    facts = with_gpu()
    packages = {**facts.packages, "tensorrt-cu13": "10.16.1.11"}
    tried = {**facts.tried, "tensorrt": Tried(version="10.16.1.11")}
    facts = replace(facts, packages=packages, tried=tried)
    assert errors(facts) == []
    (good,) = found(facts, Severity.OK, "tensorrt")
    assert good.sentence == "10.16.1.11 builds plans and runs them"


def test_tensorrt_11_beside_an_onnxruntime_without_that_provider_is_good() -> None:
    packages = {**PLAIN.packages, "tensorrt-cu13": "11.4.0.106"}
    tried = {**PLAIN.tried, "tensorrt": Tried(version="11.4.0.106"), "cuda_bindings": BINDINGS}
    assert errors(replace(PLAIN, packages=packages, tried=tried)) == []


def test_tensorrt_rtx_is_not_taken_for_tensorrt() -> None:
    facts = with_gpu()
    packages = {**facts.packages, "tensorrt-rtx-cu13": "11.0"}
    assert found(replace(facts, packages=packages), Severity.WARNING, "packages") == []


def test_packages_for_two_cudas_are_named() -> None:
    facts = with_gpu()
    packages = {
        **facts.packages,
        "nvidia-cudnn-cu12": "9.1",
        "nvidia-cudnn-cu13": "9.28",
        "nvidia-cuda-runtime": "13.5.37",
        "nvidia-cublas": "13.10",
    }
    torch = Tried(version="2.15.0+cu128", built_for_cuda="12.8", works=("cpu", "cuda"))
    (warning,) = errors(replace(facts, packages=packages, tried={**facts.tried, "torch": torch}))
    assert warning.sentence == (
        "packages for CUDA 12 (nvidia-cudnn-cu12 9.1, torch 2.15.0+cu128) and for CUDA 13 "
        "(nvidia-cuda-runtime 13.5.37, nvidia-cudnn-cu13 9.28, onnxruntime-gpu 1.31.1) are both "
        "installed: the two cuDNN are the same files"
    )


def test_packages_with_a_longer_suffix_belong_to_their_cuda() -> None:
    packages = {"cupy-cuda12x": "13", "tensorrt-cu12-libs": "10", "onnxruntime-gpu": "1.31.1"}
    facts = replace(with_gpu(), packages={**packages, "nvidia-ml-py": "13"})
    (warning,) = errors(facts)
    assert "CUDA 12 (tensorrt-cu12-libs 10)" in warning.sentence


@pytest.mark.parametrize(
    ("version", "severity"),
    [("8.0.4", Severity.WARNING), ("11.5.3", Severity.WARNING), ("13.0.1", Severity.NOTE)],
)
def test_the_wrapper_of_nvidia_ml_py_is_told_from_what_replaces_it(
    version: str, severity: Severity
) -> None:
    facts = with_gpu()
    facts = replace(facts, packages={**facts.packages, "pynvml": version})
    (finding,) = found(facts, severity, "metrics")
    assert finding.sentence.startswith(f"pynvml {version} ")
    assert finding.fix.startswith("pip uninstall pynvml")


def test_gpu_metrics_are_offered_where_there_is_a_gpu() -> None:
    facts = with_gpu()
    (note,) = found(replace(facts, packages={}), Severity.NOTE, "metrics")
    assert note.fix == 'pip install "sluice-gateway[nvml]"'
    assert found(PLAIN, Severity.NOTE, "metrics") == []


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("1.31.1", (1, 31)), ("13", (13, 0)), ("2.13.0+cpu", (2, 13)), ("", (0, 0)), ("x", (0, 0))],
)
def test_a_release_is_the_first_two_numbers(version: str, numbers: tuple[int, int]) -> None:
    assert release(version) == numbers
