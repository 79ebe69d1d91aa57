"""Plays the corpus against two gateways and says where what a client sees is different.

`python -m tests.conformance.agree [PART OF A NAME]...` starts both, plays the calls whose names
contain one of the parts (none: all) and prints every difference, the listed ones with their reason.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.conformance import corpus
from tests.conformance.differences import reason
from tests.conformance.rpc import Outcome, Rpc, play
from tests.support.gateway import GatewayProcess
from tests.support.served import CONFIG, write_served

REFERENCE: Final = "grpcio"
OWN: Final = "sluice"
_THREADS: Final = 6
_SHOWN: Final = 300


@dataclass(frozen=True, slots=True)
class Pair:
    """What both came to, for one call."""

    rpc: Rpc
    reference: Outcome
    own: Outcome

    def differences(self) -> dict[str, tuple[object, object]]:
        """Return the fields that differ: the reference's value, and ours."""
        ours = self.own.fields()
        return {
            name: (value, ours[name])
            for name, value in self.reference.fields().items()
            if value != ours[name]
        }


@contextmanager
def gateways(
    folder: Path, transports: Iterable[str] = (REFERENCE, OWN), **server: Any
) -> Iterator[list[GatewayProcess]]:
    """Run a gateway per transport, alike but for it. Any: what a TOML file holds."""
    models = {**CONFIG["models"], "repository": str(write_served(folder / "models"))}
    with ExitStack() as ends:
        started: list[GatewayProcess] = []
        for name in transports:
            section = {**CONFIG["server"], "grpc_transport": name, **server}
            config = {**CONFIG, "server": section, "models": models}
            started.append(GatewayProcess(config, folder / f"{len(started)}-{name}"))
            ends.callback(started[-1].kill)
        yield [gateway.wait_ready() for gateway in started]


def compare(reference: str, own: str, rpcs: Iterable[Rpc]) -> list[Pair]:
    """Play calls against two addresses: some at a time, and those that must be alone after them."""
    chosen = list(rpcs)

    def both(rpc: Rpc) -> Pair:
        return Pair(rpc, play(reference, rpc), play(own, rpc))

    with ThreadPoolExecutor(_THREADS) as pool:
        pairs = list(pool.map(both, (rpc for rpc in chosen if not rpc.is_alone)))
    return pairs + [both(rpc) for rpc in chosen if rpc.is_alone]


def describe(pair: Pair) -> str:
    """Return the differences of a pair as lines."""
    lines = [pair.rpc.name]
    for name, (theirs, ours) in pair.differences().items():
        lines += [
            f"    {name}:",
            f"      {REFERENCE}: {_short(theirs)}",
            f"      {OWN}: {_short(ours)}",
        ]
    return "\n".join(lines)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)})"


def main() -> int:
    """Play and print."""
    parts = sys.argv[1:] or [""]
    chosen = [rpc for rpc in corpus.rpcs() if any(part in rpc.name for part in parts)]
    with tempfile.TemporaryDirectory() as folder, gateways(Path(folder)) as (reference, own):
        pairs = compare(reference.at.grpc, own.at.grpc, chosen)
    different = [pair for pair in pairs if pair.differences()]
    unlisted = 0
    for pair in different:
        why = reason(pair.rpc.name, pair.differences())
        unlisted += why is None
        print(f"{describe(pair)}\n    {'NOT LISTED' if why is None else why}")  # noqa: T201
    print(f"{len(pairs)} calls, {len(different)} differ, {unlisted} not listed")  # noqa: T201
    return 1 if unlisted else 0


if __name__ == "__main__":
    sys.exit(main())
