"""The sample: uniform over ids of any pattern, the same for everybody, and its weights are true."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.ids import new_id, uuid7
from gateway.prediction_log.capture.sampling import Sampler, WholeShare, place

COUNT = 20_000
PATTERNS: dict[str, Callable[[int], bytes]] = {
    "counted from the end": lambda n: n.to_bytes(16),
    "counted from the front": lambda n: n.to_bytes(16, "little"),
    "counted in the middle": lambda n: bytes(6) + n.to_bytes(4) + bytes(6),
    "counted by 65,536": lambda n: (n << 16).to_bytes(16),
    "counted by 256": lambda n: (n << 8).to_bytes(16),
    "counted in decimal digits": lambda n: f"{n:016d}".encode(),
    "counted in hexadecimal digits": lambda n: f"{n:016x}".encode(),
    "one a millisecond": lambda n: uuid7(1_767_225_600_000 + n, 7),
    "in one millisecond": lambda n: uuid7(1_767_225_600_000, n),
    "drawn": lambda n: new_id(1_767_225_600_000 + n),
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_the_weights_sum_to_the_traffic_whatever_the_pattern_of_the_ids(
    pattern: str, share: float
) -> None:
    sampler = Sampler(share, 0)
    ids = map(PATTERNS[pattern], range(COUNT))
    total = sum(sampler.weigh(rid, 200, 1)[0] for rid in ids)
    # Five standard deviations of a fair draw.
    assert abs(total - COUNT) < 5 * math.sqrt(COUNT * (1 - share) / share)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_places_are_spread_evenly_and_so_are_those_of_the_whole_share(pattern: str) -> None:
    for bits in (4, 8):
        places = 1 << bits
        cells: dict[int, int] = {}
        for n in range(COUNT):
            cell = place(PATTERNS[pattern](n)) >> (32 - bits)
            cells[cell] = cells.get(cell, 0) + 1
        expected = COUNT / places
        chi_square = sum((cells.get(c, 0) - expected) ** 2 / expected for c in range(places))
        # Of chi square with k degrees of freedom: mean k, variance 2 k.
        assert chi_square < places + 7 * math.sqrt(2 * places)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_whole_share_of_a_sample_is_that_of_all(pattern: str) -> None:
    sampler, whole = Sampler(0.25, 0), WholeShare(0.25)
    kept = [rid for n in range(COUNT) if sampler.weigh(rid := PATTERNS[pattern](n), 200, 1)[0]]
    both = sum(whole.takes(rid) for rid in kept)
    assert abs(both - len(kept) / 4) < 5 * math.sqrt(len(kept) * 3 / 16)


@given(
    st.binary(min_size=16, max_size=16),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(200, 599),
    st.integers(0, 1 << 40),
)
def test_a_larger_share_keeps_all_that_a_smaller_one_keeps(
    rid: bytes, one: float, other: float, status: int, total_us: int
) -> None:
    small, large = sorted((one, other))
    less, more = (Sampler(share, 1 << 30).weigh(rid, status, total_us) for share in (small, large))
    assert more[0] > 0 or less[0] == 0
    assert (
        less[1]
        == more[1]
        == ("error" if status >= 400 else "slow" if total_us > 1 << 30 else "base")
    )
    assert less[0] >= 1.0 or less[0] == 0.0
