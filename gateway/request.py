"""A prediction request and its answer, as neither protocol knows them.

Tensors are raw bytes with a shape (engines.tensors). The adapters' codecs are the only translation
between these and a wire format.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field

from engines.errors import InvalidInput
from engines.tensors import Tensor

ParameterValue = bool | int | float | str
HeaderLookup = Callable[[str], str | None]
"""Takes a lower-case name; returns the value as received, one character per byte."""


def no_headers(name: str) -> str | None:
    """Return nothing: a request that came without headers."""
    return None


@dataclass(slots=True, kw_only=True)
class InferRequest:
    """One prediction request as decoded; not changed after the codec made it."""

    name: str
    """Public name: a route's or a model's."""
    version: str = ""
    """Empty: by the route's split, or the highest ready version of the model."""
    id: str = ""
    """The caller's own id, echoed in the answer."""
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[str, ...] = ()
    """Requested outputs in order; empty: all, in the model's order."""
    header: HeaderLookup = no_headers
    """HTTP header or gRPC metadata by lower-case name."""
    deadline_ns: int | None = None
    """Absolute, monotonic: from the gRPC deadline or the HTTP header."""
    protocol: str = ""
    """http or grpc, for metrics."""
    write: Callable[[InferResponse], None] | None = None
    """Puts the answer into the caller's form before it is counted: if it raises, that error is the
    answer, and is counted and logged as such."""


def correlation_id(request: InferRequest) -> str:
    """Return the caller's own id of a request: the id in it, or else that of its headers."""
    return request.id or request.header("x-request-id") or ""


@dataclass(slots=True, kw_only=True)
class InferResponse:
    """The answer to one request."""

    model: str
    """Name of the model that served, which may differ from the public name."""
    version: str
    id: str
    outputs: tuple[Tensor, ...]
    """In the order requested; the data are views of a batch's output."""


@dataclass(slots=True, kw_only=True)
class ServedBy:
    """Who took the request, as far as that was decided.

    Returned to the caller as x-sluice-* headers or trailing metadata, also with an error.
    """

    request_id: str
    """x-request-id: the record's rid, a UUIDv7."""
    variant: str = ""
    """The variant that serves; empty without a route."""
    assigned: str = ""
    """The variant that the route chose, where another one serves in its place; else empty."""
    revision: int = 0
    """Of the route; 0 without one."""
    reason: str = ""
    """slot, random, no_key, rule:<name>, fallback, version, or model without a route."""

    def headers(self) -> list[tuple[str, str]]:
        """Return the header or metadata lines, lower-case, of what is known."""
        lines = [("x-request-id", self.request_id)]
        if self.reason:
            lines.append(("x-sluice-reason", self.reason))
        if self.variant:
            lines.append(("x-sluice-variant", self.variant))
        if self.assigned:
            lines.append(("x-sluice-assigned", self.assigned))
        if self.revision:
            lines.append(("x-sluice-revision", str(self.revision)))
        return lines


def check_output_parameters(output: str, parameters: Container[str]) -> None:
    """Refuse what would be answered wrongly if it were ignored; `parameters` are names."""
    if "classification" in parameters:
        raise InvalidInput(f"output {output!r}: the classification extension is not supported")
    check_no_shared_memory(f"output {output!r}", parameters)


def check_no_shared_memory(subject: str, parameters: Container[str]) -> None:
    """Refuse a tensor that is said to lie in shared memory; `parameters` are names."""
    if "shared_memory_region" in parameters:
        raise InvalidInput(f"{subject}: shared memory is not supported")
