"""Route documents, conditions and intents on the admin listener: HTTP in, values out, and back.

Knows headers and JSON; knows no store. Weights are read as exact decimals.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from gateway.errors import ConditionMissing, MalformedRequest, NotAuthenticated, StatusTable
from gateway.http_api import body as bodies
from gateway.http_api.body import error_answer
from gateway.http_api.predict import json_answer
from gateway.principals import Principal
from gateway.route_control.in_force import Held
from gateway.route_control.revision import Position, etag_of
from gateway.route_control.write import Condition, Intent, RevisionMismatch, Written
from router.document import percent, timestamp
from router.faults import Fault, RouteError

Json = Any  # Any: a JSON document
_ETAG: Final = re.compile(r'"g([0-9]{1,15})-([0-9]{1,15})"')
_WAIT: Final = re.compile(r"(?:^|[,;\s])wait=(\d{1,4})\b")
_NUMBER: Final = re.compile(r"[0-9]{1,15}")
_REVISIONS: Final = re.compile(r"([0-9]{1,15})(?:\.\.([0-9]{1,15}))?")
_SPAN: Final = re.compile(r"(\d{1,9})([smhd])")
_SPAN_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
MAX_BODY_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 32
"""Of tables and lists in each other; a route needs 6."""
MAX_WAIT_S: Final = 60
_TOO_DEEP: Final = f"the body is nested deeper than {MAX_DEPTH} levels"


async def read_body(request: Request) -> dict[str, Json]:
    """Return the body as a JSON table; an empty one is an empty table.

    Raises:
        PayloadTooLarge.
        MalformedRequest: no JSON, no table, or nested too deep.
    """
    raw = await bodies.read_body(request.scope, request.receive, MAX_BODY_BYTES)
    if not raw.strip():
        return {}
    try:
        document = _decoded(raw)
    except (ValueError, ArithmeticError) as exc:
        why = str(exc) if isinstance(exc, ValueError) else "a number is out of all range"
        raise MalformedRequest(f"the body is no JSON: {why}") from None
    except RecursionError:
        raise MalformedRequest(_TOO_DEEP) from None
    if not isinstance(document, dict):
        raise MalformedRequest("the body is no JSON object")
    if not _is_shallow(document):
        raise MalformedRequest(_TOO_DEEP)
    return document


def _decoded(raw: bytes) -> Json:
    """Return decoded JSON that can be written again; raises ValueError, ArithmeticError."""
    document = json.loads(
        raw.decode(),
        parse_float=Decimal,
        parse_constant=_no_constant,
        object_pairs_hook=_table,
    )
    # An escaped half of a character can be read, and neither stored nor shown.
    json.dumps(document, ensure_ascii=False, default=str).encode()
    return document


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _table(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = next(key for n, (key, _) in enumerate(pairs) if key in dict(pairs[:n]))
        raise ValueError(f"the key {twice!r} is there twice")
    return table


def _is_shallow(document: Json) -> bool:
    level = [document]
    for _ in range(MAX_DEPTH):
        tables = [value.values() for value in level if isinstance(value, dict)]
        lists = [value for value in level if isinstance(value, list)]
        level = [child for inside in (*tables, *lists) for child in inside]
        if not level:
            return True
    return False


def only(body: Mapping[str, Json], *known: str) -> None:
    """Raise RouteError for keys that a verb does not know."""
    faults = [Fault((key,), "unknown key") for key in sorted(body) if key not in known]
    if faults:
        raise RouteError(*faults)


def condition(request: Request) -> Condition:
    """Return what If-Match or If-None-Match demand.

    Raises:
        ConditionMissing: neither is there.
        MalformedRequest: both are, or not of the form that ETag has.
    """
    text = request.headers.get("if-match")
    unless = request.headers.get("if-none-match")
    if unless is not None:
        if text is not None or unless.strip() != "*":
            raise MalformedRequest("If-None-Match can only be *, and goes without If-Match")
        return Condition(must_not_exist=True)
    if text is None:
        raise ConditionMissing(
            "say which revision you change: If-Match with the route's ETag "
            "(or If-None-Match: * to create one)"
        )
    found = _ETAG.fullmatch(text.strip())
    if found is None:
        sentence = f'If-Match: {text!r} is no ETag of a route, such as "g1-42" with its quotes'
        raise MalformedRequest(sentence)
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
    if not _NUMBER.fullmatch(text) or not 1 <= int(text) <= most:
        raise MalformedRequest(f"{name}={text!r} is not a whole number from 1 to {most}")
    return int(text)


def wait_s(request: Request) -> int | None:
    """Return how long the caller wants to wait for all replicas; None: not at all."""
    found = _WAIT.search(request.headers.get("prefer", ""))
    return min(int(found[1]), MAX_WAIT_S) if found else None


def revisions(text: str) -> tuple[int, int | None]:
    """Return the one or two revisions of a path: 42, or 41..42; raises MalformedRequest."""
    found = _REVISIONS.fullmatch(text)
    if found is None:
        raise MalformedRequest(f"{text!r} is neither a revision nor two of them: 41..42")
    return int(found[1]), int(found[2]) if found[2] else None


def instant_ms(text: str, now: datetime) -> int:
    """Return a span before now (24h) or an RFC 3339 instant, in Unix milliseconds.

    Raises:
        MalformedRequest: neither of them.
    """
    span = _SPAN.fullmatch(text)
    try:
        if span:
            when = now - timedelta(seconds=int(span[1]) * _SPAN_S[span[2]])
        else:
            when = datetime.fromisoformat(text)
        if when.tzinfo is not None:
            return round(when.timestamp() * 1_000)
    except (ValueError, OverflowError):
        pass
    raise MalformedRequest(f"since={text!r} is neither a span (24h) nor an RFC 3339 instant")


def weights(body: Mapping[str, Json]) -> tuple[dict[str, Decimal], str]:
    """Return weights by variant and the variant that they are taken from.

    Both forms are read: ``{"weights": {"canary": 20}}`` and ``{"canary": 20}``.

    Raises:
        RouteError: with a fault per weight that is no number.
    """
    given = body.get("weights")
    if "weights" in body:
        only(body, "weights", "take_from", "reason")
    else:
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
    # What was not stored has no tag: who goes on from here needs that of what is.
    stored = written.before if written.is_dry_run or written.is_emergency else written.after
    headers = etag(stored.position) if stored else None
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
    if isinstance(exc, NotAuthenticated):
        named["www-authenticate"] = "Bearer"
    return json_answer(document, status, named)
