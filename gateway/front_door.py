"""The two predict listeners, whatever stands behind them: the pipeline itself, or a link to it.

The one place that chooses transports. Knows addresses, sockets, limits and TLS; knows nothing of
what is answered. The single process opens one of these, and so does every front process.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec
from starlette.types import ASGIApp

from gateway import config as configuration
from gateway import tls
from gateway.config import LimitsConfig, ServerConfig
from gateway.errors import StatusTable
from gateway.grpc_api.service import InferenceService
from gateway.http2.limits import Limits
from gateway.http_api.fast.exchange import Service
from gateway.http_api.fast.listener import PredictListener
from gateway.sockets import bind

HTTP_ALPN = ("http/1.1",)
GRPC_ALPN = ("h2",)


class Counts(NamedTuple):
    """A listener's connections."""

    connections: int
    """Open now."""
    refused: int
    """Over the limit of open ones, so far."""


class GrpcListener(Protocol):
    """A gRPC transport."""

    port: int

    async def start(self) -> None:
        """Accept connections."""

    async def set_ready(self, *, is_ready: bool) -> None:
        """Tell health clients."""

    async def stop(self, limit_s: float) -> None:
        """Take no more calls, finish, close."""

    def connections(self) -> tuple[int, int] | None:
        """Return how many are open and how many were refused; None: it does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sockets:
    """Sockets that were bound and are listening already; None: to be bound here."""

    http: socket.socket | None = None
    grpc: socket.socket | None = None
    shares_grpc_port: bool = False
    """Whether the gRPC address is bound with SO_REUSEPORT, where it is bound here."""


class FrontDoor:
    """Both predict listeners. Make it on a running loop.

    Args:
        server: addresses, transports, limits, TLS.
        base: folder that the paths of TLS start from.
        http: answers the infer calls over HTTP.
        app: answers every other HTTP request.
        service: answers gRPC.
        statuses: error to status.
        sockets: bound already.

    Raises:
        AddressInUse: an address cannot be bound.
        ConfigError: a file of TLS is not what it should be.
    """

    def __init__(  # noqa: PLR0913 - what stands behind two listeners
        self,
        server: ServerConfig,
        base: Path,
        *,
        http: Service,
        app: ASGIApp,
        service: InferenceService,
        statuses: StatusTable,
        sockets: Sockets | None = None,
    ) -> None:
        sockets = sockets or Sockets()
        contexts: list[ssl.SSLContext | None] = [None, None]
        if server.tls is not None:
            contexts = [tls.server_context(server.tls, base, a) for a in (HTTP_ALPN, GRPC_ALPN)]
        address = configuration.address(server.http, path="$.server.http")
        sock = sockets.http or bind("http", *address)
        self._http = PredictListener(http, app, sock, limits=server.limits, ssl_context=contexts[0])
        self._grpc = _grpc_listener(server, base, service, statuses, sockets, contexts[1])
        self.http_port = self._http.port
        self.grpc_port = self._grpc.port

    def counts(self) -> Mapping[str, Counts]:
        """Return the connections of the listeners that know theirs."""
        http = self._http.statistics()
        counts = {"http": Counts(http.connections, http.refused_connections)}
        grpc = self._grpc.connections()
        return counts if grpc is None else counts | {"grpc": Counts(*grpc)}

    async def start(self) -> None:
        """Accept connections on both."""
        await self._http.start()
        await self._grpc.start()

    async def set_ready(self, *, is_ready: bool) -> None:
        """Tell gRPC health clients; those of HTTP ask."""
        await self._grpc.set_ready(is_ready=is_ready)

    async def stop(self, limit_s: float) -> None:
        """Accept no more, let what runs finish within the limit, close."""
        await asyncio.gather(self._grpc.stop(limit_s), self._http.stop(limit_s))


def transport_limits(limits: LimitsConfig) -> Limits:
    """Return what the gRPC transport is to keep of the configured limits."""
    fields = msgspec.structs.asdict(limits)
    del fields["in_flight_bytes"]  # the pipeline's
    return Limits(**fields)


def _grpc_listener(
    server: ServerConfig,
    base: Path,
    service: InferenceService,
    statuses: StatusTable,
    sockets: Sockets,
    context: ssl.SSLContext | None,
) -> GrpcListener:
    """Return the configured transport; only that one is imported."""
    host, port = configuration.address(server.grpc, path="$.server.grpc")
    if server.grpc_transport == "grpcio":
        from gateway.grpc_api.server import GrpcServer

        return GrpcServer(
            service=service,
            statuses=statuses,
            host=host,
            port=port,
            limit_bytes=server.max_body_bytes,
            compression=server.grpc_compression,
            pem=None if server.tls is None else tls.read_pem(server.tls, base),
            shares_port=sockets.shares_grpc_port,
        )
    from gateway.grpc_api.own_server import OwnGrpcServer

    return OwnGrpcServer(
        service=service,
        statuses=statuses,
        sock=sockets.grpc or bind("gRPC", host, port),
        limits=transport_limits(server.limits),
        max_message_bytes=server.max_body_bytes,
        compression=server.grpc_compression,
        ssl_context=context,
    )
