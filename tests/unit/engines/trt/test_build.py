"""Real builds: TensorRT-RTX parses and builds without a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.base import TensorSpec
from engines.errors import ModelLoadError
from engines.trt import api, build, parse, plans, profiles, recipe
from engines.trt.api import Flavour
from engines.trt.build import BuildCancelled
from engines.trt.profiles import InvalidRecipe
from engines.trt.recipe import Recipe
from tests.support.models import write_mlp
from tests.support.trt_models import (
    write_conv,
    write_external,
    write_nonzero,
    write_typed,
    write_unknown_operator,
)

pytest.importorskip("tensorrt_rtx")

MLP_PROFILE = profiles.parse("x:1x16,8x16,32x16")
CONV_PROFILE = profiles.parse("image:1x3x16x16,8x3x16x16,8x3x16x16")


@pytest.fixture(scope="module")
def rtx() -> Flavour:
    return api.choose("tensorrt_rtx")


@pytest.fixture
def mlp(tmp_path: Path) -> Path:
    return write_mlp(tmp_path / "model.onnx", [16, 32, 4], 1)


def test_an_mlp_is_built(rtx: Flavour, mlp: Path) -> None:
    built = build.build(rtx, mlp, Recipe(profiles=(MLP_PROFILE,)))
    assert built.inputs == (TensorSpec(name="x", datatype="FP32", shape=(-1, 16)),)
    assert built.outputs == (TensorSpec(name="y", datatype="FP32", shape=(-1, 4)),)
    header = plans.header_of(built.plan)
    assert (header.flavour, header.version) == ("tensorrt_rtx", rtx.version)
    assert header.size_bytes == len(built.plan)


def test_a_convolutional_network_is_built(rtx: Flavour, tmp_path: Path) -> None:
    path = write_conv(tmp_path / "model.onnx")
    built = build.build(rtx, path, Recipe(profiles=(CONV_PROFILE,), workspace_bytes=64 << 20))
    assert built.inputs[0].shape == (-1, 3, 16, 16)
    assert built.outputs[0].shape == (-1, 5)
    assert plans.header_of(built.plan).flavour == "tensorrt_rtx"


def test_a_model_is_built_of_its_bytes_too(rtx: Flavour, mlp: Path) -> None:
    built = build.build(rtx, mlp.read_bytes(), Recipe(profiles=(MLP_PROFILE,)))
    assert built.outputs[0].name == "y"


def test_several_profiles_and_a_fixed_shape_are_built(rtx: Flavour, tmp_path: Path) -> None:
    each = tuple(profiles.parse(f"x:{n}x16") for n in (1, 8, 32))
    path = write_mlp(tmp_path / "model.onnx", [16, 4], 1)
    assert build.build(rtx, path, Recipe(profiles=each)).plan
    fixed = write_conv(tmp_path / "fixed.onnx", rows=4)
    assert build.build(rtx, fixed, Recipe()).inputs[0].shape == (4, 3, 16, 16)


def test_weights_that_lie_beside_the_model_are_found(rtx: Flavour, tmp_path: Path) -> None:
    path = write_external(tmp_path / "model.onnx")
    recipe_ = Recipe(profiles=(profiles.parse("x:1x4,8x4,8x4"),))
    assert build.build(rtx, path, recipe_).plan
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelLoadError, match=r"model\.onnx is not understood"):
        build.build(rtx, path, recipe_)


@pytest.mark.parametrize("datatype", sorted(parse.DATATYPES.values()))
def test_every_datatype_that_tensorrt_has_comes_through(
    rtx: Flavour, tmp_path: Path, datatype: str
) -> None:
    path = write_typed(tmp_path / "model.onnx", datatype)
    inputs, outputs = parse.signature(rtx, path)
    assert [spec.datatype for spec in (*inputs, *outputs)] == [datatype] * 2


def test_double_precision_becomes_single_and_is_said_so(rtx: Flavour, tmp_path: Path) -> None:
    inputs, _ = parse.signature(rtx, write_typed(tmp_path / "model.onnx", "FP64"))
    assert inputs[0].datatype == "FP32"


@pytest.mark.parametrize("datatype", ["INT16", "UINT16", "UINT32", "UINT64", "BYTES"])
def test_a_datatype_that_tensorrt_has_not_is_refused(
    rtx: Flavour, tmp_path: Path, datatype: str
) -> None:
    path = write_typed(tmp_path / "model.onnx", datatype)
    with pytest.raises(ModelLoadError, match=r"model\.onnx is not understood by TensorRT-RTX"):
        parse.signature(rtx, path)


def test_a_file_that_is_no_onnx_is_refused(rtx: Flavour, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ModelLoadError) as caught:
        build.build(rtx, path, Recipe())
    assert str(caught.value) == (
        f"model.onnx is not understood by {rtx}: model deserialize failed: "
        "model->ParseFromCodedStream(&codedInput): Failed to parse the ONNX model"
    )


def test_an_empty_file_is_refused_although_the_parser_takes_it(
    rtx: Flavour, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.touch()
    with pytest.raises(ModelLoadError, match=r"model\.onnx has no outputs"):
        build.build(rtx, path, Recipe())


def test_an_operator_that_is_not_known_is_named_with_its_node(rtx: Flavour, tmp_path: Path) -> None:
    path = write_unknown_operator(tmp_path / "model.onnx")
    with pytest.raises(ModelLoadError, match=r"node 0 'odd' \(Frobnicate\): invalid node: Plugin"):
        build.build(rtx, path, Recipe())


def test_an_operator_that_is_not_supported_is_named(rtx: Flavour, tmp_path: Path) -> None:
    path = write_nonzero(tmp_path / "model.onnx")
    with pytest.raises(ModelLoadError, match=r"node 0 'finds' \(NonZero\): unsupported node"):
        build.build(rtx, path, Recipe())


@pytest.mark.parametrize(
    ("profile", "why"),
    [
        ("x:1x8,8x8,32x8", "does not fit the input's shape"),
        ("x:1,8,32", "does not fit the input's shape"),
        ("z:1x16,8x16,32x16", "has no input 'z'"),
    ],
)
def test_a_profile_that_contradicts_the_model_is_refused(
    rtx: Flavour, mlp: Path, profile: str, why: str
) -> None:
    with pytest.raises(InvalidRecipe, match=why):
        build.build(rtx, mlp, Recipe(profiles=(profiles.parse(profile),)))


def test_a_model_that_varies_is_not_built_without_a_profile(rtx: Flavour, mlp: Path) -> None:
    with pytest.raises(InvalidRecipe, match="which varies"):
        build.build(rtx, mlp, Recipe())


def test_what_the_runtime_finds_wrong_with_a_profile_is_said(rtx: Flavour, mlp: Path) -> None:
    """Our own check comes first; this is the runtime's, which has to be heard too."""
    builder = parse.builder_of(rtx)
    backwards = {"x": profiles.Range((8, 16), (2, 16), (4, 16))}
    with pytest.raises(InvalidRecipe, match=r"profile 0 is refused: Invalid optimization profile"):
        recipe.settings_of(rtx, builder, Recipe(profiles=(backwards,)))


