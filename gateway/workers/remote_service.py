"""What a front answers beside infer calls: health by itself, everything else through the engine.

Live is always true here: a front that answers is alive. Ready is the engine process's last word,
and no while that process is away. All other calls are passed on as bytes and answered by the same
tables, and the same Starlette application, that answer them in one process.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, cast

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.catalog import Catalog, RepositoryControl
from gateway.errors import StatusTable
from gateway.grpc_api import feedback
from gateway.grpc_api.service import InferenceService
from gateway.http_api import body as bodies
from gateway.http_api.body import Receive, Scope, Send
from gateway.http_api.predict import error_handlers
from gateway.pb import inference_pb2 as pb
from gateway.pipeline import Pipeline
from gateway.principals import HEADER
from gateway.request import HeaderLookup
from gateway.workers.errors import EngineAway
from gateway.workers.messages import HttpCall
from gateway.workers.raw_bodies import RawSignatures
from gateway.workers.remote_engine import RemoteEngine
from gateway.workers.remote_pipeline import RemotePipeline

OWN: Final = ("ServerLive", "ServerReady")
"""gRPC methods that a front answers itself."""
PASSED_ON: Final = (
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelConfig",
    "ModelStatistics",
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
)


class FrontCatalog(RawSignatures):
    """The part of a catalog that a front has."""

    def __init__(self, engine: RemoteEngine) -> None:
        self._engine = engine
        self.is_draining = False

    def is_server_ready(self) -> bool:
        """Whether new requests are welcome."""
        return self._engine.is_ready and not self.is_draining


class RemoteService(InferenceService):
    """The gRPC methods in a front."""

    def __init__(
        self,
        *,
        pipeline: RemotePipeline,
        catalog: FrontCatalog,
        engine: RemoteEngine,
        statuses: StatusTable,
    ) -> None:
        super().__init__(
            # What the base class calls of these is what the front's have.
            pipeline=cast("Pipeline", pipeline),
            catalog=cast("Catalog", catalog),
            control=cast("RepositoryControl", None),
            statuses=statuses,
        )
        self._engine = engine
        self.unary = {name: self.unary[name] for name in OWN}
        self.slow = {name: partial(engine.call, name) for name in PASSED_ON}
        self.slow["ModelReady"] = self._is_model_ready
        self.others = {feedback.SERVICE: {feedback.SEND: self._send_feedback}}

    async def _send_feedback(self, data: bytes, header: HeaderLookup) -> bytes:
        key = header(HEADER)
        headers = {} if key is None else {HEADER: key}
        return await self._engine.call(f"{feedback.SERVICE}/{feedback.SEND}", data, headers)

    async def _is_model_ready(self, data: bytes) -> bytes:
        try:
            return await self._engine.call("ModelReady", data)
        except EngineAway:  # clients poll this call, and take no error for a no
            return pb.ModelReadyResponse(ready=False).SerializeToString()


class PassedOn:
    """ASGI application that passes a request on to the engine process's."""

    def __init__(self, engine: RemoteEngine, statuses: StatusTable, limit_bytes: int) -> None:
        self._engine = engine
        self._statuses = statuses
        self._limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. A body over the limit is cut behind it: refused over there."""
        body = bytearray()
        more = True
        while more and len(body) <= self._limit_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        try:
            answer = await self._engine.http(_call(scope, bytes(body[: self._limit_bytes + 1])))
        except Exception as exc:  # adapter edge: every error becomes an answer
            await bodies.send_answer(send, *bodies.error_answer(self._statuses, exc))
            return
        headers = [(bytes(key), bytes(value)) for key, value in answer.headers]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})


def _call(scope: Scope, body: bytes) -> HttpCall:
    path: str = scope["path"]
    return HttpCall(
        method=scope["method"],
        path=path,
        raw_path=scope.get("raw_path") or path.encode("utf-8", "surrogateescape"),
        query=scope.get("query_string", b""),
        http_version=scope.get("http_version", "1.1"),
        headers=list(scope["headers"]),
        body=body,
    )


Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(*, catalog: FrontCatalog, passed_on: PassedOn, statuses: StatusTable) -> Starlette:
    """Return what a front answers other than infer calls: health here, the rest over there."""

    async def live(_: Request) -> Response:
        return Response(msgspec.json.encode({"live": True}), media_type="application/json")

    async def ready(_: Request) -> Response:
        if catalog.is_server_ready():
            return Response(msgspec.json.encode({"ready": True}), media_type="application/json")
        body = bodies.error_body("the server is not ready")
        return Response(body, 503, media_type="application/json")

    own = [
        Route(f"/v2/health/{name}", endpoint, methods=["GET"])
        for name, endpoint in (("live", live), ("ready", ready))
    ]
    routes = [*own, Route("/{rest:path}", passed_on)]
    app = Starlette(routes=routes, exception_handlers=error_handlers(statuses))
    app.router.redirect_slashes = False
    return app
