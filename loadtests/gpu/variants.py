"""The ways in which one network is served, side by side in one gateway.

Each is a model of the repository, so that comparisons take turns without loading anything. Knows
configuration files and routes; knows no process.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engines import buckets, devices
from engines.base import EngineConfig

BASE: Final = "base"
LIVE: Final = "live"
SHADOWED: Final = "shadowed"
SHADOW: Final = "next"
ROUTES: Final = (LIVE, SHADOWED)
"""To the base; the second with a shadow of every request, a copy of the same model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way."""

    lanes: int = 2
    has_buckets: bool = True
    has_graphs: bool = False


VARIANTS: Final[Mapping[str, Variant]] = {
    BASE: Variant(),
    "lanes1": Variant(lanes=1),
    "lanes3": Variant(lanes=3),
    "unpadded": Variant(has_buckets=False),
    "graphs": Variant(has_graphs=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What all variants of a run have in common."""

    engine: str
    """Backend's name."""
    device: str
    max_batch: int

    @property
    def buckets(self) -> tuple[int, ...]:
        """Powers of two up to the largest batch."""
        return buckets.powers_of_two(self.max_batch)

    def config(self, variant: Variant) -> EngineConfig:
        """Return how an engine in this process is loaded."""
        return EngineConfig(
            max_batch_size=self.max_batch,
            device=self.device,
            buckets=self.buckets if variant.has_buckets else (),
            lanes=variant.lanes,
            has_graphs=variant.has_graphs,
        )

    def config_text(self, variant: Variant) -> str:
        """Return the same as a config.pbtxt."""
        kind, index = devices.parse(self.device)
        place = f"kind: KIND_GPU gpus: [ {index} ]" if kind == "cuda" else "kind: KIND_CPU"
        lines = [
            f'backend: "{self.engine}"',
            f"max_batch_size: {self.max_batch}",
            "dynamic_batching { }",
            f"instance_group {{ count: 1 {place} }}",
            _parameter("lanes", str(variant.lanes)),
            _parameter("intra_op_thread_count", "1"),
        ]
        if variant.has_buckets:
            lines.append(_parameter("batch_buckets", ",".join(map(str, self.buckets))))
        if variant.has_graphs:
            lines.append("optimization { cuda { graphs: true } }")
        return "\n".join(lines) + "\n"


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def write_repository(
    root: Path, files: Iterable[Path], serving: Serving, names: Iterable[str]
) -> None:
    """Write a repository with these variants of one model.

    Args:
        root: where to.
        files: the model's.
        serving: what they have in common.
        names: of the variants.
    """
    for name in names:
        version = root / name / "1"
        version.mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(serving.config_text(VARIANTS[name]))
        for file in files:
            # A link, not a symbolic one: weights have to lie in the model's own folder.
            with contextlib.suppress(OSError):
                os.link(file, version / file.name)
                continue
            shutil.copyfile(file, version / file.name)


def settings(repository: Path, max_batch: int, *, has_routes: bool) -> str:
    """Return a gateway's configuration file."""
    tables = [
        "[server]",
        *(f'{name} = "127.0.0.1:0"' for name in ("http", "grpc", "metrics", "admin")),
        "[server.limits]",
        f"in_flight_bytes = {4 << 30}",
        "[models]",
        f"repository = {json.dumps(str(repository.resolve()))}",
        f"max_queue_rows = {64 * max_batch}",
        'cache = ""',
    ]
    stable = f'stable = {{ model = "{BASE}", version = "1", weight = 100 }}'
    for route in ROUTES if has_routes else ():
        tables += [f"[routes.{route}.variants]", stable]
    if has_routes:
        tables += [
            f"[routes.{SHADOWED}.shadows.{SHADOW}]",
            f'model = "{BASE}"',
            'version = "1"',
            "sample = 100",
        ]
    return "\n".join(tables) + "\n"
