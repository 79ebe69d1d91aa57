"""The cases: requests to a gateway in each protocol, and the same model called in-process.

Knows the models and routes that the benchmark serves. All cases of a run ask one gateway.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from engines import ort
from engines.base import Engine, EngineConfig
from loadtests import asking, payloads
from loadtests.bench import drivers, models
from loadtests.bench.drivers import KINDS, Driver, Kind
from loadtests.bench.measure import Case, Sample, measure
from loadtests.gateway_process import RunningGateway

CONCURRENCY: Final = 32
MAX_BATCH_SIZE: Final = 64
ROUTE: Final = "tiny"
BATCHED: Final = "medium"
UNBATCHED: Final = "medium-unbatched"
ON, OFF, IN_PROCESS = "batching on", "batching off", "in-process"
"""Names of the cases about batching."""
LOG_ENTRIES: Final = 100_000
"""Kept per stream: a long run does not fill the machine's memory."""


def write_models(root: Path, *, threads: int) -> None:
    """Fill a model repository with what the cases ask for."""
    for version, seed in (("1", 1), ("2", 2)):
        models.write_mlp(root / ROUTE / version / "model.onnx", models.TINY, seed=seed)
    names = {ROUTE: True, BATCHED: True, UNBATCHED: False}
    for name in (BATCHED, UNBATCHED):
        models.write_mlp(root / name / "1" / "model.onnx", models.MEDIUM, seed=3)
    for name, is_batched in names.items():
        models.write_config(
            root / name, max_batch_size=MAX_BATCH_SIZE, is_batched=is_batched, threads=threads
        )


def tables() -> str:
    """Return the routes and the prediction log's settings, as TOML."""
    lines = [f"[routes.{ROUTE}]", f'key = ["header:{drivers.KEY_HEADER}"]']
    lines.append(f"[routes.{ROUTE}.variants]")
    for variant, version, weight in (("stable", "1", 90), ("canary", "2", 10)):
        settings = f"model = {json.dumps(ROUTE)}, version = {json.dumps(version)}"
        lines.append(f"{variant} = {{ {settings}, weight = {weight} }}")
    lines += ["[prediction_log]", f"max_entries = {LOG_ENTRIES}"]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayCase:
    """Requests of one row to a route or model."""

    name: str
    gateway: RunningGateway
    asked: str
    """The route or model."""
    driver: Driver

    @property
    def label(self) -> str:
        """The driver's."""
        return self.driver.label

    def measure(self, duration_s: float) -> Sample:
        """Load for this long."""
        return measure(
            self.name,
            self.gateway,
            self.asked,
            lambda: self.driver.run(duration_s),
            in_flight=CONCURRENCY,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class InProcessCase:
    """The gateway's own engine, called in a loop with batches that are ready made."""

    engine: Engine
    name: str = IN_PROCESS
    label: str = "a loop around Engine.infer"

    def measure(self, duration_s: float) -> Sample:
        """Run batches for this long."""
        shape = (CONCURRENCY, models.MEDIUM[0])
        batch = {models.INPUT: np.random.default_rng(1).random(shape, dtype=np.float32)}
        cpu_before_s = time.process_time()
        started_s = now_s = time.monotonic()
        batches = 0
        while now_s - started_s < duration_s:
            self.engine.infer(batch)
            batches += 1
            now_s = time.monotonic()
        return Sample(
            case=self.name,
            requests=batches,
            failures=0,
            rows=batches * CONCURRENCY,
            batches=batches,
            wall_s=now_s - started_s,
            cpu_s=time.process_time() - cpu_before_s,
        )


def cpu_cases(gateway: RunningGateway, folder: Path, *, is_external: bool) -> Sequence[Case]:
    """Return the tiny route in every protocol."""
    return [
        _case(shown, gateway, ROUTE, kind, folder, is_external=is_external)
        for kind, shown in KINDS.items()
    ]


def batching_cases(
    gateway: RunningGateway, folder: Path, root: Path, *, threads: int, is_external: bool
) -> Sequence[Case]:
    """Return the medium model with and without dynamic batching, and in-process."""
    config = EngineConfig(max_batch_size=MAX_BATCH_SIZE, intra_op_threads=threads)
    engine = ort.load(root / BATCHED / "1" / "model.onnx", config)
    return [
        _case(ON, gateway, BATCHED, "binary", folder, is_external=is_external),
        _case(OFF, gateway, UNBATCHED, "binary", folder, is_external=is_external),
        InProcessCase(engine=engine),
    ]


def _case(
    name: str,
    gateway: RunningGateway,
    asked: str,
    kind: Kind,
    folder: Path,
    *,
    is_external: bool,
) -> Case:
    metadata = asking.get_json(f"{gateway.http_url}/v2/models/{asked}")
    address = gateway.addresses.grpc if kind == "grpc" else gateway.addresses.http
    driver = drivers.choose(
        drivers.question(kind, payloads.signature(metadata)),
        address,
        folder,
        concurrency=CONCURRENCY,
        is_external=is_external,
    )
    return GatewayCase(name=name, gateway=gateway, asked=asked, driver=driver)
