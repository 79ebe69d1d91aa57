"""The split through whole decisions: who gets a key, how exact the shares are, and who moves.

The map of slots behind it has its own properties (test_slot_map_properties.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from itertools import pairwise
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from router import changes
from router.policy import REASON_RANDOM, REASON_SLOT, CompiledRoute
from router.revisions import Origin, Revision
from router.routes import Route, Variant
from router.slots import SLOTS, KeySpace

KEYS = 100_000
ORIGIN = Origin(verb="setWeights", actor="ann", reason="a test", created_ms=0)

salts = st.text(max_size=20)
keys = st.binary(min_size=1, max_size=40)


def route_of(sizes: Sequence[int], salt: str = "exp1") -> Route:
    variants = tuple(
        Variant(name=f"v{n}", model="m", version=str(n + 1), slots=size)
        for n, size in enumerate(sizes)
    )
    return Route(name="r", revision=1, salt=salt, key=(), variants=variants)


def compiled(sizes: Sequence[int], salt: str = "exp1") -> CompiledRoute:
    return CompiledRoute.compile(route_of(sizes, salt))


def after_all(steps: Sequence[Sequence[int]]) -> list[CompiledRoute]:
    """Return the route after each of the changes of its weights."""
    revision: Revision = changes.first(route_of(steps[0]), ORIGIN)
    found = [CompiledRoute.of(revision, 0)]
    for sizes in steps[1:]:
        revision = changes.follow(revision, route_of(sizes), ORIGIN)
        found.append(CompiledRoute.of(revision, 0))
    return found


def chosen(route: CompiledRoute, key: bytes) -> str:
    return route.decide(key, never).variant.name


def never() -> float:
    raise AssertionError("a keyed request draws no number")


@st.composite
def splits(draw: st.DrawFn, variants: int | None = None) -> list[int]:
    """Draw slot sizes that add up to all slots; zeros among them."""
    count = draw(st.integers(1, 5)) if variants is None else variants
    cuts = sorted(draw(st.lists(st.integers(0, SLOTS), min_size=count - 1, max_size=count - 1)))
    return [b - a for a, b in zip([0, *cuts], [*cuts, SLOTS], strict=True)]


@given(salt=salts, key=keys)
def test_a_slot_is_the_documented_function_of_salt_and_key(salt: str, key: bytes) -> None:
    head = sha256(salt.encode() + b"\0" + key).digest()[:8]
    slot = KeySpace(salt).slot(key)
    assert slot == int.from_bytes(head, "big") * SLOTS // 2**64
    assert 0 <= slot < SLOTS


@given(sizes=splits(), salt=salts, key=keys)
def test_the_same_key_gets_the_same_variant_from_every_copy_of_a_route(
    sizes: list[int], salt: str, key: bytes
) -> None:
    first, second = compiled(sizes, salt), compiled(sizes, salt)
    decision = first.decide(key, never)
    assert decision.reason == REASON_SLOT
    assert [first.decide(key, never), second.decide(key, never)] == [decision] * 2
    assert decision.propensity == decision.variant.slots / SLOTS > 0


@given(
    sizes=splits(variants=3),
    emptied=st.integers(0, 2),
    draws=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=50),
    some_keys=st.lists(keys, min_size=1, max_size=50),
)
def test_weight_zero_gets_nothing_with_and_without_a_key(
    sizes: list[int], emptied: int, draws: list[float], some_keys: list[bytes]
) -> None:
    sizes[(emptied + 1) % 3] += sizes[emptied]
    sizes[emptied] = 0
    route = compiled(sizes)
    answers = [route.decide(None, lambda d=d: d) for d in draws]  # type: ignore[misc]
    assert {a.reason for a in answers} == {REASON_RANDOM}
    names = {a.variant.name for a in answers} | {chosen(route, key) for key in some_keys}
    assert f"v{emptied}" not in names


@given(everything=st.integers(0, 3), draw=st.floats(0, 1, exclude_max=True), key=st.none() | keys)
def test_weight_one_hundred_gets_everything(
    everything: int, draw: float, key: bytes | None
) -> None:
    sizes = [SLOTS if n == everything else 0 for n in range(4)]
    decision = compiled(sizes).decide(key, lambda: draw)
    assert decision.variant.name == f"v{everything}"
    assert decision.propensity == 1.0


@settings(max_examples=150)
@given(
    steps=st.lists(splits(variants=4), min_size=2, max_size=5),
    some_keys=st.lists(keys, min_size=1, max_size=60),
)
def test_a_change_moves_keys_only_from_a_shrinking_variant_to_a_growing_one(
    steps: list[list[int]], some_keys: list[bytes]
) -> None:
    routes = after_all(steps)
    for (old, new), (before, after) in zip(pairwise(steps), pairwise(routes), strict=True):
        for key in some_keys:
            was, now = (int(chosen(route, key)[1:]) for route in (before, after))
            assert was == now or (new[was] < old[was] and new[now] > old[now])


def test_ten_percent_grown_to_twenty_and_back_is_the_same_people() -> None:
    ten, twenty, back = after_all([[900_000, 100_000], [800_000, 200_000], [900_000, 100_000]])
    canary, grown = [0, 0], [0, 0]
    for n in range(KEYS):
        key = b"user-%d" % n
        was, now, then = (chosen(route, key) == "v1" for route in (ten, twenty, back))
        assert was == then
        assert now or not was  # nobody leaves a canary that grows
        canary[was] += 1
        grown[now] += 1
    assert 0.0969 <= canary[True] / KEYS <= 0.1031
    assert 0.1969 <= grown[True] / KEYS <= 0.2031


def test_unkeyed_requests_are_split_by_weight() -> None:
    route, rng = compiled([900_000, 100_000]), Random(7)
    counts = Counter(route.decide(None, rng.random).variant.name for _ in range(KEYS))
    assert 0.0969 <= counts["v1"] / KEYS <= 0.1031
