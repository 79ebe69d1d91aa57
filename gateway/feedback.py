"""Ground truth that callers send back: what is taken, what is refused, and why.

Knows items as the adapters read them, and what takes labels (prediction_log); knows neither JSON
bodies nor protobuf nor files. Whether the prediction exists is not looked up: a label may come by
another gateway than the one that answered, and the reader reports labels without a prediction.

Rules:
  * An item is judged alone: one that is wrong does not cost its neighbours anything.
  * A result of a call leaves when what it accepted is written as safely as a prediction is. If it
    could not be written the whole call fails with NotWritten, and may be sent again as it is.
  * The same prediction, version, source and idempotency key a second time is a duplicate. The memo
    of that is bounded, of this process, and holds only what was written: repetitions that it does
    not know are accepted again, and readers drop them.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from gateway.errors import (
    Draining,
    MalformedRequest,
    NotAllowed,
    NotAuthenticated,
    PayloadTooLarge,
    Starting,
    StoreUnavailable,
    UnknownName,
)
from gateway.lifecycle import Lifecycle
from gateway.memo import Memo
from gateway.prediction_log.labels import LabelInput
from gateway.prediction_log_config import FeedbackConfig
from gateway.principals import Principals
from gateway.request import HeaderLookup

MAX_ITEMS: Final = 1_000
"""Most items of one call."""
MAX_REQUEST_BYTES: Final = 4 << 20
"""Largest request, on either protocol: it is read on the event loop."""
MAX_TARGET_BYTES: Final = 64 << 10
"""Largest target, as msgpack."""
MAX_TARGET_DEPTH: Final = 32
"""Most lists and maps of a target that stand in each other."""
MAX_TEXT_CHARS: Final = 256
"""Longest source and idempotency key."""
MAX_CORRELATION_CHARS: Final = 1_024
SKEW_US: Final = 60_000_000
"""How far other clocks may run ahead of ours."""
_SLICE: Final = 100
"""Items that are judged before others get a turn."""
_REMEMBERED: Final = 65_536
"""Labels that the memo holds, at least."""
_MAX_VERSION: Final = (1 << 63) - 1
_QUOTED_CHARS: Final = 64

_UUID7: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_pack: Final = msgspec.msgpack.Encoder().encode


class NotWritten(StoreUnavailable):
    """What was sent could not be written, for now."""

    def __init__(self) -> None:
        super().__init__("the prediction log has no room for the labels: send them again later")


class Outcome(StrEnum):
    """What became of an item."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    INVALID = "invalid"
    TOO_LATE = "too_late"


class Result(NamedTuple):
    """What an item's sender is told."""

    status: Outcome
    reason: str = ""
    """Why it was not accepted, in a sentence."""


class Item(NamedTuple):
    """One item as an adapter read it; nothing but its types is checked."""

    request_id: str
    """Text of an x-request-id; empty: `correlation_id` says which prediction."""
    correlation_id: str
    target: Any  # Any: a JSON value
    time_us: int | None = None
    """Since the epoch; None: when it is received."""
    source: str = ""
    weight: float = 1.0
    version: int = 0
    idempotency_key: str = ""


class _Refused(Exception):
    """Ends the check of an item."""

    def __init__(self, reason: str, status: Outcome = Outcome.INVALID) -> None:
        super().__init__(reason)
        self.result = Result(status, reason)


Done = Callable[[str | None], None]
"""Hears that a write is over: None, or why it was dropped."""


class LabelLog(Protocol):
    """What takes labels; a prediction log or none."""

    is_on: bool

    def label(self, label: LabelInput) -> bool:
        """Take a label, or drop and count it; return whether it was taken."""

    def commit(self, done: Done) -> None:
        """Write what was taken so far, then call `done` once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When an item is too old, or of the future."""

    now_us: int
    horizon_us: int


