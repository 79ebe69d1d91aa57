"""The predict listener (port 8000): the Open Inference Protocol over HTTP, as a Starlette app.

Routes are a table; each endpoint asks the catalog and writes JSON. Health answers follow the
specification's bodies (Triton's are empty; clients look at the status only). The predict port
serves no admin call: load and unload are refused unless the configuration allows them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.catalog import (
    EXTENSIONS,
    SERVER_NAME,
    Catalog,
    RepositoryControl,
    StatisticsRow,
)
from gateway.errors import MalformedRequest, NotSupported, StatusTable
from gateway.http_api import body as bodies
from gateway.statistics import Duration, InferenceStatistics

_Endpoint = Callable[[Request], Awaitable[Response]]
_Json = Any  # Any: a JSON document being written


def json_answer(
    content: _Json, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a JSON answer."""
    body = msgspec.json.encode(content)
    return Response(body, status, headers=headers, media_type="application/json")


class PredictEndpoints:
    """The calls around inference, one method per path."""

    def __init__(self, *, catalog: Catalog, control: RepositoryControl, limit_bytes: int) -> None:
        self._catalog = catalog
        self._control = control
        self._limit_bytes = limit_bytes

    async def server_metadata(self, _: Request) -> Response:
        """GET /v2."""
        version = self._catalog.server_version()
        extensions = list(EXTENSIONS)
        return json_answer({"name": SERVER_NAME, "version": version, "extensions": extensions})

    async def live(self, _: Request) -> Response:
        """GET /v2/health/live: true from start to end, also while draining."""
        return json_answer({"live": True})

    async def ready(self, _: Request) -> Response:
        """GET /v2/health/ready."""
        if self._catalog.is_server_ready():
            return json_answer({"ready": True})
        return json_answer({"error": "the server is not ready"}, 503)

    async def model_ready(self, request: Request) -> Response:
        """GET /v2/models/{name}[/versions/{version}]/ready."""
        name, version = _subject(request)
        if self._catalog.is_model_ready(name, version):
            return json_answer({"name": name, "ready": True})
        return json_answer({"error": f"model {name!r} is not ready"}, 503)

    async def model_metadata(self, request: Request) -> Response:
        """GET /v2/models/{name}[/versions/{version}]."""
        info = self._catalog.metadata(*_subject(request))
        sides = {
            side: [{"name": t.name, "datatype": t.datatype, "shape": t.shape} for t in tensors]
            for side, tensors in (("inputs", info.inputs), ("outputs", info.outputs))
        }
        document = {"name": info.name, "versions": info.versions, "platform": info.platform}
        return json_answer(document | sides)

    async def model_config(self, request: Request) -> Response:
        """GET /v2/models/{name}[/versions/{version}]/config."""
        document = self._catalog.config(*_subject(request))
        return Response(document.json, media_type="application/json")

    async def statistics(self, request: Request) -> Response:
        """GET /v2/models[/{name}[/versions/{version}]]/stats."""
        rows = self._catalog.statistics(*_subject(request))
        return json_answer({"model_stats": [statistics_row(row) for row in rows]})

    async def repository_index(self, request: Request) -> Response:
        """POST /v2/repository/index."""
        body = await bodies.read_body(request.scope, request.receive, self._limit_bytes)
        ready_only = False
        if body.strip():
            document = _object(body)
            ready_only = document.get("ready", False) is True
        return json_answer(index_rows(self._catalog, ready_only=ready_only))

    async def load(self, request: Request) -> Response:
        """POST /v2/repository[/{repository}]/models/{name}/load."""
        body = await bodies.read_body(request.scope, request.receive, self._limit_bytes)
        if body.strip() and _object(body).get("parameters"):
            raise NotSupported("load parameters (config overrides, file uploads) are not supported")
        await self._control.load(request.path_params["name"])
        return Response(b"", media_type="application/json")

    async def unload(self, request: Request) -> Response:
        """POST /v2/repository[/{repository}]/models/{name}/unload."""
        await self._control.unload(request.path_params["name"])
        return Response(b"", media_type="application/json")

    async def infer(self, request: Request) -> Response:
        """POST /v2/models/{name}[/versions/{version}]/infer: answered before ASGI (fast/).

        The route is here for the other methods, which are not allowed.
        """
        raise NotSupported(f"{request.url.path} is not answered by this application")

    async def unsupported(self, request: Request) -> Response:
        """Every path of an extension that is not implemented."""
        raise NotSupported(f"{request.url.path} belongs to an extension that is not supported")


def _subject(request: Request) -> tuple[str, str]:
    return request.path_params.get("name", ""), request.path_params.get("version", "")


def _object(body: bytes) -> dict[str, Any]:  # Any: JSON
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError as exc:
        raise MalformedRequest(f"request body: {exc}") from None


