"""Feedback takes whatever comes: a result for every item, and a label says what its item said."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import MalformedRequest
from gateway.grpc_api.feedback import read_item
from gateway.http_api.feedback import read_body
from gateway.pb import feedback_pb2 as pb
from gateway.prediction_log.record import LoggedLabel, decode_any, encode_logged
from tests.support.feedback import Desk, request_id

_SCALARS: st.SearchStrategy[Any] = (  # Any: a JSON value
    st.none()
    | st.booleans()
    | st.integers(-(1 << 66), 1 << 66)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10)
)
JSON_VALUES: st.SearchStrategy[Any] = st.recursive(  # Any: as above
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=10,
)
_FIELDS = (
    "id",
    "request_id",
    "correlation_id",
    "target",
    "time",
    "source",
    "weight",
    "label_version",
    "idempotency_key",
    "other",
)
_ITEMS = st.lists(
    JSON_VALUES | st.dictionaries(st.sampled_from(_FIELDS), JSON_VALUES, max_size=5),
    min_size=1,
    max_size=5,
)


def _fits(value: Any) -> bool:  # Any: a JSON value
    """Whether every integer in a value is one that msgpack has."""
    if isinstance(value, dict):
        return all(_fits(inner) for inner in value.values())
    if isinstance(value, list):
        return all(_fits(inner) for inner in value)
    return not isinstance(value, int) or -(1 << 63) <= value < 1 << 64


@given(_ITEMS)
def test_every_item_gets_a_result_whatever_it_is(items: list[Any]) -> None:
    desk = Desk()
    results = desk.results(*read_body(json.dumps({"items": items}).encode()))
    assert len(results) == len(items)
    accepted = [result.status == "accepted" for result in results]
    assert sum(accepted) == len(desk.log.taken)
    assert all(
        bool(result.reason) != is_accepted
        for result, is_accepted in zip(results, accepted, strict=True)
    )


@given(JSON_VALUES)
def test_a_label_has_the_target_that_was_sent_over_either_protocol(target: object) -> None:
    text = json.dumps(target)
    desk = Desk()
    body = f'{{"items": [{{"id": "{request_id()}", "target": {text}}}]}}'
    message = pb.FeedbackItem(request_id=request_id(), json=text)
    results = desk.results(*read_body(body.encode()), read_item(message))
    expected = "accepted" if _fits(target) else "invalid"
    assert [result.status for result in results] == [expected, expected]
    for label in desk.log.taken:
        logged = decode_any(encode_logged(label.to_logged("w", 1)))
        assert isinstance(logged, LoggedLabel)
        assert json.dumps(logged.target) == text


@given(st.binary(max_size=200))
def test_bytes_that_are_no_body_are_refused_or_read(body: bytes) -> None:
    try:
        items = read_body(body)
    except MalformedRequest:
        return
    assert isinstance(items, list)
