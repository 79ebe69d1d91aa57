"""An engine in this process, asked as fast as it goes: what the gateway is held against.

Batches are ready beforehand, nothing is queued and nobody waits in line. `infer` is one batch after
the other; `overlapped` keeps every lane of a laned engine busy, with two threads as the gateway's
instances have.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Final

import numpy as np

from engines import registry
from engines.base import Engine, EngineConfig, LanedEngine, Lease
from engines.tensors import Array
from loadtests.gpu.graph import Graph
from loadtests.gpu.results import Turn

SERIAL: Final = "in-process"
OVERLAPPED: Final = "in-process, overlapped"


class InProcess:
    """One engine, warm for every bucket.

    Raises:
        ModelLoadError: it does not load; DeviceUnavailable among them.
    """

    def __init__(self, backend: str, path: Path, config: EngineConfig, graph: Graph) -> None:
        self.engine: Engine = registry.loaders()[backend](path, config)
        self._graph = graph
        runs = self.engine.warmup_runs if isinstance(self.engine, LanedEngine) else 1
        try:
            for rows in reversed(config.buckets):
                for _ in range(runs):
                    self.engine.infer(graph.batch(rows))
        except BaseException:
            self.engine.close()
            raise

    @property
    def has_lanes(self) -> bool:
        """Whether batches can overlap."""
        return isinstance(self.engine, LanedEngine)

    def loaded(self) -> dict[str, str]:
        """Return what the engine says of itself."""
        metadata = self.engine.metadata
        return {
            "engine": metadata.engine,
            "on": metadata.device,
            "by": " ".join(metadata.providers),
            "precision": metadata.precision,
            "lanes": str(self.engine.lanes) if isinstance(self.engine, LanedEngine) else "none",
        }

    def answer(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch."""
        return self.engine.infer(batch)

    def turn(self, side: str, rows: int, seconds: float) -> Turn:
        """Run batches of so many rows for some seconds."""
        batch = self._graph.batch(rows)
        cpu_before_s = time.process_time()
        if side == OVERLAPPED:
            assert isinstance(self.engine, LanedEngine)
            batches, took_s = overlapped(self.engine, batch, seconds)
        else:
            batches, took_s = self._serial(batch, seconds)
        return Turn(
            side=side,
            rows=batches * rows,
            seconds=took_s,
            cpu_s=time.process_time() - cpu_before_s,
            batches=batches,
            batch_rows=batches * rows,
        )

    def _serial(self, batch: Mapping[str, Array], seconds: float) -> tuple[int, float]:
        infer = self.engine.infer
        started_s = now_s = time.perf_counter()
        batches = 0
        while now_s - started_s < seconds:
            infer(batch)
            batches += 1
            now_s = time.perf_counter()
        return batches, now_s - started_s

    def close(self) -> None:
        """Give the memory back."""
        self.engine.close()


def overlapped(
    engine: LanedEngine, batch: Mapping[str, Array], seconds: float
) -> tuple[int, float]:
    """Run a batch again and again, in all lanes at once; return how often, and in what time.

    Each is written into its lane, and its outputs are copied out of it, as `infer` does.
    """
    pump = _Pump(engine)
    shapes = {name: array.shape for name, array in batch.items()}
    started_s = now_s = time.perf_counter()
    try:
        while now_s - started_s < seconds:
            pump.submit(shapes, batch)
            now_s = time.perf_counter()
    finally:
        batches = pump.end()
    return batches, time.perf_counter() - started_s


class _Pump:
    """The thread that collects, and the way to it."""

    def __init__(self, engine: LanedEngine) -> None:
        self._engine = engine
        self._free = threading.Semaphore(engine.lanes)
        self._running: SimpleQueue[Lease | None] = SimpleQueue()
        self._collected = 0
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._collect_all, name="collector", daemon=True)
        self._thread.start()

    def submit(self, shapes: Mapping[str, tuple[int, ...]], batch: Mapping[str, Array]) -> None:
        """Wait for a lane and start a batch in it."""
        self._free.acquire()
        if self._failure is not None:
            raise self._failure
        lease = self._engine.acquire(shapes)
        for name, array in lease.inputs.items():
            np.copyto(array, batch[name])
        self._engine.submit(lease)
        self._running.put(lease)

    def end(self) -> int:
        """Wait for what is under way; return how many batches there were."""
        self._running.put(None)
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._collected

    def _collect_all(self) -> None:
        while (lease := self._running.get()) is not None:
            try:
                for array in self._engine.collect(lease).values():
                    array.copy()
                self._collected += 1
            except Exception as exc:  # raised again in the thread that submits
                self._failure = exc
            self._engine.release(lease)
            self._free.release()
