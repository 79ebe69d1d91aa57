"""What is compared with what, under which load. Data, and the loads made of it.

A closed loop with more under way than all lanes can hold asks how much goes through. Calls at a
steady rate, far below that, ask how long one takes: their number does not depend on the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from engines.tensors import from_array
from loadtests import payloads
from loadtests.gpu.caller import Message
from loadtests.gpu.callers import Load
from loadtests.gpu.graph import Graph
from loadtests.gpu.in_process import OVERLAPPED, SERIAL
from loadtests.gpu.report import GATEWAY
from loadtests.gpu.variants import BASE, LIVE, SHADOWED

IN_FLIGHT: Final = 6
"""Largest batches under way: three for the lanes, the rest in the queue and on the wire."""
MIXED_ROWS: Final = (1, 2, 3, 5)
MIXED_SHARE: Final = 0.5
"""Of the rows per second that go through: batches of all sizes come about."""
LIGHT_SHARE: Final = 0.3
"""The same where a shadow doubles the work."""
_MESSAGES: Final = 4
"""Different ones of each size."""


class Profile(Enum):
    """A load, whatever the network; the value says it to people."""

    FULL = f"closed loop, rows for {IN_FLIGHT} of the largest batches under way, one row a request"
    ONE = "closed loop, one request of one row under way"
    MIXED = f"open loop at {MIXED_SHARE:.0%} of the rows/s that go through, 1 to 5 rows a request"
    LIGHT = f"open loop at {LIGHT_SHARE:.0%} of the rows/s that go through, one row a request"


@dataclass(frozen=True, slots=True)
class Side:
    """One of those compared."""

    name: str
    asked: str
    """Model or route; empty: the engine in this process."""
    ran: str = BASE
    """The model that answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A comparison to be."""

    name: str
    about: str
    profile: Profile
    sides: tuple[Side, ...]
    """The baseline first."""

    @property
    def models(self) -> set[str]:
        """Those that have to be served."""
        return {side.ran for side in self.sides}

    @property
    def has_routes(self) -> bool:
        """Whether a route is asked."""
        return any(side.asked and side.asked != side.ran for side in self.sides)


def _model(name: str, model: str) -> Side:
    return Side(name, model, model)


PLANS: Final = (
    Plan(
        name=GATEWAY,
        about="the engine in one process, against the same one behind the gateway over gRPC",
        profile=Profile.FULL,
        sides=(Side(SERIAL, ""), Side(OVERLAPPED, ""), _model("gateway", BASE)),
    ),
    Plan(
        name="lanes",
        about="what copying and computing at the same time brings",
        profile=Profile.FULL,
        sides=(_model("1 lane", "lanes1"), _model("2 lanes", BASE), _model("3 lanes", "lanes3")),
    ),
    Plan(
        name="buckets",
        about="batches of any size, against those padded up to powers of two",
        profile=Profile.MIXED,
        sides=(_model("any size", "unpadded"), _model("buckets", BASE)),
    ),
    Plan(
        name="graphs",
        about="kernels started one by one, against a CUDA graph per bucket",
        profile=Profile.ONE,
        sides=(_model("plain", BASE), _model("graphs", "graphs")),
    ),
    Plan(
        name="graphs, full load",
        about="the same with the largest batches",
        profile=Profile.FULL,
        sides=(_model("plain", BASE), _model("graphs", "graphs")),
    ),
    Plan(
        name="shadow",
        about="live requests alone, and with a shadow of each on the same device",
        profile=Profile.LIGHT,
        sides=(Side("live alone", LIVE), Side("with a shadow", SHADOWED)),
    ),
)


class Loads:
    """The loads on the names of one network; requests are written to files once.

    Args:
        folder: for those files.
        graph: the network.
        max_batch: rows.
    """

    def __init__(self, folder: Path, graph: Graph, max_batch: int) -> None:
        self._folder = folder
        self._graph = graph
        self._max_batch = max_batch
        self.capacity_rows_per_s = 0.0
        """What goes through; set by whoever has measured it."""

    def load(self, name: str, profile: Profile) -> Load:
        """Return the load of a profile on a model or route."""
        if profile is Profile.MIXED:
            rate = self.capacity_rows_per_s * MIXED_SHARE
            sizes = [rows for rows in MIXED_ROWS if rows <= self._max_batch]
            return Load(messages=self._messages(name, sizes), rows_per_s=rate)
        messages = self._messages(name, (1,))
        if profile is Profile.LIGHT:
            return Load(messages=messages, rows_per_s=self.capacity_rows_per_s * LIGHT_SHARE)
        in_flight = 1 if profile is Profile.ONE else IN_FLIGHT * self._max_batch
        return Load(messages=messages, in_flight=in_flight)

    def _messages(self, name: str, sizes: Sequence[int]) -> tuple[Message, ...]:
        found = []
        for rows in sizes:
            for seed in range(_MESSAGES):
                path = self._folder / f"{name}-{rows}-{seed}.request"
                if not path.exists():
                    path.write_bytes(request(self._graph, name, rows, seed))
                found.append(Message(str(path), rows))
        return tuple(found)


def request(graph: Graph, name: str, rows: int, seed: int) -> bytes:
    """Return a request of so many random rows, ready to send."""
    tensors = [
        from_array(tensor, graph.datatype, array)
        for tensor, array in graph.batch(rows, seed).items()
    ]
    return payloads.as_grpc(name, tensors)
