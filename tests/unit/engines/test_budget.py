"""Memory admission: the estimate, its limit, and the sentence of a refusal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.budget import admit, estimate_bytes, shown
from engines.errors import DeviceUnavailable

GIB = 1 << 30


def test_the_estimate_is_four_files_and_a_largest_batch_per_lane() -> None:
    assert estimate_bytes(100, 7, 3) == 421


def test_a_load_that_leaves_the_reserve_exactly_is_admitted() -> None:
    admit(need_bytes=6 * GIB, free_bytes=8 * GIB, reserve_bytes=2 * GIB, what="x")


def test_a_load_that_leaves_a_byte_less_is_refused_with_the_figures() -> None:
    refused = r"^model\.onnx on cuda:0 needs about 6\.0 GiB, and of 8\.0 GiB that are free 2\.0 GiB"
    with pytest.raises(DeviceUnavailable, match=refused + " must stay so$"):
        admit(
            need_bytes=6 * GIB + 1,
            free_bytes=8 * GIB,
            reserve_bytes=2 * GIB,
            what="model.onnx on cuda:0",
        )


def test_without_a_reserve_nothing_is_estimated() -> None:
    admit(need_bytes=2048, free_bytes=512, reserve_bytes=0, what="x")


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (1536 << 10, "1.5 MiB"),
        (80 << 30, "80.0 GiB"),
    ],
)
def test_sizes_are_written_for_people(size_bytes: int, text: str) -> None:
    assert shown(size_bytes) == text


SIZES = st.integers(min_value=0, max_value=1 << 40)


@given(need=SIZES, free=SIZES, reserve=SIZES)
def test_what_is_admitted_leaves_the_reserve_and_what_is_refused_does_not(
    need: int, free: int, reserve: int
) -> None:
    try:
        admit(need_bytes=need, free_bytes=free, reserve_bytes=reserve, what="x")
    except DeviceUnavailable:
        assert 0 < reserve > free - need
    else:
        assert free - need >= reserve or not reserve
