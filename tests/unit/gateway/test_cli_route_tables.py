"""How the answers of the admin API look to people: values in, text out."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, TypeVar

import msgspec
import pytest

from gateway.cli import route_tables as tables
from gateway.cli.route_documents import (
    Audit,
    Convergence,
    Difference,
    Explanation,
    History,
    RouteList,
    Written,
)
from gateway.cli.route_text import Style, percent, printable, seconds, table
from tests.support.admin_script import convergence, document, written

_T = TypeVar("_T")
Json = Any  # Any: JSON


def read(value: Json, shape: type[_T]) -> _T:
    """Return a document as the client reads it."""
    return msgspec.json.decode(msgspec.json.encode(value), type=shape)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (Decimal(10), "10 %"),
        (Decimal("0.0001"), "0.0001 %"),
        (Decimal("33.3300"), "33.33 %"),
        (Decimal(0), "0 %"),
        (100.0, "100 %"),
        (None, "-"),
    ],
)
def test_a_share_has_no_needless_zeros(share: Decimal | float | None, text: str) -> None:
    assert percent(share) == text


def test_columns_are_aligned_and_empty_cells_are_dashes() -> None:
    assert table(("NAME", "N"), [("a", "10"), ("longer", "")], right=("N",)) == [
        "NAME     N",
        "a       10",
        "longer   -",
    ]


def test_only_a_coloured_table_has_escape_codes_and_they_move_no_column() -> None:
    plain = table(("A",), [("x",)])
    coloured = table(("A",), [("x",)], Style(is_coloured=True))
    assert plain == ["A", "x"]
    assert coloured == ["\x1b[1mA\x1b[0m", "x"]


def test_what_others_wrote_cannot_move_the_cursor_or_fake_a_line() -> None:
    assert printable("a\x1b[2Jb\nc") == "a\\x1b[2Jb\\nc"
    assert printable("Größe 中") == "Größe 中"
    rows = {"revisions": [{"revision": 1, "actor": "eve\x1b[31m", "reason": "x\ny"}]}
    text = tables.history(read(rows, History))
    assert "\x1b" not in text
    assert len(text.splitlines()) == 2


def test_parts_of_a_second_are_left_out() -> None:
    assert seconds("2026-11-21T11:00:00.123Z") == "2026-11-21T11:00:00Z"
    assert seconds("2026-11-21T11:00:00+01:00") == "2026-11-21T11:00:00+01:00"
    assert seconds("2026-11-21T11:00:00.5+01:00") == "2026-11-21T11:00:00+01:00"


def test_routes_are_listed_with_the_heaviest_variant_first() -> None:
    other = document(7, name="b", kind="experiment", emergency={"actor": "ann", "reason": "x"})
    text = tables.routes(read({"routes": [document(), other]}, RouteList))
    assert text.splitlines() == [
        "ROUTE   REVISION  KIND        SPLIT                     STABLE",
        "digits        42  rollout     stable 90 %, canary 10 %  stable",
        "b              7  experiment  stable 90 %, canary 10 %  stable (EMERGENCY ABORT)",
    ]
    assert tables.routes(read({"routes": []}, RouteList)) == "there are no routes"


def test_the_history_has_a_line_per_revision() -> None:
    rows = [
        {
            "revision": 43,
            "verb": "setWeights",
            "actor": "ann",
            "reason": "more",
            "created_at": "2026-11-21T11:00:00Z",
            "weights": {"canary": 20, "stable": 80},
        },
        {"revision": 9, "verb": "delete", "deleted": True, "weights": {"stable": 100}},
    ]
    assert tables.history(read({"revisions": rows}, History)).splitlines() == [
        "REVISION  WHEN                  WHO  VERB        SPLIT                     REASON",
        "      43  2026-11-21T11:00:00Z  ann  setWeights  stable 80 %, canary 20 %  more",
        "       9  -                     -    delete      (deleted)                 -",
    ]


def test_the_audit_shows_the_address_of_those_for_whom_nobody_vouches() -> None:
    entry = {
        "ts": "2026-11-21T11:00:00Z",
        "actor": "ann",
        "verb": "abort",
        "route": "digits",
        "from_revision": 42,
        "to_revision": 43,
        "moved_share_percent": 10.0,
        "source": "10.0.0.9",
        "reason": "errors",
    }
    entries = [entry | {"auth": "token"}, entry | {"auth": "none", "from_revision": 0}]
    assert tables.audit(read({"entries": entries}, Audit)).splitlines() == [
        "WHEN                  ROUTE   WHO             VERB   REVISION  MOVED  REASON",
        "2026-11-21T11:00:00Z  digits  ann             abort  42 -> 43   10 %  errors",
        "2026-11-21T11:00:00Z  digits  ann (10.0.0.9)  abort  - -> 43    10 %  errors",
    ]
    assert tables.audit(read({"entries": []}, Audit)) == "nobody changed anything"


def test_convergence_names_what_keeps_a_replica_behind() -> None:
    text = tables.convergence(read(convergence(43, 42), Convergence))
    assert text.splitlines() == [
        "digits: 1 of 2 replicas have revision 43",
        "REPLICA  REVISION  AGE S  STATE",
        "a              43    0.4  converged",
        "b              42    0.4  loading digits/2",
    ]


def test_a_replica_that_is_gone_is_shown_and_does_not_count() -> None:
    document = convergence(43, 42)
    document["replicas"][1] |= {"live": False, "age_s": 40.0, "pending": ""}
    text = tables.convergence(read(document, Convergence))
    assert text.splitlines() == [
        "digits: 1 of 1 replicas have revision 43",
        "REPLICA  REVISION  AGE S  STATE",
        "a              43    0.4  converged",
        "b              42   40.0  not heard of",
    ]


def test_a_difference_shows_what_came_and_what_went() -> None:
    found = {
        "from": 41,
        "to": 42,
        "moved_share_percent": 0.5,
        "diff": [
            {"path": "/kind", "from": "rollout", "to": "experiment"},
            {"path": "/shadows/v14", "to": {"model": "digits"}},
            {"path": "/fallback", "from": None},
        ],
    }
    assert tables.difference("digits", read(found, Difference)).splitlines() == [
        "digits: from revision 41 to 42, moved 0.5 % of the keys",
        '  ~ /kind: "rollout" -> "experiment"',
        '  + /shadows/v14: {"model":"digits"}',
        "  - /fallback: null",
    ]
    same = read(found | {"diff": []}, Difference)
    assert tables.difference("digits", same) == "digits: revisions 41 and 42 do not differ"


CHANGED = [
    "  ~ /variants/canary/weight: 10 -> 20",
    "  ~ /variants/stable/weight: 90 -> 80",
]


def test_a_write_says_which_revision_became_which_and_what_it_moved() -> None:
    text = tables.written(read(written(), Written), 42)
    head = "digits: revision 42 -> 43, moved 10 % of the keys"
    assert text.splitlines() == [head, *CHANGED]
    loads = written(loads=[{"model": "digits", "version": "2"}])
    assert tables.written(read(loads, Written), 42).splitlines()[-1] == "  loaded: digits/2"


@pytest.mark.parametrize(
    ("fields", "head"),
    [
        ({"changed": False}, "digits: unchanged at revision 43"),
        (
            {"dry_run": True, "changed": False},
            "dry run, nothing is changed: digits: unchanged at revision 43",
        ),
        (
            {"dry_run": True},
            "dry run, nothing is changed: digits: revision 42 -> 43, would move 10 % of the keys",
        ),
        (
            {"moved_share_percent": 0, "reversioned_share_percent": 99.5},
            "digits: revision 42 -> 43, moved 0 % of the keys (99.5 % get another version)",
        ),
        (
            {"document": document(43, deleted=True)},
            "digits: revision 42 -> 43, deleted",
        ),
        (
            {"document": document(1, meta={"verb": "create", "parent": 0})},
            "digits: created at revision 1",
        ),
        (
            {"document": document(43, generation=2, meta={"verb": "restore", "parent": 42})},
            "digits: restored as revision 43 of generation 2",
        ),
        ({"emergency": True}, "digits: all traffic of one replica to stable"),
        (
            {"emergency": True, "dry_run": True},
            "dry run, nothing is changed: digits: all traffic of one replica to stable",
        ),
    ],
)
def test_the_headline_of_a_write_says_what_came_of_it(fields: dict[str, Json], head: str) -> None:
    assert tables.written(read(written(**fields), Written), None).splitlines()[0] == head


BY_SLOT = {
    "route": "digits",
    "revision": 42,
    "key": "user-1",
    "key_source": "header:x-user-id",
    "slot": 292417,
    "hash": "4adbb11b2ddbd8fc",
    "reason": "slot",
    "rule": None,
    "variant": "stable",
    "model": "digits",
    "version": "1",
    "served": "stable",
    "propensity": 0.9,
    "shadows": ["v14"],
    "override_ignored": False,
}
SOMEBODY = "user-1 is in slot 292417 of revision 42"
NOBODY = "a request without a key, at revision 42"
NO_KEY: dict[str, Json] = {
    "key": None,
    "key_source": None,
    "slot": None,
    "hash": None,
    "shadows": [],
}
NO_VARIANT = {"variant": None, "model": None, "version": None, "served": None, "propensity": None}


def test_a_key_that_was_given_has_no_source_worth_a_line() -> None:
    assert "key from" not in tables.explanation(
        read(BY_SLOT | {"key_source": "query"}, Explanation)
    )


def test_an_explanation_is_one_sentence_and_its_details() -> None:
    assert tables.explanation(read(BY_SLOT, Explanation)).splitlines() == [
        "user-1 is in slot 292417 of revision 42: variant stable (digits 1), by its slot",
        "  key from: header:x-user-id",
        "  hash: 4adbb11b2ddbd8fc",
        "  propensity: 0.9",
        "  mirrored to: v14",
    ]


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        (
            {"reason": "rule:internal", "rule": "internal", "shadows": [], "hash": None},
            [
                f"{SOMEBODY}: variant stable (digits 1), by rule internal",
                "  key from: header:x-user-id",
                "  propensity: 0.9",
            ],
        ),
        (
            NO_KEY | {"reason": "no_key"},
            [
                f"{NOBODY}: variant stable (digits 1), because it has no key",
                "  propensity: 0.9",
            ],
        ),
        (
            NO_KEY
            | NO_VARIANT
            | {"reason": "random", "distribution": {"canary": 10, "stable": 90}},
            [f"{NOBODY}: drawn for every request: stable 90 %, canary 10 %"],
        ),
        (
            NO_KEY | NO_VARIANT | {"reason": "rejected", "error": "it needs a key"},
            [f"{NOBODY}: rejected, it needs a key"],
        ),
        (
            NO_KEY | {"served": "canary", "override_ignored": True, "propensity": None},
            [
                f"{NOBODY}: variant stable (digits 1), by its slot",
                "  the variant that it asks for is ignored: only testers may choose",
                "  stable is not ready; served by canary",
            ],
        ),
        (
            NO_KEY | {"served": None, "propensity": None},
            [
                f"{NOBODY}: variant stable (digits 1), by its slot",
                "  stable is not ready; served by nobody: neither it nor a fallback is ready",
            ],
        ),
    ],
    ids=["rule", "no key", "random", "rejected", "override and fallback", "nobody"],
)
def test_an_explanation_says_why(fields: dict[str, Json], lines: list[str]) -> None:
    assert tables.explanation(read(BY_SLOT | fields, Explanation)).splitlines() == lines
