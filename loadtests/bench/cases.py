"""What is measured, as data: servers, models, protocols, generators, requests in flight.

Pure: nothing runs here. The cases of one group are measured in interleaved rounds (A B C, A B C
...), so that whatever else the machine does meets all of them, and only cases of one group are
compared with each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

ModelName = Literal["tiny", "mid", "image"]
Protocol = Literal["grpc", "stream", "json", "binary", "none"]
GeneratorName = Literal["wrk", "h2load", "perf_analyzer", "grpc-js", "loop", "in-process"]
Kind = Literal["sluice", "raw grpc.aio", "starlette", "starlette batching", "in-process", "peer"]
Asked = Literal["split", "route", "version"]
"""split: a route 90/10 over two versions; route: one of a single version; version: past routes."""

BEST: Final = 0
"""In flight of the in-process case that tries every batch size and keeps the best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What serves. Equal ones are one process."""

    kind: Kind = "sluice"
    transport: Literal["sluice", "grpcio"] = "sluice"
    workers: int = 1
    has_log: bool = True
    has_tls: bool = False
    peer: str = ""

    @property
    def is_counting(self) -> bool:
        """Whether it says itself how many requests it answered."""
        return self.kind != "peer"

    @property
    def shown(self) -> str:
        """How it differs from the usual one, a gateway with everything on; empty: not at all."""
        if self.kind == "peer":
            return self.peer
        if self.kind != "sluice":
            return self.kind
        parts = [
            ("grpcio", self.transport == "grpcio"),
            ("2 fronts" if self.workers == 2 else f"{self.workers} fronts", self.workers > 1),
            ("no log", not self.has_log),
            ("TLS", self.has_tls),
        ]
        return ", ".join(text for text, applies in parts if applies)


USUAL: Final = Server()
GRPCIO: Final = Server(transport="grpcio")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Requests of one row of one kind to one server."""

    group: str
    model: ModelName = "tiny"
    protocol: Protocol
    generator: GeneratorName
    in_flight: int = 32
    server: Server = USUAL
    asked: Asked = "split"
    is_varying: bool = False
    """Every call carries a deadline of its own and a unique traceparent."""

    @property
    def name(self) -> str:
        """Unique among all cases."""
        return f"{self.group}: {self.title}"

    @property
    def title(self) -> str:
        """Unique in its group."""
        many = "best batch" if self.in_flight == BEST else str(self.in_flight)
        parts = [self.model, self.protocol, self.generator, many]
        if self.protocol == "none":
            parts.remove("none")
        if self.is_varying:
            parts.append("varying")
        if self.asked != "split" and self.server.kind == "sluice" and self.model == "tiny":
            parts.append(self.asked)
        if self.server.shown and self.server.kind != "in-process":
            parts.append(f"({self.server.shown})")
        return " ".join(parts)


def _tiny() -> list[Case]:
    """The tiny model in every protocol, and what the same takes on the stock transports."""
    group = "tiny"
    starlette, raw = Server(kind="starlette"), Server(kind="raw grpc.aio")
    batching = Server(kind="starlette batching")
    return [
        Case(group=group, protocol="grpc", generator="perf_analyzer"),
        Case(group=group, protocol="grpc", generator="perf_analyzer", server=GRPCIO),
        Case(group=group, protocol="grpc", generator="h2load"),
        Case(group=group, protocol="grpc", generator="h2load", server=GRPCIO),
        Case(group=group, protocol="grpc", generator="h2load", server=raw),
        Case(group=group, protocol="grpc", generator="grpc-js"),
        Case(group=group, protocol="grpc", generator="grpc-js", is_varying=True),
        Case(group=group, protocol="grpc", generator="grpc-js", is_varying=True, server=GRPCIO),
        Case(group=group, protocol="grpc", generator="h2load", in_flight=1),
        Case(group=group, protocol="grpc", generator="perf_analyzer", in_flight=1),
        Case(group=group, protocol="stream", generator="perf_analyzer"),
        Case(group=group, protocol="stream", generator="perf_analyzer", server=GRPCIO),
        Case(group=group, protocol="json", generator="wrk"),
        Case(group=group, protocol="json", generator="wrk", server=starlette),
        Case(group=group, protocol="json", generator="wrk", server=batching),
        Case(group=group, protocol="binary", generator="wrk"),
    ]


