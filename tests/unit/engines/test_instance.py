"""One engine and its thread: laying a batch, cutting the answer, translating failures."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from queue import Queue

import numpy as np
import pytest

from engines.base import ModelMetadata, TensorSpec
from engines.batch_queue import Batch, QueuedRequest
from engines.errors import EngineError, InstanceFailed, InvalidInput
from engines.fake import FakeEngine, Script
from engines.instance import BatchResult, Instance
from engines.tensors import Array, Tensor, from_array
from tests.support.batching import ECHO_INPUT, ECHO_OUTPUT, HANG_S, make_request


def echo(script: Script | None = None) -> FakeEngine:
    return FakeEngine(inputs=(ECHO_INPUT,), outputs=(ECHO_OUTPUT,), max_batch_size=8, script=script)


class RowSums:
    """Answers whatever function of the input it is made with; remembers its threads."""

    def __init__(self, shape_of: int | None = None, *, max_batch_size: int = 8) -> None:
        self._shape_of = shape_of
        self.threads: set[str] = set()
        self.metadata = ModelMetadata(
            inputs=(ECHO_INPUT,),
            outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1,)),),
            max_batch_size=max_batch_size,
            platform="test",
            engine="test 1",
            device="cpu",
        )

    def infer(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Return the row sums, cut to a fixed number of rows if so made."""
        self.threads.add(threading.current_thread().name)
        return {"y": batch["x"].sum(axis=1)[: self._shape_of]}

    def close(self) -> None:
        """Remember the thread that closed."""
        self.threads.add(threading.current_thread().name)


