"""The admin listener's calls about routes: one method per path, everything decided elsewhere.

Knows HTTP, conditions and roles; knows no store. Reads need the role viewer or operator, writes the
role operator, where the listener asks for keys at all.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gateway.errors import MalformedRequest, NotAllowed, NotAuthenticated, Starting, UnknownName
from gateway.http_api import admin_codec as codec
from gateway.http_api.admin_codec import Json
from gateway.http_api.predict import json_answer
from gateway.principals import OPERATOR, VIEWER, Principal, Principals
from gateway.route_control.events import Event
from gateway.route_control.explain import Question, explain
from gateway.route_control.in_force import Held
from gateway.route_control.revision import MAX_NUMBER
from gateway.route_control.write import Condition, Intent, Written, difference
from gateway.route_plane import RoutePlane
from router import changes
from router.faults import Fault, RouteError

HEARTBEAT_S: Final = 15.0
"""Silence after which the event stream says that it is alive."""
HISTORY_ROWS: Final = 1_000
AUDIT_ROWS: Final = 10_000

Act = Callable[[str, dict[str, Json], Request, Intent], Awaitable[Written]]


class Access:
    """Who may use the admin listener."""

    def __init__(self, principals: Principals, *, is_required: bool) -> None:
        self._principals = principals
        self._is_required = is_required

    def reader(self, request: Request) -> Principal | None:
        """Return who reads; raises NotAuthenticated, NotAllowed."""
        return self._check(request, VIEWER, OPERATOR)

    def writer(self, request: Request) -> Principal | None:
        """Return who writes; raises NotAuthenticated, NotAllowed."""
        return self._check(request, OPERATOR)

    def _check(self, request: Request, *roles: str) -> Principal | None:
        who = self._principals.identify(request.headers.get)
        if not self._is_required:
            return who
        if who is None:
            raise NotAuthenticated
        if not who.roles.intersection(roles):
            raise NotAllowed(f"{who.name} has not the role {' or '.join(roles)}")
        return who


class RouteEndpoints:
    """One method per path."""

    def __init__(self, *, plane: RoutePlane, access: Access) -> None:
        self._given = plane
        self._access = access
        self._verbs: dict[str, Act] = {
            "setWeights": self._set_weights,
            "promote": self._promote,
            "abort": self._abort,
            "undo": self._undo,
            "restore": self._restore,
        }

    @property
    def verbs(self) -> tuple[str, ...]:
        """What may stand behind a route's name and a colon."""
        return tuple(self._verbs)

    @property
    def _plane(self) -> RoutePlane:
        """What is asked; raises Starting before it has been opened."""
        if self._given.sync is None:
            raise Starting
        return self._given

    async def list_routes(self, request: Request) -> Response:
        """GET /v1/routes."""
        self._access.reader(request)
        return json_answer(
            {"routes": [self._document(name) for name in self._plane.questions.names()]}
        )

    async def get_route(self, request: Request) -> Response:
        """GET /v1/routes/{name}."""
        self._access.reader(request)
        name = request.path_params["name"]
        return json_answer(
            self._document(name), 200, codec.etag(self._plane.questions.newest(name).position)
        )

    def _document(self, name: str) -> Json:
        document = self._plane.questions.newest(name).revision.document()
        emergency = self._plane.control.emergencies.get(name)
        if emergency is not None:
            document["emergency"] = {"actor": emergency.actor, "reason": emergency.reason}
        return document

    async def put(self, request: Request) -> Response:
        """PUT /v1/routes/{name}."""

        async def act(name: str, body: dict[str, Json], _: Request, intent: Intent) -> Written:
            return await self._plane.control.put(name, body, codec.condition(request), intent)

        is_new = request.headers.get("if-none-match") is not None
        return await self._write(request, act, in_body=False, created=is_new)

    async def patch(self, request: Request) -> Response:
        """PATCH /v1/routes/{name}."""

        async def act(name: str, body: dict[str, Json], _: Request, intent: Intent) -> Written:
            return await self._plane.control.patch(name, body, _existing(request), intent)

        return await self._write(request, act, in_body=False)

    async def delete(self, request: Request) -> Response:
        """DELETE /v1/routes/{name}."""

        async def act(name: str, _: dict[str, Json], __: Request, intent: Intent) -> Written:
            return await self._plane.control.delete(name, _existing(request), intent)

        return await self._write(request, act, in_body=False)

    async def verb(self, request: Request) -> Response:
        """POST /v1/routes/{name}:{verb}."""
        act = self._verbs.get(request.path_params["verb"])
        if act is None:
            known = ", ".join(self._verbs)
            raise UnknownName(f"there is no verb {request.path_params['verb']!r}; it is {known}")
        return await self._write(request, act, in_body=True)

    async def _write(
        self, request: Request, act: Act, *, in_body: bool, created: bool = False
    ) -> Response:
        who = self._access.writer(request)
        name = request.path_params["name"]
        body = await codec.read_body(request)
        intent = codec.intent(request, who, body if in_body else {})
        written = await act(name, body, request, intent)
        extra: dict[str, Json] = {}
        status = 201 if created and not written.is_dry_run else 200
        if written.is_emergency:
            status = 202
        elif (wait_s := codec.wait_s(request)) is not None and not written.is_dry_run:
            at = Held.of(written.after)
            laggards = await self._plane.questions.converged(name, at, wait_s)
            extra = {"converged": not laggards, "laggards": laggards}
            status = 202 if laggards else status
        return codec.written_answer(written, extra, status)

    async def _set_weights(
        self, name: str, body: dict[str, Json], request: Request, intent: Intent
    ) -> Written:
        weights, take_from = codec.weights(body)
        at = _existing(request)
        return await self._plane.control.set_weights(name, weights, take_from, at, intent)

    async def _promote(
        self, name: str, body: dict[str, Json], request: Request, intent: Intent
    ) -> Written:
        codec.only(body, "variant", "reason")
        variant = body.get("variant", "")
        if not isinstance(variant, str):
            raise RouteError(Fault(("variant",), "expected the name of a variant"))
        return await self._plane.control.promote(name, variant, _existing(request), intent)

    async def _abort(self, name: str, body: dict[str, Json], _: Request, intent: Intent) -> Written:
        codec.only(body, "reason")
        return await self._plane.control.abort(name, intent)

    async def _undo(
        self, name: str, body: dict[str, Json], request: Request, intent: Intent
    ) -> Written:
        codec.only(body, "to_revision", "reason")
        number = body.get("to_revision", 0)
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= MAX_NUMBER:
            raise RouteError(Fault(("to_revision",), "expected the number of a revision"))
        return await self._plane.control.undo(name, number, _existing(request), intent)

    async def _restore(
        self, name: str, body: dict[str, Json], _: Request, intent: Intent
    ) -> Written:
        codec.only(body, "reason")
        return await self._plane.control.restore(name, intent)

    async def revisions(self, request: Request) -> Response:
        """GET /v1/routes/{name}/revisions."""
        self._access.reader(request)
        limit = codec.whole(request, "limit", 50, most=HISTORY_ROWS)
        rows = await self._plane.questions.history(request.path_params["name"], limit)
        return json_answer({"revisions": [codec.history_row(held) for held in rows]})

    async def revision(self, request: Request) -> Response:
        """GET /v1/routes/{name}/revisions/{n} and .../{a}..{b}."""
        self._access.reader(request)
        name = request.path_params["name"]
        first, second = codec.revisions(request.path_params["which"])
        before = await self._plane.questions.revision(name, first)
        if second is None:
            return json_answer(before.document())
        after = await self._plane.questions.revision(name, second)
        moved, reversioned = (
            float(changes.moved_share(before, after, versions=by)) for by in (False, True)
        )
        return json_answer(
            {
                "from": first,
                "to": second,
                "moved_share_percent": moved,
                "reversioned_share_percent": reversioned,
                "diff": difference(before, after),
            }
        )

    async def explain(self, request: Request) -> Response:
        """GET /v1/routes/{name}/explain."""
        self._access.reader(request)
        given = request.query_params
        question = Question(
            key=given.get("key"),
            headers=_prefixed(request, "header."),
            parameters=_prefixed(request, "parameter."),
            tenant=given.get("tenant", ""),
            role=given.get("role", ""),
        )
        name = request.path_params["name"]
        compiled = self._plane.insight.compiled(name)
        return json_answer(explain(compiled, question, self._plane.insight.is_ready))

    async def convergence(self, request: Request) -> Response:
        """GET /v1/routes/{name}/convergence."""
        self._access.reader(request)
        name = request.path_params["name"]
        newest = self._plane.questions.newest(name)
        states = await self._plane.questions.convergence(name)
        return json_answer(
            {
                "route": name,
                "revision": newest.revision.route.revision,
                "generation": newest.revision.generation,
                "digest": newest.digest,
                "converged": all(s.is_converged for s in states if s.is_live),
                "replicas": [
                    {
                        "replica": state.replica,
                        "revision": state.revision,
                        "generation": state.generation,
                        "digest": state.digest,
                        "pending": state.pending,
                        "age_s": round(state.age_s, 3),
                        "live": state.is_live,
                        "converged": state.is_converged,
                    }
                    for state in states
                ],
            }
        )

    async def stats(self, request: Request) -> Response:
        """GET /v1/routes/{name}/stats."""
        self._access.reader(request)
        return json_answer(await self._plane.insight.statistics(request.path_params["name"]))

    async def audit(self, request: Request) -> Response:
        """GET /v1/audit."""
        self._access.reader(request)
        given = request.query_params
        limit = codec.whole(request, "limit", AUDIT_ROWS, most=AUDIT_ROWS)
        now = datetime.now(UTC)
        since_ms = codec.instant_ms(given["since"], now) if "since" in given else 0
        names = [given["route"]] if "route" in given else []
        rows = await self._plane.questions.audit(names, limit)
        rows = [row for row in rows if codec.instant_ms(row["ts"], now) >= since_ms]
        if "actor" in given:
            rows = [row for row in rows if row["actor"] == given["actor"]]
        return json_answer({"entries": rows})

    async def events(self, request: Request) -> Response:
        """GET /v1/events: server-sent events, from now on."""
        self._access.reader(request)
        route = request.query_params.get("route", "")
        return StreamingResponse(
            _stream(self._plane, route),
            media_type="text/event-stream",
            headers={"cache-control": "no-store"},
        )


async def _stream(plane: RoutePlane, route: str) -> AsyncIterator[bytes]:
    hello = Event(kind="hello", route="", data={"routes": plane.questions.names()})
    async for event in plane.events.listen(route, HEARTBEAT_S, hello=hello):
        yield b": alive\n\n" if event is None else _event(event)


def _event(event: Event) -> bytes:
    data = json.dumps({"route": event.route, **event.data}, separators=(",", ":"))
    return f"event: {event.kind}\ndata: {data}\n\n".encode()


def _existing(request: Request) -> Condition:
    """Return the condition of a write that cannot create; raises as codec.condition."""
    condition = codec.condition(request)
    if condition.must_not_exist:
        raise MalformedRequest("If-None-Match creates a route by PUT; here use If-Match")
    return condition


def _prefixed(request: Request, prefix: str) -> dict[str, str]:
    """Return the query parameters that begin with a prefix, without it."""
    items: Any = request.query_params.items()  # Any: starlette's own type
    return {key.removeprefix(prefix): value for key, value in items if key.startswith(prefix)}
