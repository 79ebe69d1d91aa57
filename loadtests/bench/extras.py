"""What is measured besides cases: starts, idle connections, the stages of the pipeline."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from gateway.demo.screen import DemoFailed
from loadtests import gateway_process
from loadtests.bench import content, models
from loadtests.bench.options import Options
from loadtests.bench.process_tree import tree_memory
from loadtests.bench.results import Idle, StageCost, StageCosts, Start
from loadtests.bench.servers import Ground

STARTS: Final = 5
CONNECTIONS: Final = 10_000
_SETTLE_S: Final = 0.5
"""A started gateway is left alone for this long before its memory is read."""
_LIMIT_S: Final = 300.0
_ROOT: Final = Path(__file__).parents[2]


@dataclass(slots=True)
class Extras:
    """What was measured; what could not be, with the reason."""

    starts: Sequence[Start] = ()
    idle: Sequence[Idle] = ()
    pipeline: Sequence[StageCost] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)


class NoFigures(Exception):
    """A measurement in a process of its own failed; the sentence is what it said."""


def measure(asked: Options, ground: Ground) -> Extras:
    """Measure what is asked for."""
    found, skipped = Extras(), {}
    for name in ("start", "idle", "pipeline"):
        if not asked.has_extra(name):
            continue
        print(f"\n{name} ...", flush=True)
        try:
            if name == "start":
                found.starts = starts(ground, 2 if asked.is_quick else STARTS)
            elif name == "idle":
                found.idle = idle(ground, 1_000 if asked.is_quick else CONNECTIONS)
            else:
                found.pipeline = pipeline(ground, is_quick=asked.is_quick)
        except (DemoFailed, NoFigures) as exc:
            skipped[name] = str(exc)
            print(f"  NOT MEASURED {name}: {exc}", file=sys.stderr, flush=True)
    found.skipped = skipped
    return found


def starts(ground: Ground, times: int) -> list[Start]:
    """Start a gateway with the tiny model again and again."""
    folder = ground.folder / "start"
    model = folder / "models" / "tiny"
    models.write_mlp(model / "1" / "model.onnx", models.TINY, seed=1)
    models.write_config(model, max_batch_size=content.MAX_BATCH_SIZE, is_batched=True, threads=1)
    found = []
    for _ in range(times):
        with gateway_process.running(
            folder, folder / "models", "", redis_url=ground.redis_url
        ) as gateway:
            time.sleep(_SETTLE_S)
            memory = tree_memory(gateway.pid)
        found.append(
            Start(seconds=gateway.start_s, pss_bytes=memory.pss_bytes, rss_bytes=memory.rss_bytes)
        )
    return found


def idle(ground: Ground, connections: int) -> Sequence[Idle]:
    """Open many connections that ask nothing, in a process of its own."""
    output = ground.folder / "idle.json"
    _module("loadtests.idle_connections", "--connections", str(connections), "--output", output)
    return msgspec.json.decode(output.read_bytes(), type=list[Idle])


def pipeline(ground: Ground, *, is_quick: bool) -> Sequence[StageCost]:
    """Measure the pipeline without transports, in a process of its own."""
    output = ground.folder / "pipeline.json"
    rounds = ("--rounds", "2") if is_quick else ()
    _module("loadtests.micro.pipeline", *rounds, "--output", output)
    return msgspec.json.decode(output.read_bytes(), type=StageCosts).stages


def _module(name: str, *arguments: str | Path) -> None:
    command = [sys.executable, "-m", name, *map(str, arguments)]
    try:
        done = subprocess.run(
            command, cwd=_ROOT, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise NoFigures(f"{name} was not done after {_LIMIT_S:.0f} s") from None
    if done.returncode:
        raise NoFigures(f"{name}: {done.stderr.strip() or done.stdout.strip()}")
