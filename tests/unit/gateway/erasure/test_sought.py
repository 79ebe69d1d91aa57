"""Which blobs are a subject's."""

from __future__ import annotations

import os

import pytest

from gateway.ids import new_id
from gateway.prediction_log.erasure.sought import Sought, marks_of, uris_of
from gateway.prediction_log.erasure.tombstone import (
    Found,
    Tombstone,
    decode,
    digest,
    encode,
    pack,
    unpack,
)
from gateway.prediction_log.privacy.seal import SubjectKeys
from gateway.prediction_log.record import SCHEMA, LoggedAudit, encode_logged
from gateway.prediction_log.streams import StreamKind
from tests.support.erasures import WORKER, label, prediction

LIVE, SHADOW, LABELS = StreamKind.LIVE, StreamKind.SHADOW, StreamKind.LABELS
TAG, OTHER = bytes(range(16)), bytes(range(1, 17))
NOW_MS = 1_800_000_000_000


def open_one(*, names: tuple[str, ...] = ()) -> Tombstone:
    return Tombstone(id="e", begun_ms=NOW_MS, tags=[TAG], digests=[digest(TAG)], names=list(names))


def closed_one() -> Tombstone:
    return open_one().closed(NOW_MS, is_complete=True)


def test_a_record_with_the_tag_is_sought_and_one_of_another_subject_is_not() -> None:
    rid = new_id()
    sought = Sought(open_one())
    blob = prediction(7, rid=rid, subject=TAG, cid="c-1")
    assert sought.judge(blob, LIVE) == Found("digits", LIVE, WORKER, 7, rid, "c-1")
    assert sought.judge(prediction(8, subject=OTHER), LIVE) is None
    assert sought.judge(prediction(9), LIVE) is None


def test_a_tag_in_a_feature_of_another_subjects_record_is_not_sought() -> None:
    assert Sought(open_one()).judge(prediction(1, subject=OTHER, text=TAG), LIVE) is None


def test_what_belongs_to_a_found_request_is_sought_without_a_tag() -> None:
    sought, rid = Sought(open_one()), new_id()
    shadow = prediction(2, parent_rid=rid, is_shadow=True)
    whole, truth = prediction(3, rid=rid), label(1, rid=rid)
    assert [sought.judge(blob, LIVE) for blob in (shadow, whole, truth)] == [None] * 3
    sought.add([Found("digits", LIVE, WORKER, 1, rid)])
    found = [sought.judge(b, k) for b, k in ((shadow, SHADOW), (whole, LIVE), (truth, LABELS))]
    assert [one and one.rid for one in found] == [rid] * 3


def test_a_label_without_a_request_id_is_sought_by_the_callers_id_alone() -> None:
    sought = Sought(open_one())
    sought.add([Found("digits", LIVE, WORKER, 1, b"", "theirs")])
    assert sought.judge(label(1, cid="theirs"), LABELS) is None
    sought.cids = {"theirs"}
    assert sought.judge(label(1, cid="theirs"), LABELS) is not None
    assert sought.judge(label(1, cid="others"), LABELS) is None
    assert sought.judge(label(1, rid=new_id(), cid="theirs"), LABELS) is None
    assert sought.judge(prediction(1, cid="theirs"), LIVE) is None


def test_a_closed_tombstone_knows_no_tag_and_finds_its_records() -> None:
    closed = closed_one()
    assert TAG not in encode(closed)
    assert TAG.hex().encode() not in encode(closed)
    sought = Sought(decode(encode(closed)))
    before = prediction(1, subject=TAG, ts_us=NOW_MS * 1_000)
    assert sought.judge(before, LIVE) is not None
    assert sought.tags == {TAG}
    assert sought.judge(prediction(1, subject=OTHER, ts_us=1), LIVE) is None


def test_a_closed_tombstone_leaves_a_subject_who_came_back() -> None:
    after = prediction(1, subject=TAG, ts_us=NOW_MS * 1_000 + 1)
    assert Sought(closed_one()).judge(after, LIVE) is None
    assert Sought(open_one()).judge(after, LIVE) is not None


def test_an_erasure_of_some_names_leaves_the_others() -> None:
    sought = Sought(open_one(names=("digits",)))
    assert sought.judge(prediction(1, subject=TAG), LIVE) is not None
    assert sought.judge(prediction(1, subject=TAG, name="prices"), LIVE) is None


@pytest.mark.parametrize("blob", [b"", bytes(64), b"\x01broken", b"\x09" + b"x" * 20])
def test_what_is_no_record_is_nobodys(blob: bytes) -> None:
    assert marks_of(blob) is None
    assert Sought(open_one()).judge(blob, LIVE) is None


def test_an_audit_is_nobodys() -> None:
    audit = encode_logged(LoggedAudit(schema=SCHEMA, worker=WORKER, ts_us=1, name="digits"))
    assert Sought(open_one()).judge(audit, LIVE) is None


def test_the_files_of_a_record_are_known() -> None:
    blob = prediction(1, subject=TAG, uri="ab/abcd.bin")
    assert uris_of(blob) == ("ab/abcd.bin",)
    found = Sought(open_one()).judge(blob, LIVE)
    assert found is not None
    assert found.uris == ("ab/abcd.bin",)
    assert unpack(pack(found)) == found
    assert uris_of(prediction(1, text=b"\xa3ref")) == ()


def test_sealing_keys_are_sought_by_their_tag_unless_only_some_names_are_erased() -> None:
    made: list[bytes] = []
    keys = SubjectKeys(
        os.urandom(32),
        on_new_key=lambda tag, key_id, blob: made.append(blob),
        clock_ms=lambda: NOW_MS + 1,
    )
    keys.key_of(TAG)
    keys.key_of(OTHER)
    assert [Sought(open_one()).seeks_key(blob) for blob in made] == [True, False]
    assert not Sought(closed_one()).seeks_key(made[0])  # of the subject who came back
    assert not Sought(open_one(names=("digits",))).seeks_key(made[0])
    assert not Sought(open_one()).seeks_key(b"\x04short")


def test_many_subjects_do_not_fill_the_memory() -> None:
    sought = Sought(open_one())
    for number in range(70_000):
        sought.judge(prediction(1, subject=number.to_bytes(16, "big"), ts_us=1), LIVE)
    assert len(sought._others) < 66_000
    assert sought.judge(prediction(1, subject=TAG), LIVE) is not None
