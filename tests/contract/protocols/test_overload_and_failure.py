"""Full queues, deadlines and engines that fail, over every transport: who is told what, and that
neighbours in the batch never notice."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from engines.instance import LOG_EVERY_NS
from gateway.directory import Directory, Target
from gateway.errors import INTERNAL_SENTENCE
from tests.support.gateway import GatewayInProcess, wait_until
from tests.support.served import BAD_ON, BATCH_ROWS, FAIL_ON, LOOKUP
from tests.support.transports import Answer, Ask, Given, Outcome, Transport


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Run calls side by side."""
    with ThreadPoolExecutor(8) as pool:
        yield pool


def rows(model: str, *values: float, **fields: Any) -> Ask:  # Any: fields of Ask
    """Return a request of one FP32 row of four elements per value."""
    elements = [value for value in values for _ in range(4)]
    given = Given(name="x", datatype="FP32", shape=(len(values), 4), elements=elements)
    return Ask(model=model, inputs=(given,), **fields)


def index(value: int) -> Ask:
    """Return a request for one element of the lookup."""
    given = Given(name="x", datatype="INT64", shape=(1, 1), elements=[value])
    return Ask(model="lookup", inputs=(given,))


def wait_idle(gateway: GatewayInProcess, model: str) -> None:
    """Return when a model has nothing to do: earlier tests may have left it busy."""
    wait_until(lambda: gateway.busy(model) == (0, 0), f"{model} is idle")


def test_a_full_queue_refuses_and_serves_what_it_had_accepted(
    transport: Transport, gateway: GatewayInProcess, threads: ThreadPoolExecutor
) -> None:
    wait_idle(gateway, "narrow")
    executing = threads.submit(transport.infer, rows("narrow", 1.0))
    wait_until(lambda: gateway.busy("narrow") == (0, 1), "one executes")
    queued = threads.submit(transport.infer, rows("narrow", 2.0))
    wait_until(lambda: gateway.busy("narrow") == (1, 1), "one is queued")

    refused = transport.infer(rows("narrow", 3.0))
    assert gateway.busy("narrow") == (1, 1)  # it did not wait for room
    assert refused.came_to(Outcome.SHED)
    assert refused.error == (
        "the queue of model 'narrow' version 1 is full: its limit is 1 requests"
    )
    if isinstance(refused.code, int):
        assert int(refused.headers["retry-after"]) >= 1
    for future, value in ((executing, 1.0), (queued, 2.0)):
        answer = future.result()
        assert answer.came_to(Outcome.OK), answer.error
        assert answer.outputs["y"].elements == [value] * 4


@pytest.mark.parametrize("source", ["parameter", "header"])
def test_a_deadline_expires_while_the_request_executes(
    transport: Transport, gateway: GatewayInProcess, source: str
) -> None:
    """The header is x-sluice-timeout-ms; over gRPC it is the call's own deadline."""
    wait_idle(gateway, "slow")
    fields: dict[str, dict[str, Any]] = {  # Any: fields of Ask
        "parameter": {"parameters": {"timeout": 50_000}},
        "header": {"timeout_s": 0.05},
    }
    answer = transport.infer(rows("slow", 1.0, **fields[source]))
    assert answer.came_to(Outcome.EXPIRED)
    if source == "parameter" or isinstance(answer.code, int):  # grpcio has words of its own
        assert re.fullmatch(
            r"deadline expired after \d+\.\d ms while the request was executing at "
            r"model 'slow' version 1",
            answer.error,
        )


def test_a_deadline_expires_in_the_queue_and_the_request_never_runs(
    transport: Transport, gateway: GatewayInProcess, threads: ThreadPoolExecutor
) -> None:
    wait_idle(gateway, "slow")
    executing = threads.submit(transport.infer, rows("slow", 1.0))
    wait_until(lambda: gateway.busy("slow") == (0, 1), "one executes")
    expired = transport.infer(rows("slow", 2.0, parameters={"timeout": 20_000}))
    assert expired.came_to(Outcome.EXPIRED)
    assert "while the request was queued at model 'slow'" in expired.error
    assert gateway.busy("slow") == (0, 1)
    assert executing.result().came_to(Outcome.OK)


