"""The bounded memo: what is in use stays, nothing grows."""

from __future__ import annotations

from gateway.memo import Memo


def test_what_was_put_is_found_until_two_generations_have_passed_without_it() -> None:
    memo: Memo[str, int] = Memo(2)
    assert memo.get("a") is None
    assert memo.put("a", 1) == 1
    assert memo.get("a") == 1
    memo.put("b", 2)
    memo.put("c", 3)  # the second generation begins
    memo.put("d", 4)
    memo.put("e", 5)  # the third
    assert [memo.get(key) for key in "abc"] == [None, None, 3]


def test_an_entry_in_use_stays_whatever_passes_through() -> None:
    memo: Memo[str, int] = Memo(8)
    memo.put("hot", 1)
    for n in range(100):
        memo.put(f"cold {n}", n)
        assert (memo.recent.get("hot") or memo.get("hot")) == 1


def test_no_more_than_two_generations_of_entries_are_kept() -> None:
    memo: Memo[int, str] = Memo(8)
    for n in range(1_000):
        memo.put(n, "")
        memo.get(n - 9)
        assert len(memo) <= 16


def test_a_key_that_is_put_again_has_its_new_value() -> None:
    memo: Memo[str, int] = Memo(2)
    for n in range(5):
        memo.put("a", n)
        memo.put(f"b{n}", n)
        assert memo.get("a") == n
