"""`sluice doctor`: its text, its JSON, and its exit codes."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from engines.doctor import Finding, Severity
from gateway.cli import doctor
from gateway.cli.route_text import Style
from tests.support.driver_stubs import cuda_driver

ROOT: Final = Path(__file__).parents[3]
NO_DRIVER: Final = "there is no NVIDIA driver: libcuda.so.1 is not found"
FINDINGS: Final = [
    Finding(Severity.OK, "machine", "is here"),
    Finding(Severity.WARNING, "gpu", "is odd", "pip install x"),
    Finding(Severity.ERROR, "onnxruntime", "is \x1b[31mbroken"),
    Finding(Severity.ERROR, "models", "two"),
]

_PROGRAM: Final = """
import argparse, sys
from gateway.cli import doctor
parser = argparse.ArgumentParser()
doctor.add_parser(parser.add_subparsers(required=True))
parsed = parser.parse_args(["doctor", *sys.argv[1:]])
sys.exit(parsed.run(parsed))
"""


def ran(*arguments: str, libraries: Path | None = None) -> tuple[int, str]:
    """Run `sluice doctor` in a process; return its exit code and what it printed."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries or "")}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    command = [sys.executable, "-c", _PROGRAM, *arguments]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def write_site(folder: Path, *, kind: str) -> Path:
    """Write a configuration with one model of the fake engine; return the file."""
    version = folder / "models" / "m" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(b"never read")
    (version.parent / "config.pbtxt").write_text(f"instance_group {{ kind: {kind} }}\n")
    file = folder / "sluice.toml"
    file.write_text('[models]\nrepository = "models"\n')
    return file


def test_findings_are_aligned_and_their_remedies_stand_below() -> None:
    assert list(doctor.text(FINDINGS)) == [
        "ok       machine      is here",
        "warning  gpu          is odd",
        "                      -> pip install x",
        "error    onnxruntime  is \\x1b[31mbroken",
        "error    models       two",
        "",
        "2 errors, 1 warning",
    ]


def test_colours_change_nothing_but_colours() -> None:
    plain = list(doctor.text(FINDINGS))
    coloured = list(doctor.text(FINDINGS, Style(is_coloured=True)))
    assert coloured != plain
    assert coloured[3].startswith("\x1b[31merror  \x1b[0m")
    bare = [c.replace("\x1b[31m", "").replace("\x1b[32m", "") for c in coloured]
    assert [c.replace("\x1b[1m", "").replace("\x1b[0m", "") for c in bare] == plain


def test_nothing_but_good_news_has_a_last_line_too() -> None:
    assert list(doctor.text(FINDINGS[:1]))[-1] == "nothing to add"


def test_a_machine_without_a_gpu_is_good_and_says_why_there_is_none(tmp_path: Path) -> None:
    code, text = ran(libraries=tmp_path)
    if NO_DRIVER not in text:
        pytest.skip("this machine has an NVIDIA driver")
    assert code == 0, text
    assert f"no model can run on a GPU: {NO_DRIVER}" in text
    assert "\x1b" not in text


def test_json_has_the_findings_and_the_facts(tmp_path: Path) -> None:
    library = cuda_driver(tmp_path, "GPUS=2", "DRIVER=12040")
    code, text = ran("--json", libraries=library.parent)
    document = json.loads(text)
    assert (code == 0) is document["is_good"]
    assert document["facts"]["cuda"]["driver_version"] == 12040
    assert [gpu["name"] for gpu in document["facts"]["cuda"]["gpus"]] == [
        "Stub GPU 0",
        "Stub GPU 1",
    ]
    gpus = [f["sentence"] for f in document["findings"] if f["area"] == "gpu"]
    assert [s.partition(",")[0] for s in gpus] == ["cuda:0 is Stub GPU 0", "cuda:1 is Stub GPU 1"]
    assert {f["severity"] for f in document["findings"]} <= {"ok", "note", "warning", "error"}


def test_a_model_that_asks_for_cuda_is_an_error_with_the_reason(tmp_path: Path) -> None:
    library = cuda_driver(tmp_path / "libraries", "INIT=803")
    file = write_site(tmp_path, kind="KIND_GPU")
    code, text = ran("--config", str(file), libraries=library.parent)
    assert code == 1
    (line,) = (line for line in text.splitlines() if line.startswith("error"))
    assert "m/config.pbtxt: instance_group[0].kind: cuda:0 was asked for: " in line
    assert "differ in version: restart the machine" in line
    assert text.splitlines()[-1].startswith("1 error")


def test_models_that_ask_for_what_is_here_are_good(tmp_path: Path) -> None:
    findings = doctor.of_models(write_site(tmp_path, kind="KIND_CPU"))
    assert [(f.severity, f.area) for f in findings] == [(Severity.OK, "models")]


def test_what_a_model_sets_and_nothing_looks_at_is_a_note(tmp_path: Path) -> None:
    file = write_site(tmp_path, kind="KIND_CPU")
    with (tmp_path / "models" / "m" / "config.pbtxt").open("a") as config:
        config.write("optimization { graph { level: 1 } }\n")
    ok, note = doctor.of_models(file)
    assert ok.severity is Severity.OK
    assert note.severity is Severity.NOTE
    assert "nothing looks at optimization.graph" in note.sentence


@pytest.mark.parametrize("content", [None, "[models]\nrepositori = 'x'\n"])
def test_a_configuration_that_cannot_be_read_is_an_error(
    tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "sluice.toml"
    if content is not None:
        file.write_text(content)
    (error,) = doctor.of_models(file)
    assert (error.severity, error.area) == (Severity.ERROR, "config")
    assert error.sentence.startswith(f"{file}: ")


def test_the_command_line_has_the_command() -> None:
    parser = argparse.ArgumentParser()
    doctor.add_parser(parser.add_subparsers())
    parsed = parser.parse_args(["doctor", "--config", "x.toml", "--json"])
    assert (parsed.run, parsed.config, parsed.json) == (doctor.run, Path("x.toml"), True)