def _in_flight() -> list[Case]:
    """From one request to a thousand."""
    group = "in flight"
    cases = []
    for many in (64, 256, 1024):
        cases.append(Case(group=group, protocol="grpc", generator="h2load", in_flight=many))
        cases.append(Case(group=group, protocol="json", generator="wrk", in_flight=many))
    cases.append(Case(group=group, protocol="json", generator="wrk", in_flight=1))
    cases.append(Case(group=group, protocol="grpc", generator="perf_analyzer", in_flight=256))
    cases.append(Case(group=group, protocol="json", generator="perf_analyzer"))
    return cases


def _costs() -> list[Case]:
    """Log and routing switched off, on both fast paths; one version, so that batches are alike."""
    silent = Server(has_log=False)
    variations: Sequence[tuple[Server, Asked]] = (
        (USUAL, "route"),
        (USUAL, "version"),
        (silent, "route"),
    )
    return [
        Case(group="costs", protocol=protocol, generator=generator, server=server, asked=asked)
        for protocol, generator in _BOTH
        for server, asked in variations
    ]


def _mid() -> list[Case]:
    """A model that computes: batches must stay whole."""
    group = "mid"
    alone = Server(kind="in-process")
    return [
        *(
            Case(
                group=group,
                model="mid",
                protocol=protocol,
                generator=generator,
                in_flight=many,
                asked="route",
            )
            for protocol, generator in _BOTH
            for many in (32, 64)
        ),
        *(
            Case(
                group=group,
                model="mid",
                protocol="none",
                generator="in-process",
                in_flight=many,
                server=alone,
            )
            for many in (32, BEST)
        ),
    ]


def _image() -> list[Case]:
    """602 KB a request."""
    ways: Sequence[tuple[Protocol, GeneratorName, Server]] = (
        ("binary", "wrk", USUAL),
        ("grpc", "h2load", USUAL),
        ("grpc", "h2load", GRPCIO),
    )
    return [
        Case(
            group="image",
            model="image",
            protocol=protocol,
            generator=generator,
            in_flight=8,
            asked="route",
            server=server,
        )
        for protocol, generator, server in ways
    ]


def _tls() -> list[Case]:
    """The first and the sixth row of the table with TLS."""
    tls, reference = Server(has_tls=True), Server(has_tls=True, transport="grpcio")
    return [
        Case(group="tls", protocol="grpc", generator="perf_analyzer", server=tls),
        Case(group="tls", protocol="grpc", generator="perf_analyzer", server=reference),
        Case(group="tls", protocol="grpc", generator="h2load", server=tls),
        Case(group="tls", protocol="json", generator="wrk", server=tls),
    ]


def _workers() -> list[Case]:
    """One process against two fronts and an engine process."""
    loads: Sequence[tuple[Protocol, GeneratorName, int]] = (
        ("grpc", "h2load", 256),
        ("json", "wrk", 32),
        ("json", "wrk", 256),
    )
    return [
        Case(
            group="workers",
            protocol=protocol,
            generator=generator,
            in_flight=many,
            asked="route",
            server=Server(workers=workers),
        )
        for protocol, generator, many in loads
        for workers in (1, 2)
    ]


_BOTH: Final[Sequence[tuple[Protocol, GeneratorName]]] = (("grpc", "h2load"), ("json", "wrk"))
CASES: Final[Sequence[Case]] = (
    *_tiny(),
    *_in_flight(),
    *_costs(),
    *_mid(),
    *_image(),
    *_tls(),
    *_workers(),
)


def peer_case(peer: str) -> Case:
    """Return the case of another project's server: wrk, 32 in flight, the tiny model."""
    server = Server(kind="peer", peer=peer)
    return Case(group="peers", protocol="json", generator="wrk", server=server)


def beside_the_peers() -> Case:
    """Return the case that the peers are compared with, in their own group and rounds."""
    return Case(group="peers", protocol="json", generator="wrk", asked="version")


def groups(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """Return the cases by group, in the order of their first."""
    found: dict[str, list[Case]] = {}
    for case in cases:
        found.setdefault(case.group, []).append(case)
    return found
