"""The `sluice` command: exit codes, and what it says when something is wrong.

Commands that serve for a while are in tests/e2e.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gateway import __version__
from gateway.cli import server as server_commands
from gateway.cli.main import LATE, parser, run
from tests.support.gateway import free_port

ROUTE = """
[routes.digits.variants]
stable = { model = "digits", version = "1", weight = 90 }
canary = { model = "digits", version = "2", weight = 10 }
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a good configuration."""
    for version in ("1", "2"):
        (tmp_path / "models" / "digits" / version).mkdir(parents=True)
        (tmp_path / "models" / "digits" / version / "model.onnx").touch()
    file = tmp_path / "sluice.toml"
    file.write_text(ROUTE)
    return file


def test_check_says_that_a_good_configuration_is_good(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", "--config", str(path)]) == 0
    out = capsys.readouterr().out
    assert out == f"{path} is good: models in {path.parent / 'models'}, routes: digits\n"


def test_check_notes_rules_of_the_log_that_may_hide_nothing(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = '[prediction_log.names.%s]\ncolumns = { x = ["age"] }\nfeatures = { "%s" = "drop" }'
    path.write_text(ROUTE + names % ("digits", "x.age"))
    assert run(["check", "--config", str(path)]) == 0
    assert capsys.readouterr().err == ""
    path.write_text(ROUTE + names % ("digit", "y.age"))
    assert run(["check", "--config", str(path)]) == 0
    name, rule = capsys.readouterr().err.splitlines()
    at = f"sluice: {path}: note: $.prediction_log.names.digit"
    assert name.startswith(f"{at}: there is no such route in the file, and no such model in ")
    assert rule == (
        f"{at}.features.y.age: a tensor of this name; for the column 'age' of 'y' name its columns "
        "in $.prediction_log.names.digit.columns"
    )


@pytest.mark.parametrize("command", ["check", "serve"])
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[server]\nhtpp = 'x'", "$.server.htpp: unknown key"),
        (ROUTE.replace("90", "80"), "$.routes.digits.variants: weights sum to 90, not 100"),
        (
            ROUTE.replace('"2"', '"3"'),
            "$.routes.digits.variants.canary.version: model 'digits' has no version '3'",
        ),
    ],
)
def test_a_bad_configuration_is_refused_with_exit_code_two(
    path: Path, capsys: pytest.CaptureFixture[str], command: str, text: str, sentence: str
) -> None:
    path.write_text(text)
    assert run([command, "--config", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"sluice: {path}: {sentence}\n"
    assert captured.out == ""


def test_a_configuration_that_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["check"]) == 2
    assert capsys.readouterr().err == (
        "sluice: sluice.toml: $: cannot read sluice.toml: No such file or directory\n"
    )


def test_the_environment_is_part_of_the_configuration(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICE__SERVER__HTTP", "nowhere")
    assert run(["check", "--config", str(path)]) == 2
    assert "$.server.http: 'nowhere' is not of the form host:port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--version"], 0), (["--help"], 0), ([], 2), (["fly"], 2), (["check", "--port"], 2)],
)
def test_the_command_line_is_checked(
    arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(arguments)
    assert caught.value.code == code
    captured = capsys.readouterr()
    if arguments == ["--version"]:
        assert captured.out == f"sluice {__version__}\n"
    if code:
        assert captured.err.startswith("usage: sluice")


def test_the_package_is_a_command_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"sluice {__version__}\n"


def test_ctrl_c_is_exit_code_130(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(server_commands, "check", interrupted)
    assert run(["check", "--config", str(path)]) == 130


def test_a_reader_that_goes_away_is_no_error(path: Path) -> None:
    """What `sluice check | true` does: nobody reads the line."""
    with subprocess.Popen(
        [sys.executable, "-m", "gateway", "check", "--config", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_the_log_of_a_gateway_without_redis_cannot_be_read(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["log", "tail", "--config", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"sluice: {path}: $.redis: there is no [redis] section, so there is no prediction log "
        "(or give --redis URL)\n"
    )


def test_a_redis_that_does_not_answer_is_exit_code_one_and_its_password_stays_secret(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    path.write_text(f'{ROUTE}[redis]\nurl = "redis://:secret@127.0.0.1:{port}/0"')
    assert run(["log", "tail", "--config", str(path), "--no-follow"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("sluice: cannot read the prediction log: ")
    assert str(port) in error
    assert "secret" not in error


def test_a_url_that_is_none_is_exit_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["log", "tail", "--redis", "http://x"]) == 2
    assert capsys.readouterr().err.startswith("sluice: --redis: Redis URL must specify")


def test_commands_that_are_imported_late_are_listed_as_they_list_themselves() -> None:
    assert parser([]).format_help() == parser(list(LATE)).format_help()
