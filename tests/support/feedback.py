"""A Feedback on a log of labels that is held in a list, and items to send to it."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from gateway import ids
from gateway.feedback import Done, Feedback, Item, Result
from gateway.lifecycle import Lifecycle
from gateway.prediction_log.labels import LabelInput
from gateway.prediction_log_config import FeedbackConfig
from gateway.principals import Principals
from gateway.request import HeaderLookup, no_headers

NAME: Final = "digits"
NOW_US: Final = 1_790_000_000_000_000
DAY_US: Final = 86_400 * 1_000_000


@dataclass(slots=True)
class LabelsKept:
    """Takes labels as the prediction log does; what is committed waits for `write` if told so."""

    is_on: bool = True
    room: int = 1 << 30
    """Labels that are taken; then there is no room."""
    is_held: bool = False
    """Whether writes wait for `write`."""
    taken: list[LabelInput] = field(default_factory=list)
    commits: int = 0
    _waiting: deque[Done] = field(default_factory=deque)

    def label(self, label: LabelInput) -> bool:
        """Take a label, or say that there is no room."""
        if len(self.taken) >= self.room:
            return False
        self.taken.append(label)
        return True

    def commit(self, done: Done) -> None:
        """Write in the loop's next turn, or when told to."""
        self.commits += 1
        self._waiting.append(done)
        if not self.is_held:
            asyncio.get_running_loop().call_soon(self.write)

    def write(self, dropped: str | None = None) -> None:
        """Say of the oldest write that it is done, or that it was dropped."""
        self._waiting.popleft()(dropped)


class Desk:
    """A Feedback that knows one name, at an instant that stands still."""

    def __init__(
        self,
        *,
        log: LabelsKept | None = None,
        config: FeedbackConfig | None = None,
        principals: Principals | None = None,
        is_serving: bool = True,
    ) -> None:
        self.log = log or LabelsKept()
        self.lifecycle = Lifecycle()
        if is_serving:
            self.lifecycle.serve()
        self.now_us = NOW_US
        self.feedback = Feedback(
            config=config or FeedbackConfig(),
            log=self.log,
            lifecycle=self.lifecycle,
            knows=lambda name: name == NAME,
            principals=principals or Principals({}),
            clock_us=lambda: self.now_us,
        )

    def send(self, *items: Item | str, header: HeaderLookup = no_headers) -> list[str]:
        """Send items from an event loop of their own; return their statuses."""
        return [result.status.value for result in self.results(*items, header=header)]

    def results(self, *items: Item | str, header: HeaderLookup = no_headers) -> list[Result]:
        """Send items; return their results."""

        async def work() -> list[Result]:
            self.feedback.admit(header)
            return await self.feedback.take(NAME, items)

        return asyncio.run(work())


def request_id(at_us: int = NOW_US) -> str:
    """Return the id of a request of an instant."""
    return ids.as_text(ids.new_id(at_us // 1_000))


def item(at_us: int = NOW_US, **fields: Any) -> Item:  # Any: an Item's fields
    """Return an item on a request of an instant, or with other fields."""
    return Item(request_id(at_us), "", 7)._replace(**fields)
