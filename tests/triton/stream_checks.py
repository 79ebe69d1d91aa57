"""Checks of ModelStreamInfer: order, errors in the middle, how a stream ends."""

from __future__ import annotations

from queue import SimpleQueue
from typing import Final

import numpy as np

from tests.triton import names
from tests.triton.check import GRPC, Check, check, check_of
from tests.triton.flavours import WAIT_S, Flavour, Untyped
from tests.triton.infer_checks import expect_same

_REQUESTS: Final = 60
_VARIANT: Final = "x-sluice-variant"
_FINAL: Final = "triton_final_response"


def answers_come_in_the_order_of_the_requests(flavour: Flavour, subject: str) -> None:
    name, _, version = subject.partition("/")
    requests = [
        _request(flavour, name, n, model_version=version, request_id=str(n))
        for n in range(_REQUESTS)
    ]
    answers = flavour.stream(requests)
    assert len(answers) == _REQUESTS, f"{len(answers)} answers for {_REQUESTS} requests"
    for number, (result, error) in enumerate(answers):
        assert error is None, error
        assert result.get_response().id == str(number), f"answer {number} is another's"
        served = _expect_answer(result, number)
        assert not version or served == version, f"version {served}, {version} was asked for"


def each_answer_is_marked_as_final(flavour: Flavour) -> None:
    requests = [_request(flavour, names.LOOKUP, n) for n in range(3)]
    for result, error in flavour.stream(requests):
        assert error is None, error
        assert result.get_response().parameters[_FINAL].bool_param is True, result.get_response()


def an_empty_final_response_is_not_added(flavour: Flavour) -> None:
    requests = [
        _request(flavour, names.LOOKUP, n, enable_empty_final_response=True) for n in range(3)
    ]
    answers = flavour.stream(requests)
    assert len(answers) == 3, f"{len(answers)} answers for 3 requests"
    for number, (result, error) in enumerate(answers):
        assert error is None, error
        _expect_answer(result, number)


def answers_of_a_route_tell_the_variant(flavour: Flavour) -> None:
    requests = [_request(flavour, names.ROUTE, n) for n in range(20)]
    for result, error in flavour.stream(requests):
        assert error is None, error
        answer = result.get_response()
        variant = answer.parameters[_VARIANT].string_param
        assert variant == names.VARIANTS[answer.model_version], f"{variant!r} for {answer}"


def the_streams_metadata_carry_the_key(flavour: Flavour) -> None:
    versions: list[str] = []
    for user in ("user-1", "user-2", "user-3", "user-4", "user-5", "user-6"):
        requests = [_request(flavour, names.ROUTE, n) for n in range(5)]
        answers = flavour.stream(requests, headers={names.KEY_HEADER: user})
        found = {result.get_response().model_version for result, _ in answers}
        assert len(found) == 1, f"{user} was answered by {found}"
        versions += found
    assert set(versions) == {"1", "2"}, f"all keys went to {set(versions)}"


def an_error_in_the_middle_concerns_its_request_only(flavour: Flavour) -> None:
    requests = [_request(flavour, names.LOOKUP, n) for n in range(6)]
    requests[2]["inputs"] = [flavour.floats()]
    requests[4]["model_name"] = names.ABSENT
    answers = flavour.stream(requests)
    assert len(answers) == 6, f"{len(answers)} answers for 6 requests"
    for number in (0, 1, 3, 5):
        result, error = answers[number]
        assert error is None, error
        _expect_answer(result, number)
    for number, word in ((2, "'x'"), (4, f"'{names.ABSENT}'")):
        result, error = answers[number]
        assert result is None, f"request {number} was answered: {result}"
        assert word in error.message(), f"{word} is not in the message: {error}"


def a_compressed_stream_is_read(flavour: Flavour, algorithm: str) -> None:
    requests = [_request(flavour, names.LOOKUP, n) for n in range(10)]
    answers = flavour.stream(requests, compression_algorithm=algorithm)
    assert len(answers) == 10, f"{len(answers)} answers for 10 requests"
    for number, (result, error) in enumerate(answers):
        assert error is None, error
        _expect_answer(result, number)


def large_messages_pass_a_stream(flavour: Flavour) -> None:
    samples = [np.full((1, 2_000_000), n, np.float32) for n in range(3)]
    requests = [{"model_name": names.WIDE, "inputs": [flavour.floats(s)]} for s in samples]
    answers = flavour.stream(requests)
    for sample, (result, error) in zip(samples, answers, strict=True):
        assert error is None, error
        expect_same(result.as_numpy("y"), sample)


def a_stream_ends_at_the_clients_timeout(flavour: Flavour) -> None:
    requests = [{"model_name": names.SLOW, "inputs": [flavour.floats()]}]
    answers = flavour.stream(requests, stream_timeout=names.SLOW_S / 3)
    assert all(result is None for result, _ in answers), answers
    # The server answers at the same deadline: either may be first.
    assert any("deadline" in str(error).lower() for _, error in answers), answers
    ((result, error),) = flavour.stream([_request(flavour, names.LOOKUP, 1)])
    assert error is None, error
    _expect_answer(result, 1)


def a_cancelled_stream_ends_and_the_next_is_served(flavour: Flavour) -> None:
    came: SimpleQueue[tuple[Untyped, Untyped]] = SimpleQueue()
    flavour.client.start_stream(lambda result, error: came.put((result, error)))
    flavour.client.async_stream_infer(names.SLOW, [flavour.floats()])
    flavour.client.stop_stream(cancel_requests=True)
    result, error = came.get(timeout=WAIT_S)
    assert result is None, result
    assert error.status() == "StatusCode.CANCELLED", error
    ((result, error),) = flavour.stream([_request(flavour, names.LOOKUP, 1)])
    assert error is None, error
    _expect_answer(result, 1)


def _request(flavour: Flavour, name: str, number: int, **options: object) -> dict[str, Untyped]:
    inputs = [flavour.indices(number % names.LOOKUP_SIZE)]
    return {"model_name": name, "inputs": inputs, **options}


def _expect_answer(result: Untyped, number: int) -> str:
    """Check the value of request `number`; return the version that answered it."""
    version: str = result.get_response().model_version
    wanted = 100 * int(version) + number % names.LOOKUP_SIZE
    expect_same(result.as_numpy("y"), np.array([[wanted]], np.float32))
    return version


CHECKS: Final[tuple[Check, ...]] = (
    check_of(answers_come_in_the_order_of_the_requests, names.LOOKUP, GRPC, "a model"),
    check_of(answers_come_in_the_order_of_the_requests, names.ROUTE, GRPC, "a route"),
    check_of(answers_come_in_the_order_of_the_requests, f"{names.ROUTE}/1", GRPC, "a version"),
    check(each_answer_is_marked_as_final, GRPC),
    check(an_empty_final_response_is_not_added, "grpc"),
    check(answers_of_a_route_tell_the_variant, GRPC),
    check(the_streams_metadata_carry_the_key, GRPC),
    check(an_error_in_the_middle_concerns_its_request_only, GRPC),
    check_of(a_compressed_stream_is_read, "gzip", GRPC),
    check_of(a_compressed_stream_is_read, "deflate", GRPC),
    check(large_messages_pass_a_stream, GRPC),
    check(a_stream_ends_at_the_clients_timeout, GRPC),
    check(a_cancelled_stream_ends_and_the_next_is_served, "grpc"),
)
