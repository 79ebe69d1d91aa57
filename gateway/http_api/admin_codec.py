"""Route documents, conditions and intents on the admin listener: HTTP in, values out, and back.

Knows headers and JSON; knows no store. Weights are read as exact decimals.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.errors import ConditionMissing, MalformedRequest, StatusTable
from gateway.http_api.body import error_answer
from gateway.principals import Principal
from gateway.route_control.in_force import Held
from gateway.route_control.revision import Position, etag_of
from gateway.route_control.write import Condition, Intent, RevisionMismatch, Written
from router.document import percent, timestamp
from router.faults import Fault, RouteError

Json = Any  # Any: a JSON document
_ETAG: Final = re.compile(r'(?:W/)?"?g([0-9]{1,15})-([0-9]{1,15})"?')
_WAIT: Final = re.compile(r"(?:^|[,;\s])wait=(\d{1,4})\b")
_SPAN: Final = re.compile(r"(\d{1,9})([smhd])")
_SPAN_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
MAX_BODY_BYTES: Final = 1 << 20
MAX_WAIT_S: Final = 60


def json_answer(
    content: Json, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a JSON answer."""
    body = msgspec.json.encode(content)
    return Response(body, status, headers=headers, media_type="application/json")


async def read_body(request: Request) -> dict[str, Json]:
    """Return the body as a JSON table; an empty one is an empty table.

    Raises:
        MalformedRequest: too large, no JSON, or no table.
    """
    raw = b""
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY_BYTES:
            raise MalformedRequest(f"the body is larger than {MAX_BODY_BYTES} bytes")
    if not raw.strip():
        return {}
    try:
        document = json.loads(raw, parse_float=Decimal, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise MalformedRequest(f"the body is no JSON: {exc}") from None
    if not isinstance(document, dict):
        raise MalformedRequest("the body is no JSON object")
    return document


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def condition(request: Request) -> Condition:
    """Return what If-Match or If-None-Match demand.

    Raises:
        ConditionMissing: neither is there.
        MalformedRequest: not of the form that ETag has.
    """
    if request.headers.get("if-none-match", "").strip() == "*":
        return Condition(must_not_exist=True)
    text = request.headers.get("if-match")
    if text is None:
        raise ConditionMissing(
            "say which revision you change: If-Match with the route's ETag "
            "(or If-None-Match: * to create one)"
        )
    found = _ETAG.fullmatch(text.strip())
    if found is None:
        raise MalformedRequest(f'If-Match: {text!r} is no ETag of a route, such as "g1-42"')
    return Condition(at=(int(found[1]), int(found[2])))


def intent(request: Request, who: Principal | None, body: Mapping[str, Json]) -> Intent:
    """Return who wants a change, and why.

    Raises:
        RouteError: there is no reason.
        MalformedRequest: a flag that is neither true nor false.
    """
    reason = body.get("reason")
    if reason is None:
        reason = header_text(request, "x-reason")
    if not isinstance(reason, str) or not reason.strip():
        sentence = "say why: 'reason' in the body of a verb, or the header X-Reason"
        raise RouteError(Fault(("reason",), sentence))
    return Intent(
        actor=who.name if who else header_text(request, "x-actor") or "anonymous",
        auth="token" if who else "none",
        source=request.client.host if request.client else "",
        reason=reason.strip(),
        is_dry_run=flag(request, "dry_run"),
        wants_reseed=flag(request, "reseed"),
        accepts_carryover=flag(request, "accept_carryover"),
    )


def header_text(request: Request, name: str) -> str:
    """Return a header as UTF-8 text; as latin-1 where it is not that."""
    raw = request.headers.get(name, "").encode("latin-1")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def flag(request: Request, name: str) -> bool:
    """Return a query parameter that is true or false; absent: false."""
    value = request.query_params.get(name, "false").lower()
    if value not in ("true", "1", "false", "0", ""):
        raise MalformedRequest(f"{name}={value!r} is neither true nor false")
    return value in ("true", "1")


def whole(request: Request, name: str, default: int, *, most: int) -> int:
    """Return a query parameter that is a number from 1 on."""
    text = request.query_params.get(name, str(default))
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise MalformedRequest(f"{name}={text!r} is not a whole number from 1 to {most}")
    return int(text)


def wait_s(request: Request) -> int | None:
    """Return how long the caller wants to wait for all replicas; None: not at all."""
    found = _WAIT.search(request.headers.get("prefer", ""))
    return min(int(found[1]), MAX_WAIT_S) if found else None


def instant(text: str, now: datetime) -> str:
    """Return a span before now (24h) or an RFC 3339 instant as a timestamp that compares.

    Raises:
        MalformedRequest: neither of them.
    """
    if span := _SPAN.fullmatch(text):
        when = now - timedelta(seconds=int(span[1]) * _SPAN_S[span[2]])
    else:
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            when = now.replace(tzinfo=None)
    if when.tzinfo is None:
        raise MalformedRequest(f"since={text!r} is neither a span (24h) nor an RFC 3339 instant")
    return timestamp(round(when.astimezone(UTC).timestamp() * 1_000))


def weights(body: Mapping[str, Json]) -> tuple[dict[str, Decimal], str]:
    """Return weights by variant and the variant that they are taken from.

    Both forms are read: ``{"weights": {"canary": 20}}`` and ``{"canary": 20}``.

    Raises:
        RouteError: with a fault per weight that is no number.
    """
    given = body.get("weights")
    if given is None:
        given = {k: v for k, v in body.items() if k not in ("take_from", "reason")}
    if not isinstance(given, Mapping) or not given:
        raise RouteError(Fault(("weights",), "expected a table of weights in percent by variant"))
    faults, found = [], {}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | Decimal):
            faults.append(Fault(("weights", name), "expected a number"))
        else:
            found[name] = Decimal(value)
    take_from = body.get("take_from", "")
    if not isinstance(take_from, str):
        faults.append(Fault(("take_from",), "expected a text"))
    if faults:
        raise RouteError(*faults)
    return found, take_from


def etag(position: Position) -> dict[str, str]:
    """Return the ETag header of a position."""
    return {"etag": etag_of(position)}


def written_answer(written: Written, extra: Mapping[str, Json], status: int) -> Response:
    """Return the answer to a write."""
    headers = etag(written.after.position)
    return json_answer(written.document() | dict(extra), status, headers)


def history_row(held: Held) -> dict[str, Json]:
    """Return a revision as a row of the history."""
    revision = held.revision
    origin = revision.origin
    return {
        "revision": revision.route.revision,
        "generation": revision.generation,
        "verb": origin.verb,
        "actor": origin.actor,
        "reason": origin.reason,
        "created_at": timestamp(origin.created_ms),
        "parent": origin.parent,
        "digest": held.digest,
        "deleted": revision.is_deleted,
        "weights": {v.name: percent(v.slots) for v in revision.route.variants},
    }


def refusal(statuses: StatusTable, exc: Exception) -> Response:
    """Return the answer to a request that is refused, with what the caller needs to go on."""
    status, body, headers = error_answer(statuses, exc)
    document = json.loads(body)
    named = {key.decode(): value.decode() for key, value in headers if key != b"content-type"}
    if isinstance(exc, RouteError):
        rows = [{"pointer": f.pointer, "detail": f.sentence} for f in exc.faults]
        document["errors"] = rows
    if isinstance(exc, RevisionMismatch):
        current = exc.current
        document["current"] = current.revision.document() if current else None
        if current:
            named |= etag(current.position)
    named.pop("content-length", None)
    return json_answer(document, status, named)
