"""A prediction request and its answer, as neither protocol knows them.

Tensors are raw bytes with a shape (engines.tensors). The adapters' codecs are the only translation
between these and a wire format.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from engines.errors import InvalidInput
from engines.tensors import Tensor
from gateway import ids

ParameterValue = bool | int | float | str
HeaderLookup = Callable[[str], str | None]
"""Takes a lower-case name; returns the value as received, one character per byte."""


NO_PARAMETERS: Final[Mapping[str, ParameterValue]] = MappingProxyType({})


def no_headers(name: str) -> str | None:
    """Return nothing: a request that came without headers."""
    return None


@dataclass(slots=True)
class InferRequest:
    """One prediction request as decoded; not changed after the codec made it.

    Requests of one description share their `parameters`, `outputs` and the names, datatypes and
    shapes of their tensors: nobody may change them.
    """

    name: str
    """Public name: a route's or a model's."""
    version: str = ""
    """Empty: by the route's split, or the highest ready version of the model."""
    id: str = ""
    """The caller's own id, echoed in the answer."""
    parameters: Mapping[str, ParameterValue] = field(default_factory=lambda: NO_PARAMETERS)
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[str, ...] = ()
    """Requested outputs in order; empty: all, in the model's order."""
    protocol: str = ""
    """http or grpc, for metrics."""
    header: HeaderLookup = no_headers
    """HTTP header or gRPC metadata by lower-case name."""
    deadline_ns: int | None = None
    """Absolute, monotonic: from the gRPC deadline or the HTTP header."""
    write: Callable[[InferResponse], None] | None = None
    """Puts the answer into the caller's form before it is counted: if it raises, that error is the
    answer, and is counted and logged as such."""


def correlation_id(request: InferRequest) -> str:
    """Return the caller's own id of a request: the id in it, or else that of its headers."""
    return request.id or request.header("x-request-id") or ""


@dataclass(slots=True)
class InferResponse:
    """The answer to one request."""

    model: str
    """Name of the model that served, which may differ from the public name."""
    version: str
    id: str
    outputs: tuple[Tensor, ...]
    """In the order requested; the data are views of a batch's output."""


class Serving:
    """Who serves the requests of one choice, as their callers are told. Compared by identity."""

    __slots__ = ("assigned", "lines", "reason", "revision", "variant")

    def __init__(self, variant: str, assigned: str, revision: int, reason: str) -> None:
        self.variant = variant
        """The variant that serves; empty without a route."""
        self.assigned = assigned
        """The variant that the route chose, where another one serves in its place; else empty."""
        self.revision = revision
        """Of the route; 0 without one."""
        self.reason = reason
        """slot, random, no_key, rule:<name>, fallback, version, or model without a route."""
        lines = []
        if reason:
            lines.append(("x-sluice-reason", reason))
        if variant:
            lines.append(("x-sluice-variant", variant))
        if assigned:
            lines.append(("x-sluice-assigned", assigned))
        if revision:
            lines.append(("x-sluice-revision", str(revision)))
        self.lines: tuple[tuple[str, str], ...] = tuple(lines)
        """The header or metadata lines of it, lower-case, of what is known."""


NOBODY: Final = Serving("", "", 0, "")
"""Of a request for which nothing was chosen."""
REQUEST_ID: Final = "x-request-id"


class ServedBy:
    """Who took the request, as far as that was decided.

    Returned to the caller as x-sluice-* headers or trailing metadata, also with an error.
    """

    __slots__ = ("rid", "serving")

    def __init__(self, rid: bytes, serving: Serving = NOBODY) -> None:
        self.rid = rid
        """The record's rid, a UUIDv7."""
        self.serving = serving

    @property
    def request_id(self) -> str:
        """The rid as text, told as x-request-id."""
        return ids.as_text(self.rid)

    def headers(self) -> list[tuple[str, str]]:
        """Return the header or metadata lines, lower-case, of what is known."""
        return [(REQUEST_ID, ids.as_text(self.rid)), *self.serving.lines]


def check_output_parameters(output: str, parameters: Container[str]) -> None:
    """Refuse what would be answered wrongly if it were ignored; `parameters` are names."""
    if "classification" in parameters:
        raise InvalidInput(f"output {output!r}: the classification extension is not supported")
    check_no_shared_memory(f"output {output!r}", parameters)


def check_no_shared_memory(subject: str, parameters: Container[str]) -> None:
    """Refuse a tensor that is said to lie in shared memory; `parameters` are names."""
    if "shared_memory_region" in parameters:
        raise InvalidInput(f"{subject}: shared memory is not supported")
