"""Clients of the feedback call over both protocols, and the labels that came of it.

Nothing here uses the gateway's codecs: what is sent and read is written out with json and the
protocol's own messages.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol, Self

import grpc
import httpx
import redis

from gateway import ids
from gateway.pb import feedback_pb2 as pb
from gateway.prediction_log.record import LoggedLabel, decode_any
from gateway.prediction_log.streams import StreamKind, streams_key
from tests.support.gateway import Addresses
from tests.support.transports import CLIENT_LIMIT_S, UNLIMITED, Outcome

METHOD: Final = "/sluice.v1.Feedback/Send"
_HTTP_OK: Final = 202


def now_us() -> int:
    """Return this instant."""
    return time.time_ns() // 1_000


def fresh_id(at_us: int | None = None) -> str:
    """Return the id of a request of this instant, or of another one."""
    return ids.as_text(ids.new_id((now_us() if at_us is None else at_us) // 1_000))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """An item as its sender states it; None: the field is not sent."""

    request_id: str | None = None
    correlation_id: str | None = None
    target: Any = 7  # Any: a JSON value
    has_target: bool = True
    time_us: int | None = None
    source: str | None = None
    weight: float | None = None
    label_version: int | None = None
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """What a call came to."""

    code: int | str
    results: Sequence[tuple[str, str]] = ()
    """Status and reason, by item."""
    error: str = ""

    def came_to(self, outcome: Outcome) -> bool:
        """Whether the call ended so, whatever the protocol calls it."""
        ok = (_HTTP_OK, "OK")
        return self.code in (ok if outcome is Outcome.OK else outcome.value)


class Sender(Protocol):
    """A client."""

    def send(self, name: str, items: Sequence[Sent], *, key: str = "") -> Sending:
        """Send items for a public name, with an API key if one is given."""

    def send_bytes(self, name: str, data: bytes) -> Sending:
        """Send what is no request."""

    def __enter__(self) -> Self:
        """Return the client."""

    def __exit__(self, *exc: object) -> None:
        """Close it."""


class HttpSender:
    """JSON over HTTP."""

    def __init__(self, at: Addresses) -> None:
        self._client = httpx.Client(base_url=f"http://{at.http}", timeout=CLIENT_LIMIT_S)

    def send(self, name: str, items: Sequence[Sent], *, key: str = "") -> Sending:
        """Post the items."""
        data = json.dumps({"items": [_json_item(item) for item in items]}).encode()
        return self._post(name, data, {"authorization": f"Bearer {key}"} if key else {})

    def send_bytes(self, name: str, data: bytes) -> Sending:
        """Post a body."""
        return self._post(name, data, {})

    def _post(self, name: str, data: bytes, headers: dict[str, str]) -> Sending:
        answer = self._client.post(f"/v2/models/{name}/feedback", content=data, headers=headers)
        document = answer.json()
        if answer.status_code != _HTTP_OK:
            return Sending(code=answer.status_code, error=document["error"])
        results = [(item["status"], item.get("reason", "")) for item in document["items"]]
        return Sending(code=answer.status_code, results=results)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.close()


def _json_item(item: Sent) -> dict[str, Any]:  # Any: JSON
    fields = {name: getattr(item, name) for name in _PLAIN}
    document = {name: value for name, value in fields.items() if value is not None}
    if item.has_target:
        document["target"] = item.target
    if item.time_us is not None:
        at = datetime.fromtimestamp(item.time_us // 1_000_000, UTC)
        document["time"] = at.replace(microsecond=item.time_us % 1_000_000).isoformat()
    return document


_PLAIN: Final = (
    "request_id",
    "correlation_id",
    "source",
    "weight",
    "label_version",
    "idempotency_key",
)
_TYPED: Final[Mapping[type, str]] = {int: "integer", float: "number", bool: "truth", str: "text"}


class GrpcSender:
    """Protobuf over gRPC, with grpcio's client."""

    def __init__(self, at: Addresses) -> None:
        self._channel = grpc.insecure_channel(at.grpc, options=UNLIMITED)
        self._send: Any = self._channel.unary_unary(  # Any: grpcio's
            METHOD, response_deserializer=pb.FeedbackResponse.FromString
        )

    def send(self, name: str, items: Sequence[Sent], *, key: str = "") -> Sending:
        """Call Send."""
        request = pb.FeedbackRequest(model_name=name, items=[_message(item) for item in items])
        metadata = (("authorization", f"Bearer {key}"),) if key else ()
        return self._call(request.SerializeToString(), metadata)

    def send_bytes(self, name: str, data: bytes) -> Sending:
        """Call Send with bytes."""
        return self._call(data, ())

    def _call(self, data: bytes, metadata: tuple[tuple[str, str], ...]) -> Sending:
        try:
            answer = self._send(data, timeout=CLIENT_LIMIT_S, metadata=metadata)
        except grpc.RpcError as exc:
            return Sending(code=exc.code().name, error=exc.details() or "")
        kinds = pb.FeedbackResult.Status
        results = [(kinds.Name(result.status).lower(), result.reason) for result in answer.results]
        return Sending(code="OK", results=results)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._channel.close()


def _message(item: Sent) -> pb.FeedbackItem:
    fields = {name: getattr(item, name) for name in (*_PLAIN, "time_us")}
    given = {name: value for name, value in fields.items() if value is not None}
    message = pb.FeedbackItem(**given)
    if item.has_target:
        kind = _TYPED.get(type(item.target), "json")
        setattr(message, kind, json.dumps(item.target) if kind == "json" else item.target)
    return message


SENDERS: Final[Mapping[str, Callable[[Addresses], Sender]]] = {
    "http": HttpSender,
    "grpc": GrpcSender,
}


def labels(client: redis.Redis, name: str) -> list[LoggedLabel]:
    """Return the labels of a public name that Redis has, each stream in its order."""
    found: list[LoggedLabel] = []
    for key in sorted(client.smembers(streams_key(name, StreamKind.LABELS))):
        entries: Any = client.xrange(key)  # Any: the client's types leave all open
        logged = [decode_any(fields[b"r"]) for _, fields in entries]
        found += [label for label in logged if isinstance(label, LoggedLabel)]
    return found
