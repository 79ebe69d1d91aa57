"""The split: who gets a key, how exact the shares are, and who moves when a weight changes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.policy import REASON_RANDOM, REASON_SLOT, CompiledRoute
from router.routes import Route, Variant
from router.slots import SLOTS, KeySpace, SlotMap

salts = st.text(max_size=20)
keys = st.binary(min_size=1, max_size=40)


def compiled(sizes: Sequence[int], salt: str = "exp1") -> CompiledRoute:
    variants = tuple(
        Variant(name=f"v{n}", model="m", version=str(n + 1), slots=size)
        for n, size in enumerate(sizes)
    )
    return CompiledRoute.compile(Route(name="r", revision=1, salt=salt, key=(), variants=variants))


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


@settings(deadline=None)
@given(salt=salts, key=keys)
def test_a_slot_is_the_documented_function_of_salt_and_key(salt: str, key: bytes) -> None:
    head = sha256(salt.encode() + b"\0" + key).digest()[:8]
    slot = KeySpace(salt).slot(key)
    assert slot == int.from_bytes(head, "big") * SLOTS // 2**64
    assert 0 <= slot < SLOTS


@settings(deadline=None)
@given(sizes=splits(), salt=salts, key=keys)
def test_the_same_key_gets_the_same_variant_from_every_copy_of_a_route(
    sizes: list[int], salt: str, key: bytes
) -> None:
    first, second = compiled(sizes, salt), compiled(sizes, salt)
    decision = first.decide(key, never)
    assert decision.reason == REASON_SLOT
    assert [first.decide(key, never), second.decide(key, never)] == [decision] * 2
    assert decision.propensity == decision.variant.slots / SLOTS > 0


@settings(deadline=None)
@given(sizes=splits(), probes=st.lists(st.integers(0, SLOTS - 1), max_size=50))
def test_every_slot_has_one_owner_and_every_owner_its_size(
    sizes: list[int], probes: list[int]
) -> None:
    owners = SlotMap(sizes)
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    edges = [slot for a, n in zip(starts, sizes, strict=True) if n for slot in (a, a + n - 1)]
    for slot in (*probes, *edges):
        owner = owners.owner(slot)
        assert starts[owner] <= slot < starts[owner] + sizes[owner]


@settings(deadline=None)
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


@settings(deadline=None)
@given(everything=st.integers(0, 3), draw=st.floats(0, 1, exclude_max=True), key=st.none() | keys)
def test_weight_one_hundred_gets_everything(
    everything: int, draw: float, key: bytes | None
) -> None:
    sizes = [SLOTS if n == everything else 0 for n in range(4)]
    decision = compiled(sizes).decide(key, lambda: draw)
    assert decision.variant.name == f"v{everything}"
    assert decision.propensity == 1.0


@settings(deadline=None, max_examples=200)
@given(
    sizes=splits(variants=4),
    pair=st.integers(0, 2),
    is_left_growing=st.booleans(),
    share=st.floats(0, 1),
    some_keys=st.lists(keys, min_size=1, max_size=60),
)
def test_growing_a_weight_moves_keys_only_from_the_shrinking_neighbour_to_the_growing(
    sizes: list[int], pair: int, is_left_growing: bool, share: float, some_keys: list[bytes]
) -> None:
    growing, shrinking = (pair, pair + 1) if is_left_growing else (pair + 1, pair)
    moved = int(sizes[shrinking] * share)
    after_sizes = list(sizes)
    after_sizes[growing] += moved
    after_sizes[shrinking] -= moved
    before, after = compiled(sizes), compiled(after_sizes)
    for key in some_keys:
        was, now = chosen(before, key), chosen(after, key)
        assert was == now or (was, now) == (f"v{shrinking}", f"v{growing}")


@settings(deadline=None)
@given(canary=st.integers(0, SLOTS), more=st.integers(0, SLOTS))
def test_of_all_slots_exactly_the_change_of_weight_moves(canary: int, more: int) -> None:
    grown = min(SLOTS, canary + more)
    before, after = SlotMap([SLOTS - canary, canary]), SlotMap([SLOTS - grown, grown])
    # Owners change at range ends only, so looking at the ends counts every slot.
    edge_before, edge_after = SLOTS - canary, SLOTS - grown
    assert edge_before - edge_after == grown - canary
    for slot in {0, edge_after - 1, edge_after, edge_before - 1, edge_before, SLOTS - 1}:
        if 0 <= slot < SLOTS:
            has_moved = edge_after <= slot < edge_before
            assert (before.owner(slot) != after.owner(slot)) == has_moved
            assert before.owner(slot) == (1 if slot >= edge_before else 0)


def chi_square_p(observed: Sequence[int], expected: Sequence[float]) -> float:
    """Upper tail of chi-square for one or two degrees of freedom, in closed form."""
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    if len(observed) == 2:
        return math.erfc(math.sqrt(statistic / 2))
    assert len(observed) == 3
    return math.exp(-statistic / 2)


KEYS = 100_000
SPLITS = ([900_000, 100_000], [990_000, 10_000], [500_000, 300_000, 200_000])


@pytest.fixture(scope="module")
def salted_slots() -> dict[str, list[int]]:
    texts = [f"user-{n}".encode() for n in range(KEYS)]
    found = {}
    for n in range(20):
        space = KeySpace(f"salt-{n}")
        found[f"salt-{n}"] = [space.slot(key) for key in texts]
    return found


def test_over_twenty_salts_the_shares_of_many_keys_are_those_of_the_weights(
    salted_slots: dict[str, list[int]],
) -> None:
    tails = []
    for slots in salted_slots.values():
        for sizes in SPLITS:
            owners = SlotMap(sizes)
            counts = Counter(owners.owner(slot) for slot in slots)
            observed = [counts[n] for n in range(len(sizes))]
            tails.append(chi_square_p(observed, [KEYS * size / SLOTS for size in sizes]))
    assert min(tails) > 0.0005
    assert sum(tail < 0.01 for tail in tails) <= 1


def test_ten_percent_is_ten_percent(salted_slots: dict[str, list[int]]) -> None:
    canary = sum(slot >= 900_000 for slot in salted_slots["salt-0"])
    assert 0.0969 <= canary / KEYS <= 0.1031


def test_two_salts_assign_independently(salted_slots: dict[str, list[int]]) -> None:
    pairs = zip(salted_slots["salt-0"], salted_slots["salt-1"], strict=True)
    both = Counter((a < SLOTS // 2, b < SLOTS // 2) for a, b in pairs)
    agreeing = both[True, True] + both[False, False]
    assert chi_square_p([agreeing, KEYS - agreeing], [KEYS / 2] * 2) > 0.001


def test_one_percent_of_few_keys_is_one_percent_over_many_salts() -> None:
    texts = [f"k{n}".encode() for n in range(200)]
    shares = []
    for n in range(1_000):
        space = KeySpace(f"s{n}")
        shares.append(sum(space.slot(key) >= 990_000 for key in texts) / len(texts))
    assert 0.009 <= sum(shares) / len(shares) <= 0.011


def test_unkeyed_requests_are_split_by_weight() -> None:
    route, rng = compiled([900_000, 100_000]), Random(7)
    counts = Counter(route.decide(None, rng.random).variant.name for _ in range(KEYS))
    assert 0.0969 <= counts["v1"] / KEYS <= 0.1031
