"""What the facts mean for people: one rule per subject, each a pure function of the facts.

The limits written here (compute capabilities, versions that belong together) are those of the
releases named beside them; a newer release may know more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from engines.budget import shown
from engines.devices import Gpu
from engines.doctor import packages, runtimes
from engines.doctor.facts import Facts
from engines.doctor.findings import Finding, Severity, install

CUDA_13: Final = 13000
CUDA_13_DRIVER: Final = 580


def judge(facts: Facts) -> list[Finding]:
    """Return what is to be said, in the order in which it is read: the machine first."""
    return [finding for rule in _RULES for finding in rule(facts)]


def _machine(facts: Facts) -> Iterator[Finding]:
    major, minor = facts.python
    cores = "1 usable core" if facts.cores == 1 else f"{facts.cores} usable cores"
    sentence = f"Python {major}.{minor} on {facts.system}, {cores}"
    yield Finding(Severity.OK, "machine", sentence)


def _gpus(facts: Facts) -> Iterator[Finding]:
    cuda = facts.cuda
    if not cuda.gpus:
        yield Finding(
            Severity.NOTE,
            "gpu",
            f"no model can run on a GPU: {cuda.why}",
            f"where there is a GPU: install NVIDIA's driver {CUDA_13_DRIVER} or newer, "
            "and give it to a container with --gpus all"
            if cuda.driver_version is None
            else "",
        )
        return
    for gpu in cuda.gpus:
        yield Finding(Severity.OK, "gpu", f"cuda:{gpu.index} is {_described(gpu)}")


def _described(gpu: Gpu) -> str:
    major, minor = gpu.compute_capability
    text = f"{gpu.name}, compute capability {major}.{minor}, {shown(gpu.memory_bytes)}"
    return f"{text}, {gpu.uuid}" if gpu.uuid else text


def _driver(facts: Facts) -> Iterator[Finding]:
    version = facts.cuda.driver_version
    if version is None or not facts.cuda.gpus:
        return
    supports = f"the driver supports CUDA {version // 1000}.{version % 1000 // 10}"
    needing = packages.built_for(facts, 13)
    if version >= CUDA_13:
        yield Finding(Severity.OK, "driver", supports)
    elif needing:
        yield Finding(
            Severity.ERROR,
            "driver",
            f"{supports}, and these are built for CUDA 13: {', '.join(needing)}",
            f"update NVIDIA's driver to {CUDA_13_DRIVER} or newer",
        )
    else:
        sentence = f"{supports}; what Sluice's extras install is built for CUDA 13"
        fix = f"update NVIDIA's driver to {CUDA_13_DRIVER} or newer"
        yield Finding(Severity.NOTE, "driver", sentence, fix)


def _no_engine(facts: Facts) -> Iterator[Finding]:
    if any(m in facts.tried for m in ("onnxruntime", "tensorrt", "tensorrt_rtx", "torch")):
        return
    extra = "gpu" if facts.cuda.gpus else "cpu"
    sentence = "no runtime is installed: no model can be served but those of the fake engine"
    yield Finding(Severity.ERROR, "engines", sentence, install(extra))


def _metrics(facts: Facts) -> Iterator[Finding]:
    has_package = "nvidia-ml-py" in facts.packages
    wrapper = facts.packages.get("pynvml", "")
    if re.match(r"([0-9]|1[01])(\.|$)", wrapper):  # up to 11 it brought the module itself
        sentence = f"pynvml {wrapper} is an old package with the module of nvidia-ml-py"
        fix = f"pip uninstall pynvml && {install('nvml')}"
        yield Finding(Severity.WARNING, "metrics", sentence, fix)
    elif wrapper:
        sentence = f"pynvml {wrapper} only wraps nvidia-ml-py and is not needed"
        yield Finding(Severity.NOTE, "metrics", sentence, "pip uninstall pynvml")
    if facts.cuda.gpus and has_package:
        yield Finding(Severity.OK, "metrics", "the GPUs' state is served with the metrics")
    elif facts.cuda.gpus:
        sentence = "the GPUs' state is not served with the metrics: nvidia-ml-py is not installed"
        yield Finding(Severity.NOTE, "metrics", sentence, install("nvml"))


_RULES: Final[tuple[Callable[[Facts], Iterator[Finding]], ...]] = (
    _machine,
    _gpus,
    _driver,
    _no_engine,
    runtimes.onnxruntime,
    runtimes.tensorrt,
    runtimes.tensorrt_rtx,
    runtimes.torch,
    packages.two_onnxruntimes,
    packages.tensorrt_of_onnxruntime,
    packages.two_cudas,
    _metrics,
)
