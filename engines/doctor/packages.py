"""Installed packages that do not go together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from engines.doctor.facts import Facts
from engines.doctor.findings import Finding, Severity, install

# All of them are the module `onnxruntime` and overwrite each other's files.
_SAME_MODULE: Final = frozenset(
    f"onnxruntime{suffix}"
    for suffix in (
        "",
        "-directml",
        "-gpu",
        "-migraphx",
        "-openvino",
        "-qnn",
        "-rocm",
        "-silicon",
        "-training",
    )
)
# NVIDIA's packages without a suffix belong to the CUDA of their own number since 13.
_UNSUFFIXED: Final = frozenset({"nvidia-cuda-runtime", "nvidia-cuda-nvrtc"})
_TENSORRT_PROVIDER: Final = "TensorrtExecutionProvider"


def release(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version; zeros where there are none."""
    found = re.match(r"(\d+)(?:\.(\d+))?", version)
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)


def two_onnxruntimes(facts: Facts) -> Iterator[Finding]:
    """Packages with the same module: the last one installed wins, file by file."""
    both = sorted(_SAME_MODULE & facts.packages.keys())
    if len(both) < 2:
        return
    named = " and ".join(f"{name} {facts.packages[name]}" for name in both)
    kept = install("gpu" if facts.cuda.gpus else "cpu")
    yield Finding(
        Severity.ERROR,
        "packages",
        f"{named} are both installed: they are one module, and each overwrites files of the other",
        f"pip uninstall --yes {' '.join(both)} && {kept}",
    )


def tensorrt_of_onnxruntime(facts: Facts) -> Iterator[Finding]:
    """onnxruntime's TensorRT provider is linked with TensorRT 10."""
    ort = facts.tried.get("onnxruntime")
    if ort is None or _TENSORRT_PROVIDER not in ort.available:
        return
    version = tensorrt_version(facts.packages)
    if version and release(version)[0] >= 11:
        yield Finding(
            Severity.WARNING,
            "packages",
            f"onnxruntime's TensorRT provider needs TensorRT 10 and cannot load {version}; "
            "the backends tensorrt and onnxruntime on CUDA are not concerned",
            'to use the provider: pip install "tensorrt-cu13<11"',
        )


def two_cudas(facts: Facts) -> Iterator[Finding]:
    """Packages for CUDA 12 and for CUDA 13 side by side; of cuDNN, one replaces the other."""
    twelve, thirteen = built_for(facts, 12), built_for(facts, 13)
    if not twelve or not thirteen:
        return
    sentence = (
        f"packages for CUDA 12 ({', '.join(twelve)}) and for CUDA 13 ({', '.join(thirteen)}) are "
        "both installed"
    )
    if {"nvidia-cudnn-cu12", "nvidia-cudnn-cu13"} <= facts.packages.keys():
        sentence += ": the two cuDNN are the same files"
    fix = "keep to one of them, in an environment of its own; Sluice's extras are for CUDA 13"
    yield Finding(Severity.WARNING, "packages", sentence, fix)


def built_for(facts: Facts, major: int) -> list[str]:
    """Return the packages, with their versions, that are made for this CUDA."""
    found = {
        name: version
        for name, version in facts.packages.items()
        if re.search(rf"-cu{major}\d?(-|$)", name)
        or (name in _UNSUFFIXED and release(version)[0] == major)
    }
    for module in ("onnxruntime", "torch"):
        tried = facts.tried.get(module)
        if tried is not None and release(tried.built_for_cuda)[0] == major:
            name = "onnxruntime-gpu" if module == "onnxruntime" else module
            found[name] = tried.version
    return [f"{name} {version}" for name, version in sorted(found.items())]


def tensorrt_version(packages: Mapping[str, str]) -> str:
    """Return the version of TensorRT (not RTX) that is installed; empty: none."""
    for name in sorted(packages):
        if re.fullmatch(r"tensorrt(-cu\d+)?(-bindings|-libs)?", name):
            return packages[name]
    return ""
