"""What is made of model files and kept: found again, made once, never half there."""

from __future__ import annotations

import hashlib
import json
import logging
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.artifacts import keep, sha256_of
from tests.support.batching import HANG_S

KEY: dict[str, object] = {"model": "abc", "version": "1.0"}


def writing(content: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(content)

    return make


def forbidden(path: Path) -> None:
    raise AssertionError(f"{path.name} is made although it is kept")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Digests


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"bytes" * 100_000)
    assert sha256_of(file) == hashlib.sha256(b"bytes" * 100_000).hexdigest()


def put(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_the_digest_of_a_folder_depends_on_names_and_contents_and_on_nothing_else(
    tmp_path: Path,
) -> None:
    first = put(tmp_path / "a", one="1", sub__two="2")
    same = put(tmp_path / "b", sub__two="2", one="1")
    (same / "empty").mkdir()
    assert sha256_of(first) == sha256_of(same)
    others = [
        put(tmp_path / "c", one="1", sub__two="3"),
        put(tmp_path / "d", one="1", two="2"),
        put(tmp_path / "e", one="1"),
        put(tmp_path / "f", one="2", sub__two="1"),
        put(tmp_path / "g", one="12", sub__two=""),
    ]
    digests = {sha256_of(folder) for folder in (first, *others)}
    assert len(digests) == 1 + len(others)


# Keeping


def test_what_was_made_is_found_again_and_what_it_depends_on_stands_beside_it(
    tmp_path: Path,
) -> None:
    kept = keep(tmp_path / "cache", KEY, ".plan", writing(b"plan"))
    assert kept is not None
    assert (kept.suffix, kept.read_bytes()) == (".plan", b"plan")
    assert json.loads(kept.with_name(f"{kept.name}.json").read_text()) == KEY
    assert keep(tmp_path / "cache", dict(reversed(KEY.items())), ".plan", forbidden) == kept
    assert names(tmp_path / "cache") == [kept.name, f"{kept.name}.json"]


@pytest.mark.parametrize(
    "other", [{"model": "abx"}, {"version": "1.1"}, {"device": "cuda:0"}, {"version": None}]
)
def test_anything_else_in_the_key_is_another_file(tmp_path: Path, other: dict[str, object]) -> None:
    first = keep(tmp_path, KEY, ".plan", writing(b"first"))
    second = keep(tmp_path, KEY | other, ".plan", writing(b"second"))
    assert first is not None
    assert second is not None
    assert (first.read_bytes(), second.read_bytes()) == (b"first", b"second")


def test_another_suffix_is_another_file(tmp_path: Path) -> None:
    plan = keep(tmp_path, KEY, ".plan", writing(b"plan"))
    timing = keep(tmp_path, KEY, ".timing", writing(b"timing"))
    assert plan != timing
    assert keep(tmp_path, KEY, ".plan", forbidden) == plan


def test_the_folder_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    keep(tmp_path / "a" / "cache", KEY, ".plan", writing(b"plan"))
    assert stat.S_IMODE((tmp_path / "a" / "cache").stat().st_mode) == 0o700


def test_nothing_is_taken_from_a_folder_into_which_everybody_may_write(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "kept"
    assert keep(folder, KEY, ".plan", writing(b"ours")) is not None
    folder.chmod(0o777)
    with caplog.at_level(logging.WARNING):
        assert keep(folder, KEY, ".plan", forbidden) is None
    assert caplog.records[-1].__dict__["reason"] == "everybody may write there"


def test_without_a_folder_nothing_is_made() -> None:
    assert keep(None, KEY, ".plan", forbidden) is None


@pytest.mark.parametrize("exception", [ValueError("no such operator"), KeyboardInterrupt()])
def test_a_make_that_fails_leaves_nothing_and_its_exception_is_the_callers(
    tmp_path: Path, exception: BaseException
) -> None:
    def make(path: Path) -> None:
        path.write_bytes(b"half")
        raise exception

    with pytest.raises(type(exception)):
        keep(tmp_path, KEY, ".plan", make)
    assert names(tmp_path) == []
    assert keep(tmp_path, KEY, ".plan", writing(b"whole")) is not None


def test_what_a_make_leaves_beside_its_file_is_cleared_away(tmp_path: Path) -> None:
    def make(path: Path) -> None:
        path.write_bytes(b"plan")
        (path.parent / "scratch").mkdir()
        (path.parent / "scratch" / "log").write_text("built")

    kept = keep(tmp_path, KEY, ".plan", make)
    assert kept is not None
    assert names(tmp_path) == [kept.name, f"{kept.name}.json"]


def full_disk(path: Path) -> None:
    path.write_bytes(b"half")
    raise OSError(28, "No space left on device")


def makes_nothing(path: Path) -> None:
    """Return without a file."""


@pytest.mark.parametrize(
    ("make", "reason"),
    [(full_disk, "No space left on device"), (makes_nothing, "No such file or directory")],
)
def test_what_cannot_be_written_is_not_kept_and_that_is_logged(
    tmp_path: Path,
    make: Callable[[Path], None],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert keep(tmp_path, KEY, ".plan", make) is None
    assert names(tmp_path) == []
    (record,) = caplog.records
    assert record.getMessage() == "nothing can be kept of model files"
    assert vars(record)["reason"] == reason


def test_a_folder_that_cannot_be_made_or_written_keeps_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert keep(tmp_path / "file" / "cache", KEY, ".plan", forbidden) is None
        assert keep(tmp_path / "file", KEY, ".plan", forbidden) is None
    assert [vars(record)["folder"] for record in caplog.records] == [
        str(tmp_path / "file" / "cache"),
        str(tmp_path / "file"),
    ]


def test_of_several_makers_at_once_each_gets_a_whole_file(tmp_path: Path) -> None:
    everybody = threading.Barrier(4)
    found: list[bytes] = []

    def maker(number: int) -> None:
        def make(path: Path) -> None:
            path.write_bytes(bytes([number]) * 10_000)
            everybody.wait(HANG_S)  # nobody has moved his file into place yet
            path.write_bytes(bytes([number]) * 20_000)

        kept = keep(tmp_path, KEY, ".plan", make)
        assert kept is not None
        found.append(kept.read_bytes())

    threads = [threading.Thread(target=maker, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    assert len(found) == 4
    assert {(len(content), len(set(content))) for content in found} == {(20_000, 1)}
    assert len(names(tmp_path)) == 2


def test_what_is_being_made_is_not_found_before_it_is_whole(tmp_path: Path) -> None:
    is_half, may_end = threading.Event(), threading.Event()

    def slow(path: Path) -> None:
        path.write_bytes(b"half")
        is_half.set()
        may_end.wait(HANG_S)
        path.write_bytes(b"whole")

    thread = threading.Thread(target=keep, args=(tmp_path, KEY, ".plan", slow))
    thread.start()
    assert is_half.wait(HANG_S)
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []
    quick = keep(tmp_path, KEY, ".plan", writing(b"quick"))
    assert quick is not None
    assert quick.read_bytes() == b"quick"
    may_end.set()
    thread.join(HANG_S)
    assert quick.read_bytes() == b"whole"  # of the same key: as good as the first one
