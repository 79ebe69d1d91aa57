"""An engine process and fronts in one process: real gateways, real links, no listeners."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from engines.tensors import Tensor
from gateway import config as configuration
from gateway.app import App
from gateway.errors import StatusTable
from gateway.request import InferRequest, InferResponse, ServedBy
from gateway.workers.engine_end import EngineEnd
from gateway.workers.remote_engine import RemoteEngine
from gateway.workers.remote_pipeline import RemotePipeline
from tests.support.batching import until

HANG_S: Final = 10.0
Answer = tuple[InferResponse | Exception, ServedBy]


class EngineSide:
    """What an engine process is made of, on a unix socket."""

    def __init__(self, app: App, folder: Path) -> None:
        self.app = app
        self.path = str(folder / "engine.sock")
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(self.path)
        self._listening.listen(16)
        self._listening.setblocking(False)
        self.end = self._make()
        self._accepting: asyncio.Task[None] | None = None

    def _make(self) -> EngineEnd:
        app = self.app
        return EngineEnd(
            pipeline=app.pipeline,
            service=app.service,
            app=app.predict,
            catalog=app.catalog,
            lifecycle=app.lifecycle,
            statuses=app.statuses,
        )

    def open(self) -> None:
        """Accept links."""
        self._accepting = asyncio.create_task(self.end.serve(self._listening))

    async def lose(self) -> None:
        """End all links as a crash would, and accept none until `open`."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
        for link in list(self.end._links):
            link.link.abort()
        async with asyncio.timeout(HANG_S):
            await self.end.fronts_gone()

    async def close(self) -> None:
        """Stop the gateway."""
        await self.lose()
        self._listening.close()
        await self.app.stop()


class FrontSide:
    """What a front process is made of, but for its listeners."""

    def __init__(self, path: str, index: int = 1) -> None:
        self.ready: list[bool] = []
        self.engine = RemoteEngine(path, index, self.ready.append)
        self.pipeline = RemotePipeline(self.engine, StatusTable(), index)
        self._running = asyncio.create_task(self.engine.run(self.pipeline))

    async def until_ready(self, *, is_ready: bool = True) -> None:
        """Return when the engine side is there and serves, or when it does not."""
        await until(lambda: self.engine.is_ready == is_ready)

    def start(self, request: InferRequest) -> tuple[Any, asyncio.Future[Answer]]:  # Any: RemoteCall
        """Submit a request; return the call, and what will have its answer."""
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def reply(answer: InferResponse | Exception, served_by: ServedBy) -> None:
            answered.set_result((answer, served_by))

        return self.pipeline.submit(request, reply), answered

    async def ask(self, request: InferRequest) -> Answer:
        """Submit a request and return its answer."""
        async with asyncio.timeout(HANG_S):
            return await self.start(request)[1]

    async def close(self) -> None:
        """End the link."""
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        self.engine.close()
        await asyncio.sleep(0.01)


@asynccontextmanager
async def engine_side(folder: Path, document: Mapping[str, Any]) -> AsyncIterator[EngineSide]:
    """Serve the models of a folder to fronts. Any: what a TOML file holds."""
    server = {"metrics": "127.0.0.1:0", "admin": "127.0.0.1:0", "http": "127.0.0.1:0"}
    config = configuration.parse({"server": server, **document})
    side = EngineSide(App(config, folder / "models", folder, has_front_door=False), folder)
    await side.app.start()
    side.open()
    try:
        yield side
    finally:
        await side.close()


@asynccontextmanager
async def front_side(side: EngineSide, index: int = 1) -> AsyncIterator[FrontSide]:
    """Connect a front."""
    front = FrontSide(side.path, index)
    try:
        await front.until_ready()
        yield front
    finally:
        await front.close()


def request(model: str = "fast", values: bytes = bytes(16), **fields: Any) -> InferRequest:
    """Return a request of one row of four. Any: fields of InferRequest."""
    inputs = (Tensor("x", "FP32", (len(values) // 16, 4), values),)
    return InferRequest(**{"name": model, "inputs": inputs, "protocol": "grpc"} | fields)
