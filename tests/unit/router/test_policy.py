"""Decisions: by key, by a drawn number, and what is said about them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from router.policy import REASON_RANDOM, REASON_SLOT, CompiledRoute
from router.routes import Route, Variant
from router.slots import KeySpace


def compiled(**sizes: int) -> CompiledRoute:
    variants = tuple(
        Variant(name=name, model="digits", version=str(n + 1), slots=size)
        for n, (name, size) in enumerate(sizes.items())
    )
    return CompiledRoute.compile(
        Route(name="digits", revision=3, salt="exp1", key=(), variants=variants)
    )


SPLIT = compiled(stable=900_000, canary=100_000)


def drawing(number: float) -> Callable[[], float]:
    return lambda: number


def never() -> float:
    raise AssertionError("a keyed request draws no number")


@pytest.mark.parametrize(
    ("key", "variant", "slot", "propensity"),
    [("user-0", "stable", 292417, 0.9), ("é", "canary", 962370, 0.1)],
)
def test_a_key_is_decided_by_its_slot(key: str, variant: str, slot: int, propensity: float) -> None:
    decision = SPLIT.decide(key.encode(), never)
    assert decision.variant.name == variant
    assert decision[1:] == (REASON_SLOT, slot, propensity)


@pytest.mark.parametrize("key", [None, b""])
def test_a_missing_or_empty_key_is_decided_by_the_drawn_number(key: bytes | None) -> None:
    decision = SPLIT.decide(key, drawing(0.95))
    assert decision.variant.name == "canary"
    assert decision[1:] == (REASON_RANDOM, 950_000, 0.1)


@pytest.mark.parametrize(
    ("number", "variant"),
    [
        (0.0, "stable"),
        (0.8999999, "stable"),
        (0.9, "canary"),
        (1 - 2**-53, "canary"),
    ],
)
def test_the_whole_range_of_the_drawn_number_is_used(number: float, variant: str) -> None:
    assert SPLIT.decide(None, drawing(number)).variant.name == variant


def test_a_key_is_put_into_the_key_space_of_the_routes_salt() -> None:
    assert SPLIT.decide(b"user-7", never).slot == KeySpace("exp1").slot(b"user-7")


def test_ranges_follow_the_order_of_the_document_and_not_of_the_names() -> None:
    reversed_split = compiled(z=500_000, a=500_000)
    assert reversed_split.decide(None, drawing(0.1)).variant.name == "z"
    assert reversed_split.decide(None, drawing(0.6)).variant.name == "a"
