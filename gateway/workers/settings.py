"""What the supervisor tells its processes at their start. Values only; pickled on the way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gateway.config import Config, ServerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Of the engine process."""

    config: Config
    root: Path
    """The model repository's folder."""
    base: Path
    """The configuration file's folder."""
    socket_fd: int
    """Listening unix socket for the fronts; the supervisor's, inherited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontSettings:
    """Of one front process."""

    index: int
    """From 1."""
    server: ServerConfig
    """With the ports that were bound."""
    base: Path
    socket_path: str
    """Of the engine process's unix socket."""
    http_fd: int
    """Listening socket, inherited."""
    grpc_fd: int
    """Socket, inherited; listening if `takes_socket`, else it only keeps the port."""
    has_served: bool
    """Whether there was an engine process that served: this front takes another one's place."""


def takes_socket(server: ServerConfig) -> bool:
    """Whether the gRPC transport serves a socket that was bound for it; grpcio binds its own."""
    return server.grpc_transport != "grpcio"
