from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from gateway.demo import go_on
from gateway.demo.gateway_process import Addresses

AT = Addresses(
    http=("127.0.0.1", 8000),
    grpc=("127.0.0.1", 8001),
    metrics=("127.0.0.1", 8002),
    admin=("127.0.0.1", 8003),
)
PIXELS = list(range(16)) * 4


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the bin folder of a virtual environment below the current folder."""
    folder = tmp_path / "my env" / "bin"
    folder.mkdir(parents=True)
    (folder / "sluice").write_text("#!/bin/sh\n")
    (folder / "sluice").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    return folder


def test_the_curl_line_is_one_shell_line_with_the_whole_request() -> None:
    command = go_on.curl(AT.http, PIXELS, "user-1")
    assert "\n" not in command
    words = shlex.split(command)
    assert words[0] == "curl"
    assert "http://127.0.0.1:8000/v2/models/digits/infer" in words
    assert words[words.index("-H") + 1] == "x-user-id: user-1"
    (tensor,) = json.loads(words[words.index("-d") + 1])["inputs"]
    assert tensor == {"name": "image", "datatype": "FP32", "shape": [1, 64], "data": PIXELS}


def test_the_curl_line_passes_by_a_proxy_that_would_take_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "--noproxy" not in go_on.curl(AT.http, PIXELS, "user-1")
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    assert "--noproxy '*'" in go_on.curl(AT.http, PIXELS, "user-1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert "--noproxy" not in go_on.curl(AT.http, PIXELS, "user-1")


def test_the_curl_line_puts_an_ipv6_host_in_brackets() -> None:
    assert "http://[::1]:8000/v2" in go_on.curl(("::1", 8000), PIXELS, "user-1")


def test_a_command_of_an_environment_that_is_not_active_is_called_by_its_path(
    environment: Path,
) -> None:
    assert go_on.sluice() == "'my env/bin/sluice'"


def test_a_command_of_the_active_environment_is_called_by_its_name(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(environment))
    assert go_on.sluice() == "sluice"


def test_where_nothing_is_installed_the_module_is_called(environment: Path) -> None:
    (environment / "sluice").unlink()
    assert go_on.sluice() == "'my env/bin/python' -m gateway"


def test_every_line_is_a_comment_a_shell_command_or_empty(environment: Path) -> None:
    lines = go_on.lines(Path(".demo"), AT, PIXELS, "user-1")
    commands = [line for line in lines if line and not line.startswith("# ")]
    assert [shlex.split(command)[0] for command in commands] == [
        *("curl", "my env/bin/python", "my env/bin/sluice", "my env/bin/sluice"),
        *("my env/bin/sluice", "curl"),
    ]
    assert "'my env/bin/sluice' log tail --config .demo/sluice.toml --from-start" in commands
    assert "'my env/bin/sluice' check --config .demo/sluice.toml" in commands
    assert "curl http://127.0.0.1:8002/metrics" in commands


def test_make_load_is_named_only_where_it_exists(environment: Path) -> None:
    assert "make load" not in go_on.lines(Path(".demo"), AT, PIXELS, "user-1")
    Path("Makefile").touch()
    Path("loadtests").mkdir()
    assert "make load" in go_on.lines(Path(".demo"), AT, PIXELS, "user-1")


def test_the_client_script_compiles_and_knows_the_address(tmp_path: Path) -> None:
    path = go_on.write_script(tmp_path, AT)
    text = path.read_text()
    compile(text, str(path), "exec")
    assert 'ADDRESS = "127.0.0.1:8000"' in text
    assert '{"x-user-id": user}' in text
    assert "@" not in text
