"""Revisions, changes, and the frames in which they are kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.route_control import frame
from gateway.route_control.revision import (
    MAX_NUMBER,
    Change,
    StoredRevision,
    digest_of,
    is_route_name,
    number_in,
)
from tests.support.route_stores import change


def test_a_revision_knows_its_tag_its_position_and_whether_it_is_intact() -> None:
    revision = change(42).after
    assert revision.etag == '"g1-42"'
    assert revision.position == (1, 42)
    assert revision.is_intact
    assert not replace(revision, body=revision.body + b" ").is_intact


@pytest.mark.parametrize("name", ["a", "_", "9", "a.b-c_D", "x" * 128])
def test_names_of_routes(name: str) -> None:
    assert is_route_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "-a", ".a", "a/b", "a b", "ä", "a\n", "x" * 129])
def test_names_that_no_route_has(name: str) -> None:
    assert not is_route_name(name)
    with pytest.raises(ValueError, match="name of a route"):
        change(1, name=name)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("7", 7),
        (str(MAX_NUMBER), MAX_NUMBER),
        *((text, None) for text in ("", "-1", "+1", "07", "1.0", " 1", "1\n", "x", "٣", "1" * 16)),
    ],
)
def test_a_number_is_read_in_the_one_form_in_which_it_is_written(
    text: str, number: int | None
) -> None:
    assert number_in(text) == number


@pytest.mark.parametrize(
    ("at", "expected"),
    [((1, 5), (1, 5)), ((1, 4), (1, 5)), ((1, 9), (2, 1)), ((0, 1), None), ((1, 0), None)],
)
def test_a_change_leads_forward(at: tuple[int, int], expected: tuple[int, int] | None) -> None:
    with pytest.raises(ValueError, match="digits"):
        Change.of("digits", at, b"{}", expected=expected, audit=b"a")


def test_a_change_whose_digests_are_not_those_of_its_contents_is_none() -> None:
    good = change(1)
    for after in (
        replace(good.after, body=b"other"),
        replace(good.after, audit_digest=""),
        replace(good.after, digest="0" * 64),
    ):
        with pytest.raises(ValueError, match="digest"):
            Change(after=after, expected=None, audit=good.audit)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("audit_digest", ["", "a" * 64])
def test_a_frame_gives_the_revision_back(audit_digest: str) -> None:
    revision = replace(change(3, generation=2).after, audit_digest=audit_digest)
    assert frame.decode(frame.encode(revision)) == revision


def test_no_damage_to_a_single_byte_of_a_frame_goes_unnoticed() -> None:
    made = change(3)
    data = frame.encode(made.after, audit=made.audit)
    assert frame.frame_at(data, 0).audit == made.audit
    for at in range(len(data)):
        with pytest.raises((frame.Broken, frame.Torn)):
            frame.frame_at(flipped(data, at), 0)


def test_a_frame_that_ends_anywhere_too_early_is_torn() -> None:
    made = change(3)
    data = frame.encode(made.after, audit=made.audit)
    for length in range(len(data)):
        with pytest.raises(frame.Torn):
            frame.frame_at(data[:length], 0)


def test_a_frame_can_keep_the_audit_entry_alone() -> None:
    made = change(3)
    whole = frame.frame_at(frame.encode(made.after, audit=made.audit), 0)
    found = frame.frame_at(frame.encode_audit(whole), 0)
    assert (found.audit, found.body, found.revision) == (made.audit, None, None)
    assert found.header.position == (1, 3)


def test_what_is_not_exactly_one_revision_is_not_decoded() -> None:
    made: StoredRevision = change(3).after
    data = frame.encode(made)
    alone = frame.encode_audit(frame.frame_at(frame.encode(made, audit=change(3).audit), 0))
    for wrong in (data + data, data + b"\n", alone, b"x" * 1_000, b"x\n"):
        with pytest.raises(frame.Broken):
            frame.decode(wrong)


def test_a_frame_whose_revision_could_not_be_counted_is_broken() -> None:
    line = f"sluice-route/1 digits 1 {MAX_NUMBER + 1} {'a' * 64} - - -"
    data = f"{line} {digest_of(line.encode())[:16]}\n".encode()
    with pytest.raises(frame.Broken, match="no number"):
        frame.header_at(data, 0)
    fitting = line.replace(str(MAX_NUMBER + 1), str(MAX_NUMBER))
    data = f"{fitting} {digest_of(fitting.encode())[:16]}\n".encode()
    assert frame.header_at(data, 0).revision == MAX_NUMBER
