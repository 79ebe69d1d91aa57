"""Entry ids, and where streams stand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.prediction_log.streams import (
    EntryId,
    StreamKind,
    erased_key,
    owner_key,
    schema_key,
    stream_key,
    streams_key,
)

ids = st.builds(EntryId, st.integers(0, 1 << 60), st.integers(0, 1 << 60))


@given(ids)
def test_an_id_reads_back_from_its_text(entry_id: EntryId) -> None:
    assert EntryId.parse(str(entry_id)) == entry_id == EntryId.parse(str(entry_id).encode())


def test_all_keys_of_a_name_share_a_cluster_slot() -> None:
    assert stream_key("digits", "gw-1") == "pl:{digits}:gw-1"
    assert streams_key("digits") == "pl:{digits}:streams"
    assert stream_key("digits", "gw-1", StreamKind.SHADOW) == "pl:{digits}:shadow:gw-1"
    assert streams_key("digits", StreamKind.SHADOW) == "pl:{digits}:shadow:streams"
    assert stream_key("digits", "gw-1", StreamKind.AUDIT) == "pl:{digits}:gw-1"
    assert owner_key("digits", "gw-1") == "pl:{digits}:owner:gw-1"
    assert schema_key("digits") == "pl:{digits}:schema"
    assert erased_key("digits") == "pl:{digits}:erased"
