"""The one table from errors to statuses: complete, the same on both protocols, and no leak."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from engines import errors as engine_errors
from engines.errors import ModelLoadError
from gateway import errors
from gateway.errors import INTERNAL, INTERNAL_SENTENCE, STATUSES, Code, StatusTable
from gateway.feedback import NotWritten
from gateway.route_control.write import RevisionMismatch
from gateway.workers import errors as worker_errors
from router.faults import Fault, RouteError

QUEUE_FULL = engine_errors.QueueFull(model="m", version="1", limit=8)
EVERY_ERROR = (
    (errors.MalformedRequest("broken"), 400, "INVALID_ARGUMENT"),
    (errors.Unrepresentable("NaN"), 400, "INVALID_ARGUMENT"),
    (engine_errors.InvalidInput("wrong"), 400, "INVALID_ARGUMENT"),
    (errors.NotAuthenticated(), 401, "UNAUTHENTICATED"),
    (errors.NotAllowed("no"), 403, "PERMISSION_DENIED"),
    (errors.UnknownName("who"), 404, "NOT_FOUND"),
    (engine_errors.UnknownModel(model="m"), 404, "NOT_FOUND"),
    (errors.Conflict("locked"), 409, "FAILED_PRECONDITION"),
    (errors.ConditionFailed("stale"), 412, "ABORTED"),
    (RevisionMismatch("stale", None), 412, "ABORTED"),
    (errors.PayloadTooLarge(limit_bytes=1), 413, "RESOURCE_EXHAUSTED"),
    (RouteError(Fault(("variants", "a"), "wrong")), 422, "INVALID_ARGUMENT"),
    (errors.ConditionMissing("which one?"), 428, "FAILED_PRECONDITION"),
    (QUEUE_FULL, 429, "RESOURCE_EXHAUSTED"),
    (errors.TooMuchInFlight(limit_bytes=1), 429, "RESOURCE_EXHAUSTED"),
    (engine_errors.Cancelled(), 499, "CANCELLED"),
    (engine_errors.InstanceFailed(model="m", version="1"), 500, "INTERNAL"),
    (engine_errors.DeviceFailed("cuda:0", "an illegal access"), 500, "INTERNAL"),
    (engine_errors.OutOfMemory("cuda:0"), 429, "RESOURCE_EXHAUSTED"),
    (errors.NotSupported("later"), 501, "UNIMPLEMENTED"),
    (errors.Draining(), 503, "UNAVAILABLE"),
    (errors.Starting(), 503, "UNAVAILABLE"),
    (errors.StoreUnavailable("gone"), 503, "UNAVAILABLE"),
    (NotWritten(), 503, "UNAVAILABLE"),
    (engine_errors.VersionNotReady(model="m", why="loading"), 503, "UNAVAILABLE"),
    (engine_errors.ModelLoadError("broken file"), 503, "UNAVAILABLE"),
    (engine_errors.DeviceUnavailable("no cuda"), 503, "UNAVAILABLE"),
    (engine_errors.EngineClosed(), 503, "UNAVAILABLE"),
    (
        engine_errors.DeadlineExpired(model="m", version="1", stage="queued", waited_ns=1),
        504,
        "DEADLINE_EXCEEDED",
    ),
    (worker_errors.EngineAway(), 503, "UNAVAILABLE"),
    (worker_errors.LinkFull(limit=1, unit="requests"), 429, "RESOURCE_EXHAUSTED"),
    (worker_errors.RemoteFailure(), 500, "INTERNAL"),
    (worker_errors.ExpiredUnanswered(model="m", waited_ns=1), 504, "DEADLINE_EXCEEDED"),
)


def members(family: type[Exception]) -> Iterator[type[Exception]]:
    """Yield every descendant of a family."""
    for cls in family.__subclasses__():
        yield cls
        yield from members(cls)


def test_every_member_of_the_families_has_a_status() -> None:
    table = StatusTable()
    known = {type(exc) for exc, _, _ in EVERY_ERROR}
    for family in table.families():
        for cls in members(family):
            assert any(ancestor in STATUSES for ancestor in cls.__mro__), cls
            # A narrower error of a load (of trt, say) is there if that part was imported before.
            is_listed = cls in known or (
                cls.__module__.startswith("engines.") and issubclass(cls, ModelLoadError)
            )
            assert is_listed, f"{cls.__name__} is not in this test's table"


@pytest.mark.parametrize(("exc", "http", "code"), EVERY_ERROR, ids=lambda v: type(v).__name__)
def test_each_error_has_its_code_on_both_protocols(exc: Exception, http: int, code: str) -> None:
    status = StatusTable().of(exc)
    assert (status.http, status.grpc.name) == (http, code)
    assert StatusTable().sentence(exc) == str(exc)


def test_the_codes_are_grpcs_own() -> None:
    for code in Code:
        assert grpc.StatusCode[code.name].value[0] == code


@pytest.mark.parametrize("family", [errors.GatewayError, engine_errors.EngineError])
def test_a_family_itself_cannot_be_raised(family: type[Exception]) -> None:
    with pytest.raises(TypeError, match="is a family"):
        family()


def test_a_status_is_inherited_from_the_nearest_ancestor() -> None:
    assert engine_errors.DeviceUnavailable not in STATUSES
    status = StatusTable().of(engine_errors.DeviceUnavailable("no cuda"))
    assert status == STATUSES[engine_errors.ModelLoadError]


def test_a_foreign_error_is_internal_and_its_words_stay_inside() -> None:
    table = StatusTable()
    for exc in (RuntimeError("secret path"), KeyError("secret"), OSError(2, "secret")):
        assert table.of(exc) == INTERNAL
        assert table.sentence(exc) == INTERNAL_SENTENCE
        assert not table.is_known(exc)


def test_overload_looks_as_tritons_only_where_that_is_asked_for() -> None:
    standard, triton = StatusTable(), StatusTable("triton")
    assert (standard.of(QUEUE_FULL).http, standard.of(QUEUE_FULL).grpc) == (
        429,
        Code.RESOURCE_EXHAUSTED,
    )
    assert (triton.of(QUEUE_FULL).http, triton.of(QUEUE_FULL).grpc) == (503, Code.UNAVAILABLE)
    for exc, _, _ in EVERY_ERROR:
        if not isinstance(exc, (engine_errors.QueueFull, errors.TooMuchInFlight)):
            assert triton.of(exc) == standard.of(exc)


def test_a_retry_is_invited_only_where_one_may_help() -> None:
    inviting = {exc for exc, _, _ in EVERY_ERROR if StatusTable().of(exc).retry_after_s}
    assert {StatusTable().of(exc).http for exc in inviting} == {429, 503}


def test_a_sentence_is_cut_where_it_quotes_too_much() -> None:
    exc = engine_errors.InvalidInput(f"unknown output {'y' * 10_000!r}")
    sentence = StatusTable().sentence(exc)
    assert sentence == f"{str(exc)[: errors.MAX_SENTENCE_CHARS - 3]}..."
    at_the_limit = engine_errors.InvalidInput("y" * errors.MAX_SENTENCE_CHARS)
    assert StatusTable().sentence(at_the_limit) == str(at_the_limit)
