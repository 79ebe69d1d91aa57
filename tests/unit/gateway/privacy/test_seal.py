"""Sealing with a subject's key, and the key's own wrapping."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gateway.config_fields import ConfigError
from gateway.prediction_log.capture.policy import seal_context
from gateway.prediction_log.privacy import seal
from gateway.prediction_log.privacy.seal import (
    MAX_KEY_AGE_MS,
    SubjectKeys,
    Unsealable,
    cipher,
    parse_blob,
    read_master_key,
    unwrap,
)
from tests.support.privacy import MASTER_KEY, NOW_MS

TAG = b"\x07" + b"a" * 15
OTHER = b"\x07" + b"b" * 15
RID = bytes(range(16))
AT = seal_context(RID, "email")


class Blobs(list[tuple[bytes, bytes, bytes]]):
    """Key blobs as they are handed out."""

    now_ms = NOW_MS

    def keys(self, max_subjects: int = 100) -> SubjectKeys:
        return SubjectKeys(
            MASTER_KEY,
            on_new_key=lambda *made: self.append(made),
            clock_ms=lambda: self.now_ms,
            max_subjects=max_subjects,
        )


def test_what_is_sealed_opens_with_the_unwrapped_key_of_its_blob() -> None:
    blobs = Blobs()
    sealed = blobs.keys().key_of(TAG).seal(memoryview(b"alice"), AT)
    assert sealed.kind == "seal"
    assert b"alice" not in sealed.data
    ((tag, key_id, blob),) = blobs
    key = unwrap(blob, cipher(MASTER_KEY))
    assert (tag, key_id) == (TAG, sealed.key_id) == (TAG, key.key_id)
    assert key.open(sealed.data, AT) == b"alice"


def test_a_blob_says_whose_key_it_is_and_when_it_was_made_but_not_the_key() -> None:
    blobs = Blobs()
    blobs.keys().key_of(TAG)
    blob = blobs[0][2]
    parsed = parse_blob(blob)
    assert (parsed.tag, parsed.key_id, parsed.made_ms) == (TAG, blobs[0][1], NOW_MS)
    assert blob[0] != 0  # the first byte of what an erasure leaves
    assert TAG in blob


def test_a_subject_has_one_key_until_it_is_forgotten() -> None:
    blobs = Blobs()
    keys = blobs.keys()
    first = keys.key_of(TAG)
    assert keys.key_of(TAG) is first
    assert keys.key_of(OTHER) is not first
    keys.forget(TAG)
    keys.forget(TAG)
    second = keys.key_of(TAG)
    assert second.key_id != first.key_id
    assert [tag for tag, _, _ in blobs] == [TAG, OTHER, TAG]
    with pytest.raises(Unsealable):
        second.open(first.seal(b"x", AT).data, AT)


def test_a_key_seals_for_a_day_and_another_one_takes_its_place() -> None:
    blobs = Blobs()
    keys = blobs.keys(max_subjects=2)
    first = keys.key_of(TAG)
    keys.key_of(OTHER)
    blobs.now_ms += MAX_KEY_AGE_MS - 1
    assert keys.key_of(TAG) is first
    blobs.now_ms += 1
    second = keys.key_of(TAG)
    assert second.key_id != first.key_id
    assert second.made_ms == first.made_ms + MAX_KEY_AGE_MS
    keys.key_of(RID)  # the one that was used longest ago goes: not the replaced one
    assert keys.key_of(TAG) is second


def test_the_blobs_of_the_keys_in_use_can_be_had_again() -> None:
    blobs = Blobs()
    keys = blobs.keys()
    assert keys.blobs() == []
    keys.key_of(TAG)
    keys.key_of(OTHER)
    keys.forget(TAG)
    assert keys.blobs() == [blobs[1][2]]


def test_the_keys_used_last_are_kept_and_no_more_of_them() -> None:
    blobs = Blobs()
    keys = blobs.keys(max_subjects=3)
    for number in range(10):
        keys.key_of(TAG)
        keys.key_of(number.to_bytes(16, "big"))
        assert len(keys) <= 3
    assert [tag for tag, _, _ in blobs].count(TAG) == 1


def test_two_seals_of_one_value_are_different() -> None:
    key = Blobs().keys().key_of(TAG)
    assert key.seal(b"alice", AT).data != key.seal(b"alice", AT).data


@pytest.mark.parametrize(
    "moved", [seal_context(RID[::-1], "email"), seal_context(RID, "name"), b""]
)
def test_a_sealed_tensor_opens_in_its_place_alone(moved: bytes) -> None:
    key = Blobs().keys().key_of(TAG)
    sealed = key.seal(b"alice", AT).data
    with pytest.raises(Unsealable, match="a sealed tensor is not opened"):
        key.open(sealed, moved)


def test_changed_bytes_do_not_open() -> None:
    key = Blobs().keys().key_of(TAG)
    sealed = key.seal(b"alice", AT).data
    for place in range(len(sealed)):
        bad = sealed[:place] + bytes((sealed[place] ^ 1,)) + sealed[place + 1 :]
        with pytest.raises(Unsealable):
            key.open(bad, AT)
    with pytest.raises(Unsealable, match="cut off"):
        key.open(sealed[:5], AT)


def test_a_wrapped_key_opens_with_its_master_key_and_unchanged_alone() -> None:
    blobs = Blobs()
    blobs.keys().key_of(TAG)
    blob = blobs[0][2]
    with pytest.raises(Unsealable, match="a subject's key is not opened by the key at hand"):
        unwrap(blob, cipher(MASTER_KEY[::-1]))
    for place in range(1, len(blob)):  # the tag, the id and the time are protected as well
        bad = blob[:place] + bytes((blob[place] ^ 1,)) + blob[place + 1 :]
        with pytest.raises(Unsealable):
            unwrap(bad, cipher(MASTER_KEY))
    for bad in (b"", blob[:-1], b"\x00" * len(blob)):
        with pytest.raises(Unsealable, match="no wrapped key"):
            parse_blob(bad)


def test_any_thread_may_seal_with_a_key() -> None:
    key = Blobs().keys().key_of(TAG)
    made: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: made.extend(key.seal(b"x", AT).data for _ in range(200)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({sealed[:12] for sealed in made}) == 800  # a nonce of its own each
    assert {key.open(sealed, AT) for sealed in made} == {b"x"}


def test_a_master_key_is_read_with_its_comments(tmp_path: Path) -> None:
    path = tmp_path / "master"
    path.write_text(f"# mine\n{MASTER_KEY.hex()}  # 2026\n")
    assert read_master_key(path) == MASTER_KEY


@pytest.mark.parametrize(("mode", "warnings"), [(0o600, 0), (0o640, 1), (0o604, 1)])
def test_a_master_key_that_others_can_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warnings: int
) -> None:
    path = tmp_path / "master"
    path.write_text(MASTER_KEY.hex())
    path.chmod(mode)
    read_master_key(path)
    assert len(caplog.records) == warnings
    assert MASTER_KEY.hex() not in caplog.text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("00" * 16, "the master key has 16 bytes, not 32"),
        ("# nothing", "the master key has 0 bytes, not 32"),
        ("secret!", "the master key is not in hex"),
    ],
)
def test_a_bad_master_key_is_refused_without_being_told(
    tmp_path: Path, text: str, sentence: str
) -> None:
    path = tmp_path / "master"
    path.write_text(text)
    with pytest.raises(ConfigError) as refusal:
        read_master_key(path)
    assert str(refusal.value) == f"{path}: {sentence}"


def test_an_absent_or_unreadable_master_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file; `sluice log new-keys`"):
        read_master_key(tmp_path / "absent")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_master_key(tmp_path)


def test_the_package_is_imported_where_something_is_sealed_and_not_before() -> None:
    script = (
        "import sys\n"
        "from gateway.prediction_log.privacy import seal, tap\n"
        "assert 'cryptography' not in sys.modules\n"
        "seal.cipher(bytes(32))\n"
        "assert 'cryptography' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=20)


def test_without_the_package_sealing_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(ConfigError, match="pip install cryptography"):
        seal.cipher(bytes(32))
