"""Checks of how requests travel: compression, size, many at once, cancellation."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import zlib
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final

import numpy as np

from tests.triton import names
from tests.triton.check import GRPC, HTTP, Check, check, check_of
from tests.triton.flavours import WAIT_S, Flavour, Untyped
from tests.triton.infer_checks import expect_same

_ECHO: Final = names.ECHO["FP32"]
_AT_ONCE: Final = 32
_LARGE_BYTES: Final = 20_000_000
_DECOMPRESS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
}


def compressed_requests_are_read(flavour: Flavour, algorithm: str) -> None:
    key = "request_compression_algorithm" if flavour.is_http else "compression_algorithm"
    for width in (names.ECHO_WIDTH, 5_000):
        sample = np.arange(2 * width, dtype=np.float32).reshape(2, width)
        result = flavour.infer(names.WIDE, flavour.floats(sample), **{key: algorithm})
        expect_same(result.as_numpy("y"), sample)


def compressed_answers_are_understood(flavour: Flavour, algorithm: str) -> None:
    for width in (names.ECHO_WIDTH, 5_000):
        sample = np.arange(2 * width, dtype=np.float32).reshape(2, width)
        for is_binary in (True, False):
            result = flavour.infer(
                names.WIDE,
                flavour.tensor("x", "FP32", sample, is_binary=is_binary),
                outputs=[flavour.output("y", is_binary=is_binary)],
                request_compression_algorithm=algorithm,
                response_compression_algorithm=algorithm,
            )
            expect_same(result.as_numpy("y"), sample)


def answers_really_are_compressed(flavour: Flavour, algorithm: str) -> None:
    sample = np.zeros((2, 5_000), np.float32)
    body, json_bytes = flavour.client.generate_request_body([flavour.floats(sample)])
    headers = {"Accept-Encoding": algorithm, "Inference-Header-Content-Length": str(json_bytes)}
    connection = http.client.HTTPConnection(flavour.address, timeout=WAIT_S)
    connection.request("POST", f"/v2/models/{names.WIDE}/infer", body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    assert answer.headers["Content-Encoding"] == algorithm, dict(answer.headers)
    assert len(content) < sample.nbytes / 10, f"{len(content)} bytes for {sample.nbytes}"
    assert len(_DECOMPRESS[algorithm](content)) > sample.nbytes
    header_bytes = int(answer.headers["Inference-Header-Content-Length"])
    result = flavour.client.parse_response_body(
        content, header_length=header_bytes, content_encoding=algorithm
    )
    expect_same(result.as_numpy("y"), sample)


def large_tensors_come_back(flavour: Flavour, subject: str) -> None:
    rng = np.random.default_rng(1)
    sample = rng.random((1, _LARGE_BYTES // 4), dtype=np.float32)
    version = "1" if subject == "a version" else ""
    result = flavour.infer(names.WIDE, flavour.floats(sample), model_version=version)
    expect_same(result.as_numpy("y"), sample)


def many_requests_at_once_keep_apart(flavour: Flavour, name: str) -> None:
    if flavour.is_async:
        results = flavour.run(_gather(flavour, name))
    elif flavour.is_http:
        handles = [
            flavour.client.async_infer(name, [flavour.indices(n % names.LOOKUP_SIZE)])
            for n in range(_AT_ONCE)
        ]
        results = [handle.get_result(timeout=WAIT_S) for handle in handles]
    else:
        results = _with_callbacks(flavour, name)
    assert len(results) == _AT_ONCE
    for number, result in enumerate(results):
        version = int(flavour.response(result)["model_version"])
        wanted = 100 * version + number % names.LOOKUP_SIZE
        expect_same(result.as_numpy("y"), np.array([[wanted]], np.float32))


async def _gather(flavour: Flavour, name: str) -> list[Untyped]:
    calls = (
        flavour.client.infer(name, [flavour.indices(n % names.LOOKUP_SIZE)])
        for n in range(_AT_ONCE)
    )
    return list(await asyncio.gather(*calls))


def _with_callbacks(flavour: Flavour, name: str) -> list[Untyped]:
    """Use the gRPC client's callbacks, which come in any order; return results by request."""
    came: SimpleQueue[tuple[Untyped, Untyped]] = SimpleQueue()
    for number in range(_AT_ONCE):
        flavour.client.async_infer(
            name,
            [flavour.indices(number % names.LOOKUP_SIZE)],
            lambda result, error: came.put((result, error)),
            request_id=str(number),
        )
    by_number: dict[int, Untyped] = {}
    for _ in range(_AT_ONCE):
        result, error = came.get(timeout=WAIT_S)
        assert error is None, error
        by_number[int(flavour.response(result)["id"])] = result
    return [by_number[number] for number in range(_AT_ONCE)]


