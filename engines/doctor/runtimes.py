"""Each runtime on its own: what it runs on here, and what keeps it from more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from engines.devices import Gpu
from engines.doctor.facts import Facts, Tried
from engines.doctor.findings import Finding, Severity, install
from engines.doctor.packages import release, tensorrt_version

OLDEST_ONNXRUNTIME: Final = (1, 22)
OLDEST_TENSORRT: Final = (10, 0)
OLDEST_TORCH: Final = (2, 8)

_CUDA_PROVIDER: Final = "CUDAExecutionProvider"
_WORDS: Final = {
    "CPUExecutionProvider": "the CPU",
    _CUDA_PROVIDER: "CUDA",
    "TensorrtExecutionProvider": "its TensorRT provider",
    "cpu": "the CPU",
    "cuda": "CUDA",
}
# TensorRT-RTX 1.7.
_RTX_CAPABILITIES: Final = frozenset({(7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)})
# Machine code in onnxruntime-gpu 1.31.1, without PTX: each runs on later minors of its major only.
_ORT_CAPABILITIES: Final = ((7, 5), (8, 0), (9, 0), (12, 0))


def onnxruntime(facts: Facts) -> Iterator[Finding]:
    """Judge ONNX Runtime: the engine of .onnx files."""
    ort = facts.tried.get("onnxruntime")
    if ort is None:
        extra = "gpu" if facts.cuda.gpus else "cpu"
        yield Finding(Severity.NOTE, "onnxruntime", "is not installed", install(extra))
        return
    if ort.fault:
        yield _cannot_start("onnxruntime", ort, install("gpu" if facts.cuda.gpus else "cpu"))
        return
    yield _runs_on("onnxruntime", ort)
    if release(ort.version) < OLDEST_ONNXRUNTIME:
        oldest = ".".join(map(str, OLDEST_ONNXRUNTIME))
        sentence = f"{ort.version} is older than {oldest}, the oldest that Sluice runs with"
        yield Finding(Severity.ERROR, "onnxruntime", sentence, _upgrade("onnxruntime", facts))
    if facts.cuda.gpus:
        yield from _onnxruntime_on_gpus(facts, ort)


def _onnxruntime_on_gpus(facts: Facts, ort: Tried) -> Iterator[Finding]:
    if _CUDA_PROVIDER not in ort.available:
        yield Finding(
            Severity.WARNING,
            "onnxruntime",
            "there is a GPU, and this is a build for the CPU",
            f"pip uninstall --yes onnxruntime && {install('gpu')}",
        )
        return
    if _CUDA_PROVIDER not in ort.works:
        sentence = f"its CUDA provider does not run here{_because(ort)}"
        yield Finding(Severity.ERROR, "onnxruntime", sentence, install("gpu"))
    elif "cuda_bindings" not in facts.tried:
        sentence = "on a GPU without cuda-bindings it copies and computes in turns, not at once"
        yield Finding(Severity.NOTE, "onnxruntime", sentence, install("gpu"))
    for gpu in facts.cuda.gpus:
        if not any(_runs_code(gpu, code) for code in _ORT_CAPABILITIES):
            sentence = f"its packages have no code for {_capability(gpu)}"
            yield Finding(Severity.WARNING, "onnxruntime", sentence, "use the backend tensorrt")


def tensorrt(facts: Facts) -> Iterator[Finding]:
    """Judge TensorRT: the engine of plans, for data centre GPUs."""
    tried = facts.tried.get("tensorrt")
    if tried is None:
        yield Finding(Severity.NOTE, "tensorrt", "is not installed", install("tensorrt"))
        return
    if tried.fault:
        fix = install("tensorrt")
        if any("nvinfer" in library for library in tried.missing_libraries):
            fix = (
                f"{fix}, where NVIDIA's own package index can be reached: the libraries come "
                "from there"
            )
        yield _cannot_start("tensorrt", tried, fix)
        return
    yield from _builds_and_runs("tensorrt", facts, tried, can_build=bool(facts.cuda.gpus))
    if release(tried.version) < OLDEST_TENSORRT:
        sentence = f"{tried.version} is older than 10, the oldest that Sluice runs with"
        yield Finding(Severity.ERROR, "tensorrt", sentence, 'pip install "tensorrt-cu13>=10"')


def tensorrt_rtx(facts: Facts) -> Iterator[Finding]:
    """Judge TensorRT-RTX: the engine of plans for GPUs of workstations."""
    area = "tensorrt-rtx"
    tried = facts.tried.get("tensorrt_rtx")
    if tried is None:
        yield Finding(Severity.NOTE, area, "is not installed", install("tensorrt-rtx"))
        return
    if tried.fault:
        yield _cannot_start(area, tried, install("tensorrt-rtx"))
        return
    yield from _builds_and_runs(area, facts, tried, can_build=True)
    for gpu in facts.cuda.gpus:
        if gpu.compute_capability not in _RTX_CAPABILITIES:
            sentence = f"does not support {_capability(gpu)}"
            fix = f"use the backend tensorrt there: {install('tensorrt')}"
            yield Finding(Severity.WARNING, area, sentence, fix)


def torch(facts: Facts) -> Iterator[Finding]:
    """Judge torch: the engine of .pt2 and TorchScript files."""
    tried = facts.tried.get("torch")
    if tried is None:
        yield Finding(Severity.NOTE, "torch", "is not installed", install("torch"))
        return
    if tried.fault:
        yield _cannot_start("torch", tried, install("torch"))
        return
    yield _runs_on("torch", tried)
    if release(tried.version) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        sentence = f"{tried.version} is older than {oldest}, the first whose .pt2 is read"
        yield Finding(Severity.WARNING, "torch", sentence, _upgrade("torch", facts))
    if not facts.cuda.gpus:
        return
    if not tried.built_for_cuda:
        sentence = "there is a GPU, and this is a build for the CPU"
        fix = f"pip uninstall --yes torch && {install('torch')}"
        yield Finding(Severity.WARNING, "torch", sentence, fix)
    elif "cuda" not in tried.works:
        sentence = f"its build for CUDA {tried.built_for_cuda} does not run here{_because(tried)}"
        yield Finding(Severity.ERROR, "torch", sentence, install("torch"))
    elif "cuda_bindings" not in facts.tried:
        sentence = "needs cuda-bindings to serve on a GPU, which is not installed"
        yield Finding(Severity.ERROR, "torch", sentence, install("torch"))


def _builds_and_runs(
    area: str, facts: Facts, tried: Tried, *, can_build: bool
) -> Iterator[Finding]:
    version = tried.version or tensorrt_version(facts.packages)
    if facts.cuda.gpus:
        yield Finding(Severity.OK, area, f"{version} builds plans and runs them")
    elif can_build:
        yield Finding(Severity.OK, area, f"{version} builds plans here; a GPU must run them")
    else:
        yield Finding(Severity.NOTE, area, f"{version} does nothing without a GPU")
    bindings = facts.tried.get("cuda_bindings")
    extra = install(area)
    if bindings is None:
        sentence = "needs cuda-bindings to run plans, which is not installed"
        yield Finding(Severity.ERROR, area, sentence, extra)
    elif bindings.fault:
        yield _cannot_start("cuda-bindings", bindings, extra)


def _runs_on(area: str, tried: Tried) -> Finding:
    if not tried.works:
        sentence = f"{tried.version} is installed and runs on nothing here{_because(tried)}"
        return Finding(Severity.ERROR, area, sentence, "install it again")
    where = ", ".join(_WORDS.get(name, name) for name in sorted(tried.works))
    return Finding(Severity.OK, area, f"{tried.version} runs on {where}")


def _cannot_start(area: str, tried: Tried, fix: str) -> Finding:
    why = _because(tried) if tried.missing_libraries else f": {tried.fault}"
    return Finding(Severity.ERROR, area, f"is installed and does not start{why}", fix)


def _because(tried: Tried) -> str:
    if tried.missing_libraries:
        return f": {', '.join(tried.missing_libraries)} not found"
    return f": {tried.faults[0]}" if tried.faults else ""


def _upgrade(area: str, facts: Facts) -> str:
    if area == "torch":
        return f"{install('torch')} --upgrade"
    return f"{install('gpu' if 'onnxruntime-gpu' in facts.packages else 'cpu')} --upgrade"


def _capability(gpu: Gpu) -> str:
    major, minor = gpu.compute_capability
    return f"cuda:{gpu.index} ({gpu.name}, compute capability {major}.{minor})"


def _runs_code(gpu: Gpu, code: tuple[int, int]) -> bool:
    major, minor = gpu.compute_capability
    return major == code[0] and minor >= code[1]
