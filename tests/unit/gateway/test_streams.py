"""Entry ids and what a writer knows of its stream."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.prediction_log.streams import BEFORE_ALL, EntryId, Stream, stream_key, streams_key

ids = st.builds(EntryId, st.integers(0, 1 << 60), st.integers(0, 1 << 60))


@given(ids)
def test_an_id_reads_back_from_its_text(entry_id: EntryId) -> None:
    assert EntryId.parse(str(entry_id)) == entry_id == EntryId.parse(str(entry_id).encode())


@given(st.lists(st.tuples(st.integers(0, 1 << 50), st.none() | ids), min_size=1))
def test_ids_grow_whatever_the_clock_does_and_whatever_redis_has(
    moments: list[tuple[int, EntryId | None]],
) -> None:
    stream = Stream("digits", "key")
    last = BEFORE_ALL
    for now_ms, found in moments:
        if found is not None:
            stream.sync(found, 1)
            last = max(last, found)
        given_id = stream.next_id(now_ms)
        assert given_id > last
        assert given_id.ms >= now_ms
        last = given_id


def test_an_id_bears_the_time_at_which_it_was_given() -> None:
    stream = Stream("digits", "key")
    times_ms = [5, 5, 7, 6, 8]
    found = [str(stream.next_id(now_ms)) for now_ms in times_ms]
    assert found == ["5-0", "5-1", "7-0", "7-1", "8-0"]


def test_less_than_was_confirmed_means_that_redis_forgot() -> None:
    stream = Stream("digits", "key")
    stream.confirm(EntryId(9, 1))
    stream.confirm(EntryId(8, 0))
    assert not stream.sync(EntryId(9, 1), 1)
    assert not stream.sync(EntryId(9, 2), 2)
    assert stream.sync(EntryId(9, 0), 3)
    assert not stream.sync(EntryId(9, 0), 4)
    assert stream.next_id(1) > EntryId(9, 2)


def test_all_keys_of_a_name_share_a_cluster_slot() -> None:
    assert stream_key("digits", "gw-1") == "pl:{digits}:gw-1"
    assert streams_key("digits") == "pl:{digits}:streams"
    assert stream_key("digits", "gw-1", is_shadow=True) == "pl:{digits}:shadow:gw-1"
    assert streams_key("digits", is_shadow=True) == "pl:{digits}:shadow:streams"