class Worker:
    """An instance under test and a queue of its results."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self._results: Queue[BatchResult] = Queue()

    def run(self, *requests: QueuedRequest) -> BatchResult:
        batch = Batch(requests=requests, rows=sum(r.rows for r in requests), reason="full")
        self.instance.start(batch, self._results.put)
        return self._results.get(timeout=HANG_S)


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    made: list[Worker] = []
    yield made
    for worker in made:
        worker.instance.close()


def host(workers: list[Worker], engine: FakeEngine | RowSums) -> Worker:
    worker = Worker(Instance(name="m/1#0", model="m", version="1", engine=engine))
    workers.append(worker)
    return worker


def answer(outcome: Sequence[Tensor] | EngineError) -> list[object]:
    assert not isinstance(outcome, EngineError), outcome
    values: list[object] = outcome[0].array().tolist()
    return values


def test_each_request_gets_the_rows_that_it_brought(workers: list[Worker]) -> None:
    result = host(workers, echo()).run(
        make_request([1.0]), make_request([2.0, 3.0]), make_request([4.0])
    )
    assert [answer(outcome) for outcome in result.outcomes] == [[[1.0]], [[2.0], [3.0]], [[4.0]]]
    assert not result.isolated


def test_the_times_of_a_batch_are_told_apart(workers: list[Worker]) -> None:
    result = host(workers, echo()).run(make_request([1.0]), make_request([2.0]))
    assert result.started_ns > 0
    assert min(result.input_ns, result.infer_ns, result.output_ns) >= 0


def test_a_bad_value_fails_its_request_and_the_others_are_run_alone(
    workers: list[Worker],
) -> None:
    worker = host(workers, echo(Script(bad_on=13.0)))
    result = worker.run(make_request([1.0]), make_request([13.0]), make_request([2.0]))
    assert result.isolated
    assert [answer(result.outcomes[0]), answer(result.outcomes[2])] == [[[1.0]], [[2.0]]]
    assert isinstance(result.outcomes[1], InvalidInput)


def test_a_foreign_exception_is_logged_with_its_instance_and_not_told(
    workers: list[Worker], caplog: pytest.LogCaptureFixture
) -> None:
    worker = host(workers, echo(Script(fail_on=13.0)))
    with caplog.at_level(logging.ERROR, logger="engines.instance"):
        result = worker.run(make_request([13.0]))
    assert isinstance(result.outcomes[0], InstanceFailed)
    assert "scripted" not in str(result.outcomes[0])
    (record,) = caplog.records
    assert {"model": "m", "version": "1", "instance": "m/1#0"}.items() <= vars(record).items()


def test_a_mistake_of_the_caller_leaves_no_stack_trace(
    workers: list[Worker], caplog: pytest.LogCaptureFixture
) -> None:
    worker = host(workers, echo(Script(bad_on=13.0)))
    with caplog.at_level(logging.DEBUG):
        worker.run(make_request([13.0]), make_request([1.0]))
    assert caplog.records == []


def test_an_output_that_does_not_have_the_batchs_rows_fails_only_who_cannot_be_served(
    workers: list[Worker],
) -> None:
    # The engine gives one row whatever it gets: right for a request that is alone.
    result = host(workers, RowSums(1)).run(make_request([1.0]), make_request([2.0]))
    assert result.isolated
    assert [answer(outcome) for outcome in result.outcomes] == [[1.0], [2.0]]


def test_a_model_without_a_batch_axis_answers_with_its_own_shape(workers: list[Worker]) -> None:
    result = host(workers, RowSums(1, max_batch_size=0)).run(make_request([1.0, 2.0, 3.0]))
    assert answer(result.outcomes[0]) == [1.0]


def test_every_input_of_a_request_is_laid_by_its_position(workers: list[Worker]) -> None:
    engine = FakeEngine(
        inputs=(ECHO_INPUT, TensorSpec(name="n", datatype="INT64", shape=(-1,))),
        outputs=(ECHO_OUTPUT, TensorSpec(name="m", datatype="INT64", shape=(-1,))),
    )
    requests = []
    for value in (1.0, 2.0):
        request = make_request([value])
        number = from_array("n", "INT64", np.array([10 * value], np.int64))
        request.inputs = (*request.inputs, number)
        requests.append(request)
    result = host(workers, engine).run(*requests)
    for request, outcome in zip(requests, result.outcomes, strict=True):
        assert not isinstance(outcome, EngineError)
        assert [bytes(tensor.data) for tensor in outcome] == [
            bytes(tensor.data) for tensor in request.inputs
        ]


def test_the_engine_is_called_and_closed_in_the_one_thread_of_its_instance(
    workers: list[Worker],
) -> None:
    others = set(threading.enumerate())  # of other tests, which may have the same name
    engine = RowSums()
    worker = host(workers, engine)
    for value in (1.0, 2.0):
        worker.run(make_request([value]))
    worker.instance.close()
    assert engine.threads == {"sluice-m/1#0"}
    left = set(threading.enumerate()) - others
    assert "sluice-m/1#0" not in {thread.name for thread in left}


def test_closing_twice_is_harmless_and_ends_after_the_batch_under_way(
    workers: list[Worker],
) -> None:
    results: Queue[BatchResult] = Queue()
    engine = echo()
    instance = Instance(name="m/1#0", model="m", version="1", engine=engine)
    instance.start(Batch(requests=(make_request([1.0]),), rows=1, reason="full"), results.put)
    instance.close()
    instance.close()
    assert results.qsize() == 1
    assert engine.is_closed


@pytest.mark.parametrize(("log_every_ns", "logged"), [(10**12, [1]), (0, [1, 1, 1])])
def test_of_a_series_of_failures_one_is_logged_in_a_while(
    log_every_ns: int, logged: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    engine = echo(Script(fail_on=13.0))
    failing = Instance(
        name="echo/1#0", model="echo", version="1", engine=engine, log_every_ns=log_every_ns
    )
    worker = Worker(failing)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            (outcome,) = worker.run(make_request([13.0])).outcomes
            assert isinstance(outcome, InstanceFailed)
    failing.close()
    assert [record.__dict__["failures"] for record in caplog.records] == logged