def test_an_engine_that_fails_answers_a_fixed_sentence_and_logs_the_trace(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    time.sleep(LOG_EVERY_NS / 1e9)  # one failure in a while is logged, and others made some
    answer = transport.infer(rows("failing", *[float(FAIL_ON)] * BATCH_ROWS))
    assert answer.came_to(Outcome.INTERNAL)
    assert answer.error == "model 'failing' version 1 failed to execute the request"
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert record.getMessage() == "engine failed"
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "scripted failure"
    assert transport.infer(rows("failing", *[1.0] * BATCH_ROWS)).came_to(Outcome.OK)


def test_a_bug_of_ours_answers_fixed_words_and_logs_one_trace(
    transport: Transport, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Target:
        raise ZeroDivisionError("a secret of ours")

    with monkeypatch.context() as patched:
        patched.setattr(Directory, "resolve", broken)
        answer = transport.infer(rows("echo_fp32", 1.0))
    assert answer.came_to(Outcome.INTERNAL)
    assert answer.error == INTERNAL_SENTENCE
    assert answer.headers["x-request-id"]
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)
    assert transport.infer(rows("echo_fp32", 1.0)).came_to(Outcome.OK)


@pytest.mark.parametrize(
    ("value", "outcome", "sentence"),
    [
        (FAIL_ON, Outcome.INTERNAL, "model 'failing' version 1 failed to execute the request"),
        (BAD_ON, Outcome.INVALID, f"the model cannot take the value {BAD_ON}"),
    ],
)
def test_a_value_that_fails_the_batch_fails_only_its_own_request(
    transport: Transport,
    threads: ThreadPoolExecutor,
    value: float,
    outcome: Outcome,
    sentence: str,
) -> None:
    values = [1.0, 2.0, value, 3.0]
    assert len(values) == BATCH_ROWS
    answers = list(threads.map(transport.infer, [rows("failing", v) for v in values]))
    for sent, answer in zip(values, answers, strict=True):
        if sent == value:
            assert answer.came_to(outcome)
            assert answer.error == sentence
            continue
        assert answer.came_to(Outcome.OK), answer.error
        assert answer.outputs["y"].elements == [sent] * 4


def test_an_index_out_of_range_fails_only_its_own_request_in_onnxruntime(
    transport: Transport, threads: ThreadPoolExecutor, gateway: GatewayInProcess
) -> None:
    before = isolated_batches(gateway)
    indices = [0, 99, 2, 3]
    answers = list(threads.map(transport.infer, [index(i) for i in indices]))
    assert answers[1].came_to(Outcome.INTERNAL)
    for i in (0, 2, 3):
        position = indices.index(i)
        assert answers[position].outputs["y"].elements == [LOOKUP[i]]
    assert isolated_batches(gateway) == before + 1  # they were one batch


def isolated_batches(gateway: GatewayInProcess) -> int:
    """Return how many full batches of the lookup were run."""

    def look() -> int:
        statistics = gateway.app.repository.get("lookup", "1").batcher.statistics()
        return statistics.queue.batches_by_reason.get("full", 0)

    return gateway.loop.call(look)


def test_a_request_refused_at_the_door_is_never_part_of_a_batch(
    transport: Transport, threads: ThreadPoolExecutor
) -> None:
    """Good and bad ones come at once; the good ones fill their batch and are answered."""
    wrong = Given(name="x", datatype="INT64", shape=(1, 2), elements=[0, 0])
    bad = Ask(model="lookup", inputs=(wrong,))
    futures: list[tuple[int | None, Future[Answer]]] = []
    for i in range(BATCH_ROWS):
        futures += [
            (i, threads.submit(transport.infer, index(i))),
            (None, threads.submit(transport.infer, bad)),
        ]
    for expected, future in futures:
        answer = future.result()
        if expected is None:
            assert answer.came_to(Outcome.INVALID)
            assert answer.error == "input 'x': shape [1, 2] given, [-1, 1] expected"
        else:
            assert answer.outputs["y"].elements == [LOOKUP[expected]]
