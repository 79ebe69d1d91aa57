"""The routes that a replica last served, on its own disk."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from gateway.route_control import frame
from gateway.route_control.last_known import KEPT_FILES, LastKnownGood
from gateway.route_control.revision import StoredRevision, digest_of
from tests.support.route_stores import change, no_file_longer_than


def routes(revision: int) -> list[StoredRevision]:
    """Return two routes as they stood at some time."""
    return [change(revision, name=name).after for name in ("a", "b")]


def files(folder: Path) -> list[Path]:
    """Return the snapshots, oldest first."""
    return sorted(folder.glob("*.snapshot"))


def test_what_was_saved_is_loaded_also_by_the_next_process(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there yet"
    LastKnownGood(folder).save(routes(7))
    assert LastKnownGood(folder).load() == routes(7)


def test_without_a_snapshot_nothing_is_known(tmp_path: Path) -> None:
    assert LastKnownGood(tmp_path / "missing").load() == []
    assert LastKnownGood(tmp_path).load() == []


def test_no_routes_are_a_snapshot_too(tmp_path: Path) -> None:
    kept = LastKnownGood(tmp_path)
    kept.save(routes(1))
    kept.save([])
    assert kept.load() == []
    files(tmp_path)[-1].unlink()
    assert kept.load() == routes(1)


def test_the_newest_three_are_kept_and_the_newest_counts(tmp_path: Path) -> None:
    kept = LastKnownGood(tmp_path)
    for revision in range(1, 15):
        kept.save(routes(revision))
        assert len(files(tmp_path)) == min(revision, KEPT_FILES)
        assert kept.load() == routes(revision)


def test_bodies_of_any_bytes_are_saved(tmp_path: Path) -> None:
    odd = [change(1, name="a", body=bytes(range(256))).after, change(1, name="b", body=b"").after]
    LastKnownGood(tmp_path).save(odd)
    assert LastKnownGood(tmp_path).load() == odd


@pytest.mark.parametrize("harm", ["cut", "flipped", "longer", "empty", "unreadable"])
def test_a_broken_snapshot_is_skipped_and_reported(
    tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    kept = LastKnownGood(tmp_path)
    kept.save(routes(1))
    kept.save(routes(2))
    newest = files(tmp_path)[-1]
    data = newest.read_bytes()
    newest.unlink()
    if harm == "unreadable":
        newest.mkdir()
    else:
        half = len(data) // 2
        newest.write_bytes(
            {
                "cut": data[:half],
                "flipped": data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :],
                "longer": data + b"\n",
                "empty": b"",
            }[harm]
        )
    with caplog.at_level(logging.WARNING):
        assert kept.load() == routes(1)
    assert [r.getMessage() for r in caplog.records] == ["route snapshot skipped"]
    assert newest.name in str(vars(caplog.records[0])["path"])


def test_a_snapshot_that_is_wrong_in_any_byte_or_ends_anywhere_is_skipped(tmp_path: Path) -> None:
    kept = LastKnownGood(tmp_path)
    kept.save(routes(1))
    kept.save(routes(2))
    newest = files(tmp_path)[-1]
    data = newest.read_bytes()
    assert kept.load() == routes(2)
    for at in range(len(data)):
        newest.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert kept.load() == routes(1)
        newest.write_bytes(data[:at])
        assert kept.load() == routes(1)


@pytest.mark.parametrize("harm", ["other number", "cut revision", "no body", "no revision"])
def test_a_snapshot_whose_digest_is_right_must_still_hold_what_it_says(
    tmp_path: Path, harm: str
) -> None:
    kept = LastKnownGood(tmp_path)
    kept.save(routes(1))
    made = change(2)
    whole = frame.encode(made.after, audit=made.audit)
    content, count = {
        "other number": (whole, 2),
        "cut revision": (whole[:-1], 1),
        "no body": (frame.encode_audit(frame.frame_at(whole, 0)), 1),
        "no revision": (b"something else\n", 1),
    }[harm]
    line = f"sluice-routes/1 {count} {digest_of(content)}\n".encode()
    newest = tmp_path / "routes-000000000002.snapshot"
    newest.write_bytes(line + content)
    assert kept.load() == routes(1)
    newest.write_bytes(f"sluice-routes/1 1 {digest_of(whole)}\n".encode() + whole)
    assert kept.load() == [made.after]


def test_when_every_snapshot_is_broken_nothing_is_known(tmp_path: Path) -> None:
    kept = LastKnownGood(tmp_path)
    for revision in (1, 2, 3):
        kept.save(routes(revision))
    for path in files(tmp_path):
        path.write_bytes(b"")
    assert kept.load() == []
    kept.save(routes(4))
    assert kept.load() == routes(4)


def test_a_file_that_was_being_written_when_the_process_died_does_not_count(
    tmp_path: Path,
) -> None:
    kept = LastKnownGood(tmp_path)
    kept.save(routes(1))
    (tmp_path / "routes-000000000002.snapshot.partial").write_bytes(b"half")
    assert kept.load() == routes(1)
    kept.save(routes(2))
    assert kept.load() == routes(2)
    assert list(tmp_path.glob("*.partial")) == []


def test_a_folder_that_cannot_be_made_is_the_callers_to_know(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    kept = LastKnownGood(tmp_path / "file")
    with pytest.raises(OSError, match="file"):
        kept.save(routes(1))
    assert kept.load() == []


def test_a_full_disk_leaves_the_earlier_snapshot_and_nothing_else(tmp_path: Path) -> None:
    kept = LastKnownGood(tmp_path)
    kept.save(routes(1))
    large = change(2, body=b"x" * (5 << 20)).after
    # A limit above whatever else this process may be writing.
    with no_file_longer_than(4 << 20), pytest.raises(OSError, match="File too large"):
        kept.save([large])
    assert kept.load() == routes(1)
    assert list(tmp_path.glob("*.partial")) == []
    kept.save([large])
    assert kept.load() == [large]
