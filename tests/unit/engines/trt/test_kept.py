"""Plans that are kept: what they depend on, and that they are built once. Real builds."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from engines.errors import ModelLoadError
from engines.trt import api, build, plans, profiles
from engines.trt.api import Flavour
from engines.trt.build import Built
from engines.trt.recipe import Recipe
from tests.support.models import write_mlp
from tests.support.trt_models import write_external

pytest.importorskip("tensorrt_rtx")

RECIPE: Final = Recipe(profiles=(profiles.parse("x:1x16,8x16,32x16"),))
HARDWARE: Final = {"gpu": "GPU", "compute_capability": [8, 9], "driver_version": 13000}
WHEN: Final = "2026-11-21T12:00:00+00:00"


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """Count the builds, which stay real."""
    made: list[Recipe] = []
    real: Callable[..., Built] = build.build

    # Any: passed on as it is.
    def counted(flavour: Flavour, model: Path, recipe: Recipe, **more: Any) -> Built:
        made.append(recipe)
        return real(flavour, model, recipe, **more)

    monkeypatch.setattr(build, "build", counted)
    return made


@pytest.fixture
def rtx() -> Flavour:
    return api.choose("tensorrt_rtx")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_mlp(tmp_path / "model.onnx", [16, 32, 4], 1)


def kept(
    flavour: Flavour, model: Path, cache: Path | None, recipe: Recipe = RECIPE, **hardware: object
) -> tuple[bytes, Path | None]:
    return build.kept(
        flavour, model, recipe, cache=cache, hardware=HARDWARE | hardware, built_at=WHEN
    )


def test_the_second_load_builds_nothing(
    rtx: Flavour, model: Path, tmp_path: Path, builds: list[Recipe]
) -> None:
    first, path = kept(rtx, model, tmp_path / "cache")
    again, found = kept(rtx, model, tmp_path / "cache")
    assert len(builds) == 1
    assert path is not None
    assert found == path
    assert first == again == path.read_bytes()


def test_a_plan_that_is_kept_has_a_sidecar(rtx: Flavour, model: Path, tmp_path: Path) -> None:
    plan, path = kept(rtx, model, tmp_path / "cache")
    assert path is not None
    facts = plans.inspect(path)
    assert plans.fault(path.name, facts, "tensorrt_rtx", rtx.version) == ""
    assert facts.size_bytes == len(plan)
    sidecar = facts.sidecar
    assert sidecar is not None
    assert sidecar.built_at == WHEN
    assert sidecar.version == rtx.version
    assert sidecar.model_sha256 == plans.model_sha256(model)
    assert sidecar.profiles == RECIPE.profiles
    assert [spec.name for spec in (*sidecar.inputs, *sidecar.outputs)] == ["x", "y"]
    assert sidecar.options["hardware"] == HARDWARE
    assert not list((tmp_path / "cache").glob(".*")), "nothing half made is left"


def test_everything_that_a_plan_depends_on_makes_another_one(
    rtx: Flavour, model: Path, tmp_path: Path, builds: list[Recipe]
) -> None:
    cache = tmp_path / "cache"
    other = write_mlp(tmp_path / "other.onnx", [16, 32, 4], 2)
    wider = replace(RECIPE, profiles=(profiles.parse("x:1x16,8x16,64x16"),))
    paths = {
        kept(rtx, model, cache)[1],
        kept(rtx, other, cache)[1],
        kept(rtx, model, cache, wider)[1],
        kept(rtx, model, cache, replace(RECIPE, level=1))[1],
        kept(rtx, model, cache, replace(RECIPE, workspace_bytes=1 << 26))[1],
        kept(rtx, model, cache, replace(RECIPE, flags=("STRICT_NANS",)))[1],
        kept(rtx, model, cache, gpu="another")[1],
        kept(rtx, model, cache, driver_version=13010)[1],
        kept(replace(rtx, version="1.7.2.1"), model, cache)[1],
    }
    assert len(paths) == len(builds) == 9


def test_weights_beside_the_model_are_part_of_it(
    rtx: Flavour, tmp_path: Path, builds: list[Recipe]
) -> None:
    model = write_external(tmp_path / "model.onnx")
    recipe = Recipe(profiles=(profiles.parse("x:1x4,8x4,8x4"),))
    kept(rtx, model, tmp_path / "cache", recipe)
    (tmp_path / "weights.bin").write_bytes(bytes(64))
    kept(rtx, model, tmp_path / "cache", recipe)
    assert len(builds) == 2


def test_without_a_folder_every_load_builds(
    rtx: Flavour, model: Path, builds: list[Recipe]
) -> None:
    plan, path = kept(rtx, model, None)
    kept(rtx, model, None)
    assert path is None
    assert plans.header_of(plan).flavour == "tensorrt_rtx"
    assert len(builds) == 2


def test_a_folder_that_cannot_be_written_costs_the_keeping_only(
    rtx: Flavour, model: Path, tmp_path: Path, builds: list[Recipe]
) -> None:
    (tmp_path / "cache").write_text("a file")
    plan, path = kept(rtx, model, tmp_path / "cache")
    assert path is None
    assert plan
    assert len(builds) == 1


def test_loads_at_once_share_one_build(
    rtx: Flavour, model: Path, tmp_path: Path, builds: list[Recipe]
) -> None:
    found: list[bytes] = []
    loaders = [
        threading.Thread(target=lambda: found.append(kept(rtx, model, tmp_path / "cache")[0]))
        for _ in range(4)
    ]
    for loader in loaders:
        loader.start()
    for loader in loaders:
        loader.join()
    assert len(builds) == 1
    assert len(found) == 4
    assert len(set(found)) == 1


def test_a_model_that_cannot_be_built_leaves_nothing_behind(rtx: Flavour, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"not a model")
    with pytest.raises(ModelLoadError, match="is not understood"):
        kept(rtx, model, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_kernels_are_timed_once_for_a_device(
    rtx: Flavour, model: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    timed = replace(rtx, has_timing_cache=True)
    kept(timed, model, tmp_path / "cache")
    kept(timed, model, tmp_path / "cache", replace(RECIPE, level=1))
    kept(timed, model, tmp_path / "cache", gpu="another")
    assert len(list((tmp_path / "cache").glob("*.timing"))) == 2
    assert {warning.category for warning in recwarn} == {DeprecationWarning}


def test_a_plan_is_written_beside_its_model_with_what_it_depends_on(
    rtx: Flavour, model: Path, tmp_path: Path
) -> None:
    built = build.build(rtx, model, RECIPE)
    key = build.key(rtx, model, RECIPE, {})
    build.write(tmp_path / "model.plan", built, key, WHEN)
    facts = plans.inspect(tmp_path / "model.plan")
    assert facts.sidecar is not None
    assert plans.fault("model.plan", facts, "tensorrt_rtx", rtx.version) == ""
    document = json.loads((tmp_path / "model.plan.json").read_text())
    assert document["profiles"] == [{"x": {"min": [1, 16], "best": [8, 16], "max": [32, 16]}}]


def test_a_model_that_is_replaced_while_it_is_built_is_not_kept_under_its_old_digest(
    rtx: Flavour, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = build.build

    def replace_first(*given: Any, **more: Any) -> Built:  # Any: passed on as it is
        write_mlp(model, [16, 32, 4], 2)
        return real(*given, **more)

    monkeypatch.setattr(build, "build", replace_first)
    with pytest.raises(ModelLoadError, match=r"model\.onnx was replaced while its plan was built"):
        kept(rtx, model, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.plan"))
