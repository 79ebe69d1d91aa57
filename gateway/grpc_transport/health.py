"""grpc.health.v1 for our transport: what probes ask, and what clients watch.

Knows the service's messages and the transport's calls; nothing of what makes a server ready: it is
told. Answers as grpcio's own health servicer does, to the byte, so that a probe cannot tell which
transport it asks.

A watch gets the status at once and every later one, and never ends by itself: `end` ends them all,
so that a stop need not wait for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from gateway.grpc_transport.call import Call
from gateway.grpc_transport.head import Method, Raw

SERVICE: Final[str] = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

_UNKNOWN, _NOT_FOUND, _UNIMPLEMENTED, _UNAVAILABLE = 2, 5, 12, 14
_STOPPING: Final = "Cancelling all calls"
_STATUS: Final = health_pb2.HealthCheckResponse
_MESSAGES: Final[Mapping[int, bytes]] = {
    status: _STATUS(status=status).SerializeToString()
    for status in (_STATUS.SERVING, _STATUS.NOT_SERVING, _STATUS.SERVICE_UNKNOWN)
}


class Health:
    """The health service's methods.

    Args:
        names: of the services that are ready or not with the server; "" is the server itself.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._statuses: dict[str, int] = {}
        for name in ("", *names):
            self._statuses[name] = _STATUS.NOT_SERVING
        self._watches: dict[Call, str] = {}
        self._is_ended = False
        self.methods: Mapping[str, Method] = {
            f"/{SERVICE}/Check": Method(self._check, is_streaming=False),
            f"/{SERVICE}/Watch": Method(self._watch, is_streaming=True),
            f"/{SERVICE}/List": Method(_list, is_streaming=False),
        }

    def set_ready(self, *, is_ready: bool) -> None:
        """Answer SERVING from now on, or NOT_SERVING, and tell the watches if that is new."""
        status: int = _STATUS.SERVING if is_ready else _STATUS.NOT_SERVING
        if self._is_ended or status == self._statuses[""]:
            return
        self._statuses = dict.fromkeys(self._statuses, status)
        for call, name in list(self._watches.items()):
            if name in self._statuses:
                call.send(_MESSAGES[status])

    def end(self) -> None:
        """End every watch, and those that are still to come."""
        self._is_ended = True
        watches, self._watches = self._watches, {}
        for call in watches:
            call.fail(_UNAVAILABLE, _STOPPING)

    def _check(self, call: Call, message: Raw) -> None:
        name = _name_asked_for(call, message)
        if name is None:
            return
        status = self._statuses.get(name)
        if status is None:
            call.fail(_NOT_FOUND, "")
        else:
            call.reply(_MESSAGES[status])

    def _watch(self, call: Call) -> Callable[[Raw | None], None]:
        """Watch the service that the first message names; there should be no other."""
        is_begun = False

        def sink(message: Raw | None) -> None:
            nonlocal is_begun
            if is_begun:
                return
            is_begun = True
            if message is None:
                call.fail(_UNIMPLEMENTED, "the call came without a message")
                return
            name = _name_asked_for(call, message)
            if name is not None:
                self._begin(call, name)

        return sink

    def _begin(self, call: Call, name: str) -> None:
        if self._is_ended:
            call.fail(_UNAVAILABLE, _STOPPING)
            return

        def forget() -> None:
            self._watches.pop(call, None)

        self._watches[call] = name
        call.on_cancel = forget
        call.send(_MESSAGES[self._statuses.get(name, _STATUS.SERVICE_UNKNOWN)])


def _list(call: Call, _: Raw) -> None:
    call.fail(_UNIMPLEMENTED, unexpected(NotImplementedError("Method not implemented!")))


def _name_asked_for(call: Call, message: Raw) -> str | None:
    """Return the name of the service; None if the message was none, and the call has failed."""
    try:
        name: str = health_pb2.HealthCheckRequest.FromString(bytes(message)).service
    except DecodeError as exc:
        call.fail(_UNKNOWN, unexpected(exc))
        return None
    return name


def unexpected(exc: Exception) -> str:
    """Return what grpcio's server answers where a servicer raises."""
    return f"Unexpected {type(exc)}: {exc}"
