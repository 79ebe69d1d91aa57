"""Made-up facts for the tests of the doctor's judgement."""

from __future__ import annotations

from dataclasses import replace

from engines.devices import Cuda, Gpu
from engines.doctor import Facts, Finding, Severity, Tried, judge

NO_DRIVER = Cuda(None, (), "there is no NVIDIA driver: libcuda.so.1 is not found")
CPU_ORT = Tried(
    version="1.31.1", available=("CPUExecutionProvider",), works=("CPUExecutionProvider",)
)
GPU_ORT = Tried(
    version="1.31.1",
    built_for_cuda="13.0",
    available=("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
    works=("CUDAExecutionProvider", "CPUExecutionProvider"),
)
BINDINGS = Tried(version="13.5.0")
PLAIN = Facts(
    python=(3, 12),
    system="Linux x86_64",
    cores=4,
    packages={"onnxruntime": "1.31.1"},
    cuda=NO_DRIVER,
    tried={"onnxruntime": CPU_ORT},
)


def gpu(major: int = 8, minor: int = 9, index: int = 0) -> Gpu:
    """Return a GPU of that compute capability."""
    return Gpu(index, "Made-up GPU", (major, minor), 24 << 30, "GPU-1")


def with_gpu(*gpus: Gpu, driver: int = 13000) -> Facts:
    """Return the facts of a machine with a GPU where all is as it should be."""
    return replace(
        PLAIN,
        packages={"onnxruntime-gpu": "1.31.1", "nvidia-ml-py": "13.6", "cuda-bindings": "13.5.0"},
        cuda=Cuda(driver, gpus or (gpu(),), ""),
        tried={"onnxruntime": GPU_ORT, "cuda_bindings": BINDINGS},
    )


def found(facts: Facts, severity: Severity, area: str) -> list[Finding]:
    """Return the findings of one severity and area."""
    return [f for f in judge(facts) if (f.severity, f.area) == (severity, area)]


def errors(facts: Facts) -> list[Finding]:
    """Return what is wrong."""
    return [f for f in judge(facts) if f.severity in (Severity.ERROR, Severity.WARNING)]