def index_rows(catalog: Catalog, *, ready_only: bool) -> list[dict[str, str]]:
    """Return the repository index as JSON rows."""
    return [
        {"name": r.model, "version": r.version, "state": r.state.value, "reason": r.reason}
        for r in catalog.index(ready_only=ready_only)
    ]


def statistics_row(row: StatisticsRow) -> dict[str, _Json]:
    """Return a statistics row with every key that perf_analyzer reads unchecked."""
    s: InferenceStatistics = row.statistics
    return {
        "name": row.name,
        "version": row.version,
        "last_inference": s.last_inference_ms,
        "inference_count": s.inference_count,
        "execution_count": s.execution_count,
        "inference_stats": {
            "success": _duration(s.success),
            "fail": _duration(s.fail),
            "queue": _duration(s.queue),
            "compute_input": _duration(s.compute_input),
            "compute_infer": _duration(s.compute_infer),
            "compute_output": _duration(s.compute_output),
            "cache_hit": {"count": 0, "ns": 0},
            "cache_miss": {"count": 0, "ns": 0},
        },
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": _duration(batch.compute_input),
                "compute_infer": _duration(batch.compute_infer),
                "compute_output": _duration(batch.compute_output),
            }
            for rows, batch in sorted(s.batches.items())
        ],
        "response_stats": {},
        "memory_usage": [],
    }


def _duration(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": duration.ns}


def routes(endpoints: PredictEndpoints) -> list[Route]:
    """Return the route table, the infer paths first."""
    model = "/v2/models/{name}"
    version = model + "/versions/{version}"
    gets: list[tuple[str, _Endpoint]] = [
        ("/v2", endpoints.server_metadata),
        ("/v2/", endpoints.server_metadata),
        ("/v2/health/live", endpoints.live),
        ("/v2/health/ready", endpoints.ready),
        ("/v2/models/stats", endpoints.statistics),
    ]
    for base in (model, version):
        gets += [
            (base + "/ready", endpoints.model_ready),
            (base + "/config", endpoints.model_config),
            (base + "/stats", endpoints.statistics),
            (base, endpoints.model_metadata),
        ]
    posts: list[tuple[str, _Endpoint]] = []
    for base in ("/v2/repository", "/v2/repository/{repository}"):
        posts += [
            (base + "/index", endpoints.repository_index),
            (base + "/models/{name}/load", endpoints.load),
            (base + "/models/{name}/unload", endpoints.unload),
        ]
    others = ["/v2/trace/setting", model + "/trace/setting", "/v2/logging"]
    others += [f"/v2/{kind}sharedmemory/{{rest:path}}" for kind in ("system", "cuda")]
    return [
        Route(version + "/infer", endpoints.infer, methods=["POST"]),
        Route(model + "/infer", endpoints.infer, methods=["POST"]),
        *(Route(path, endpoint, methods=["GET"]) for path, endpoint in gets),
        *(Route(path, endpoint, methods=["POST"]) for path, endpoint in posts),
        *(Route(p, endpoints.unsupported, methods=["GET", "POST"]) for p in others),
    ]


def refusal(statuses: StatusTable, exc: Exception) -> Response:
    """Return the answer to a request that is refused."""
    status, content, headers = bodies.error_answer(statuses, exc)
    return Response(content, status, {k.decode(): v.decode() for k, v in headers})


def error_handlers(
    statuses: StatusTable, refuse: Callable[[StatusTable, Exception], Response] = refusal
) -> dict[Any, Any]:  # Any: starlette's own type
    """Return Starlette exception handlers that answer in the protocol's one error form."""

    async def on_http(request: Request, exc: Exception) -> Response:
        status = exc.status_code if isinstance(exc, HTTPException) else 500
        sentence = {
            404: f"there is no path {request.url.path!r}",
            405: f"{request.method} is not allowed on {request.url.path!r}",
        }.get(status, str(exc))
        headers = exc.headers if isinstance(exc, HTTPException) else None
        return Response(bodies.error_body(sentence), status, headers, "application/json")

    async def on_error(_: Request, exc: Exception) -> Response:
        return refuse(statuses, exc)

    handlers: dict[Any, Any] = {HTTPException: on_http, Exception: on_error}  # Any: as above
    return handlers | dict.fromkeys(statuses.families(), on_error)


def make_app(
    *, endpoints: PredictEndpoints, statuses: StatusTable, others: Sequence[Route] = ()
) -> Starlette:
    """Return the predict listener's application; `others` are calls beside the protocol's."""
    table = [*routes(endpoints), *others]
    app = Starlette(routes=table, exception_handlers=error_handlers(statuses))
    app.router.redirect_slashes = False
    return app
