"""`sluice log new-keys` and `sluice log rotate-key`."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from gateway.cli import log_keys
from gateway.prediction_log.privacy.keyring import read_keys
from gateway.prediction_log.privacy.seal import read_master_key

CONFIG = """
[prediction_log.privacy]
subject = "header:x-customer"
key_file = "secrets/keys"
master_key_file = "secrets/master"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "sluice.toml"
    path.write_text(CONFIG)
    return path


def run(command: str, config: Path) -> int:
    parser = argparse.ArgumentParser()
    log_keys.add_parsers(parser.add_subparsers())
    arguments = parser.parse_args([command, "--config", str(config)])
    code: int = arguments.run(arguments)
    return code


def test_the_configured_files_are_made_for_their_owner_alone_and_left_as_they_are_later(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("new-keys", config) == 0
    keys, master = (config.parent / "secrets" / name for name in ("keys", "master"))
    made = read_keys(keys), read_master_key(master)
    assert capsys.readouterr().out == f"{keys}: made\n{master}: made\n"
    assert [path.stat().st_mode & 0o777 for path in (keys, master)] == [0o600, 0o600]
    assert run("new-keys", config) == 0
    told = capsys.readouterr().out
    assert told.count("is there already, and stays as it is") == 2
    assert (read_keys(keys), read_master_key(master)) == made


def test_what_is_told_holds_no_key(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("new-keys", config)
    run("rotate-key", config)
    told = "".join(capsys.readouterr())
    secrets = [key.secret for key in read_keys(config.parent / "secrets" / "keys")]
    secrets.append(read_master_key(config.parent / "secrets" / "master"))
    assert len(secrets) == 3
    assert not [secret for secret in secrets if secret.hex() in told]


def test_without_a_master_key_file_none_is_made(config: Path) -> None:
    config.write_text(CONFIG.replace('master_key_file = "secrets/master"', ""))
    assert run("new-keys", config) == 0
    assert [path.name for path in (config.parent / "secrets").iterdir()] == ["keys"]


def test_a_rotation_adds_a_key(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("new-keys", config)
    assert run("rotate-key", config) == 0
    assert "key 1 is in use now" in capsys.readouterr().out
    assert [key.number for key in read_keys(config.parent / "secrets" / "keys")] == [0, 1]


def test_a_rotation_without_a_file_says_what_makes_one(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("rotate-key", config) == 1
    assert "there is no such file; `sluice log new-keys` makes one" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["new-keys", "rotate-key"])
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "$.prediction_log.privacy.key_file: it names no file, so there are no keys"),
        ("[prediction_log.privacy]\nkey = 1", "$.prediction_log.privacy"),
    ],
)
def test_a_configuration_without_keys_or_that_is_wrong_is_refused(
    config: Path, capsys: pytest.CaptureFixture[str], command: str, text: str, sentence: str
) -> None:
    config.write_text(text)
    assert run(command, config) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("command", ["new-keys", "rotate-key"])
def test_a_path_that_cannot_be_written_is_told(
    config: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (config.parent / "secrets").write_text("a file, not a folder")
    assert run(command, config) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"sluice: {config.parent / 'secrets'}")
    assert error.endswith(": File exists\n" if command == "new-keys" else ": Not a directory\n")
