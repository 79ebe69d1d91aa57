"""Errors of the way between a front and the engine process, and errors that come over it.

An error travels as the name of its class and its sentence, and is raised again as an instance of
that class, so that a front's adapters do with it what they do in one process. What is no error of
ours stays in the engine process's log; the caller gets the sentence that says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from engines import errors as engine_errors
from engines.errors import EngineError, InstanceFailed, QueueFull
from gateway import errors as gateway_errors
from gateway.errors import INTERNAL_SENTENCE, GatewayError, Starting, StatusTable
from router.faults import RouteError


class EngineAway(Starting):
    """The engine process has ended, and its successor cannot take the request in time."""

    def __init__(self) -> None:
        Exception.__init__(self, "the engine process has ended and is being replaced")


class LinkFull(QueueFull):
    """A front has as much under way as it may."""

    def __init__(self, *, limit: int, unit: str) -> None:
        Exception.__init__(
            self, f"the way to the engine process is full: its limit is {limit} {unit}"
        )


class RemoteFailure(InstanceFailed):
    """A bug, or a failure without a class of ours, in the engine process, whose log has it."""

    def __init__(self) -> None:
        Exception.__init__(self, INTERNAL_SENTENCE)


class ExpiredUnanswered(engine_errors.DeadlineExpired):
    """The deadline passed and the engine process has not said so."""

    def __init__(self, *, model: str, waited_ns: int) -> None:
        Exception.__init__(
            self,
            f"deadline expired after {waited_ns / 1e6:.1f} ms while the request was at the engine "
            f"process, for {model!r}",
        )


def _members(family: type[Exception]) -> Iterator[type[Exception]]:
    for member in family.__subclasses__():
        yield member
        yield from _members(member)


_MODULES: Final = (engine_errors.__name__, gateway_errors.__name__, __name__)
_BY_NAME: Final = {
    member.__name__: member
    for family in (EngineError, GatewayError)
    for member in _members(family)
    if member.__module__ in _MODULES
}


def to_wire(statuses: StatusTable, exc: BaseException) -> tuple[str, str]:
    """Return an error's name and sentence; the name is empty for what is no error of ours."""
    if not statuses.is_known(exc):
        return "", INTERNAL_SENTENCE
    for cls in type(exc).__mro__:
        if _BY_NAME.get(cls.__name__) is cls:
            return cls.__name__, statuses.sentence(exc)
    name = "InvalidInput" if isinstance(exc, RouteError) else ""
    return name, statuses.sentence(exc) if name else INTERNAL_SENTENCE


def from_wire(name: str, sentence: str) -> Exception:
    """Return an error that came over a link."""
    cls = _BY_NAME.get(name)
    if cls is None:
        return RemoteFailure()
    # Past the constructor, which takes data and writes the sentence that is already written.
    exc = cls.__new__(cls)
    exc.args = (sentence,)
    return exc
