"""POST /v2/models/{name}/feedback: ground truth as JSON; docs/feedback.md tells the form.

Knows JSON and Starlette; what is taken and refused is gateway/feedback.py's.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.errors import MalformedRequest
from gateway.feedback import MAX_REQUEST_BYTES, Feedback, Item, Result
from gateway.http_api import body as bodies

PATH: Final = "/v2/models/{name}/feedback"
_ACCEPTED: Final = 202
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_US: Final = timedelta(microseconds=1)
_LAST_S: Final = 253_402_300_799
"""The end of the year 9999."""
_Instant = Annotated[datetime, Meta(tz=True)]


class _Body(Struct, forbid_unknown_fields=True):
    items: list[Any]  # Any: each is looked at alone


class _JsonItem(Struct, forbid_unknown_fields=True, kw_only=True):
    """An item's fields as they may stand in the body."""

    id: str = ""
    request_id: str = ""
    correlation_id: str = ""
    target: Any = UNSET  # Any: a JSON value
    time: str | int | float | UnsetType = UNSET
    source: str = ""
    weight: float = 1.0
    label_version: int = 0
    idempotency_key: str = ""


class _JsonResult(Struct, omit_defaults=True):
    status: str
    reason: str = ""


class _Answer(Struct):
    items: list[_JsonResult]


_decode: Final = msgspec.json.Decoder(_Body).decode
_encode: Final = msgspec.json.Encoder().encode


def read_body(body: bytes) -> list[Item | str]:
    """Return the items of a body; a string says why one is none.

    Raises:
        MalformedRequest: the body is no list of items.
    """
    try:
        given = _decode(body).items
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise MalformedRequest(f"request body: {exc}") from None
    return [_read_item(item) for item in given]


def _read_item(given: Any) -> Item | str:  # Any: a JSON value
    try:
        item = msgspec.convert(given, _JsonItem)
        if item.id and item.request_id:
            return "id and request_id are the same: it takes one of them"
        if item.target is UNSET:
            return "it has no target"
        time_us = None if item.time is UNSET else _time_us(item.time)
    except ValueError as exc:  # msgspec's are of this family
        return str(exc)
    return Item(
        item.id or item.request_id,
        item.correlation_id,
        item.target,
        time_us,
        item.source,
        item.weight,
        item.label_version,
        item.idempotency_key,
    )


def _time_us(time: str | float) -> int:
    """Return the microseconds of an RFC 3339 text or of seconds; ValueError if it is neither."""
    if isinstance(time, str):
        try:
            return (msgspec.convert(time, _Instant) - _EPOCH) // _US
        except msgspec.ValidationError as exc:
            raise ValueError(f"time: {exc}") from None
    if not 0 <= time <= _LAST_S:
        raise ValueError("time: it is no number of seconds since 1970")
    return round(time * 1_000_000)


class FeedbackEndpoint:
    """The call."""

    def __init__(self, feedback: Feedback, *, limit_bytes: int) -> None:
        self._feedback = feedback
        self._limit_bytes = min(limit_bytes, MAX_REQUEST_BYTES)

    async def send(self, request: Request) -> Response:
        """POST /v2/models/{name}/feedback: 202 and one result per item, in their order."""
        self._feedback.admit(lambda name: bodies.header(request.scope, name.encode("latin-1")))
        body = await bodies.read_body(request.scope, request.receive, self._limit_bytes)
        results = await self._feedback.take(request.path_params["name"], read_body(body))
        return Response(write_answer(results), _ACCEPTED, media_type="application/json")

    def routes(self) -> list[Route]:
        """Return the route table's row."""
        return [Route(PATH, self.send, methods=["POST"])]


def write_answer(results: list[Result]) -> bytes:
    """Return the body of an answer."""
    return _encode(_Answer([_JsonResult(result.status, result.reason) for result in results]))
