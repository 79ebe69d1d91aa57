"""A request that is no infer call: handed to the ASGI application in uvicorn's own cycle.

The cycle writes to the transport itself, so it is started only when everything before it on the
connection is answered, and nothing after it is read until it is over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl

from gateway.http_api.fast.heads import Head, path_of

_ASGI: Final = {"version": "3.0", "spec_version": "2.3"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """What answers these requests, and the tasks in which it does."""

    app: Any  # Any: ASGI's own type, of which starlette and uvicorn have one each
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class SlowRequest:
    """One request under way in the application.

    Args:
        flow: of the connection; the transport's pauses go to it.
        date: for the answer's header.
        on_answered: called once, when the last byte of the answer was written.

    Raises:
        BadHead: the target of the request is no URL.
    """

    def __init__(
        self,
        application: Application,
        transport: asyncio.Transport,
        flow: FlowControl,
        head: Head,
        *,
        date: bytes,
        on_answered: Callable[[], None],
    ) -> None:
        self._flow = flow
        self._cycle = RequestResponseCycle(
            scope=_scope(head, transport),
            transport=transport,
            flow=flow,
            logger=logger,
            access_logger=logger,
            access_log=False,
            default_headers=[(b"date", date)],
            message_event=asyncio.Event(),
            expect_100_continue=head.expects_continue,
            keep_alive=head.is_keep_alive,
            on_response=on_answered,
        )
        task = asyncio.get_running_loop().create_task(self._cycle.run_asgi(application.app))
        application.tasks.add(task)
        task.add_done_callback(application.tasks.discard)

    @property
    def is_keep_alive(self) -> bool:
        """Whether the connection goes on after the answer."""
        return self._cycle.keep_alive

    def take(self, piece: bytes) -> None:
        """Take the next piece of the body; the transport pauses if the application is behind."""
        if not self._cycle.response_complete:
            self._cycle.body += piece
            if len(self._cycle.body) > HIGH_WATER_LIMIT:
                self._flow.pause_reading()
            self._cycle.message_event.set()

    def end(self) -> None:
        """The body is complete."""
        if not self._cycle.response_complete:
            self._cycle.more_body = False
            self._cycle.message_event.set()

    def close_after(self) -> None:
        """Let the answer be the connection's last."""
        self._cycle.keep_alive = False

    def disconnect(self) -> None:
        """The client has gone."""
        if not self._cycle.response_complete:
            self._cycle.disconnected = True
        self._cycle.message_event.set()
        self._flow.resume_writing()


def _scope(head: Head, transport: asyncio.Transport) -> Any:  # Any: uvicorn's own typed dictionary
    path = path_of(head.url)
    parsed = httptools.parse_url(head.url)
    return {
        "type": "http",
        "asgi": _ASGI,
        "http_version": head.http_version,
        "server": get_local_addr(transport),
        "client": get_remote_addr(transport),
        "scheme": "https" if is_ssl(transport) else "http",
        "method": head.method,
        "root_path": "",
        "path": path,
        "raw_path": parsed.path,
        "query_string": parsed.query or b"",
        "headers": list(head.lines),
        "state": {},
    }
