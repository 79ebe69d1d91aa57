"""The doctor's judgement of runtimes, on facts that are made up: no package is tried."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engines.devices import Cuda
from engines.doctor import Finding, Severity, Tried, judge
from tests.support.doctor import (
    BINDINGS,
    CPU_ORT,
    GPU_ORT,
    NO_DRIVER,
    PLAIN,
    errors,
    found,
    gpu,
    with_gpu,
)


def test_a_plain_machine_is_told_what_it_runs_and_what_it_could_have() -> None:
    assert judge(PLAIN) == [
        Finding(Severity.OK, "machine", "Python 3.12 on Linux x86_64, 4 usable cores"),
        Finding(
            Severity.NOTE,
            "gpu",
            f"no model can run on a GPU: {NO_DRIVER.why}",
            "where there is a GPU: install NVIDIA's driver 580 or newer, and give it to a "
            "container with --gpus all",
        ),
        Finding(Severity.OK, "onnxruntime", "1.31.1 runs on the CPU"),
        Finding(
            Severity.NOTE,
            "tensorrt",
            "is not installed",
            'pip install "sluice-gateway[tensorrt]"',
        ),
        Finding(
            Severity.NOTE,
            "tensorrt-rtx",
            "is not installed",
            'pip install "sluice-gateway[tensorrt-rtx]"',
        ),
        Finding(Severity.NOTE, "torch", "is not installed", 'pip install "sluice-gateway[torch]"'),
    ]


def test_a_good_machine_with_a_gpu_has_nothing_wrong() -> None:
    facts = with_gpu(gpu(9, 0), gpu(8, 6, index=1))
    assert errors(facts) == []
    said = [f"{f.area} {f.sentence}" for f in judge(facts) if f.severity is Severity.OK]
    assert said == [
        "machine Python 3.12 on Linux x86_64, 4 usable cores",
        "gpu cuda:0 is Made-up GPU, compute capability 9.0, 24.0 GiB, GPU-1",
        "gpu cuda:1 is Made-up GPU, compute capability 8.6, 24.0 GiB, GPU-1",
        "driver the driver supports CUDA 13.0",
        "onnxruntime 1.31.1 runs on the CPU, CUDA",
        "metrics the GPUs' state is served with the metrics",
    ]


def test_one_core_is_counted_in_the_singular() -> None:
    assert judge(replace(PLAIN, cores=1))[0].sentence.endswith(", 1 usable core")


def test_a_driver_that_is_there_and_fails_is_not_answered_with_install_a_driver() -> None:
    failing = Cuda(13000, (), "CUDA_VISIBLE_DEVICES is empty, which hides every GPU")
    (note,) = found(replace(PLAIN, cuda=failing), Severity.NOTE, "gpu")
    assert note.sentence.endswith(failing.why)
    assert note.fix == ""


@pytest.mark.parametrize(("has_gpu", "extra"), [(False, "cpu"), (True, "gpu")])
def test_without_any_runtime_nothing_can_be_served(*, has_gpu: bool, extra: str) -> None:
    facts = replace(PLAIN, packages={}, tried={})
    if has_gpu:
        facts = replace(facts, cuda=Cuda(13000, (gpu(),), ""))
    (error,) = found(facts, Severity.ERROR, "engines")
    assert error.fix == f'pip install "sluice-gateway[{extra}]"'


def test_another_runtime_than_onnxruntime_is_enough() -> None:
    facts = replace(PLAIN, packages={}, tried={"torch": Tried(version="2.13.0", works=("cpu",))})
    assert errors(facts) == []
    assert found(facts, Severity.NOTE, "onnxruntime")


def test_a_driver_older_than_what_is_installed_is_an_error() -> None:
    (error,) = errors(with_gpu(driver=12040))
    assert error == Finding(
        Severity.ERROR,
        "driver",
        "the driver supports CUDA 12.4, and these are built for CUDA 13: onnxruntime-gpu 1.31.1",
        "update NVIDIA's driver to 580 or newer",
    )


def test_an_old_driver_is_only_noted_where_nothing_needs_a_newer_one() -> None:
    facts = with_gpu(driver=12040)
    facts = replace(
        facts, tried={**facts.tried, "onnxruntime": replace(GPU_ORT, built_for_cuda="12.8")}
    )
    assert errors(facts) == []
    assert found(facts, Severity.NOTE, "driver")


@pytest.mark.parametrize(
    ("version", "is_old"), [("1.21.1", True), ("1.9.0", True), ("1.22.0", False), ("2.0", False)]
)
def test_an_onnxruntime_before_1_22_is_refused(version: str, is_old: bool) -> None:
    facts = replace(PLAIN, tried={"onnxruntime": replace(CPU_ORT, version=version)})
    assert bool(found(facts, Severity.ERROR, "onnxruntime")) is is_old


def test_an_onnxruntime_that_does_not_import_says_why_and_nothing_else() -> None:
    broken = Tried(fault="ImportError: numpy is too old")
    facts = replace(PLAIN, tried={"onnxruntime": broken})
    assert [f.sentence for f in errors(facts)] == [
        "is installed and does not start: ImportError: numpy is too old"
    ]


def test_an_onnxruntime_for_the_cpu_beside_a_gpu_is_a_warning() -> None:
    facts = replace(with_gpu(), packages=PLAIN.packages, tried=PLAIN.tried)
    (warning,) = errors(facts)
    assert (warning.severity, warning.area) == (Severity.WARNING, "onnxruntime")
    assert warning.fix.startswith("pip uninstall --yes onnxruntime && ")


def test_a_cuda_provider_without_its_libraries_names_them() -> None:
    lame = replace(
        GPU_ORT,
        works=("CPUExecutionProvider",),
        missing_libraries=("libcublasLt.so.13", "libcudnn.so.9"),
    )
    facts = with_gpu()
    (error,) = errors(replace(facts, tried={**facts.tried, "onnxruntime": lame}))
    assert error == Finding(
        Severity.ERROR,
        "onnxruntime",
        "its CUDA provider does not run here: libcublasLt.so.13, libcudnn.so.9 not found",
        'pip install "sluice-gateway[gpu]"',
    )


def test_a_cuda_provider_that_fails_otherwise_is_quoted() -> None:
    lame = replace(GPU_ORT, works=("CPUExecutionProvider",), faults=("CUDA failure 2",))
    facts = with_gpu()
    (error,) = errors(replace(facts, tried={**facts.tried, "onnxruntime": lame}))
    assert error.sentence == "its CUDA provider does not run here: CUDA failure 2"


def test_a_build_for_gpus_without_a_gpu_is_no_error() -> None:
    lame = replace(GPU_ORT, works=("CPUExecutionProvider",), missing_libraries=("libcuda.so.1",))
    facts = replace(PLAIN, packages={"onnxruntime-gpu": "1.31.1"}, tried={"onnxruntime": lame})
    assert errors(facts) == []


def test_an_onnxruntime_that_computes_nothing_is_an_error() -> None:
    lame = replace(CPU_ORT, works=(), faults=("CPUExecutionProvider: bad instruction",))
    (error,) = errors(replace(PLAIN, tried={"onnxruntime": lame}))
    assert "runs on nothing here: CPUExecutionProvider: bad instruction" in error.sentence


@pytest.mark.parametrize(
    ("capability", "has_code"),
    [
        ((7, 0), False),
        ((7, 5), True),
        ((8, 7), True),
        ((9, 0), True),
        ((10, 0), False),
        ((12, 1), True),
    ],
)
def test_gpus_that_the_packages_have_no_code_for_are_named(
    capability: tuple[int, int], has_code: bool
) -> None:
    warnings = errors(with_gpu(gpu(*capability)))
    assert bool(warnings) is not has_code
    for warning in warnings:
        assert f"compute capability {capability[0]}.{capability[1]}" in warning.sentence


def test_tensorrt_without_its_libraries_says_where_they_come_from() -> None:
    lame = Tried(
        fault="ImportError: libnvinfer.so.11: cannot open shared object file",
        missing_libraries=("libnvinfer.so.11",),
    )
    (error,) = errors(replace(PLAIN, tried={**PLAIN.tried, "tensorrt": lame}))
    assert error.sentence == "is installed and does not start: libnvinfer.so.11 not found"
    assert "NVIDIA's own package index" in error.fix


def test_a_tensorrt_before_10_is_refused() -> None:
    facts = with_gpu()
    facts = replace(facts, tried={**facts.tried, "tensorrt": Tried(version="8.6.1")})
    (error,) = errors(facts)
    assert error.sentence.startswith("8.6.1 is older than 10")


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_plans_need_the_bindings_of_cuda(module: str) -> None:
    area = module.replace("_", "-")
    facts = replace(PLAIN, tried={**PLAIN.tried, module: Tried(version="11.4")})
    (error,) = errors(facts)
    assert error == Finding(
        Severity.ERROR,
        area,
        "needs cuda-bindings to run plans, which is not installed",
        f'pip install "sluice-gateway[{area}]"',
    )
    broken = Tried(fault="ImportError: no")
    (error,) = errors(replace(facts, tried={**facts.tried, "cuda_bindings": broken}))
    assert error.area == "cuda-bindings"


@pytest.mark.parametrize(
    ("capability", "is_supported"),
    [((7, 5), True), ((8, 9), True), ((9, 0), False), ((12, 0), True), ((12, 1), True)],
)
def test_tensorrt_rtx_does_not_support_data_centre_hopper(
    capability: tuple[int, int], is_supported: bool
) -> None:
    facts = with_gpu(gpu(*capability))
    facts = replace(facts, tried={**facts.tried, "tensorrt_rtx": Tried(version="1.7.1")})
    warnings = found(facts, Severity.WARNING, "tensorrt-rtx")
    assert bool(warnings) is not is_supported


def test_without_a_gpu_tensorrt_rtx_builds_and_tensorrt_does_nothing() -> None:
    both = {"tensorrt": Tried(version="11.4"), "tensorrt_rtx": Tried(version="1.7")}
    facts = replace(PLAIN, tried={**PLAIN.tried, **both, "cuda_bindings": BINDINGS})
    assert [f.sentence for f in found(facts, Severity.OK, "tensorrt-rtx")] == [
        "1.7 builds plans here; a GPU must run them"
    ]
    assert [f.sentence for f in found(facts, Severity.NOTE, "tensorrt")] == [
        "11.4 does nothing without a GPU"
    ]


def test_a_torch_for_the_cpu_beside_a_gpu_is_a_warning() -> None:
    facts = with_gpu()
    facts = replace(
        facts, tried={**facts.tried, "torch": Tried(version="2.13+cpu", works=("cpu",))}
    )
    (warning,) = errors(facts)
    assert (warning.severity, warning.area) == (Severity.WARNING, "torch")
    assert "a build for the CPU" in warning.sentence


def test_a_torch_for_cuda_that_does_not_run_there_is_an_error() -> None:
    lame = Tried(
        version="2.15.0", built_for_cuda="13.2", works=("cpu",), faults=("cuda: no kernel image",)
    )
    facts = with_gpu()
    (error,) = errors(replace(facts, tried={**facts.tried, "torch": lame}))
    assert error.sentence == "its build for CUDA 13.2 does not run here: cuda: no kernel image"


def test_a_torch_before_2_8_does_not_read_todays_archives() -> None:
    facts = replace(PLAIN, tried={**PLAIN.tried, "torch": Tried(version="2.7.1", works=("cpu",))})
    (warning,) = errors(facts)
    assert warning.sentence.startswith("2.7.1 is older than 2.8")


def test_without_the_bindings_of_cuda_onnxruntime_is_slower_on_a_gpu() -> None:
    facts = with_gpu()
    facts = replace(facts, tried={"onnxruntime": GPU_ORT})
    assert errors(facts) == []
    assert found(facts, Severity.NOTE, "onnxruntime")


def test_torch_on_a_gpu_needs_the_bindings_of_cuda() -> None:
    torch = Tried(version="2.13.0", built_for_cuda="13.0", works=("cpu", "cuda"))
    facts = with_gpu()
    facts = replace(facts, tried={**facts.tried, "torch": torch})
    assert errors(facts) == []
    facts = replace(facts, tried={"onnxruntime": GPU_ORT, "torch": torch})
    assert [f.area for f in errors(facts)] == ["torch"]