def read_json(text: str) -> Any:  # Any: a JSON value
    """Return a target that came as JSON text; ValueError with a sentence if it is none."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise ValueError(f"target: {exc}") from None


def check(item: Item, name: str, limits: Limits) -> tuple[LabelInput, bytes]:
    """Return the label of an item, and its target as msgpack.

    Raises:
        _Refused: with the result that its sender is told.
    """
    rid = _prediction(item, limits)
    for text, what, most in (
        (item.correlation_id, "correlation_id", MAX_CORRELATION_CHARS),
        (item.source, "source", MAX_TEXT_CHARS),
        (item.idempotency_key, "idempotency_key", MAX_TEXT_CHARS),
    ):
        if len(text) > most:
            raise _Refused(f"{what} has {len(text)} characters: {most} is the limit")
    if not (math.isfinite(item.weight) and item.weight > 0):
        raise _Refused(f"weight {item.weight:g} is no positive number")
    if not 0 <= item.version <= _MAX_VERSION:
        raise _Refused("label_version is no whole number from 0 to 9223372036854775807")
    label = LabelInput(
        name=name,
        rid=rid,
        cid=item.correlation_id,
        target=item.target,
        ts_us=_time_us(item.time_us, limits),
        received_us=limits.now_us,
        source=item.source,
        weight=item.weight,
        version=item.version,
        idempotency_key=item.idempotency_key,
    )
    return label, _packed(item.target)


def _prediction(item: Item, limits: Limits) -> bytes:
    """Return the id of the request, empty where the correlation id names it."""
    text = item.request_id
    if bool(text) == bool(item.correlation_id):
        raise _Refused("it takes exactly one of request_id and correlation_id")
    if not text:
        return b""
    if _UUID7.fullmatch(text.lower()) is None:
        short = text if len(text) <= _QUOTED_CHARS else f"{text[:_QUOTED_CHARS]}..."
        raise _Refused(f"request_id {short!r} is no x-request-id of an answer (a UUIDv7)")
    rid = bytes.fromhex(text.replace("-", ""))
    asked_us = int.from_bytes(rid[:6]) * 1_000
    if asked_us > limits.now_us + SKEW_US:
        raise _Refused("request_id is of the future")
    if asked_us < limits.now_us - limits.horizon_us:
        days = limits.horizon_us / 86_400e6
        reason = f"the prediction is older than {days:g} days, the limit of feedback"
        raise _Refused(reason, Outcome.TOO_LATE)
    return rid


def _time_us(given_us: int | None, limits: Limits) -> int:
    if given_us is None:
        return limits.now_us
    if given_us <= 0:
        raise _Refused("time is not after 1970")
    if given_us > limits.now_us + SKEW_US:
        raise _Refused("time lies in the future")
    return given_us


def _packed(target: Any) -> bytes:  # Any: a JSON value
    """Return a target as it will be written."""
    if isinstance(target, float) and not math.isfinite(target):
        raise _Refused("target: NaN and infinity are no JSON values")
    if not _is_within(target, MAX_TARGET_DEPTH):
        raise _Refused(f"target is nested more than {MAX_TARGET_DEPTH} deep")
    try:
        packed = _pack(target)
    except (OverflowError, UnicodeError) as exc:
        raise _Refused(f"target cannot be written: {exc}") from None
    if len(packed) > MAX_TARGET_BYTES:
        raise _Refused(f"target has {len(packed)} bytes: {MAX_TARGET_BYTES} is the limit")
    return packed


def _is_within(value: Any, depth: int) -> bool:  # Any: a JSON value
    """Whether at most `depth` lists and maps stand in each other."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return True
    return depth > 0 and all(
        _is_within(inner, depth - 1) for inner in value if isinstance(inner, (list, dict))
    )


def _key(label: LabelInput) -> bytes:
    """Return what a repetition of a label has in common with it."""
    identity = (label.name, label.rid, label.cid, label.version, label.source)
    return _digest(_pack((*identity, label.idempotency_key)))


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


