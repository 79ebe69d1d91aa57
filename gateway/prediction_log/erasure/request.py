"""What somebody asks to be erased. Values only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Who is forgotten, and where."""

    tags: Sequence[bytes]
    """All tags that records of the subject may have."""
    names: Sequence[str] = ()
    """Public names; empty: all, and the subject's sealing keys."""
    gone: Sequence[str] = ()
    """Gateways whose disks do not exist any more."""
    timeout_s: float = 120.0
    """Longest wait for gateways, in each round, and for each of Redis' files."""
