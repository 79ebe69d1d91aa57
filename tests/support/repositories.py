"""A model repository in a temporary folder, with hooks to hold its loads and its batches.

The folders, the files and the engines are real; only the configuration format is left out: a spec
is made from the files that are there and from the fields that a test sets.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from engines import fake, ort
from engines.base import Engine, EngineConfig, ModelSpec, VersionPolicy
from engines.errors import ModelLoadError
from engines.executed import BatchReport
from engines.fake import FakeEngine
from engines.repository import Repository
from engines.served import ServedVersion
from tests.support.batching import HANG_S, Gate, Reply, make_request
from tests.support.models import write_fake, write_identity, write_lookup

ONNX_FILE: Final = "model.onnx"
FAKE_FILE: Final = "model.json"


class Shelf:
    """The folder of a repository under test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.changes: dict[str, dict[str, Any]] = {}  # Any: fields of ModelSpec, by model
        self.broken: dict[str, str] = {}
        """Why the configuration of a model cannot be read."""
        self.gate = Gate()
        """Holds the batches of fakes with a latency; their warm-up passes."""
        self.may_load = threading.Event()
        """Loads of fakes wait for it."""
        self.may_load.set()
        self.is_loading = threading.Event()
        self.fakes: list[FakeEngine] = []
        """Every fake ever loaded, in order."""
        self.reports: list[tuple[ServedVersion, BatchReport]] = []

    def add_onnx(self, model: str, version: str, width: int = 1) -> Path:
        """Put an FP32 identity into the repository."""
        return write_identity(self.root / model / version / ONNX_FILE, "FP32", [width])

    def add_lookup(self, model: str, version: str, *table: float) -> Path:
        """Put a lookup into the repository, whose answers tell the version."""
        return write_lookup(self.root / model / version / ONNX_FILE, table)

    def add_fake(self, model: str, version: str, **script: object) -> Path:
        """Put a fake that echoes rows of one element into the repository."""
        spec = {"datatype": "FP32", "shape": [-1, 1]}
        shapes = {"inputs": [{"name": "x", **spec}], "outputs": [{"name": "y", **spec}]}
        return write_fake(self.root / model / version / FAKE_FILE, **(shapes | script))

    def configure(self, model: str, **fields: object) -> None:
        """Set fields of a model's specification, as its configuration would."""
        self.changes.setdefault(model, {}).update(fields)

    def read_spec(self, directory: Path) -> ModelSpec:
        """Make the specification of a model's folder."""
        if directory.name in self.broken:
            raise ModelLoadError(self.broken[directory.name])
        is_fake = any(directory.glob(f"*/{FAKE_FILE}"))
        spec = ModelSpec(
            name=directory.name,
            directory=directory,
            backend="fake" if is_fake else "onnxruntime",
            filename=FAKE_FILE if is_fake else ONNX_FILE,
            instances=1,
            engine=EngineConfig(),
            batching=None,
            versions=VersionPolicy(),
        )
        return replace(spec, **self.changes.get(directory.name, {}))

    def load_fake(self, path: Path, config: EngineConfig) -> Engine:
        """Load a fake whose pauses are the gate's, except in its warm-up."""
        self.is_loading.set()
        if not self.may_load.wait(HANG_S):
            raise TimeoutError("the test never allowed this load")
        scripted = fake.load(path, config)
        metadata = scripted.metadata
        engine = FakeEngine(
            inputs=metadata.inputs,
            outputs=metadata.outputs,
            max_batch_size=metadata.max_batch_size,
            script=scripted.script,
            sleep=self._sleep,
        )
        self.fakes.append(engine)
        return engine

    def end_hangs(self) -> None:
        """Close every fake from outside, as no process could: its batches that hang end."""
        for engine in self.fakes:
            engine.close()

    def _sleep(self, pause_s: float) -> None:
        if not threading.current_thread().name.startswith("sluice-load"):
            self.gate(pause_s)


@asynccontextmanager
async def open_repository(shelf: Shelf, **pinned: list[str]) -> AsyncIterator[Repository]:
    """Start a repository over a shelf; drain and close it at the end."""
    repository = Repository(
        root=shelf.root,
        read_spec=shelf.read_spec,
        loaders={"onnxruntime": ort.load, "fake": shelf.load_fake},
        on_batch=lambda served, report: shelf.reports.append((served, report)),
    )
    try:
        await repository.start(pinned)
        yield repository
    finally:
        shelf.may_load.set()
        shelf.gate.open()
        await asyncio.wait_for(repository.close(), HANG_S)


def ask(
    served: ServedVersion, *values: float, then: Callable[[object], None] | None = None
) -> Reply:
    """Send a request to a version whose input is rows of one FP32 element."""
    reply = Reply()

    def on_done(outcome: object) -> None:
        reply(outcome)
        if then is not None:
            then(outcome)

    served.batcher.submit(make_request(values, on_done=on_done))
    return reply
