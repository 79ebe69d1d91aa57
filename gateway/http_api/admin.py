"""The admin listener (port 8003): what operators read and do.

Load and unload always work here; the predict ports refuse them unless configured otherwise. Calls
about routes: admin_routes.py.
"""

from __future__ import annotations

from importlib.resources import files

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.catalog import Catalog
from gateway.errors import StatusTable
from gateway.http_api.admin_codec import refusal
from gateway.http_api.admin_routes import Access, RouteEndpoints
from gateway.http_api.predict import error_handlers, index_rows, json_answer


class AdminEndpoints:
    """One method per path."""

    def __init__(self, *, catalog: Catalog, access: Access) -> None:
        self._catalog = catalog
        self._access = access

    async def list_models(self, request: Request) -> Response:
        """GET /v1/models: every version with its state and reason."""
        self._access.reader(request)
        return json_answer({"models": index_rows(self._catalog, ready_only=False)})

    async def load(self, request: Request) -> Response:
        """POST /v1/models/{name}/load."""
        self._access.writer(request)
        await self._catalog.load(request.path_params["name"])
        return await self.list_models(request)

    async def unload(self, request: Request) -> Response:
        """POST /v1/models/{name}/unload."""
        self._access.writer(request)
        await self._catalog.unload(request.path_params["name"])
        return await self.list_models(request)

    async def live(self, _: Request) -> Response:
        """GET /v1/health/live."""
        return json_answer({"live": True})

    async def ready(self, _: Request) -> Response:
        """GET /v1/health/ready."""
        is_ready = self._catalog.is_server_ready()
        return json_answer({"ready": is_ready}, 200 if is_ready else 503)

    async def openapi(self, _: Request) -> Response:
        """GET /v1/openapi.json: this API, described."""
        text = files("gateway.http_api").joinpath("openapi.json").read_bytes()
        return Response(text, media_type="application/json")


def make_app(endpoints: AdminEndpoints, routes: RouteEndpoints, statuses: StatusTable) -> Starlette:
    """Return the admin listener's application."""
    one = "/v1/routes/{name}"
    table = [
        Route("/v1/health/live", endpoints.live, methods=["GET"]),
        Route("/v1/health/ready", endpoints.ready, methods=["GET"]),
        Route("/v1/models", endpoints.list_models, methods=["GET"]),
        Route("/v1/models/{name}/load", endpoints.load, methods=["POST"]),
        Route("/v1/models/{name}/unload", endpoints.unload, methods=["POST"]),
        Route("/v1/openapi.json", endpoints.openapi, methods=["GET"]),
        Route("/v1/audit", routes.audit, methods=["GET"]),
        Route("/v1/events", routes.events, methods=["GET"]),
        Route("/v1/routes", routes.list_routes, methods=["GET"]),
        Route(one + ":{verb}", routes.verb, methods=["POST"]),
        Route(one, routes.get_route, methods=["GET"]),
        Route(one, routes.put, methods=["PUT"]),
        Route(one, routes.patch, methods=["PATCH"]),
        Route(one, routes.delete, methods=["DELETE"]),
        Route(one + "/revisions", routes.revisions, methods=["GET"]),
        Route(one + "/revisions/{which}", routes.revision, methods=["GET"]),
        Route(one + "/explain", routes.explain, methods=["GET"]),
        Route(one + "/convergence", routes.convergence, methods=["GET"]),
        Route(one + "/stats", routes.stats, methods=["GET"]),
    ]
    return Starlette(routes=table, exception_handlers=error_handlers(statuses, refusal))
