"""The admin listener (port 8003): what operators read and do. Routes are read-only for now.

Load and unload always work here; the predict ports refuse them unless configured otherwise.
"""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.catalog import Catalog
from gateway.errors import StatusTable, UnknownName
from gateway.http_api.predict import error_handlers, index_rows, json_answer
from router.routes import Route as TrafficRoute
from router.table import RouteTable


class AdminEndpoints:
    """One method per path."""

    def __init__(self, *, catalog: Catalog, routes: RouteTable) -> None:
        self._catalog = catalog
        self._routes = routes

    async def list_routes(self, _: Request) -> Response:
        """GET /v1/routes."""
        snapshot = self._routes.snapshot
        return json_answer(
            {"routes": [document(snapshot[name].route) for name in sorted(snapshot)]}
        )

    async def get_route(self, request: Request) -> Response:
        """GET /v1/routes/{name}."""
        name = request.path_params["name"]
        compiled = self._routes.snapshot.get(name)
        if compiled is None:
            raise UnknownName(f"there is no route {name!r}")
        return json_answer(document(compiled.route))

    async def list_models(self, _: Request) -> Response:
        """GET /v1/models: every version with its state and reason."""
        return json_answer({"models": index_rows(self._catalog, ready_only=False)})

    async def load(self, request: Request) -> Response:
        """POST /v1/models/{name}/load."""
        await self._catalog.load(request.path_params["name"])
        return await self.list_models(request)

    async def unload(self, request: Request) -> Response:
        """POST /v1/models/{name}/unload."""
        await self._catalog.unload(request.path_params["name"])
        return await self.list_models(request)

    async def live(self, _: Request) -> Response:
        """GET /v1/health/live."""
        return json_answer({"live": True})

    async def ready(self, _: Request) -> Response:
        """GET /v1/health/ready."""
        is_ready = self._catalog.is_server_ready()
        return json_answer({"ready": is_ready}, 200 if is_ready else 503)


def document(route: TrafficRoute) -> dict[str, Any]:  # Any: a JSON document being written
    """Return a route as JSON; weights in percent."""
    return {
        "name": route.name,
        "revision": route.revision,
        "salt": route.salt,
        "key": [f"{source.kind}:{source.name}" for source in route.key],
        "variants": {
            v.name: {"model": v.model, "version": v.version, "weight": float(v.weight)}
            for v in route.variants
        },
    }


def make_app(endpoints: AdminEndpoints, statuses: StatusTable) -> Starlette:
    """Return the admin listener's application."""
    table = [
        Route("/v1/health/live", endpoints.live, methods=["GET"]),
        Route("/v1/health/ready", endpoints.ready, methods=["GET"]),
        Route("/v1/routes", endpoints.list_routes, methods=["GET"]),
        Route("/v1/routes/{name}", endpoints.get_route, methods=["GET"]),
        Route("/v1/models", endpoints.list_models, methods=["GET"]),
        Route("/v1/models/{name}/load", endpoints.load, methods=["POST"]),
        Route("/v1/models/{name}/unload", endpoints.unload, methods=["POST"]),
    ]
    return Starlette(routes=table, exception_handlers=error_handlers(statuses))