def test_a_build_that_returns_nothing_says_why(rtx: Flavour, mlp: Path) -> None:
    builder = parse.builder_of(rtx)
    network, _parser = parse.parsed(rtx, builder, mlp)
    settings = recipe.settings_of(rtx, builder, Recipe())
    rtx.log.forget()
    assert builder.build_serialized_network(network, settings) is None
    assert rtx.log.why().startswith("Network has dynamic or shape inputs, but no optimization")


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (Recipe(level=6), "optimisation level 6 is not one of 0 to 5"),
        (Recipe(flags=("FP16",)), "flag FP16: a plan has the precision of its ONNX file"),
        (Recipe(flags=("REFIT",)), "flag 'REFIT' is not one of SPARSE_WEIGHTS"),
        (
            Recipe(capabilities=("9.0",)),
            "has no support for compute capability 9.0, only for 7.5, 8.0, 8.6, 8.9, 12.0",
        ),
    ],
)
def test_what_the_runtime_cannot_do_is_refused(
    rtx: Flavour, mlp: Path, wrong: Recipe, why: str
) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        build.build(rtx, mlp, replace(wrong, profiles=(MLP_PROFILE,)))
    assert why in str(caught.value)


def test_a_recipe_is_followed(rtx: Flavour) -> None:
    asked = Recipe(
        level=1, workspace_bytes=32 << 20, capabilities=("8.9", "12.0"), flags=("STRICT_NANS",)
    )
    trt = pytest.importorskip("tensorrt_rtx")
    settings = recipe.settings_of(
        rtx, parse.builder_of(rtx), replace(asked, flags=("STRICT_NANS", "NO_TF32"))
    )
    assert settings.builder_optimization_level == 1
    found = vars_of(settings, trt)
    assert found == {"workspace": 32 << 20, "targets": ["SM89", "SM120"], "flags": (True, False)}
    usual = recipe.settings_of(rtx, parse.builder_of(rtx), Recipe())
    assert vars_of(usual, trt)["flags"] == (False, True)