def errors_of_asynchronous_calls_arrive(flavour: Flavour) -> None:
    if flavour.is_http:
        handle = flavour.client.async_infer(names.ABSENT, [flavour.floats()])
        try:
            handle.get_result(timeout=WAIT_S)
        except Exception as exc:  # what the client raises is what is checked
            error: Any = exc  # Any: tritonclient's
        else:
            raise AssertionError("the request was answered")
        assert error.status() == "404", error
    else:
        came: SimpleQueue[tuple[Untyped, Untyped]] = SimpleQueue()
        flavour.client.async_infer(
            names.ABSENT, [flavour.floats()], lambda result, error: came.put((result, error))
        )
        result, error = came.get(timeout=WAIT_S)
        assert result is None, result
        assert error.status() == "StatusCode.NOT_FOUND", error
    assert names.ABSENT in error.message(), error


def a_cancelled_request_ends_and_the_next_is_served(flavour: Flavour) -> None:
    came: SimpleQueue[tuple[Untyped, Untyped]] = SimpleQueue()
    call = flavour.client.async_infer(
        names.SLOW, [flavour.floats()], lambda result, error: came.put((result, error))
    )
    call.cancel()
    result, error = came.get(timeout=WAIT_S)
    assert result is None, result
    assert error.status() == "StatusCode.CANCELLED", error
    flavour.infer(_ECHO, flavour.floats())


def a_call_ends_at_the_clients_own_timeout(flavour: Flavour) -> None:
    timeout_s = names.SLOW_S / 3
    if not flavour.is_http:
        error = flavour.error("infer", names.SLOW, [flavour.floats()], client_timeout=timeout_s)
        assert error.status() == "StatusCode.DEADLINE_EXCEEDED", error
    else:
        key = "conn_timeout" if flavour.is_async else "network_timeout"
        hasty = flavour.make_client(**{key: timeout_s})
        try:
            flavour.call_on(hasty, "infer", names.SLOW, [flavour.floats()])
        except TimeoutError:
            pass
        else:
            raise AssertionError("the call was answered, a timeout was expected")
        finally:
            flavour.call_on(hasty, "close")
    result = flavour.infer(names.SLOW, flavour.floats())
    assert result.as_numpy("y").shape == (2, names.ECHO_WIDTH)


_ALGORITHMS: Final = ("gzip", "deflate")
CHECKS: Final[tuple[Check, ...]] = (
    *(check_of(compressed_requests_are_read, a) for a in _ALGORITHMS),
    *(check_of(compressed_answers_are_understood, a, HTTP) for a in _ALGORITHMS),
    *(check_of(answers_really_are_compressed, a, HTTP) for a in _ALGORITHMS),
    check_of(large_tensors_come_back, "a model"),
    check_of(large_tensors_come_back, "a version"),
    check_of(many_requests_at_once_keep_apart, names.LOOKUP, shown="at a model"),
    check_of(many_requests_at_once_keep_apart, names.ROUTE, shown="at a route"),
    check(errors_of_asynchronous_calls_arrive, "http grpc"),
    check(a_cancelled_request_ends_and_the_next_is_served, "grpc"),
    check(a_call_ends_at_the_clients_own_timeout, f"{HTTP} {GRPC}"),
)
