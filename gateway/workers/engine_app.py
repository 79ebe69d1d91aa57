"""The gateway without predict listeners, which the front processes have.

What would answer on them is there nevertheless, to be called by engine_end.py.
"""

from __future__ import annotations

import logging
from typing import Any, cast

from starlette.types import ASGIApp

from gateway import config as configuration
from gateway.app import App, Ports
from gateway.catalog import RepositoryControl
from gateway.grpc_api.service import InferenceService
from gateway.http_api import admin, metrics_page, predict
from gateway.http_api.admin_routes import Access, RouteEndpoints
from gateway.http_api.listener import HttpListener

logger = logging.getLogger(__name__)


class _NoListener:
    """In the place of a predict listener."""

    port = 0

    async def start(self) -> None:
        """Do nothing."""

    async def set_ready(self, *, is_ready: bool) -> None:
        """Do nothing."""

    async def stop(self, limit_s: float) -> None:
        """Do nothing."""


class EngineApp(App):
    """An App for the engine process."""

    service: InferenceService
    predict_app: ASGIApp

    def route_names(self) -> list[str]:
        """Return the names of the routes in force."""
        return sorted(self.routes.snapshot)

    def _make_listeners(self) -> None:
        server = self.config.server
        allowed = self.config.models.control == "explicit"
        control = RepositoryControl(self.catalog, is_allowed=allowed)
        endpoints = predict.PredictEndpoints(
            catalog=self.catalog, control=control, limit_bytes=server.max_body_bytes
        )
        self.predict_app = predict.make_app(endpoints=endpoints, statuses=self.statuses)
        self.service = InferenceService(
            pipeline=self.pipeline,
            catalog=self.catalog,
            control=control,
            statuses=self.statuses,
        )
        access = Access(self.principals, is_required=self.config.control.auth == "token")
        apps = {
            "metrics": metrics_page.make_app(self._make_registry()),
            "admin": admin.make_app(
                admin.AdminEndpoints(catalog=self.catalog, access=access),
                RouteEndpoints(plane=self.plane, access=access),
                self.statuses,
            ),
        }
        absent: Any = _NoListener()  # Any: in the place of two types
        self._http = {
            name: HttpListener(
                name,
                app,
                *configuration.address(getattr(server, name), path=f"$.server.{name}"),
            )
            for name, app in apps.items()
        }
        self._http["http"] = cast("HttpListener", absent)
        self._grpc = absent
        self.ports = Ports(
            http=0,
            grpc=0,
            metrics=self._http["metrics"].port,
            admin=self._http["admin"].port,
        )
