"""`sluice check` and the models: what cannot be served is refused before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engines import devices
from gateway.cli.main import run

NO_SUCH_GPU = 4095
WHY_NOT = devices.why_not(f"cuda:{NO_SUCH_GPU}").removeprefix(f"cuda:{NO_SUCH_GPU}: ")
needs_no_gpu = pytest.mark.skipif(bool(devices.cuda().gpus), reason="this machine has a GPU")

QUIET = """
import sys
from gateway.cli.main import run
code = run(["check", "--config", sys.argv[1]])
print(code, sorted({"onnxruntime", "torch", "tensorrt_rtx", "gateway.app"} & sys.modules.keys()))
"""


class Site:
    """A configuration and its models, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "sluice.toml"
        self.models = folder / "models"
        self.models.mkdir()
        self.path.touch()

    def add(self, model: str, text: str | None = None, file: str = "model.onnx") -> None:
        """Put a model of an empty file into the repository; `text` is its config.pbtxt."""
        version = self.models / model / "1"
        version.mkdir(parents=True)
        (version / file).touch()
        if text is not None:
            (self.models / model / "config.pbtxt").write_text(text)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def checked(site: Site, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Return the exit code and the lines on standard error, without the command's name and with
    paths below the folder."""
    code = run(["check", "--config", str(site.path)])
    captured = capsys.readouterr()
    assert (captured.out == "") == (code == 2)
    lines = captured.err.replace(f"{site.path.parent}/", "").splitlines()
    assert all(line.startswith("sluice: ") for line in lines)
    return code, [line.removeprefix("sluice: ") for line in lines]


def gpu(number: int) -> str:
    return f"instance_group {{ kind: KIND_GPU gpus: {number} }}"


def test_a_good_repository_has_no_lines(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.add("digits", "max_batch_size: 8")
    site.add("echo", file="model.json")
    assert checked(site, capsys) == (0, [])


def test_a_gpu_that_is_not_there_is_a_fault_of_the_field_that_asks_for_it(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.add("digits", gpu(NO_SUCH_GPU))
    fault = f"instance_group[0].gpus: cuda:{NO_SUCH_GPU} was asked for: {WHY_NOT}"
    assert checked(site, capsys) == (2, [f"models/digits/config.pbtxt: {fault}"])


@needs_no_gpu
def test_every_way_to_ask_for_a_gpu_is_refused_without_one(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    why = devices.why_not("cuda:0").removeprefix("cuda:0: ")
    accelerators = "optimization.execution_accelerators.gpu_execution_accelerator[0].name"
    site.add("a", "instance_group { kind: KIND_GPU }")
    site.add(
        "b",
        "optimization { execution_accelerators { gpu_execution_accelerator { name: 'cuda' } } }",
    )
    site.add("c", "instance_group [ { gpus: [ 0, 1 ] }, { gpus: 1 } ]")
    site.add("d", 'backend: "tensorrt_rtx"', file="model.plan")
    code, lines = checked(site, capsys)
    assert code == 2
    assert [line for line in lines if "not installed" not in line] == [
        f"models/a/config.pbtxt: instance_group[0].kind: cuda:0 was asked for: {why}",
        f"models/b/config.pbtxt: {accelerators}: cuda:0 was asked for: {why}",
        f"models/c/config.pbtxt: instance_group[0].gpus: cuda:0 was asked for: {why}",
        f"models/c/config.pbtxt: instance_group[0].gpus: cuda:1 was asked for: {why}",
        f"models/d/config.pbtxt: backend: cuda:0 was asked for: {why}",
    ]


def test_the_device_of_the_settings_is_a_fault_once_and_only_if_a_model_takes_it(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.path.write_text(f"[models]\ndevice = 'cuda:{NO_SUCH_GPU}'")
    site.add("here", "instance_group { kind: KIND_CPU }")
    assert checked(site, capsys) == (0, [])
    site.add("digits")
    site.add("letters")
    assert checked(site, capsys) == (
        2,
        [f"sluice.toml: $.models.device: cuda:{NO_SUCH_GPU} was asked for: {WHY_NOT}"],
    )


@needs_no_gpu
def test_a_choice_that_ends_on_the_cpu_is_a_note(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.path.write_text("[models]\ndevice = 'auto'")
    site.add("digits")
    site.add("letters")
    note = f"auto means the CPU here, for digits, letters: {devices.why_not('cuda:0')}"
    assert checked(site, capsys) == (0, [f"sluice.toml: note: $.models.device: {note}"])


def test_every_model_is_read_and_every_fault_has_its_line(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.add("a", "max_batch: 8")
    site.add("b", "sequence_batching {}")
    site.add("c", file="model.pickle")
    site.add("d", gpu(NO_SUCH_GPU) + 'parameters { key: "lanes" value { string_value: "9" } }')
    site.add("e", gpu(NO_SUCH_GPU))
    code, lines = checked(site, capsys)
    assert code == 2
    a, b, c, d, e = lines
    assert a.startswith("models/a/config.pbtxt, line 1, column 1: Message type")
    assert b.startswith("models/b/config.pbtxt: sequence_batching: sequence batching is")
    assert c.startswith("models/c: no version folder of c holds a model.onnx or model.plan")
    assert d == (
        "models/d/config.pbtxt: parameters['lanes']: '9' is no number of lanes from 1 to 8"
    )
    assert e.startswith("models/e/config.pbtxt: instance_group[0].gpus: cuda:")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('platform: "pytorch_libtorch"', "there is no 1/model.pt2"),
        ('default_model_filename: "net.onnx"', "there is no 1/net.onnx"),
        ("version_policy { specific { versions: [2] } }", "no version folder is selected"),
    ],
)
def test_a_model_without_a_file_to_serve_is_a_fault(
    site: Site, capsys: pytest.CaptureFixture[str], text: str, fault: str
) -> None:
    site.add("net", text)
    assert checked(site, capsys) == (2, [f"models/net/config.pbtxt: {fault}"])


def test_a_backend_that_is_not_installed_is_a_fault(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    site.add("net", file="model.pt2")
    why = "the backend 'pytorch' needs torch, which is not installed: install sluice-gateway[torch]"
    assert checked(site, capsys) == (2, [f"models/net: backend: {why}"])


def test_what_nothing_looks_at_is_a_note(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.add("digits", "response_cache { enable: true } metric_tags { key: 'a' value: 'b' }")
    note = "note: nothing looks at metric_tags, response_cache.enable"
    assert checked(site, capsys) == (0, [f"models/digits/config.pbtxt: {note}"])


def test_a_broken_option_of_a_provider_is_a_fault(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.add(
        "digits",
        """instance_group { kind: KIND_CPU }
           optimization { execution_accelerators { gpu_execution_accelerator {
             name: "cuda" parameters { key: "cudnn_conv_algo_search" value: "FAST" } } } }""",
    )
    code, (line,) = checked(site, capsys)
    assert code == 2
    assert "[0].parameters['cudnn_conv_algo_search']: 'FAST' is not one of HEURISTIC" in line


def test_no_runtime_is_imported_and_no_model_is_loaded(site: Site) -> None:
    site.add("digits", gpu(NO_SUCH_GPU))
    site.add("net", file="model.pt2")
    site.add("echo", file="model.json")
    found = subprocess.run(
        [sys.executable, "-c", QUIET, str(site.path)], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "2 []"
