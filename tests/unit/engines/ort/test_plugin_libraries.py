"""Execution providers in libraries: loaded once, by name, and refused with onnxruntime's reason.

Real libraries, compiled here: one that is no provider, and one that is but has no device.
"""

from __future__ import annotations

import shutil
import subprocess
import uuid
from pathlib import Path

import onnxruntime
import pytest

from engines.base import EngineConfig
from engines.errors import DeviceUnavailable, ModelLoadError
from engines.ort import libraries, load
from engines.ort.providers import CPU, Wanted
from engines.ort.session import open_session, session_options
from tests.support.models import write_identity

GCC = shutil.which("gcc")
needs_gcc = pytest.mark.skipif(GCC is None, reason="gcc is not installed")

NO_PROVIDER = "int answer(void) { return 42; }\n"
# The two functions that onnxruntime calls; it makes no factory, so there is nothing to call them.
NO_DEVICE = """
#include <stddef.h>
void *CreateEpFactories(const char *name, const void *api, const void *logger,
                        void **factories, size_t room, size_t *made) { *made = 0; return NULL; }
void *ReleaseEpFactory(void *factory) { return NULL; }
"""


@pytest.fixture
def name() -> str:
    """A name of its own: onnxruntime keeps libraries until the process ends."""
    return f"lib{uuid.uuid4().hex[:8]}"


def compiled(path: Path, source: str) -> Path:
    assert GCC is not None
    command = [GCC, "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)]
    subprocess.run(command, input=source, text=True, check=True)
    return path


def config(name: str, path: Path, device: str = "cpu") -> EngineConfig:
    return EngineConfig(device=device, libraries={name: path}, providers=((name, {}),))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_identity(tmp_path / "model.onnx", "FP32", [4])


def test_a_library_that_does_not_exist_is_refused_by_name(
    model: Path, name: str, tmp_path: Path
) -> None:
    with pytest.raises(DeviceUnavailable) as refused:
        load(model, config(name, tmp_path / "missing.so"))
    assert str(refused.value) == f"provider library {name!r}: missing.so does not exist"


@needs_gcc
def test_a_library_that_is_no_provider_is_refused_with_onnxruntimes_reason(
    model: Path, name: str, tmp_path: Path
) -> None:
    path = compiled(tmp_path / "plain.so", NO_PROVIDER)
    with pytest.raises(DeviceUnavailable) as refused:
        load(model, config(name, path))
    said = str(refused.value)
    assert said.startswith(f"provider library {name!r} does not load: ")
    assert "CreateEpFactories" in said


def test_a_file_that_is_no_library_is_refused_with_onnxruntimes_reason(
    model: Path, name: str, tmp_path: Path
) -> None:
    path = tmp_path / "text.so"
    path.write_text("no library")
    with pytest.raises(DeviceUnavailable, match=r"does not load: .*(invalid ELF|too short)"):
        load(model, config(name, path))


@needs_gcc
@pytest.mark.parametrize(("device", "where"), [("cpu", "the CPU")])
def test_a_provider_without_a_device_here_is_refused(
    model: Path, name: str, tmp_path: Path, device: str, where: str
) -> None:
    path = compiled(tmp_path / "empty.so", NO_DEVICE)
    with pytest.raises(DeviceUnavailable) as refused:
        load(model, config(name, path, device))
    assert str(refused.value) == f"provider {name!r} has nothing to run on at {where}"


@needs_gcc
def test_a_library_is_loaded_once_and_its_name_stays_its_own(
    model: Path, name: str, tmp_path: Path
) -> None:
    path = compiled(tmp_path / "empty.so", NO_DEVICE)
    assert libraries.register(name, path) == libraries.register(name, path)
    other = compiled(tmp_path / "other.so", NO_DEVICE)
    with pytest.raises(ModelLoadError) as refused:
        load(model, config(name, other))
    assert str(refused.value) == (
        f"provider library {name!r} is empty.so in this process already and cannot become "
        "other.so before a restart"
    )


@needs_gcc
def test_a_library_that_failed_is_tried_again(model: Path, name: str, tmp_path: Path) -> None:
    path = tmp_path / "late.so"
    with pytest.raises(DeviceUnavailable, match="does not exist"):
        load(model, config(name, path))
    compiled(path, NO_DEVICE)
    with pytest.raises(DeviceUnavailable, match="nothing to run on"):
        load(model, config(name, path))


def test_a_library_that_nobody_names_is_not_loaded(model: Path, tmp_path: Path) -> None:
    unused = EngineConfig(libraries={"unused": tmp_path / "missing.so"})
    assert load(model, unused).metadata.providers == (CPU,)


def test_auto_falls_back_from_a_library_as_well(model: Path, name: str, tmp_path: Path) -> None:
    metadata = load(model, config(name, tmp_path / "missing.so", "auto")).metadata
    assert metadata.device == "cpu"
    assert metadata.fallback


@pytest.mark.skipif(
    not hasattr(onnxruntime, "get_ep_devices"), reason="onnxruntime lists devices from 1.23 on"
)
def test_providers_of_onnxruntime_can_stand_in_the_options_of_a_session(model: Path) -> None:
    """The way of providers from libraries, gone by the one that is always there."""
    options = session_options(EngineConfig())
    names = libraries.add_to(options, [Wanted(CPU, {})], {}, ("cpu", 0))
    assert names == [CPU]
    assert open_session(model, options).get_providers() == [CPU]
    with pytest.raises(DeviceUnavailable, match="has nothing to run on at cuda:1"):
        libraries.add_to(session_options(EngineConfig()), [Wanted(CPU, {})], {}, ("cuda", 1))
