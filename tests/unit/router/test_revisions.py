"""Stored revisions: what is written, and that nothing but that is ever read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from decimal import Decimal
from hashlib import sha256
from typing import Any, Final

import pytest

from router import changes, revisions
from router.faults import RouteError
from router.revisions import Revision, Warm
from router.routes import EXPERIMENT
from tests.support.routes import (
    HOUR_MS,
    NAME,
    NOON_MS,
    Plain,
    at,
    faults_of,
    first,
    origin,
    route,
    rule,
    shadow,
    variants,
    weighing,
)


def with_a_past() -> Revision:
    """Return a revision in which every field has a value."""
    rules = [
        rule(
            name="first",
            when={"header": {"x": "1", "y": {"prefix": "a"}, "z": {"present": True}}},
            reason="größer",
            expires="2028-01-01T00:00:00.500Z",
        ),
        rule("stable", when={"tenant": ["a", "b"], "role": "viewer", "key": {"in": ["u"]}}),
    ]
    start = first(
        kind=EXPERIMENT,
        variants=variants(stable=Decimal("66.6667"), canary=Decimal("33.3333")),
        key=["header:x-user", "principal"],
        rules=rules,
        shadows={"v3": shadow(of=["stable"])},
        fallback={"to": "stable"},
    )
    split = variants(stable=50, canary=50)
    split["canary"]["version"] = "7"
    moved = route(
        kind=EXPERIMENT,
        variants=split,
        key=["header:x-user", "principal"],
        rules=rules,
        shadows={"v3": shadow(of=["stable"])},
        fallback={"to": "stable"},
    )
    return changes.follow(start, moved, origin("patch", parent=1), changes.ALWAYS)


def read_changed(path: tuple[str | int, ...], value: object) -> Revision:
    """Read the body of `with_a_past` with one value replaced."""
    body = json.loads(with_a_past().body())
    at(body, *path[:-1])[path[-1]] = value
    return revisions.read(json.dumps(body).encode(), name=NAME)


def test_a_body_is_canonical_json() -> None:
    body = with_a_past().body()
    assert "größer".encode() in body
    plain = json.loads(body)
    assert (
        body
        == json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    )


def test_a_body_says_who_owns_what_and_what_is_remembered() -> None:
    body = json.loads(with_a_past().body())
    assert body["derived"] == {
        "slots": [
            [0, 333_333, "canary", 1],
            [333_333, 833_333, "stable", 1],
            [833_333, 1_000_000, "canary", 2],
        ],
        "epoch": 2,
        "carryover": [2],
        "warm": [{"model": NAME, "version": "2", "until": "2027-01-15T09:00:00Z"}],
    }
    assert body["meta"] == {
        "reason": "a test",
        "actor": "ann",
        "verb": "patch",
        "created_at": "2027-01-15T08:00:00Z",
        "parent": 1,
    }
    assert (body["name"], body["revision"], body["generation"]) == (NAME, 2, 1)
    assert "deleted" not in body


def test_the_document_is_the_body_and_the_digest_of_it() -> None:
    made = with_a_past()
    document = made.document()
    assert document["meta"].pop("digest") == sha256(made.body()).hexdigest()
    assert document == json.loads(made.body())


def test_a_document_as_the_admin_api_shows_it_is_read_as_the_same_revision() -> None:
    made = with_a_past()
    shown = json.dumps(made.document()).encode()
    assert revisions.read(shown, name=NAME) == made


def test_what_is_written_is_read() -> None:
    made = with_a_past()
    again = revisions.read(made.body(), name=NAME)
    assert again == made
    assert again.body() == made.body()
    assert again.warm == (Warm(model=NAME, version="2", until_ms=NOON_MS + HOUR_MS),)


def test_a_deleted_route_is_read_as_one() -> None:
    gone = changes.deleted(with_a_past(), origin("delete"))
    assert json.loads(gone.body())["deleted"] is True
    assert revisions.read(gone.body(), name=NAME) == gone


def test_a_generation_and_a_number_are_kept() -> None:
    made = changes.restored(with_a_past(), (7, 41), origin("restore"))
    assert revisions.read(made.body(), name=NAME).position == (8, 42)


def test_a_body_that_was_cut_off_anywhere_is_never_read() -> None:
    body = with_a_past().body()
    for end in range(len(body)):
        with pytest.raises(RouteError, match=r"the stored document is no (JSON|table)"):
            revisions.read(body[:end], name=NAME)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "the stored document is no JSON"),
        (b"null", "the stored document is no table"),
        (b"[]", "the stored document is no table"),
        (b'"text"', "the stored document is no table"),
        (b"{}", "revision: 0 is not a whole number from 1 on"),
        (b"\xff{}", "the stored document is no JSON"),
        (b"[" * 100_000, "the stored document is no JSON"),
        (b"\x00" * 64, "the stored document is no JSON"),
    ],
)
def test_what_is_no_document_is_not_read(body: bytes, sentence: str) -> None:
    with pytest.raises(RouteError, match=sentence):
        revisions.read(body, name=NAME)


def test_the_body_of_another_route_is_not_read() -> None:
    with pytest.raises(RouteError) as refused:
        revisions.read(first().body(), name="other")
    assert faults_of(refused.value) == [
        ("/name", "'digits' is not 'other': a route keeps its name")
    ]


def fields(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every value inside another, of tables and lists too."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in inside:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from fields(inner, (*path, key))


EVERY_FIELD: Final = list(fields(json.loads(with_a_past().body()), ()))


@pytest.mark.parametrize("path", EVERY_FIELD, ids=lambda path: "/".join(map(str, path)))
def test_a_body_with_a_value_of_another_type_is_never_read(path: tuple[str | int, ...]) -> None:
    """Whatever the field: no number has so many digits, and no table has such a key."""
    for wrong in (0.123456789, {"nonsense": None}):
        with pytest.raises(RouteError) as refused:
            read_changed(path, wrong)
        parent = "".join(f"/{part}" for part in path[:-1])
        assert any(pointer.startswith(parent) for pointer, _ in faults_of(refused.value))


REQUIRED: Final = [
    ("revision",),
    ("generation",),
    ("variants",),
    ("variants", "canary"),
    ("variants", "canary", "model"),
    ("variants", "canary", "version"),
    ("variants", "canary", "weight"),
    ("rules", 0, "name"),
    ("rules", 0, "to"),
    ("shadows", "v3", "model"),
    ("shadows", "v3", "version"),
    ("shadows", "v3", "sample"),
    ("fallback", "to"),
    ("derived",),
    ("derived", "slots"),
    ("derived", "epoch"),
    ("derived", "warm", 0, "model"),
    ("derived", "warm", 0, "version"),
    ("derived", "warm", 0, "until"),
    ("meta",),
    ("meta", "verb"),
    ("meta", "actor"),
    ("meta", "reason"),
    ("meta", "created_at"),
]


@pytest.mark.parametrize("path", REQUIRED, ids=lambda path: "/".join(map(str, path)))
def test_a_body_without_a_field_that_nothing_can_stand_in_for_is_never_read(
    path: tuple[str | int, ...],
) -> None:
    body = json.loads(with_a_past().body())
    del at(body, *path[:-1])[path[-1]]
    with pytest.raises(RouteError):
        revisions.read(json.dumps(body).encode(), name=NAME)


@pytest.mark.parametrize(
    ("path", "value", "pointer", "sentence"),
    [
        (("revision",), 0, "/revision", "0 is not a whole number from 1 on"),
        (("revision",), True, "/revision", "True is not a whole number from 1 on"),
        (("generation",), 0, "/generation", "0 is not a whole number from 1 on"),
        (("derived", "epoch"), 0, "/derived/epoch", "0 is not a whole number from 1 on"),
        (("derived", "epoch"), None, "/derived/epoch", "None is not a whole number from 1 on"),
        (("derived", "extra"), 1, "/derived/extra", "unknown key"),
        (("meta", "by"), "ann", "/meta/by", "unknown key"),
        (("meta", "created_at"), None, "/meta/created_at", "this key is required"),
        (
            ("meta", "created_at"),
            "2026-01-01",
            "/meta/created_at",
            "'2026-01-01' is no time with a zone, such as 2026-12-01T00:00:00Z",
        ),
        (("meta", "parent"), -1, "/meta/parent", "-1 is not a whole number from 0 on"),
        (("meta", "verb"), "", "/meta/verb", "an empty text"),
        (("meta", "reason"), None, "/meta/reason", "expected a text, got nothing"),
        (("meta", "actor"), 7, "/meta/actor", "expected a text, got a value of type int"),
        (
            ("derived", "carryover"),
            ["2"],
            "/derived/carryover",
            "not all of them are revisions",
        ),
        (
            ("derived", "carryover"),
            [True],
            "/derived/carryover",
            "not all of them are revisions",
        ),
        (("derived", "warm", 0, "until"), None, "/derived/warm/0/until", "this key is required"),
        (("derived", "warm", 0, "model"), "", "/derived/warm/0/model", "an empty text"),
        (("deleted",), 1, "/deleted", "expected a boolean, got a value of type int"),
        (("deleted",), None, "/deleted", "expected a boolean, got nothing"),
        (
            ("derived", "slots", 1),
            [333_333, 833_333, "stable"],
            "/derived/slots/1",
            "it is not [from, to, variant, revision]",
        ),
        (
            ("derived", "slots", 0, 1),
            333_334,
            "/derived/slots",
            "slots 333333 to 833333 do not follow slot 333334",
        ),
        (
            ("derived", "slots", 2, 1),
            999_999,
            "/derived/slots",
            "slots 999999 to 1000000 belong to nobody",
        ),
        (
            ("derived", "slots", 2, 2),
            "stable",
            "/derived/slots",
            "'canary' owns 333333 slots, its weight is 500000",
        ),
        (
            ("derived", "slots", 2, 2),
            "nobody",
            "/derived/slots",
            "'canary' owns 333333 slots, its weight is 500000",
        ),
        (("derived", "slots"), [], "/derived/slots", "slots 0 to 1000000 belong to nobody"),
        (
            ("variants", "canary", "weight"),
            50.0001,
            "/variants",
            "weights sum to 100.0001, not 100",
        ),
    ],
)
def test_what_contradicts_is_told_and_not_read(
    path: tuple[str | int, ...], value: object, pointer: str, sentence: str
) -> None:
    with pytest.raises(RouteError) as refused:
        read_changed(path, value)
    assert (pointer, sentence) in faults_of(refused.value)


def test_weights_that_contradict_the_slots_are_not_read() -> None:
    body = json.loads(with_a_past().body())
    body["variants"]["canary"]["weight"], body["variants"]["stable"]["weight"] = 40, 60
    with pytest.raises(RouteError) as refused:
        revisions.read(json.dumps(body).encode(), name=NAME)
    assert faults_of(refused.value) == [
        ("/derived/slots", "'canary' owns 500000 slots, its weight is 400000")
    ]


def test_reading_leaves_nothing_of_what_it_was_given() -> None:
    made = with_a_past()
    document: Plain = made.document()
    kept = deepcopy(document)
    document["derived"]["slots"].clear()
    assert made.document() == kept


def test_revisions_of_different_content_have_different_digests() -> None:
    start = first()
    moved = changes.follow(start, weighing(start.route, canary=20, stable=80), origin())
    others = [
        start,
        moved,
        replace(start, generation=2),
        replace(start, epoch=2),
        replace(start, origin=origin("replace")),
        replace(start, is_deleted=True),
        replace(start, carryover=(1,)),
        replace(start, warm=(Warm(model="m", version="1", until_ms=0),)),
    ]
    assert len({revision.document()["meta"]["digest"] for revision in others}) == len(others)
