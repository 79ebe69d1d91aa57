"""The infer route: an ASGI endpoint that reads a body, submits it, and sends the answer.

Thin on purpose: everything that a request means is in codec.py and in the pipeline. Cancellation:
while the answer is pending the client's disconnect is watched for; a client that goes away takes
its request out of the queue.
"""

from __future__ import annotations

import asyncio
import time

from engines.errors import Cancelled
from gateway.catalog import Catalog
from gateway.errors import MalformedRequest, StatusTable
from gateway.http_api import body as bodies
from gateway.http_api import codec
from gateway.http_api.body import ClientDisconnected, Receive, Scope, Send
from gateway.pipeline import Call, Pipeline
from gateway.request import InferRequest, InferResponse, ServedBy

TIMEOUT_HEADER = b"x-sluice-timeout-ms"
"""Whole milliseconds that the caller is willing to wait."""

_Answer = tuple[InferResponse | Exception, ServedBy]
_Written = tuple[int, bytes, list[tuple[bytes, bytes]]]
"""Status, body, headers."""


class InferEndpoint:
    """ASGI application of ``POST /v2/models/{name}[/versions/{version}]/infer``."""

    def __init__(
        self, *, pipeline: Pipeline, catalog: Catalog, statuses: StatusTable, limit_bytes: int
    ) -> None:
        self._pipeline = pipeline
        self._catalog = catalog
        self._statuses = statuses
        self._limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            request, form = await self._decode(scope, receive)
        except ClientDisconnected:
            return
        except Exception as exc:  # adapter edge: every error becomes an answer
            self._pipeline.refuse(exc, "http")
            await bodies.send_answer(send, *bodies.error_answer(self._statuses, exc))
            return
        written: list[_Written] = []
        request.write = lambda response: written.append(_write(response, form))
        answer, served_by = await self._infer(request, receive)
        if isinstance(answer, Cancelled):
            return
        if isinstance(answer, Exception):
            written = [bodies.error_answer(self._statuses, answer)]
        await _send(scope, send, written[0], served_by)

    async def _decode(
        self, scope: Scope, receive: Receive
    ) -> tuple[InferRequest, codec.AnswerForm]:
        name = scope["path_params"]["name"]
        version = scope["path_params"].get("version", "")
        body = await bodies.read_body(scope, receive, self._limit_bytes)
        deadline_ns = _deadline_ns(scope)
        length = codec.header_length(bodies.header(scope, codec.HEADER_LENGTH.encode()), len(body))
        if length == 0:
            signature = self._catalog.signature(name, version)
            request, form = codec.decode_raw(name, version, body, signature)
        else:
            request, form = codec.decode(name, version, body, length)
        request.header = lambda key: bodies.header(scope, key.encode())
        request.deadline_ns = deadline_ns
        return request, form

    async def _infer(self, request: InferRequest, receive: Receive) -> _Answer:
        """Submit, then wait for the answer or for the client to go away."""
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[_Answer] = loop.create_future()

        def reply(answer: InferResponse | Exception, served_by: ServedBy) -> None:
            if not answered.done():
                answered.set_result((answer, served_by))

        call = self._pipeline.submit(request, reply)
        if answered.done():
            return answered.result()
        watcher = loop.create_task(_cancel_on_disconnect(call, receive))
        try:
            return await answered
        except asyncio.CancelledError:
            call.cancel()
            raise
        finally:
            watcher.cancel()


def _write(response: InferResponse, form: codec.AnswerForm) -> _Written:
    """Return status, body and the headers that go with it; raises Unrepresentable."""
    content, json_bytes = codec.encode(response, form)
    if json_bytes is None:
        return 200, content, [(b"content-type", codec.JSON_TYPE.encode())]
    length = (codec.HEADER_LENGTH.encode(), b"%d" % json_bytes)
    return 200, content, [(b"content-type", codec.BINARY_TYPE.encode()), length]


async def _send(scope: Scope, send: Send, written: _Written, served_by: ServedBy) -> None:
    status, content, lines = written
    lines += [(key.encode(), value.encode()) for key, value in served_by.headers()]
    # Errors never: tritonclient's asyncio flavour takes gzip, but reads errors as they come.
    encoding = bodies.accepted_encoding(scope) if status == 200 else None
    await bodies.send_answer(send, status, content, lines, encoding=encoding)


async def _cancel_on_disconnect(call: Call, receive: Receive) -> None:
    """Cancel the call when the client closes its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
    call.cancel()


def _deadline_ns(scope: Scope) -> int | None:
    text = bodies.header(scope, TIMEOUT_HEADER)
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 12 or int(text) == 0:
        raise MalformedRequest(
            f"header {TIMEOUT_HEADER.decode()}: {text!r} is no positive number of milliseconds"
        )
    return time.monotonic_ns() + int(text) * 1_000_000
