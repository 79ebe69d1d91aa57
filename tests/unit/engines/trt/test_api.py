"""The names of TensorRT that are used: all listed, all used, and all there."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, cast

import pytest

from engines.errors import DeviceUnavailable
from engines.trt import api
from engines.trt.surface import Module
from tests.support import fake_trt
from tests.support.tensorrt_bindings import VERSIONS, Missing, attributes

PACKAGE: Final = Path(api.__file__).parent

# What the package calls its objects of TensorRT's classes: variable -> classes.
VARIABLES: Final = {
    "builder": ("Builder",),
    "network": ("INetworkDefinition",),
    "parser": ("OnnxParser",),
    "error": ("ParserError",),
    "tensor": ("ITensor",),
    "settings": ("IBuilderConfig", "IRuntimeConfig"),
    "targets": ("IBuilderConfig",),
    "runtime": ("Runtime",),
    "engine": ("ICudaEngine",),
    "context": ("IExecutionContext",),
    "cache": ("ITimingCache", "IRuntimeCache"),
}
NOT_THEIRS: Final = {("kernels.py", "settings"), ("build.py", "cache")}
"""Names that a file uses for something of ours: methods called `settings`, a folder `cache`."""


def listed(cls: str) -> set[str]:
    return {*api.USED.get(cls, ()), *api.RTX_USED.get(cls, ())}


def accesses() -> Iterator[tuple[str, str, str]]:
    """Yield every `variable.attribute` of the package: file, variable, attribute."""
    for path in sorted(PACKAGE.glob("*.py")):
        if path.name == "surface.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Attribute):
                continue
            base = node.value
            if isinstance(base, ast.Name):
                yield path.name, base.id, node.attr
            elif isinstance(base, ast.Attribute) and base.attr in ("module", "rtx"):
                yield path.name, "module", node.attr


def test_nothing_of_tensorrt_is_used_that_is_not_listed() -> None:
    module = {*api.MODULE_USED, *api.RTX_MODULE_USED}
    unlisted = []
    for file, variable, attribute in accesses():
        if variable == "module":
            known = module
        elif variable in VARIABLES:
            known = set().union(*(listed(cls) for cls in VARIABLES[variable]))
        else:
            continue
        if attribute not in known:
            unlisted.append(f"{file}: {variable}.{attribute}")
    assert unlisted == []


def test_nothing_is_listed_that_is_not_used() -> None:
    used = {attribute for _, _, attribute in accesses()}
    texts = "".join(
        path.read_text(encoding="utf-8")
        for path in PACKAGE.glob("*.py")
        if path.name not in ("surface.py", "api.py")
    )
    classes = {**api.USED, "": api.MODULE_USED}
    enumerations = {*api.MEMBERS, *api.RTX_MEMBERS, *api.CALLED_BACK}
    for cls, names in classes.items():
        if cls in enumerations or cls == "IHostMemory":  # a buffer: its bytes are what is taken
            continue
        assert [name for name in names if name not in used and name not in texts] == [], cls


def test_the_stand_in_has_nothing_that_is_not_listed() -> None:
    for cls, stands_for in (
        (fake_trt.FakeRuntime, "Runtime"),
        (fake_trt.FakeEngine, "ICudaEngine"),
        (fake_trt.FakeContext, "IExecutionContext"),
        (fake_trt.FakeSettings, "IRuntimeConfig"),
        (fake_trt.FakeKernels, "IRuntimeCache"),
    ):
        own = {"say", "range_of", "dims", "datatype", "TAG", "strategy"}
        extra = {name for name in vars(cls) if not name.startswith("_")} - own
        assert extra - listed(stands_for) == set(), stands_for


def test_all_that_is_listed_is_in_the_installed_tensorrt_rtx() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    missing = [name for name in (*api.MODULE_USED, *api.RTX_MODULE_USED) if not hasattr(trt, name)]
    for used in (api.USED, api.RTX_USED):
        for cls, names in used.items():
            missing += [f"{cls}.{name}" for name in names if not hasattr(getattr(trt, cls), name)]
    assert missing == []


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_all_that_is_listed_is_in_the_bindings_of_tensorrt(version: str) -> None:
    try:
        found = attributes(version)
    except Missing as exc:
        pytest.skip(str(exc))
    assert found["__version__"] == [version]
    missing = sorted(set(api.MODULE_USED) - set(found[""]))
    for cls, names in api.USED.items():
        missing += [f"{cls}.{name}" for name in names if name not in found[cls]]
    assert missing == []


@pytest.mark.slow
def test_what_only_one_of_them_has_is_known() -> None:
    try:
        ten, eleven = (attributes(version) for version in VERSIONS)
    except Missing as exc:
        pytest.skip(str(exc))
    assert "FP16" in ten["BuilderFlag"]
    assert "FP16" not in eleven["BuilderFlag"]
    assert "get_engine_validity" not in {*ten["Runtime"], *eleven["Runtime"]}
    assert "num_compute_capabilities" not in {*ten["IBuilderConfig"], *eleven["IBuilderConfig"]}
    assert "is_stream_capturable" not in {*ten["IExecutionContext"], *eleven["IExecutionContext"]}


def test_a_tensorrt_that_is_not_installed_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(DeviceUnavailable, match=r"not installed.*sluice-gateway\[tensorrt\]"):
        api.choose.__wrapped__("tensorrt")


def test_a_tensorrt_whose_libraries_are_missing_is_said_to_be_broken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(DeviceUnavailable, match=r"cannot be imported: libnvinfer\.so\.11"):
        api.choose.__wrapped__("tensorrt")


class Versioned(fake_trt.FakeLogger):
    """A module of which only the version is asked."""

    ILogger = fake_trt.FakeLogger

    def __init__(self, version: str) -> None:
        self.__version__ = version


@pytest.mark.parametrize(
    ("version", "needs_flag"), [("10.16.1.11", True), ("11.4.0.106", False), ("12.0", False)]
)
def test_only_tensorrt_10_has_to_be_asked_for_strong_typing(version: str, needs_flag: bool) -> None:
    flavour = api.flavour(api.KINDS["tensorrt"], cast("Module", Versioned(version)))
    assert flavour.needs_typing_flag is needs_flag
    assert str(flavour) == f"TensorRT {version}"


def test_a_tensorrt_before_10_is_refused() -> None:
    with pytest.raises(DeviceUnavailable, match=r"8\.6\.1 is too old"):
        api.flavour(api.KINDS["tensorrt"], cast("Module", Versioned("8.6.1")))
