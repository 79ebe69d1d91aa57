"""Files of whole tensors: named by content, bounded, and nothing that the disk does raises."""

from __future__ import annotations

import logging
import os
from hashlib import blake2b
from pathlib import Path

import pytest

from gateway.prediction_log.capture.references import References

PLENTY = 1 << 20


def digest_of(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def keep(references: References, data: bytes) -> str:
    return references.keep(digest_of(data), data)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in files_of(folder))


def age(path: Path, seconds: int) -> None:
    """Make a file older than those that are written now."""
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


@pytest.mark.parametrize("is_synced", [True, False])
def test_a_tensor_is_found_at_its_address(tmp_path: Path, is_synced: bool) -> None:
    folder = tmp_path / "spool" / "references"
    references = References(folder, max_bytes=PLENTY, is_synced=is_synced)
    address = references.keep(digest_of(b"data"), memoryview(b"data"))
    assert references.path_of(address).read_bytes() == b"data"
    assert references.path_of(address) == folder / address
    assert files_of(folder) == [folder / address]


def test_the_same_bytes_are_one_file_however_often_they_are_kept(tmp_path: Path) -> None:
    first = References(tmp_path, max_bytes=PLENTY)
    addresses = {keep(first, b"data"), keep(first, b"data")}
    addresses.add(keep(References(tmp_path, max_bytes=PLENTY), b"data"))
    assert len(addresses) == len(files_of(tmp_path)) == 1


def test_a_file_that_was_cut_short_is_written_again(tmp_path: Path) -> None:
    references = References(tmp_path, max_bytes=PLENTY)
    path = references.path_of(keep(references, b"data"))
    path.write_bytes(b"da")
    assert keep(references, b"data")
    assert path.read_bytes() == b"data"


def test_the_oldest_files_make_room_and_the_limit_holds_at_every_step(tmp_path: Path) -> None:
    references = References(tmp_path, max_bytes=1_000)
    for n in range(60):
        data = n.to_bytes(2) * 30
        path = references.path_of(keep(references, data))
        age(path, 1_000 - n)
        assert path.exists()
        assert bytes_in(tmp_path) <= 1_000
    left = {path.read_bytes()[:2] for path in files_of(tmp_path)}
    assert left == {n.to_bytes(2) for n in range(60 - len(left), 60)}
    assert len(left) >= 14


def test_a_file_that_is_named_again_is_young_again(tmp_path: Path) -> None:
    references = References(tmp_path, max_bytes=300)
    paths = [references.path_of(keep(references, bytes((n,)) * 100)) for n in range(3)]
    for n, path in enumerate(paths):
        age(path, 100 - n)
    keep(references, bytes(100))
    keep(references, b"\xff" * 100)
    assert [path.exists() for path in paths] == [True, False, True]


def test_files_that_another_process_wrote_count(tmp_path: Path) -> None:
    here, there = (References(tmp_path, max_bytes=1_600) for _ in range(2))
    for n in range(100):
        keep(here, n.to_bytes(2) * 25)
        keep(there, (n + 1_000).to_bytes(2) * 25)
    # Each may write a sixteenth of the limit before it counts again.
    assert bytes_in(tmp_path) <= 1_600 + 2 * 100


def test_a_tensor_larger_than_all_the_room_is_not_kept_and_drives_nothing_out(
    tmp_path: Path,
) -> None:
    references = References(tmp_path, max_bytes=100)
    assert keep(references, bytes(60))
    assert keep(references, bytes(101)) == ""
    assert bytes_in(tmp_path) == 60


def test_the_disk_is_left_what_it_must_be_left(tmp_path: Path) -> None:
    references = References(tmp_path, max_bytes=PLENTY, min_free_bytes=1 << 62)
    assert keep(references, b"data") == ""
    assert files_of(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_told_once_until_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "references"
    folder.write_text("a file stands in the way")
    references = References(folder, max_bytes=PLENTY)
    with caplog.at_level(logging.WARNING):
        assert [keep(references, b"data"), keep(references, b"data")] == ["", ""]
        assert len(caplog.records) == 1
        folder.unlink()
        assert keep(references, b"data")
        (folder / digest_of(b"2").hex()[:2]).write_text("in the way")
        assert keep(references, b"2") == ""
        assert len(caplog.records) == 2


def test_a_removed_file_is_gone_and_removing_it_again_is_no_fault(tmp_path: Path) -> None:
    references = References(tmp_path, max_bytes=PLENTY)
    address = keep(references, b"data")
    assert references.remove(address)
    assert not references.remove(address)
    assert files_of(tmp_path) == []
    assert keep(references, b"data") == address


@pytest.mark.parametrize("address", ["../x.bin", "/etc/x.bin", "ab/../../x.bin", "ab/x.txt", ""])
def test_what_is_no_address_of_the_folder_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(ValueError, match="no address"):
        References(tmp_path, max_bytes=PLENTY).remove(address)


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        keep(References(tmp_path / "references", max_bytes=PLENTY), b"data")
    finally:
        os.umask(before)
    (file,) = files_of(tmp_path)
    modes = [path.stat().st_mode & 0o777 for path in (file, file.parent, file.parent.parent)]
    assert modes == [0o600, 0o700, 0o700]


def test_what_was_not_named_lately_expires_and_what_was_never_finished_too(tmp_path: Path) -> None:
    references = References(tmp_path, max_bytes=PLENTY)
    old, young = keep(references, b"old"), keep(references, b"young")
    torn = tmp_path / "ab" / "ab.1.part"
    torn.parent.mkdir(exist_ok=True)
    torn.write_bytes(b"half")
    for path in (tmp_path / old, torn):
        age(path, 100)
    before_ms = (tmp_path / young).stat().st_mtime_ns // 1_000_000 - 50_000
    assert references.expire(before_ms) == 2
    assert files_of(tmp_path) == [tmp_path / young]
    assert keep(references, b"old") == old
    assert references.expire(before_ms) == 0


def test_a_disk_that_refuses_to_delete_is_told_of_and_nothing_else_happens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "ab" / "a-folder").mkdir(parents=True)
    age(tmp_path / "ab" / "a-folder", 100)
    now_ms = (tmp_path / "ab").stat().st_mtime_ns // 1_000_000 - 50_000
    assert References(tmp_path, max_bytes=PLENTY).expire(now_ms) == 0
    assert "old references cannot be deleted" in caplog.text
