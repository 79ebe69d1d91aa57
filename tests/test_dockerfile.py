"""Dockerfile.gpu against the tree: no image can be built here, so each claim in it is checked."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from gateway import config
from gateway.cli.main import parser

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "Dockerfile.gpu"


def instructions() -> list[tuple[str, str]]:
    """Return (instruction, arguments), continuation lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip()]  # type: ignore[misc]


def arguments_of(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def ignored(path: str) -> bool:
    """Whether .dockerignore (deny all, then allow) keeps a path out of the build."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"]
    return not any(path == entry or path.startswith(entry + "/") for entry in allowed)


def test_every_copied_path_exists_and_reaches_the_build_context() -> None:
    copies = [rest for rest in arguments_of("COPY") if not rest.startswith("--from")]
    sources = [source for rest in copies for source in rest.split()[:-1]]
    assert {"gateway", "router", "engines", "deploy/sluice.toml"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source


def test_every_package_of_the_distribution_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.partition(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    copied = {s for rest in arguments_of("COPY") for s in rest.split()[:-1]}
    assert packages <= copied


def test_every_package_folder_is_named_in_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = set(project["tool"]["setuptools"]["packages"])
    found = {
        ".".join(init.parent.relative_to(ROOT).parts)
        for top in ("gateway", "router", "engines")
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert found == named


def test_stages_copy_only_from_stages_that_exist() -> None:
    stages = {rest.split()[-1] for rest in arguments_of("FROM") if " AS " in rest}
    used = re.findall(r"--from=(\S+)", DOCKERFILE.read_text())
    assert used
    assert set(used) <= stages


def test_both_stages_share_one_pinned_cuda_13_base_with_cudnn() -> None:
    bases = {rest.split()[0] for rest in arguments_of("FROM")}
    assert len(bases) == 1
    assert re.fullmatch(r"nvidia/cuda:13\.0\.\d+-cudnn-runtime-ubuntu24\.04", bases.pop())


def test_the_runtime_is_pinned_to_the_version_that_is_tested_on_the_cpu() -> None:
    pinned = re.search(r"onnxruntime-gpu==([\d.]+)", DOCKERFILE.read_text())
    constraints = (ROOT / "constraints.txt").read_text()
    constraint = re.search(r"^onnxruntime==([\d.]+)$", constraints, re.MULTILINE)
    assert pinned
    assert constraint
    assert pinned[1] == constraint[1]


def test_it_does_not_run_as_root() -> None:
    users = arguments_of("USER")
    assert len(users) == 1
    assert users[0] not in ("root", "0")
    assert f"--uid {users[0]}" in DOCKERFILE.read_text()


def test_the_command_is_one_that_the_command_line_knows() -> None:
    (command,) = arguments_of("CMD")
    program, *rest = json.loads(command)
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert program in scripts
    parsed = parser().parse_args(rest)
    (target,) = (r.split()[-1] for r in arguments_of("COPY") if "deploy/sluice.toml" in r)
    assert str(parsed.config) == target


def test_the_configuration_in_the_image_is_valid_and_fits_its_ports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = config.load(ROOT / "deploy" / "sluice.toml", {})
    addresses = (loaded.server.http, loaded.server.grpc, loaded.server.metrics)
    ports = {address.rpartition(":")[2] for address in addresses}
    assert set(arguments_of("EXPOSE")[0].split()) == ports
    assert all(address.startswith("0.0.0.0:") for address in addresses)
    assert f"mkdir {loaded.models.repository}" in DOCKERFILE.read_text()


def test_the_health_check_asks_the_port_that_is_served_and_a_path_that_exists() -> None:
    (check,) = arguments_of("HEALTHCHECK")
    command = json.loads(check.partition("CMD ")[2])
    assert command[0] == "python3"
    compile(command[2], "healthcheck", "exec")
    assert "127.0.0.1:8000/v2/health/ready" in command[2]


def test_shell_commands_parse_and_clean_up_after_apt() -> None:
    for run in arguments_of("RUN"):
        assert shlex.split(run)
        if "apt-get install" in run:
            assert "--no-install-recommends" in run
            assert "rm -rf /var/lib/apt/lists/*" in run
