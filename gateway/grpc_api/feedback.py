"""The methods of sluice.v1.Feedback: wire bytes in, wire bytes out.

Knows messages, no transport: both serve `methods`. What is taken and refused is
gateway/feedback.py's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from gateway.feedback import Feedback, Item, Outcome, Result, check_size, read_json
from gateway.grpc_api import codec
from gateway.pb import feedback_pb2 as pb
from gateway.request import HeaderLookup

SERVICE: Final[str] = pb.DESCRIPTOR.services_by_name["Feedback"].full_name
SEND: Final = "Send"

Asked = Callable[[bytes, HeaderLookup], Awaitable[bytes]]
"""A method that waits, and looks at its caller's metadata."""

_STATUSES: Final = {
    Outcome.ACCEPTED: pb.FeedbackResult.ACCEPTED,
    Outcome.DUPLICATE: pb.FeedbackResult.DUPLICATE,
    Outcome.INVALID: pb.FeedbackResult.INVALID,
    Outcome.TOO_LATE: pb.FeedbackResult.TOO_LATE,
}


class FeedbackService:
    """The service's methods, by name."""

    def __init__(self, feedback: Feedback) -> None:
        self._feedback = feedback
        self.methods: Mapping[str, Asked] = {SEND: self._send}

    async def _send(self, data: bytes, header: HeaderLookup) -> bytes:
        self._feedback.admit(header)
        check_size(len(data))
        request = pb.FeedbackRequest()
        codec.parse(data, request)
        items = [read_item(item) for item in request.items]
        return write_answer(await self._feedback.take(request.model_name, items))


def read_item(item: pb.FeedbackItem) -> Item | str:
    """Return an item of a message, or why it is none."""
    kind = item.WhichOneof("target")
    if kind is None:
        return "it has no target"
    target = getattr(item, kind)
    if kind == "json":
        try:
            target = read_json(target)
        except ValueError as exc:
            return str(exc)
    return Item(
        item.request_id,
        item.correlation_id,
        target,
        item.time_us or None,
        item.source,
        item.weight if item.HasField("weight") else 1.0,
        item.label_version,
        item.idempotency_key,
    )


def write_answer(results: list[Result]) -> bytes:
    """Return the message of an answer."""
    answer = pb.FeedbackResponse()
    for result in results:
        answer.results.add(status=_STATUSES[result.status], reason=result.reason)
    return answer.SerializeToString()
