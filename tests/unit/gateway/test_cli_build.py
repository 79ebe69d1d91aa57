"""`sluice build`, with real builds by TensorRT-RTX."""

from __future__ import annotations

import argparse
import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engines import devices
from engines.trt import api, plans, profiles
from engines.trt import build as builds
from engines.trt.recipe import Recipe
from gateway.cli import build
from tests.support.models import write_mlp
from tests.support.trt_models import write_unknown_operator

PROFILE = "x:1x16,8x16,32x16"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    pytest.importorskip("tensorrt_rtx")
    return write_mlp(tmp_path / "model.onnx", [16, 4], 1)


def sluice(*arguments: object) -> int:
    """Run `sluice build` with these arguments; return its exit code."""
    parser = argparse.ArgumentParser(prog="sluice")
    build.add_parser(parser.add_subparsers())
    try:
        parsed = parser.parse_args(["build", *map(str, arguments)])
    except SystemExit as exc:
        return int(exc.code or 0)
    code: int = parsed.run(parsed)
    return code


def rtx(model: Path, *more: object) -> int:
    return sluice(model, "--engine", "tensorrt-rtx", *more)


def test_a_plan_is_built_beside_its_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rtx(model, "--profile", PROFILE) == 0
    out, err = capsys.readouterr()
    plan = model.with_suffix(".plan")
    assert out.startswith(f"{plan}: ")
    assert "TensorRT-RTX 1." in out
    shares = [line.split()[1] for line in err.splitlines()]
    assert shares[0] == "0%"
    assert 3 <= len(shares) <= 11
    facts = plans.inspect(plan)
    assert facts.sidecar is not None
    assert facts.sidecar.plan_sha256 == facts.sha256
    assert plans.profile_json(facts.sidecar.profiles[0])["x"]["best"] == [8, 16]


def test_everything_can_be_said(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "other.plan"
    code = rtx(
        model,
        *("--profile", PROFILE, "--profile", "x:64x16", "--out", out, "--workspace-mib", 64),
        *("--compute-capability", "8.9", "--compute-capability", "12.0", "--level", 1),
        *("--flag", "STRICT_NANS", "--flag", "NO_TF32"),
    )
    assert code == 0
    sidecar = plans.read_sidecar(out)
    assert sidecar is not None
    assert len(sidecar.profiles) == 2
    assert dict(sidecar.options) == {
        "precision": "",
        "hardware": {},
        "workspace_bytes": 64 << 20,
        "level": 1,
        "capabilities": ["8.9", "12.0"],
        "flags": ["STRICT_NANS", "NO_TF32"],
    }


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ((), "input 'x' has the shape [-1, 16], which varies"),
        (("--profile", "x:1,2"), "is no profile: NAME:SMALLEST,BEST,LARGEST"),
        (("--profile", "x:8x16,1x16,2x16"), "does not rise"),
        (("--profile", "z:1x16"), "the model has no input 'z'"),
        (("--profile", PROFILE, "--compute-capability", "9.0"), "only for 7.5, 8.0"),
        (("--profile", PROFILE, "--level", "6"), "invalid choice"),
        (("--profile", PROFILE, "--flag", "FP16"), "invalid choice"),
        (("--profile", PROFILE, "--workspace-mib", "0"), "not a whole number from 1 on"),
        (("--profile", PROFILE, "--timing-cache", "t"), "has no timing cache"),
        (("--profile", PROFILE, "--out", "no/such/model.plan"), "no place to write a plan"),
    ],
)
def test_a_command_line_that_is_wrong_is_2_and_a_sentence(
    model: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], why: str
) -> None:
    assert rtx(model, *more) == 2
    assert why in capsys.readouterr().err
    assert not model.with_suffix(".plan").exists()


def test_a_model_that_is_not_there_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rtx(tmp_path / "none.onnx") == 2
    assert "none.onnx is not a file" in capsys.readouterr().err


def test_the_model_itself_is_not_written_over(model: Path) -> None:
    before = model.read_bytes()
    assert rtx(model, "--profile", PROFILE, "--out", model) == 2
    assert model.read_bytes() == before


def test_a_model_that_is_not_understood_is_1_and_a_sentence(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_unknown_operator(model)
    assert rtx(model) == 1
    assert "node 0 'odd' (Frobnicate): invalid node" in capsys.readouterr().err


def test_an_engine_that_is_not_known_is_2(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sluice(model, "--engine", "onnxruntime") == 2
    assert "invalid choice: 'onnxruntime'" in capsys.readouterr().err


def test_a_tensorrt_that_is_not_installed_is_1_with_what_to_install(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert sluice(model, "--engine", "tensorrt", "--profile", PROFILE) == 1
    assert "install sluice-gateway[tensorrt]" in capsys.readouterr().err


@pytest.mark.skipif(bool(devices.cuda().gpus), reason="this machine has a GPU")
def test_tensorrt_is_not_let_build_without_a_gpu(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = replace(api.choose("tensorrt_rtx"), is_rtx=False, title="TensorRT")
    monkeypatch.setattr(build, "choose", lambda name: plain)
    assert sluice(model, "--engine", "tensorrt", "--profile", PROFILE) == 1
    assert devices.why_not("cuda:0") in capsys.readouterr().err
    for device, why in (("cpu", "builds on GPUs only"), ("gpu", "'gpu' is no device")):
        assert sluice(model, "--engine", "tensorrt", "--device", device) == 2
        assert why in capsys.readouterr().err


def test_a_plan_that_cannot_be_written_is_1(
    model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "taken.plan"
    out.mkdir()
    assert rtx(model, "--profile", PROFILE, "--out", out) == 1
    assert f"{out} cannot be written: Is a directory" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*")), "nothing half written is left"


def test_a_key_press_ends_the_build(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(self: object, phase: str, fraction: float) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(build.Shown, "progress", pressed)
    with pytest.raises(KeyboardInterrupt):
        rtx(model, "--profile", PROFILE)
    assert not model.with_suffix(".plan").exists()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_one_line_is_written_over() -> None:
    to = Terminal()
    shown = build.Shown(to)
    shown.progress("a long name of a phase", 0.1)
    shown.progress("short", 0.5)
    shown.clear()
    lines = to.getvalue().split("\r")
    assert lines[1] == "building:  10% a long name of a phase"
    assert lines[2] == "building:  50% short".ljust(len(lines[1]))
    assert lines[3].strip() == ""
    assert "\n" not in to.getvalue()


def test_the_plan_is_the_one_that_the_library_builds(model: Path) -> None:
    assert rtx(model, "--profile", PROFILE) == 0
    flavour = api.choose("tensorrt_rtx")
    same = builds.build(flavour, model, Recipe(profiles=(profiles.parse(PROFILE),)))
    plan = model.with_suffix(".plan").read_bytes()
    assert plans.header_of(plan) == plans.header_of(same.plan)
