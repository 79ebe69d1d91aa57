"""The registry: every backend has its loader, imported when it loads, and says what it lacks."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engines import devices, registry
from engines.base import EngineConfig
from engines.errors import ModelLoadError
from engines.fake import FakeEngine
from gateway.model_config.backends import BACKENDS
from tests.support.models import write_fake

ROOT = Path(__file__).parents[3]
NO_SUCH_GPU = "cuda:4095"

LOAD = """
import sys
from pathlib import Path
from engines import registry
from engines.base import EngineConfig
from engines.errors import ModelLoadError
try:
    registry.loaders()[sys.argv[1]](Path("model"), EngineConfig(device=sys.argv[2]))
except ModelLoadError as exc:
    print(exc)
"""
QUIET = """
import sys
from engines import registry
registry.loaders(), registry.missing("pytorch", "cpu"), registry.missing("tensorrt_rtx", "cuda:0")
heavy = {"onnxruntime", "torch", "tensorrt", "tensorrt_rtx", "engines.ort", "engines.trt"}
print(sorted(heavy & sys.modules.keys()))
"""


def ran(code: str, *arguments: str, path: Path | None = None) -> str:
    """Return what a Python process of its own prints; `path` comes first among its modules."""
    environ = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}" if path else str(ROOT)}
    found = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=environ,
        cwd=path or ROOT,
    )
    return found.stdout.strip()


def test_every_backend_of_a_configuration_has_a_loader() -> None:
    assert set(registry.loaders()) == set(registry.RUNTIMES) == set(BACKENDS)


@pytest.mark.parametrize("backend", registry.RUNTIMES)
def test_every_loader_is_where_the_table_says(backend: str) -> None:
    runtime = registry.RUNTIMES[backend]
    assert callable(getattr(importlib.import_module(runtime.module), runtime.loader))


def test_a_loader_loads(tmp_path: Path) -> None:
    path = write_fake(tmp_path / "model.json")
    engine = registry.loaders()["fake"](path, EngineConfig())
    assert isinstance(engine, FakeEngine)


def test_what_an_engine_says_of_its_file_comes_through(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("no script")
    with pytest.raises(ModelLoadError, match=r"^model\.json does not load"):
        registry.loaders()["fake"](tmp_path / "model.json", EngineConfig())


def test_no_runtime_is_imported_before_it_is_needed() -> None:
    assert ran(QUIET) == "[]"


@pytest.mark.parametrize(
    ("device", "extra"), [("cpu", "cpu"), ("auto", "cpu"), ("cuda:0", "gpu"), ("cuda:1", "gpu")]
)
def test_a_package_that_is_not_installed_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, device: str, extra: str
) -> None:
    sentence = (
        "the backend 'onnxruntime' needs onnxruntime, which is not installed: "
        f"install sluice-gateway[{extra}]"
    )
    hidden = 'import sys; sys.modules["onnxruntime"] = None\n'
    assert ran(hidden + LOAD, "onnxruntime", device) == sentence
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert registry.missing("onnxruntime", device) == sentence
    assert registry.lacking("onnxruntime", EngineConfig(device=device)) == "", "said already"


@pytest.mark.parametrize(
    ("backend", "package", "extra"),
    [
        ("pytorch", "torch", "torch"),
        ("tensorrt", "tensorrt", "tensorrt"),
        ("tensorrt_rtx", "tensorrt_rtx", "tensorrt-rtx"),
    ],
)
def test_each_extra_is_the_one_of_its_backend(
    monkeypatch: pytest.MonkeyPatch, backend: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert registry.missing(backend, "cuda:0") == (
        f"the backend {backend!r} needs {package}, which is not installed: "
        f"install sluice-gateway[{extra}]"
    )


def test_bindings_beside_the_runtime_are_looked_for_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", importlib.import_module("json"))
    monkeypatch.setitem(sys.modules, "cuda", None)
    monkeypatch.delitem(sys.modules, "cuda.bindings", raising=False)
    for backend in ("tensorrt_rtx", "pytorch"):
        monkeypatch.setitem(sys.modules, "torch", importlib.import_module("json"))
        why = registry.missing(backend, "cuda:0")
        assert "needs cuda.bindings, which is not installed" in why
    assert registry.missing("pytorch", "cpu") == "", "the CPU needs none"


def test_the_fake_needs_nothing() -> None:
    assert registry.missing("fake", "cpu") == ""


def test_a_package_that_is_there_and_broken_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libonnx.so: no such symbol')")
    assert ran(LOAD, "onnxruntime", "cpu", path=tmp_path) == (
        "the backend 'onnxruntime' does not import: libonnx.so: no such symbol"
    )


def test_the_installed_build_is_asked_for_the_gpu_only() -> None:
    assert registry.lacking("onnxruntime", EngineConfig(device="cpu")) == ""
    assert registry.lacking("onnxruntime", EngineConfig(device="auto")) == ""
    assert registry.lacking("fake", EngineConfig(device=NO_SUCH_GPU)) == ""
    assert "CUDAExecutionProvider was asked for" in registry.lacking(
        "onnxruntime", EngineConfig(device=NO_SUCH_GPU)
    )
    assert devices.why_not(NO_SUCH_GPU)