# Any: the module ships no types, and these are not among what the product uses.
def vars_of(settings: object, trt: object) -> dict[str, object]:
    given: Any = settings
    module: Any = trt
    count = given.num_compute_capabilities
    flags = (module.BuilderFlag.STRICT_NANS, module.BuilderFlag.TF32)
    return {
        "workspace": given.get_memory_pool_limit(module.MemoryPoolType.WORKSPACE),
        "targets": [given.get_compute_capability(index).name for index in range(count)],
        "flags": tuple(given.get_flag(flag) for flag in flags),
    }


def test_tensorrt_builds_for_no_other_gpu(rtx: Flavour, mlp: Path) -> None:
    plain = replace(rtx, is_rtx=False, title="TensorRT")
    with pytest.raises(InvalidRecipe, match="builds for the GPU that it runs on"):
        build.build(plain, mlp, Recipe(profiles=(MLP_PROFILE,), capabilities=("8.9",)))


def test_progress_rises_to_the_end(rtx: Flavour, mlp: Path) -> None:
    heard: list[tuple[str, float]] = []

    def hear(phase: str, fraction: float, /) -> bool:
        heard.append((phase, fraction))
        return True

    build.build(rtx, mlp, Recipe(profiles=(MLP_PROFILE,)), on_progress=hear)
    shares = [share for _, share in heard]
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert shares[-1] > 0.8
    assert len({phase for phase, _ in heard}) > 3


def test_a_build_ends_when_it_is_told_to(rtx: Flavour, mlp: Path) -> None:
    heard: list[float] = []

    def stop(phase: str, fraction: float, /) -> bool:
        heard.append(fraction)
        return len(heard) < 5

    with pytest.raises(BuildCancelled, match="cancelled"):
        build.build(rtx, mlp, Recipe(profiles=(MLP_PROFILE,)), on_progress=stop)
    assert len(heard) == 5


@pytest.mark.parametrize("exc", [ValueError("the watcher's own"), KeyboardInterrupt()])
def test_what_the_watcher_raises_comes_out_of_the_build(
    rtx: Flavour, mlp: Path, capfd: pytest.CaptureFixture[str], exc: BaseException
) -> None:
    def fail(phase: str, fraction: float, /) -> bool:
        raise exc

    with pytest.raises(type(exc)):
        build.build(rtx, mlp, Recipe(profiles=(MLP_PROFILE,)), on_progress=fail)
    assert capfd.readouterr() == ("", "")


def test_a_timing_cache_is_written_and_read_again(
    rtx: Flavour, mlp: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """TensorRT-RTX has the functions of TensorRT, which do nothing; the files are real."""
    timed = replace(rtx, has_timing_cache=True)
    cache = tmp_path / "kernels.timing"
    described = Recipe(profiles=(MLP_PROFILE,))
    with pytest.warns(DeprecationWarning, match="no-ops"):
        build.build(timed, mlp, described, timing_cache=cache)
    first = cache.read_bytes()
    assert first
    with pytest.warns(DeprecationWarning, match="no-ops"):
        build.build(timed, mlp, described, timing_cache=cache)
    assert caplog.records == []
    assert cache.read_bytes() == first
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "kernels.timing"}


def test_a_timing_cache_that_cannot_be_written_stops_nothing(
    rtx: Flavour, mlp: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    timed = replace(rtx, has_timing_cache=True)
    with pytest.warns(DeprecationWarning, match="no-ops"):
        built = build.build(
            timed, mlp, Recipe(profiles=(MLP_PROFILE,)), timing_cache=tmp_path / "no" / "such"
        )
    assert built.plan
    assert [record.message for record in caplog.records] == ["timing cache not kept"]
