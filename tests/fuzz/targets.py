"""The targets by name. A target is a module: `one(data)` raises on a finding and only then."""

from __future__ import annotations

import importlib
from typing import Final, Protocol, cast

TARGETS: Final = (
    "hpack",
    "http2",
    "grpc",
    "http1",
    "http_codec",
    "documents",
    "elements",
    "grpc_codec",
)


class Target(Protocol):
    """What each module tests.fuzz.target_NAME has."""

    WORDS: tuple[bytes, ...]
    """What bytes are worth putting together."""

    def seeds(self) -> list[bytes]:
        """Return inputs to start from: what clients send."""

    def one(self, data: bytes) -> None:
        """Run one input."""


def load(name: str) -> Target:
    """Import a target."""
    return cast("Target", importlib.import_module(f"tests.fuzz.target_{name}"))
