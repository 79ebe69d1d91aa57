"""An HTTP request that a front passed on, played to an ASGI application without a server.

Knows ASGI and the messages of a link; nothing of what is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from gateway.workers.messages import HttpAnswer, HttpCall


def scope_of(call: HttpCall) -> dict[str, Any]:  # Any: ASGI's own type
    """Return the connection scope of a request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": call.http_version,
        "method": call.method,
        "scheme": "http",
        "path": call.path,
        "raw_path": call.raw_path,
        "query_string": call.query,
        "root_path": "",
        "headers": [(bytes(key), bytes(value)) for key, value in call.headers],
        "client": None,
        "server": None,
    }


class Body:
    """The whole body, then silence: the front tells by a CANCEL that its client went away."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body

    async def receive(self) -> dict[str, Any]:  # Any: ASGI's own type
        """Return the next message."""
        if self._body is None:
            await asyncio.get_running_loop().create_future()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


class Gathered:
    """Gathers an answer."""

    def __init__(self) -> None:
        self._status = 500
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []

    async def send(self, message: Mapping[str, Any]) -> None:  # Any: ASGI's own type
        """Take the next message."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = list(message.get("headers", ()))
        else:
            self._body.append(message.get("body", b""))

    def whole(self) -> HttpAnswer:
        """Return the answer."""
        return HttpAnswer(status=self._status, headers=self._headers, body=b"".join(self._body))
