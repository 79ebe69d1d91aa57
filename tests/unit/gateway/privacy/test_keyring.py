"""The file of keys: what it may hold, what its pseudonyms are, and what a change of it does."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import threading
from pathlib import Path

import pytest

from gateway.config_fields import ConfigError
from gateway.prediction_log.privacy import keyring
from gateway.prediction_log.privacy.keyring import Keyring
from tests.support.privacy import FIRST_KEY, SECOND_KEY, write_keys


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_keys(tmp_path / "keys")


def touched(path: Path) -> None:
    """Make sure that the file looks changed, however coarse its time stamps are."""
    later = path.stat().st_mtime_ns + 1_000_000_000
    os.utime(path, ns=(later, later))


def test_a_tag_is_the_keys_number_and_fifteen_bytes_of_a_keyed_hash(path: Path) -> None:
    write_keys(path, f"7 {FIRST_KEY}")
    expected = hmac.new(bytes(16), b"subject\0alice", hashlib.sha256).digest()[:15]
    assert Keyring.load(path).tag("alice") == b"\x07" + expected


def test_tags_and_hashes_of_one_value_are_different(path: Path) -> None:
    ring = Keyring.load(path)
    (hashed,) = ring.hashes([b"alice"])
    assert len(hashed) == 32
    assert bytes.fromhex(hashed.decode())[1:] != ring.tag("alice")[1:]


def test_a_value_has_the_same_hash_whether_it_is_remembered_or_not(path: Path) -> None:
    ring = Keyring.load(path)
    values = [str(n).encode() for n in range(20_000)]
    first = ring.hashes(values)
    assert len(set(first)) == len(values)
    assert ring.hashes(values) == first
    long = b"x" * 100_000
    assert ring.hashes([long, long]) == [ring.hashes([long])[0]] * 2


def test_subjects_of_any_text_have_a_tag(path: Path) -> None:
    ring = Keyring.load(path)
    tags = {ring.tag(subject) for subject in ("a", "ä", "\udcff", "x" * 1_000, "A")}
    assert {len(tag) for tag in tags} == {16}
    assert len(tags) == 5


def test_the_last_key_is_in_use_and_all_of_them_give_the_tags_to_look_for(path: Path) -> None:
    write_keys(path, f"3 {FIRST_KEY}", "# a comment", "", f"  9\t{SECOND_KEY}  # another")
    ring = Keyring.load(path)
    assert ring.numbers == [3, 9]
    assert [tag[0] for tag in ring.tags("alice")] == [9, 3]
    assert ring.tags("alice")[0] == ring.tag("alice")


@pytest.mark.parametrize(
    ("lines", "place", "sentence"),
    [
        (["0 " + "00" * 15], ":1", "the key is shorter than 16 bytes"),
        (["0 " + "zz" * 16], ":1", "the key is not in hex"),
        (["0"], ":1", "the key is shorter than 16 bytes"),
        ([f"256 {FIRST_KEY}"], ":1", "a line is `id hex-key`, the id from 0 to 255"),
        ([f"-1 {FIRST_KEY}"], ":1", "a line is `id hex-key`, the id from 0 to 255"),
        (["# keys", f"1 {FIRST_KEY}", f"1 {SECOND_KEY}"], ":3", "a second key with the id 1"),
        (["# none"], "", "it has no key; `sluice log new-keys` makes one"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_its_line_and_without_its_keys(
    path: Path, lines: list[str], place: str, sentence: str
) -> None:
    write_keys(path, *lines)
    with pytest.raises(ConfigError) as refusal:
        Keyring.load(path)
    assert str(refusal.value) == f"{path}{place}: {sentence}"


def test_an_absent_file_is_refused_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file; `sluice log new-keys` makes one"):
        Keyring.load(tmp_path / "absent")


def test_a_file_that_others_can_read_is_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Keyring.load(path)
    assert not caplog.records
    path.chmod(0o640)
    Keyring.load(path)
    assert "others than its owner can read the key file" in caplog.text


def test_a_rotation_is_taken_over_and_old_tags_are_still_looked_for(path: Path) -> None:
    ring = Keyring.load(path)
    old, (old_hash,) = ring.tag("alice"), ring.hashes([b"v"])
    assert not ring.reload_if_changed()
    assert keyring.rotate(path) == 1
    assert ring.reload_if_changed()
    assert ring.tag("alice")[0] == 1
    assert ring.tags("alice") == [ring.tag("alice"), old]
    assert ring.hashes([b"v"]) != [old_hash]
    assert not ring.reload_if_changed()


def test_a_key_that_is_removed_is_destroyed(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ring = Keyring.load(path)
    old = ring.tag("alice")
    keyring.rotate(path)
    lines = path.read_text().splitlines()
    write_keys(path, *lines[1:])
    touched(path)
    assert ring.reload_if_changed()
    assert old not in ring.tags("alice")
    assert "keys destroyed, their tags are unlinkable now: [0]" in caplog.text


def test_a_file_that_became_wrong_leaves_the_keys_as_they_are_and_is_told_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ring = Keyring.load(path)
    before = ring.tag("alice")
    for change in (
        lambda: write_keys(path, "0 abc"),
        lambda: write_keys(path, f"0 {SECOND_KEY}"),  # the id of another key
        path.unlink,
    ):
        caplog.clear()
        change()
        if path.exists():
            touched(path)
        assert [ring.reload_if_changed() for _ in range(3)] == [False] * 3
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        assert ring.tag("alice") == before
    write_keys(path, f"0 {FIRST_KEY}", f"1 {SECOND_KEY}")
    assert ring.reload_if_changed()
    assert ring.numbers == [0, 1]


def test_a_rotation_appends_a_line_and_changes_nothing_else(path: Path) -> None:
    path.write_text(f"# mine\n254 {FIRST_KEY}\n0 {SECOND_KEY}\n255 {'22' * 16}")  # no newline
    path.chmod(0o640)
    before = path.read_text()
    assert keyring.rotate(path) == 1  # 0 is taken
    after = path.read_text()
    assert after.startswith(before + "\n1 ")
    assert path.stat().st_mode & 0o777 == 0o640
    assert [key.number for key in keyring.read_keys(path)] == [254, 0, 255, 1]
    assert len(keyring.read_keys(path)[-1].secret) == 32


def test_rotations_at_the_same_time_make_a_key_each(path: Path) -> None:
    threads = [threading.Thread(target=keyring.rotate, args=(path,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [key.number for key in keyring.read_keys(path)] == list(range(9))


def test_a_full_file_is_not_rotated(path: Path) -> None:
    write_keys(path, *(f"{n} {FIRST_KEY}" for n in range(256)))
    with pytest.raises(ConfigError, match="it has 256 keys"):
        keyring.rotate(path)


def test_an_append_that_failed_halfway_leaves_the_file_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()
    whole = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: whole(fd, data[:10]))
    with pytest.raises(OSError, match="10 of"):
        keyring.rotate(path)
    assert path.read_bytes() == before


def test_a_new_file_has_one_key_is_its_owners_and_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "keys"
    assert keyring.create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    assert not keyring.create(path)
    assert path.read_bytes() == before
    assert Keyring.load(path).numbers == [0]


def test_a_signature_is_good_for_its_document_and_its_key_alone(path: Path) -> None:
    ring = Keyring.load(path)
    number, signature = ring.sign(b"receipt")
    assert number == 0
    assert ring.verify(b"receipt", number, signature)
    assert not ring.verify(b"another", number, signature)
    assert not ring.verify(b"receipt", 1, signature)
    keyring.rotate(path)
    ring.reload_if_changed()
    assert ring.sign(b"receipt") != (number, signature)
    assert ring.verify(b"receipt", number, signature)
