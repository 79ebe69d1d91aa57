"""Feedback as JSON: what a body may hold, and what is answered."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any, Final

import httpx
import pytest
from starlette.applications import Starlette

from gateway.errors import StatusTable
from gateway.feedback import MAX_REQUEST_BYTES, Item
from gateway.http_api.feedback import FeedbackEndpoint, read_body
from gateway.http_api.predict import error_handlers
from gateway.prediction_log_config import FeedbackConfig
from tests.support.feedback import NAME, NOW_US, Desk, LabelsKept, request_id

URL: Final = f"/v2/models/{NAME}/feedback"


def read(*items: object) -> list[Item | str]:
    """Read a body of these items."""
    return read_body(json.dumps({"items": items}).encode())


def post(
    desk: Desk, body: bytes, *, url: str = URL, headers: dict[str, str] | None = None
) -> httpx.Response:
    """Send a body to the endpoint of a desk."""
    endpoint = FeedbackEndpoint(desk.feedback, limit_bytes=1 << 30)
    app = Starlette(routes=endpoint.routes(), exception_handlers=error_handlers(StatusTable()))

    async def work() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.post(url, content=body, headers=headers)

    return asyncio.run(work())


def test_an_item_is_read_with_all_its_fields() -> None:
    given = {
        "request_id": "r",
        "target": [1, {"a": None}],
        "time": "2026-09-21T12:00:00.250Z",
        "source": "s",
        "weight": 2,
        "label_version": 4,
        "idempotency_key": "k",
    }
    time_us = 1_789_992_000_250_000
    assert read(given) == [Item("r", "", [1, {"a": None}], time_us, "s", 2.0, 4, "k")]


def test_id_is_short_for_request_id_and_a_correlation_id_stands_alone() -> None:
    expected = [Item("r", "", 1), Item("", "c", 1)]
    assert read({"id": "r", "target": 1}, {"correlation_id": "c", "target": 1}) == expected


def test_a_null_target_is_one_and_an_absent_target_is_none() -> None:
    null, absent = read({"id": "r", "target": None}, {"id": "r"})
    assert null == Item("r", "", None)
    assert absent == "it has no target"


@pytest.mark.parametrize(
    ("time", "time_us"),
    [
        (1_789_992_000, 1_789_992_000_000_000),
        (1_789_992_000.25, 1_789_992_000_250_000),
        (0, 0),
        ("2026-09-21T12:00:00Z", 1_789_992_000_000_000),
        ("2026-09-21T14:00:00.000001+02:00", 1_789_992_000_000_001),
        ("1969-12-31T23:59:59Z", -1_000_000),
    ],
)
def test_a_time_is_seconds_or_rfc_3339(time: object, time_us: int) -> None:
    assert read({"id": "r", "target": 1, "time": time}) == [Item("r", "", 1, time_us)]


WRONG: Final = {
    "no object": (17, "Expected `object`"),
    "a typo": ({"id": "r", "target": 1, "wieght": 2}, "unknown field `wieght`"),
    "a number as id": ({"id": 17, "target": 1}, "Expected `str`, got `int`"),
    "both names of the id": ({"id": "r", "request_id": "r", "target": 1}, "takes one of them"),
    "a text as weight": ({"id": "r", "target": 1, "weight": "2"}, "Expected `float`"),
    "a broken version": ({"id": "r", "target": 1, "label_version": 1.5}, "Expected `int`"),
    "a yes as version": ({"id": "r", "target": 1, "label_version": True}, "Expected `int`"),
    "a yes as time": ({"id": "r", "target": 1, "time": True}, "got `bool`"),
    "a day": ({"id": "r", "target": 1, "time": "2026-09-21"}, "time: "),
    "a local time": ({"id": "r", "target": 1, "time": "2026-09-21T12:00:00"}, "time: "),
    "milliseconds": ({"id": "r", "target": 1, "time": 1_789_992_000_000}, "seconds since 1970"),
    "before 1970": ({"id": "r", "target": 1, "time": -1}, "seconds since 1970"),
    "an endless time": ({"id": "r", "target": 1, "time": 10**400}, "seconds since 1970"),
}


@pytest.mark.parametrize(("item", "reason"), WRONG.values(), ids=WRONG)
def test_an_item_that_cannot_be_read_says_why_and_leaves_its_neighbours(
    item: object, reason: str
) -> None:
    good = {"id": "r", "target": 1}
    first, wrong, last = read(good, item, good)
    assert first == last == Item("r", "", 1)
    assert isinstance(wrong, str)
    assert reason in wrong


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"items": {}}',
        b'{"item": []}',
        b'{"items": [], "more": 1}',
        b'{"items": [1e999]}',
        b'{"items": ["\xff"]}',
        b'{"items": [' + b"[" * 100_000,
        b'{"items": [1]} 2',
    ],
)
def test_a_body_that_is_no_list_of_items_is_refused(body: bytes) -> None:
    answer = post(Desk(), body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("request body: ")


def test_the_answer_has_a_result_for_every_item_in_order() -> None:
    desk = Desk()
    good = {"id": request_id(), "target": "seven"}
    late = {"id": request_id(NOW_US - 40 * 86_400_000_000), "target": "seven"}
    answer = post(desk, json.dumps({"items": [good, good, late, 17]}).encode())
    assert (answer.status_code, answer.headers["content-type"]) == (202, "application/json")
    accepted, duplicate, too_late, invalid = answer.json()["items"]
    assert accepted == {"status": "accepted"}
    assert duplicate == {"status": "duplicate", "reason": "it was accepted before"}
    assert too_late["status"] == "too_late"
    assert invalid["status"] == "invalid"
    assert [label.target for label in desk.log.taken] == ["seven"]


def test_a_name_that_needs_escaping_is_found() -> None:
    url = f"/v2/models/{'%' + NAME.encode().hex('%')}/feedback"
    body = json.dumps({"items": [{"id": request_id(), "target": 1}]}).encode()
    assert post(Desk(), body, url=url).json() == {"items": [{"status": "accepted"}]}


def test_a_compressed_body_is_read() -> None:
    body = gzip.compress(json.dumps({"items": [{"id": request_id(), "target": 1}]}).encode())
    answer = post(Desk(), body, headers={"content-encoding": "gzip"})
    assert answer.json() == {"items": [{"status": "accepted"}]}


def test_errors_have_the_protocols_form() -> None:
    body = json.dumps({"items": [{"id": request_id(), "target": 1}]}).encode()
    answers: list[tuple[httpx.Response, int]] = [
        (post(Desk(), body, url="/v2/models/nobody/feedback"), 404),
        (post(Desk(), b'{"items": []}'), 400),
        (post(Desk(), b'{"items": [' + b"0," * 1_000 + b"0]}"), 400),
        (post(Desk(), b" " * (MAX_REQUEST_BYTES + 1)), 413),
        (post(Desk(config=FeedbackConfig(enabled=False)), body), 403),
        (post(Desk(config=FeedbackConfig(require_principal=True)), body), 401),
        (post(Desk(log=LabelsKept(room=0)), body), 503),
        (post(Desk(is_serving=False), body), 503),
    ]
    for answer, status in answers:
        assert answer.status_code == status, answer.text
        document: dict[str, Any] = answer.json()  # Any: JSON
        assert list(document) == ["error"]
        assert ("retry-after" in answer.headers) == (status == 503)


def test_who_may_not_send_is_refused_before_the_body_is_read() -> None:
    desk = Desk(config=FeedbackConfig(require_principal=True))
    assert post(desk, b"this is no JSON").status_code == 401
