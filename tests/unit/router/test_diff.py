"""What differs between two documents."""

from __future__ import annotations

import pytest

from router.diff import diff
from router.document import write
from tests.support.routes import Plain, plain, route, rule, variants

ONE = {"variants": {"a": {"version": "1", "weight": 90}}, "salt": "s"}


@pytest.mark.parametrize(
    ("after", "changes"),
    [
        (ONE, []),
        ({**ONE, "salt": "t"}, [{"path": "/salt", "from": "s", "to": "t"}]),
        ({**ONE, "key": []}, [{"path": "/key", "to": []}]),
        ({"variants": ONE["variants"]}, [{"path": "/salt", "from": "s"}]),
        (
            {**ONE, "variants": {"a": {"version": "2", "weight": 90.5}}},
            [
                {"path": "/variants/a/version", "from": "1", "to": "2"},
                {"path": "/variants/a/weight", "from": 90, "to": 90.5},
            ],
        ),
        (
            {**ONE, "variants": {"b": {"version": "1"}}},
            [
                {"path": "/variants/a", "from": {"version": "1", "weight": 90}},
                {"path": "/variants/b", "to": {"version": "1"}},
            ],
        ),
        ({**ONE, "variants": None}, [{"path": "/variants", "from": ONE["variants"], "to": None}]),
        ({**ONE, "a/b~c": 1}, [{"path": "/a~1b~0c", "to": 1}]),
    ],
)
def test_changes_are_told_by_pointer_with_both_sides(after: Plain, changes: list[Plain]) -> None:
    assert diff(ONE, after) == changes


def test_lists_are_compared_as_a_whole() -> None:
    before, after = ({"rules": [{"name": "a", "enabled": e}]} for e in (True, False))
    assert diff(before, after) == [
        {"path": "/rules", "from": before["rules"], "to": after["rules"]}
    ]


def test_what_the_store_assigns_is_no_change() -> None:
    assigned = {"revision": 4, "generation": 2, "derived": {}, "meta": {}, "deleted": True}
    assert diff(ONE, {**ONE, **assigned}) == []
    assert diff({**ONE, **assigned}, ONE) == []


def test_of_a_route_that_was_not_there_everything_is_new() -> None:
    assert diff(None, {"salt": "s", "revision": 1}) == [{"path": "/salt", "to": "s"}]


def test_a_changed_weight_is_one_line() -> None:
    before = write(route())
    after = write(route(**plain(variants=variants(stable=80, canary=20))))
    assert diff(before, after) == [
        {"path": "/variants/canary/weight", "from": 10, "to": 20},
        {"path": "/variants/stable/weight", "from": 90, "to": 80},
    ]


def test_a_new_rule_is_told_with_the_rules_before_and_after() -> None:
    (change,) = diff(write(route()), write(route(rules=[rule()])))
    assert (change["path"], change["from"], len(change["to"])) == ("/rules", [], 1)