class Feedback:
    """Takes ground truth. Use from the event loop's thread only.

    Args:
        config: whether, until when and of whom it is taken.
        log: what takes the labels.
        lifecycle: nothing is taken before the models are loaded, and none while draining.
        knows: whether a route or a model has a name.
        principals: who may send, where that is asked.
        clock_us: since the epoch.
    """

    def __init__(
        self,
        *,
        config: FeedbackConfig,
        log: LabelLog,
        lifecycle: Lifecycle,
        knows: Callable[[str], bool],
        principals: Principals,
        clock_us: Callable[[], int] = lambda: time.time_ns() // 1_000,
    ) -> None:
        self._config = config
        self._log = log
        self._lifecycle = lifecycle
        self._knows = knows
        self._principals = principals
        self._clock_us = clock_us
        self._memo: Memo[bytes, bytes] = Memo(_REMEMBERED)
        """Written labels: what repetitions have in common, to the digest of the target."""
        self.counts: dict[tuple[str, Outcome], int] = {}
        """Items by public name and result."""

    def admit(self, header: HeaderLookup) -> None:
        """Refuse a caller, before anything of the call is read.

        Raises:
            NotAllowed: no feedback is taken here.
            Starting, Draining: not now.
            NotAuthenticated: the caller has no key, and needs one.
        """
        if not self._config.enabled:
            raise NotAllowed("the configuration takes no feedback")
        if not self._log.is_on:
            raise NotAllowed("feedback needs a prediction log, and there is none")
        if not self._lifecycle.is_ready:
            raise Draining if self._lifecycle.is_draining else Starting
        if self._config.require_principal and self._principals.identify(header) is None:
            raise NotAuthenticated

    async def take(self, name: str, items: Sequence[Item | str]) -> list[Result]:
        """Judge items, and write those that are accepted; a string says why an item is none.

        Raises:
            UnknownName: neither a route nor a model answers to the name.
            MalformedRequest: no items, or too many.
            NotWritten: at least one of them; those that were written are duplicates next time.
        """
        if not self._knows(name):
            raise UnknownName(f"there is neither a route nor a model {name!r}")
        if not items:
            raise MalformedRequest("there are no items")
        if len(items) > MAX_ITEMS:
            raise MalformedRequest(f"{len(items)} items given: {MAX_ITEMS} is the limit")
        now_us = self._clock_us()
        limits = Limits(now_us=now_us, horizon_us=self._config.horizon_s * 1_000_000)
        slices = []
        seen: dict[bytes, bytes] = {}
        for start in range(0, len(items), _SLICE):
            if start:
                await asyncio.sleep(0)
            slices.append(self._take_slice(name, items[start : start + _SLICE], limits, seen))
        written = [await is_written for _, is_written in slices]
        if not all(written):
            raise NotWritten
        results = [result for judged, _ in slices for result in judged]
        for result in results:
            at = name, result.status
            self.counts[at] = self.counts.get(at, 0) + 1
        return results

    def _take_slice(
        self, name: str, items: Sequence[Item | str], limits: Limits, seen: dict[bytes, bytes]
    ) -> tuple[list[Result], asyncio.Future[bool]]:
        """Judge some items and have them written; the future says whether they were.

        `seen` is what the call's items before these were, as in the memo.
        """
        is_written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        fresh: dict[bytes, bytes] = {}
        has_room = True
        results = []
        for item in items:
            try:
                if isinstance(item, str):
                    raise _Refused(item)
                label, packed = check(item, name, limits)
            except _Refused as refused:
                results.append(refused.result)
                continue
            key, target = _key(label), _digest(packed)
            known = seen.get(key) or self._memo.get(key)
            if known is not None:
                results.append(_duplicate(is_same=known == target))
            elif self._log.label(label):
                fresh[key] = seen[key] = target
                results.append(Result(Outcome.ACCEPTED))
            else:
                has_room = False
                break

        def done(dropped: str | None) -> None:
            if dropped is None:
                for key, target in fresh.items():
                    self._memo.put(key, target)
            if not is_written.done():
                is_written.set_result(has_room and dropped is None)

        # In the same turn as the labels: what becomes of this write became of all of them.
        self._log.commit(done)
        return results, is_written


def _duplicate(*, is_same: bool) -> Result:
    if is_same:
        return Result(Outcome.DUPLICATE, "it was accepted before")
    reason = "another target was accepted before: a correction needs a higher label_version"
    return Result(Outcome.DUPLICATE, reason)


def check_size(size_bytes: int) -> None:
    """Refuse a request that is too large to be read."""
    if size_bytes > MAX_REQUEST_BYTES:
        raise PayloadTooLarge(limit_bytes=MAX_REQUEST_BYTES)
