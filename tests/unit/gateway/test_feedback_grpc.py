"""Feedback as protobuf: what a message may hold, and what is answered."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.errors import MalformedRequest, NotAuthenticated, PayloadTooLarge, UnknownName
from gateway.feedback import MAX_REQUEST_BYTES, Item
from gateway.grpc_api.feedback import SEND, SERVICE, FeedbackService, read_item
from gateway.pb import feedback_pb2 as pb
from gateway.prediction_log_config import FeedbackConfig
from gateway.request import no_headers
from tests.support.feedback import DAY_US, NAME, NOW_US, Desk, request_id


def send(desk: Desk, data: bytes) -> pb.FeedbackResponse:
    """Send a message to the service of a desk."""
    method = FeedbackService(desk.feedback).methods[SEND]

    async def work() -> bytes:
        return await method(data, no_headers)

    return pb.FeedbackResponse.FromString(asyncio.run(work()))


def test_the_service_has_the_name_that_clients_address() -> None:
    assert f"/{SERVICE}/{SEND}" == "/sluice.v1.Feedback/Send"


def test_an_item_is_read_with_all_its_fields() -> None:
    item = pb.FeedbackItem(
        request_id="r",
        json='[1, {"a": null}]',
        time_us=17,
        source="s",
        weight=2.0,
        label_version=4,
        idempotency_key="k",
    )
    assert read_item(item) == Item("r", "", [1, {"a": None}], 17, "s", 2.0, 4, "k")


def test_what_is_absent_has_its_default() -> None:
    assert read_item(pb.FeedbackItem(correlation_id="c", truth=False)) == Item("", "c", False)


@pytest.mark.parametrize(
    ("fields", "target"),
    [
        ({"integer": -(1 << 63)}, -(1 << 63)),
        ({"number": 1.0}, 1.0),
        ({"truth": True}, True),
        ({"text": ""}, ""),
        ({"json": "null"}, None),
        ({"json": "9007199254740993"}, 9_007_199_254_740_993),
    ],
)
def test_a_target_keeps_its_type(fields: dict[str, Any], target: object) -> None:
    item = read_item(pb.FeedbackItem(request_id="r", **fields))
    assert isinstance(item, Item)
    assert item.target == target
    assert type(item.target) is type(target)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({}, "it has no target"), ({"json": "{"}, "target: "), ({"json": "NaN"}, "target: ")],
)
def test_an_item_without_a_readable_target_says_why(fields: dict[str, Any], reason: str) -> None:
    said = read_item(pb.FeedbackItem(request_id="r", **fields))
    assert isinstance(said, str)
    assert said.startswith(reason)


def test_the_answer_has_a_result_for_every_item_in_order() -> None:
    desk = Desk()
    request = pb.FeedbackRequest(model_name=NAME)
    good = request.items.add(request_id=request_id(), text="seven")
    request.items.append(good)
    request.items.add(request_id=request_id(NOW_US - 40 * DAY_US), text="seven")
    request.items.add(request_id=request_id(), number=float("nan"))
    request.items.add(request_id=request_id(), integer=7, weight=0.0)
    results = send(desk, request.SerializeToString()).results
    kinds = pb.FeedbackResult
    expected = [kinds.ACCEPTED, kinds.DUPLICATE, kinds.TOO_LATE, kinds.INVALID, kinds.INVALID]
    assert [result.status for result in results] == expected
    assert [bool(result.reason) for result in results] == [False, True, True, True, True]
    assert [label.target for label in desk.log.taken] == ["seven"]


def test_calls_that_are_none_are_refused() -> None:
    request = pb.FeedbackRequest(model_name="nobody", items=[pb.FeedbackItem(truth=True)])
    with pytest.raises(UnknownName):
        send(Desk(), request.SerializeToString())
    with pytest.raises(MalformedRequest, match="no FeedbackRequest message"):
        send(Desk(), b"\xff")
    with pytest.raises(MalformedRequest, match="there are no items"):
        send(Desk(), pb.FeedbackRequest(model_name=NAME).SerializeToString())
    with pytest.raises(PayloadTooLarge):
        send(Desk(), bytes(MAX_REQUEST_BYTES + 1))
    with pytest.raises(NotAuthenticated):
        send(Desk(config=FeedbackConfig(require_principal=True)), b"\xff")
