"""The receipt: numbers, signed."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from gateway.prediction_log.erasure import receipt
from gateway.prediction_log.erasure.receipt import Body, Counts, Replicas, Server
from gateway.prediction_log.privacy import keyring
from tests.support.erasures import keyring_in


def body() -> Body:
    return Body(
        erasure="0f" * 16,
        begun=receipt.time_text(1_800_000_000_123),
        ended=receipt.time_text(1_800_000_001_000),
        is_complete=True,
        left=[],
        names=[],
        counts=Counts(
            requests=2,
            records={"live": 2, "labels": 1},
            spooled=3,
            sealing_keys=1,
            files=0,
            streams_rebuilt=2,
        ),
        replicas=Replicas(acknowledged=1, done_here=1, declared_gone=0),
        servers=[Server(append_only_s=0.5, snapshot_s=0.1, replicas=0)],
    )


def test_a_receipt_is_genuine_after_a_way_through_a_file_and_a_new_key(tmp_path: Path) -> None:
    keys = keyring_in(tmp_path)
    signed = receipt.signed(body(), keys)
    path = tmp_path / "receipt.json"
    path.write_bytes(receipt.to_json(signed))
    keyring.rotate(tmp_path / "keys")
    keys.reload_if_changed()
    assert receipt.load(path) == signed
    assert receipt.is_genuine(receipt.load(path), keys)
    assert signed.body.begun == "2027-01-15T08:00:00.123+00:00"


def test_a_changed_receipt_is_not_genuine(tmp_path: Path) -> None:
    keys = keyring_in(tmp_path)
    signed = receipt.signed(body(), keys)
    changed = msgspec.structs.replace(body(), is_complete=False)
    assert not receipt.is_genuine(msgspec.structs.replace(signed, body=changed), keys)
    rehashed = receipt.signed(changed, keys)
    forged = msgspec.structs.replace(rehashed, signature=signed.signature)
    assert not receipt.is_genuine(forged, keys)
    assert not receipt.is_genuine(msgspec.structs.replace(signed, signature="no hex"), keys)
    assert not receipt.is_genuine(msgspec.structs.replace(signed, sha256="00"), keys)


def test_a_receipt_of_another_key_file_is_not_genuine(tmp_path: Path) -> None:
    signed = receipt.signed(body(), keyring_in(tmp_path))
    other = tmp_path / "other"
    other.mkdir()
    assert not receipt.is_genuine(signed, keyring_in(other))


def test_a_file_that_is_no_receipt_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    path.write_text("{}")
    with pytest.raises(msgspec.DecodeError):
        receipt.load(path)
