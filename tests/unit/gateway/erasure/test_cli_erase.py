"""`sluice log erase`: what it takes, what it prints, how it ends."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from gateway.cli import main
from gateway.ids import new_id
from gateway.prediction_log.erasure import receipt, tombstone
from gateway.prediction_log.privacy.keyring import Keyring, rotate
from gateway.prediction_log.streams import stream_key
from tests.support.erasures import MARK, blobs_in, plain_redis, prediction, put
from tests.support.gateway import free_port
from tests.support.privacy import write_keys

pytestmark = pytest.mark.redis


class Command:
    """The command on a configuration of its own."""

    def __init__(self, folder: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys
        self.config = folder / "sluice.toml"
        write_keys(folder / "keys")
        self.write(f'[redis]\nurl = "{url}"\n[prediction_log.privacy]\nkey_file = "keys"\n')

    def write(self, text: str) -> None:
        self.config.write_text(text)

    def run(self, *words: str, subject: str = "anna") -> tuple[int, str, str]:
        arguments = ["log", "erase", "--subject", subject, "--config", str(self.config)]
        code = main.run([*arguments, "--timeout", "5", *words])
        said = self._capsys.readouterr()
        return code, said.out, said.err

    def tag(self, subject: str = "anna") -> bytes:
        return Keyring.load(self.folder / "keys").tag(subject)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, redis.Redis]]:
    with plain_redis() as (started, client):
        yield started.url, client


@pytest.fixture
def client(server: tuple[str, redis.Redis]) -> redis.Redis:
    server[1].flushall()
    return server[1]


@pytest.fixture
def command(
    server: tuple[str, redis.Redis], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Command:
    return Command(tmp_path, server[0], capsys)


def test_it_erases_under_all_keys_says_how_much_and_writes_a_receipt(
    client: redis.Redis, command: Command, tmp_path: Path
) -> None:
    old = command.tag()
    rotate(tmp_path / "keys")
    tags = {"anna": [old, command.tag()], "berta": [command.tag("berta")]}
    blobs = [prediction(1, rid=new_id(), subject=tag, text=MARK) for tag in tags["anna"]]
    stays = prediction(2, subject=tags["berta"][0])
    key = put(client, [*blobs, stays])
    target = tmp_path / "receipt.json"
    code, out, err = command.run("--receipt", str(target))
    assert code == 0, err
    assert "requests found: 2\n" in out
    assert "records destroyed in streams: 2 live; 1 streams rebuilt\n" in out
    assert blobs_in(client, key) == [stays]
    written = receipt.load(target)
    assert receipt.is_genuine(written, Keyring.load(tmp_path / "keys"))
    assert written.key == 1
    assert written.sha256 in out
    assert "anna" not in out + target.read_text()


def test_with_json_the_receipt_is_printed(client: redis.Redis, command: Command) -> None:
    put(client, [prediction(1, subject=command.tag())])
    code, out, _ = command.run("--json")
    assert code == 0
    assert json.loads(out)["body"]["counts"]["records"] == {"live": 1}


def test_the_subject_can_be_read_from_stdin(
    client: redis.Redis, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = put(client, [prediction(1, subject=command.tag("berta"))])
    monkeypatch.setattr("sys.stdin", io.StringIO("berta\n"))
    assert command.run(subject="-")[0] == 0
    assert blobs_in(client, key) == []


def test_a_dry_run_counts_and_destroys_nothing(client: redis.Redis, command: Command) -> None:
    key = put(client, [prediction(1, subject=command.tag()), prediction(2)])
    code, out, _ = command.run("--dry-run")
    assert (code, "1 live" in out) == (0, True)
    assert len(blobs_in(client, key)) == 2
    assert not client.exists(tombstone.TOMBSTONES_KEY)


def test_only_the_names_that_are_given_are_erased(client: redis.Redis, command: Command) -> None:
    for name in ("a", "b", "c"):
        put(client, [prediction(1, subject=command.tag(), name=name)], name=name)
    assert command.run("--name", "a", "--name", "c")[0] == 0
    left = [len(blobs_in(client, stream_key(name, "gw-1"))) for name in ("a", "b", "c")]
    assert left == [0, 1, 0]


def test_a_name_of_which_the_log_has_nothing_is_said(client: redis.Redis, command: Command) -> None:
    put(client, [prediction(1, subject=command.tag())])
    code, _, err = command.run("--name", "digts")
    assert (code, "the log has nothing of 'digts'; it has digits" in err) == (0, True)


def test_a_receipt_that_cannot_be_written_is_printed_and_the_code_is_1(
    client: redis.Redis, command: Command
) -> None:
    key = put(client, [prediction(1, subject=command.tag())])
    code, out, err = command.run("--receipt", "/dev/full")
    assert (code, json.loads(out)["body"]["is_complete"]) == (1, True)
    assert "erased, but --receipt /dev/full cannot be written: No space left on device" in err
    assert "run it again" not in err
    assert blobs_in(client, key) == []


def test_what_is_left_is_said_and_the_code_is_1(client: redis.Redis, command: Command) -> None:
    client.sadd(tombstone.REPLICAS_KEY, "gw-9")
    code, _, err = command.run()
    assert code == 1
    assert "left: gw-9: it does not run" in err
    assert "run it again" in err
    assert command.run("--gone", "gw-9")[0] == 0


def test_a_redis_that_is_away_is_said_without_its_password(command: Command) -> None:
    url = f"redis://:secret@127.0.0.1:{free_port()}/0"
    code, _, err = command.run("--redis", url)
    assert (code, "run it again" in err, "secret" in err) == (1, True, False)


def test_what_it_needs_and_lacks_is_said_and_the_code_is_2(
    client: redis.Redis, command: Command, tmp_path: Path
) -> None:
    assert "is empty" in refused(command, subject="")
    assert "not a folder" in refused(command, "--receipt", str(tmp_path / "no" / "r.json"))
    assert "cannot be written" in refused(command, "--receipt", str(tmp_path))
    assert "not a folder" in refused(command, "--spool", str(tmp_path / "no"))
    assert "--redis" in refused(command, "--redis", "nonsense://x")
    command.write('[prediction_log.privacy]\nkey_file = "keys"\n')
    assert "$.redis" in refused(command)
    command.write('[redis]\nurl = "redis://127.0.0.1:1"\n')
    assert "key_file" in refused(command)
    command.write('[prediction_log.privacy]\nkey_file = "absent"\n')
    assert "no such file" in refused(command)
    command.config.unlink()
    assert "cannot read" in refused(command)


def refused(command: Command, *words: str, subject: str = "anna") -> str:
    code, _, err = command.run(*words, subject=subject)
    assert code == 2
    return err
