"""What the doctor finds: installed packages, and probes in processes of their own."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path

import pytest

from engines.doctor import facts
from engines.doctor.facts import Tried
from engines.doctor.probe import PROBES


def write_package(folder: Path, module: str, source: str) -> None:
    """Write a module that the probes' processes find before any other of its name."""
    (folder / module).mkdir(parents=True)
    (folder / module / "__init__.py").write_text(source)


@pytest.fixture
def shadowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder whose packages come first on the path of new processes."""
    folder = tmp_path / "site"
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def test_distributions_are_found_by_their_normalised_names(tmp_path: Path) -> None:
    for name, version in (
        ("ONNXRuntime_GPU", "1.31.1"),
        ("tensorrt_cu13.bindings", "11.4"),
        ("torchvision", "1"),
        ("requests", "2"),
        ("nvidia-cudnn-cu13", "9.28"),
        ("pynvml", "11.5"),
    ):
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    found = facts.installed(importlib.metadata.distributions(path=[str(tmp_path)]))
    assert found == {
        "nvidia-cudnn-cu13": "9.28",
        "onnxruntime-gpu": "1.31.1",
        "pynvml": "11.5",
        "tensorrt-cu13-bindings": "11.4",
    }


@pytest.mark.parametrize(
    ("packages", "modules"),
    [
        ([], []),
        (["onnxruntime"], ["onnxruntime"]),
        (["onnxruntime-gpu"], ["onnxruntime"]),
        (["onnxruntime-ep-nv-tensorrt-rtx", "onnxruntime-extensions"], []),
        (["tensorrt-cu13"], ["tensorrt"]),
        (["tensorrt-cu13-bindings"], ["tensorrt"]),
        (["tensorrt-cu13-libs"], []),
        (["tensorrt-rtx"], ["tensorrt_rtx"]),
        (["tensorrt-rtx-cu13-bindings"], ["tensorrt_rtx"]),
        (["torch", "cuda-bindings"], ["torch", "cuda_bindings"]),
        (["torch-tensorrt", "cuda-pathfinder"], []),
    ],
)
def test_only_what_is_installed_is_tried(packages: list[str], modules: list[str]) -> None:
    assert facts.probed(packages) == modules


def test_onnxruntime_computes_on_the_cpu() -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    tried = facts._try("onnxruntime", 60)
    assert tried.fault == ""
    assert tried.version == importlib.metadata.version(
        "onnxruntime" if tried.built_for_cuda == "" else "onnxruntime-gpu"
    )
    assert "CPUExecutionProvider" in tried.works
    assert set(tried.works) <= set(tried.available)


def test_torch_computes_on_the_cpu() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    tried = facts._try("torch", 60)
    assert (tried.fault, tried.works[0]) == ("", "cpu")


def test_a_provider_that_is_in_the_build_and_does_not_load_is_told_from_one_that_works(
    shadowed: Path,
) -> None:
    source = """
import sys
cuda_version = "13.0"
__version__ = "1.31.1"

def preload_dlls():
    print("libcudnn.so.9: cannot open shared object file: No such file or directory")

def get_available_providers():
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]

class InferenceSession:
    # Like the real one: what cannot be loaded is left out, with a line on the standard error.
    def __init__(self, model, providers):
        assert model[:4] == bytes((8, 8, 58, 53))
        if providers == ["CUDAExecutionProvider"]:
            print("libcublasLt.so.13: cannot open shared object file", file=sys.stderr)
    def get_providers(self):
        return ["CPUExecutionProvider"]
    def run(self, names, feeds):
        return [feeds["x"] * 2]
"""
    write_package(shadowed, "onnxruntime", source)
    assert facts._try("onnxruntime", 60) == Tried(
        version="1.31.1",
        built_for_cuda="13.0",
        available=("CUDAExecutionProvider", "CPUExecutionProvider"),
        works=("CPUExecutionProvider",),
        missing_libraries=("libcudnn.so.9", "libcublasLt.so.13"),
    )


def test_a_provider_that_raises_is_quoted(shadowed: Path) -> None:
    source = """
__version__ = "1.20.0"

def get_available_providers():
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]

class InferenceSession:
    def __init__(self, model, providers):
        raise RuntimeError("no " + providers[0])
"""
    write_package(shadowed, "onnxruntime", source)
    tried = facts._try("onnxruntime", 60)
    assert tried.works == ()
    assert tried.faults == (
        "CUDAExecutionProvider: no CUDAExecutionProvider",
        "CPUExecutionProvider: no CPUExecutionProvider",
    )


def test_an_import_that_fails_is_a_fault_and_names_the_library(shadowed: Path) -> None:
    sentence = "libnvinfer.so.11: cannot open shared object file: No such file or directory"
    write_package(shadowed, "tensorrt", f"raise ImportError({sentence!r})")
    tried = facts._try("tensorrt", 60)
    assert tried.fault == f"ImportError: {sentence}"
    assert tried.missing_libraries == ("libnvinfer.so.11",)


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import os; os._exit(3)", "it ended the process (exit code 3)"),
        ("import os; os._exit(0)", "it ended without a word"),
        ("import os; os.kill(os.getpid(), 11)", "it ended the process (signal 11)"),
        ("raise SystemExit(5)", "it ended the process (exit code 5)"),
    ],
)
def test_a_package_that_ends_its_process_ends_no_more_than_that(
    shadowed: Path, source: str, fault: str
) -> None:
    write_package(shadowed, "tensorrt", source)
    assert facts._try("tensorrt", 60).fault == fault


def test_a_package_that_hangs_is_given_up(shadowed: Path) -> None:
    write_package(shadowed, "tensorrt", "import time; time.sleep(600)")
    assert facts._try("tensorrt", 0.5).fault == "it did not start within 0.5 s"


def test_what_a_package_prints_is_no_answer(shadowed: Path) -> None:
    write_package(shadowed, "tensorrt", "print('{}'); __version__ = '10.1'")
    assert facts._try("tensorrt", 60) == Tried(version="10.1")


def test_the_answer_is_the_last_line_and_libraries_are_named_once() -> None:
    said = json.dumps({"version": "1", "faults": ["a.so.1: cannot open shared object file"]})
    text = "b-x.so: cannot open shared object file\na.so.1: cannot open shared object file"
    tried = facts.read(f"noise\n{said}\n", text)
    assert tried.missing_libraries == ("a.so.1", "b-x.so")
    assert tried.version == "1"


def test_every_module_that_may_be_tried_has_a_probe() -> None:
    every = ["onnxruntime", "torch", "tensorrt", "tensorrt-rtx", "cuda-bindings"]
    assert set(facts.probed(every)) == set(PROBES)


def test_this_machine_is_described() -> None:
    found = facts.gather()
    assert found.python == sys.version_info[:2]
    assert found.system == f"{platform.system()} {platform.machine()}"
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert set(found.tried) == set(facts.probed(found.packages))
