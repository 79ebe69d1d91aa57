"""The predict listeners of a front process: the one place that chooses transports.

Everything they call is remote_pipeline.py's and remote_service.py's.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

from starlette.types import ASGIApp

from gateway import config as configuration
from gateway import tls
from gateway.errors import StatusTable
from gateway.grpc_api.server import GrpcServer
from gateway.grpc_api.service import InferenceService
from gateway.http_api.fast.exchange import Service
from gateway.http_api.fast.listener import PredictListener
from gateway.workers.remote_pipeline import RemotePipeline
from gateway.workers.remote_service import FrontCatalog
from gateway.workers.settings import FrontSettings


class GrpcListener(Protocol):
    """A gRPC transport."""

    async def start(self) -> None:
        """Accept connections."""

    async def set_ready(self, *, is_ready: bool) -> None:
        """Tell health clients."""

    async def stop(self, limit_s: float) -> None:
        """Take no more calls, finish, close."""


class Listeners:
    """Both predict listeners."""

    def __init__(self, http: PredictListener, grpc: GrpcListener) -> None:
        self._http = http
        self._grpc = grpc

    async def start(self) -> None:
        """Accept connections on both."""
        await self._http.start()
        await self._grpc.start()

    async def set_ready(self, *, is_ready: bool) -> None:
        """Tell gRPC health clients; HTTP ones ask."""
        await self._grpc.set_ready(is_ready=is_ready)

    async def stop(self, limit_s: float) -> None:
        """Accept no more, let what runs finish within the limit, close."""
        await asyncio.gather(self._grpc.stop(limit_s), self._http.stop(limit_s))


def make(
    settings: FrontSettings,
    *,
    pipeline: RemotePipeline,
    catalog: FrontCatalog,
    app: ASGIApp,
    service: InferenceService,
    statuses: StatusTable,
) -> Listeners:
    """Return the listeners of a front, on its own sockets."""
    server = settings.server
    http = PredictListener(
        Service(
            pipeline=pipeline,
            catalog=catalog,
            statuses=statuses,
            limit_bytes=server.max_body_bytes,
        ),
        app,
        socket.socket(fileno=settings.http_fd),
        limits=server.limits,
        ssl_context=tls.server_context(server.tls, settings.base, ["http/1.1"])
        if server.tls
        else None,
    )
    host, port = configuration.address(server.grpc, path="$.server.grpc")
    grpc = GrpcServer(
        service=service,
        statuses=statuses,
        host=host,
        port=port,
        limit_bytes=server.max_body_bytes,
        compression=server.grpc_compression,
        shares_port=True,
    )
    return Listeners(http, grpc)
