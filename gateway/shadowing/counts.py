"""What a shadow is told of a request, and what becomes of its copy: values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from engines.tensors import Tensor


class ShadowDrop(StrEnum):
    """Why the copy of an eligible request has no answer in the log."""

    NOT_SAMPLED = "not_sampled"
    """Outside the sampled share."""
    NOT_READY = "not_ready"
    """The shadow's version is not loaded: not yet, or it does not come up."""
    QUEUE_FULL = "queue_full"
    """As many requests were in flight as may be."""
    BYTES_FULL = "bytes_full"
    """As many bytes of tensor data were in flight as may be."""
    EXPIRED = "expired"
    """Its deadline passed in the queue; the engine never saw it."""
    TIMEOUT = "timeout"
    """Its deadline passed while the engine had it."""
    ENGINE_ERROR = "engine_error"
    """The engine failed; the log has a record of it."""
    BAD_INPUT = "bad_input"
    """The shadow's version does not take these inputs."""
    SHUTDOWN = "shutdown"
    """Given up or refused when the shadow was removed or the gateway stopped."""
    INTERNAL = "internal"
    """A fault of our own, which the live request must not feel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirrored:
    """What a shadow is told of a live request. Shared by the shadows of a route; never changed."""

    rid: bytes
    """Of the live request."""
    cid: str
    ts_us: int
    """Arrival of the live request, microseconds since the epoch."""
    name: str
    """Of the route."""
    revision: int
    """Of the route."""
    variant: str
    """The live variant assigned."""
    inputs: tuple[Tensor, ...]
    """In the live model's order; the bytes must not change afterwards."""
    subject: str = ""
    """Whose data it is, as the live request says; empty: nobody's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowStatistics:
    """Conservation, at every instant: eligible = sent + sum(dropped) + in_flight."""

    model: str
    version: str
    is_ready: bool
    reason: str
    """Why the version, or its newest load, is not there; empty: it is."""
    eligible: int
    sent: int
    dropped: Mapping[ShadowDrop, int]
    """Every reason is there."""
    in_flight: int
    held_bytes: int
    """Tensor bytes charged: in flight, and in the engine past their deadline."""
