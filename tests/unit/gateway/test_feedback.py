"""What feedback takes, refuses and remembers, item by item and call by call."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import Any

import pytest

from gateway import ids
from gateway.config import PrincipalConfig
from gateway.errors import (
    Draining,
    MalformedRequest,
    NotAllowed,
    NotAuthenticated,
    PayloadTooLarge,
    Starting,
    StatusTable,
    UnknownName,
)
from gateway.feedback import (
    MAX_ITEMS,
    MAX_REQUEST_BYTES,
    MAX_TARGET_BYTES,
    MAX_TARGET_DEPTH,
    SKEW_US,
    NotWritten,
    check_size,
    read_json,
)
from gateway.feedback_metrics import FeedbackCollector
from gateway.prediction_log.record import LoggedLabel, decode_any, encode_logged
from gateway.prediction_log_config import FeedbackConfig
from gateway.principals import Principals
from gateway.request import no_headers
from tests.support.feedback import DAY_US, NAME, NOW_US, Desk, LabelsKept, item, request_id


def _nested(depth: int) -> Any:  # Any: lists in lists
    value: Any = []  # Any: as above
    for _ in range(depth - 1):
        value = [value]
    return value


def test_an_accepted_item_is_a_label_with_all_that_was_said() -> None:
    desk = Desk()
    asked = request_id(NOW_US - DAY_US)
    given = item(
        request_id=asked,
        target={"class": "seven", "scores": [1, 0.5, None]},
        time_us=NOW_US - 1_000,
        source="reviewer",
        weight=2.5,
        version=3,
        idempotency_key="k-1",
    )
    assert desk.send(given) == ["accepted"]
    logged = decode_any(encode_logged(desk.log.taken[0].to_logged("worker-1", 5)))
    assert logged == LoggedLabel(
        schema=1,
        worker="worker-1",
        seq=5,
        ts_us=NOW_US - 1_000,
        received_us=NOW_US,
        name=NAME,
        target={"class": "seven", "scores": [1, 0.5, None]},
        rid=bytes.fromhex(asked.replace("-", "")),
        source="reviewer",
        weight=2.5,
        version=3,
        idempotency_key="k-1",
    )


def test_a_label_without_a_time_is_of_the_moment_it_came() -> None:
    desk = Desk()
    desk.send(item())
    assert (desk.log.taken[0].ts_us, desk.log.taken[0].received_us) == (NOW_US, NOW_US)


def test_a_correlation_id_names_a_prediction_of_any_age() -> None:
    desk = Desk()
    assert desk.send(item(request_id="", correlation_id="order 17")) == ["accepted"]
    assert (desk.log.taken[0].rid, desk.log.taken[0].cid) == (b"", "order 17")


@pytest.mark.parametrize("target", [None, False, 0, "", [], {}, -(1 << 63), (1 << 64) - 1, 1e300])
def test_any_json_value_is_a_target(target: object) -> None:
    desk = Desk()
    assert desk.send(item(target=target)) == ["accepted"]
    logged = decode_any(encode_logged(desk.log.taken[0].to_logged("w", 1)))
    assert isinstance(logged, LoggedLabel)
    assert logged.target == target
    assert type(logged.target) is type(target)


REFUSED = {
    "no id": ({"request_id": ""}, "exactly one of request_id and correlation_id"),
    "both ids": ({"correlation_id": "c"}, "exactly one of request_id and correlation_id"),
    "no uuid": ({"request_id": "17"}, "'17' is no x-request-id"),
    "a long one": ({"request_id": "7" * 100}, f"{'7' * 64}...' is no x-request-id"),
    "a uuid of version 4": (
        {"request_id": "0b7f8a2e-1c3d-4e5f-8a9b-0c1d2e3f4a5b"},
        "is no x-request-id",
    ),
    "another script's digits": (
        {"request_id": request_id()[:-1] + "\u0663"},
        "is no x-request-id",
    ),
    "a line more": ({"request_id": request_id() + "\n"}, "is no x-request-id"),
    "a future id": ({"request_id": request_id(NOW_US + SKEW_US + 2_000)}, "is of the future"),
    "long correlation id": (
        {"request_id": "", "correlation_id": "c" * 1_025},
        "1025 characters: 1024 is the limit",
    ),
    "long source": ({"source": "s" * 257}, "source has 257 characters"),
    "long key": ({"idempotency_key": "k" * 257}, "idempotency_key has 257 characters"),
    "no weight": ({"weight": 0.0}, "weight 0 is no positive number"),
    "negative weight": ({"weight": -1.0}, "no positive number"),
    "NaN as weight": ({"weight": float("nan")}, "no positive number"),
    "endless weight": ({"weight": float("inf")}, "no positive number"),
    "negative version": ({"version": -1}, "label_version"),
    "huge version": ({"version": 1 << 63}, "label_version"),
    "time 0": ({"time_us": 0}, "not after 1970"),
    "future time": ({"time_us": NOW_US + SKEW_US + 1}, "lies in the future"),
    "NaN": ({"target": float("nan")}, "NaN and infinity"),
    "a huge number": ({"target": 1 << 64}, "cannot be written"),
    "half a character": ({"target": "\ud800"}, "cannot be written"),
    "a large text": ({"target": "x" * MAX_TARGET_BYTES}, f"{MAX_TARGET_BYTES} is the limit"),
    "too deep": ({"target": _nested(MAX_TARGET_DEPTH + 1)}, "nested more than 32 deep"),
    "much too deep": ({"target": {"a": _nested(900)}}, "nested more than 32 deep"),
}


@pytest.mark.parametrize(("fields", "reason"), REFUSED.values(), ids=REFUSED)
def test_an_item_that_is_wrong_is_invalid_and_costs_its_neighbours_nothing(
    fields: dict[str, Any], reason: str
) -> None:
    desk = Desk()
    before, wrong, after = desk.results(item(), item(**fields), item())
    assert [before.status, wrong.status, after.status] == ["accepted", "invalid", "accepted"]
    assert reason in wrong.reason
    assert len(desk.log.taken) == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"request_id": request_id().upper()},
        {"request_id": request_id(NOW_US + SKEW_US - 1_000)},
        {"time_us": NOW_US + SKEW_US},
        {"time_us": 1},
        {"target": "x" * (MAX_TARGET_BYTES - 3)},
        {"target": _nested(MAX_TARGET_DEPTH)},
        {"version": (1 << 63) - 1},
        {"request_id": "", "correlation_id": "c" * 1_024},
    ],
)
def test_what_lies_just_within_a_limit_is_accepted(fields: dict[str, Any]) -> None:
    assert Desk().send(item(**fields)) == ["accepted"]


def test_feedback_is_late_after_the_horizon_and_not_before() -> None:
    desk = Desk(config=FeedbackConfig(horizon_s=86_400))
    within, beyond = desk.results(item(NOW_US - DAY_US), item(NOW_US - DAY_US - 1_000))
    assert within.status == "accepted"
    assert beyond == ("too_late", "the prediction is older than 1 days, the limit of feedback")


# --- repetitions ----------------------------------------------------------------------------------


def test_the_same_label_again_is_a_duplicate_whatever_else_it_says() -> None:
    desk = Desk()
    first = item(source="a", version=2, idempotency_key="k")
    assert desk.send(first, first) == ["accepted", "duplicate"]
    later = first._replace(weight=3.0, time_us=NOW_US)
    (result,) = desk.results(later)
    assert result == ("duplicate", "it was accepted before")
    assert len(desk.log.taken) == 1


@pytest.mark.parametrize(
    "other",
    [{"source": "b"}, {"version": 1}, {"idempotency_key": "k"}, {"request_id": request_id()}],
)
def test_another_source_version_key_or_prediction_is_another_label(other: dict[str, Any]) -> None:
    desk = Desk()
    first = item()
    assert desk.send(first, first._replace(**other)) == ["accepted", "accepted"]


def test_another_target_under_the_same_version_is_told_how_to_correct() -> None:
    desk = Desk()
    first = item(target=7)
    desk.send(first)
    (result,) = desk.results(first._replace(target=1))
    assert result.status == "duplicate"
    assert "a correction needs a higher label_version" in result.reason


def test_duplicates_within_a_call_are_found_across_its_slices() -> None:
    desk = Desk(log=LabelsKept())
    first = item()
    statuses = desk.send(first, *[item() for _ in range(250)], first)
    assert statuses == ["accepted"] * 251 + ["duplicate"]
    assert desk.log.commits == 3


# --- written, or not ------------------------------------------------------------------------------


def test_the_answer_waits_until_every_label_of_the_call_is_written() -> None:
    async def scenario() -> None:
        desk = Desk(log=LabelsKept(is_held=True))
        given = [item() for _ in range(150)]
        call = asyncio.create_task(desk.feedback.take(NAME, given))
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(desk.log.taken) == 150
        desk.log.write()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not call.done()
        desk.log.write()
        results = await call
        assert [result.status for result in results] == ["accepted"] * 150

    asyncio.run(scenario())


def test_a_write_that_fails_fails_the_call_and_leaves_no_duplicate_behind() -> None:
    async def scenario() -> None:
        desk = Desk(log=LabelsKept(is_held=True))
        given = item()
        call = asyncio.create_task(desk.feedback.take(NAME, [given]))
        await asyncio.sleep(0)
        desk.log.write("disk_full")
        with pytest.raises(NotWritten):
            await call
        assert desk.feedback.counts == {}
        desk.log.is_held = False
        assert [result.status for result in await desk.feedback.take(NAME, [given])] == ["accepted"]

    asyncio.run(scenario())


def test_no_room_in_the_log_fails_the_call_but_what_was_written_is_a_duplicate_next_time() -> None:
    desk = Desk(log=LabelsKept(room=1))
    given = [item(), item()]
    with pytest.raises(NotWritten) as caught:
        desk.send(*given)
    status = StatusTable().of(caught.value)
    assert (status.http, status.grpc, status.retry_after_s) == (503, 14, 1)
    desk.log.room = 10
    assert desk.send(*given) == ["duplicate", "accepted"]


def test_a_caller_that_goes_away_leaves_its_labels_and_their_memory() -> None:
    async def scenario() -> None:
        desk = Desk(log=LabelsKept(is_held=True))
        given = item()
        call = asyncio.create_task(desk.feedback.take(NAME, [given]))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        desk.log.write()
        desk.log.is_held = False
        (result,) = await desk.feedback.take(NAME, [given])
        assert result.status == "duplicate"

    asyncio.run(scenario())


# --- calls ----------------------------------------------------------------------------------------


def test_calls_with_an_unknown_name_or_a_wrong_number_of_items_are_refused() -> None:
    async def scenario() -> None:
        feedback = Desk().feedback
        with pytest.raises(UnknownName, match="'nobody'"):
            await feedback.take("nobody", [item()])
        with pytest.raises(MalformedRequest, match="there are no items"):
            await feedback.take(NAME, [])
        with pytest.raises(MalformedRequest, match="1001 items given: 1000 is the limit"):
            await feedback.take(NAME, [item()] * (MAX_ITEMS + 1))

    asyncio.run(scenario())


def test_a_thousand_items_are_taken() -> None:
    assert set(Desk().send(*[item() for _ in range(MAX_ITEMS)])) == {"accepted"}


def test_feedback_can_be_turned_off_and_needs_a_log() -> None:
    with pytest.raises(NotAllowed, match="takes no feedback"):
        Desk(config=FeedbackConfig(enabled=False)).send(item())
    with pytest.raises(NotAllowed, match="needs a prediction log"):
        Desk(log=LabelsKept(is_on=False)).send(item())


def test_nothing_is_taken_before_serving_nor_while_draining() -> None:
    desk = Desk()
    desk.lifecycle.drain()
    with pytest.raises(Draining):
        desk.send(item())
    with pytest.raises(Starting):
        Desk(is_serving=False).send(item())


def test_a_key_is_asked_for_where_that_is_configured() -> None:
    ada = PrincipalConfig(key_sha256=sha256(b"secret").hexdigest())
    desk = Desk(config=FeedbackConfig(require_principal=True), principals=Principals({"ada": ada}))
    with pytest.raises(NotAuthenticated):
        desk.send(item(), header=no_headers)
    assert desk.send(item(), header={"authorization": "Bearer secret"}.get) == ["accepted"]


def test_a_request_over_the_limit_is_too_large() -> None:
    check_size(MAX_REQUEST_BYTES)
    with pytest.raises(PayloadTooLarge):
        check_size(MAX_REQUEST_BYTES + 1)


@pytest.mark.parametrize("text", ["", "{", "NaN", "[" * 100_000, '"\ud800"'])
def test_json_that_is_none_is_told_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="target: "):
        read_json(text)


def test_results_are_counted_by_name() -> None:
    desk = Desk()
    again = item()
    desk.send(again, again, item(NOW_US - 40 * DAY_US), "it is no item", item())
    (family,) = FeedbackCollector(desk.feedback).collect()
    assert {s.labels["result"]: s.value for s in family.samples if s.labels["model"] == NAME} == {
        "accepted": 2,
        "duplicate": 1,
        "too_late": 1,
        "invalid": 1,
    }


def test_an_id_of_the_gateway_is_an_id_for_feedback() -> None:
    rid = ids.new_id(NOW_US // 1_000)
    desk = Desk()
    desk.send(item(request_id=ids.as_text(rid)))
    assert desk.log.taken[0].rid == rid
