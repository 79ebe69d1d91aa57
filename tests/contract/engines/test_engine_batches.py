"""Batches of every size, padded to buckets or not, alone and in several threads: always their rows.

Where buckets are declared, batches go the way that the batcher's go: laid, padded and cut by an
instance (engines/layout.py), in its own threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Queue

import numpy as np
import pytest

from engines.base import Engine, ModelMetadata
from engines.batch_queue import Batch, CallbackRequest
from engines.errors import EngineError
from engines.instance import BatchResult, Host, Instance
from engines.tensors import BYTES, DATATYPES, Array, from_array
from tests.support import engine_cases as cases
from tests.support.batching import HANG_S
from tests.support.engine_cases import (
    BUCKETS,
    MAX_BATCH,
    EngineCase,
    able,
    assert_close,
    assert_same,
    computed,
    hosted,
    pairs,
    values,
)

every = pytest.mark.parametrize("case", able())
computing = pytest.mark.parametrize("case", able(cases.SOFTMAX))
SPLITS = [
    (1,),
    (2,),
    (1, 1),
    (3,),
    (1, 2),
    (2, 1, 1),
    (5,),
    (1, 1, 1, 1, 1),
    (3, 4),
    (8,),
    (1,) * 8,
]
"""Rows of the requests of a batch."""


@pytest.fixture(autouse=True)
def _here(case: EngineCase) -> None:
    if why := case.why_not_here():
        pytest.skip(f"{case.name}: {why}")


class Served:
    """An engine behind its instance, asked as the batcher asks it."""

    def __init__(self, host: Host, datatype: str = "FP32") -> None:
        self._host = host
        self._datatype = datatype

    def run(self, parts: Sequence[Array]) -> BatchResult:
        """Run one batch of these parts."""
        requests = tuple(
            CallbackRequest(
                inputs=(from_array("x", self._datatype, part),),
                rows=len(part),
                shape_key=(),
                enqueued_ns=0,
                on_done=lambda _: None,
            )
            for part in parts
        )
        results: Queue[BatchResult] = Queue()
        batch = Batch(requests=requests, rows=sum(map(len, parts)), reason="full")
        self._host.start(batch, results.put)
        return results.get(timeout=HANG_S)

    def answers(self, parts: Sequence[Array]) -> list[Array]:
        """Run one batch and return what each part's answer is."""
        result = self.run(parts)
        assert not result.isolated
        return [answer_of(outcome) for outcome in result.outcomes]


def answer_of(outcome: object) -> Array:
    assert not isinstance(outcome, EngineError), outcome
    assert isinstance(outcome, tuple)
    array: Array = outcome[0].array()
    return array


@contextmanager
def serving(engine: Engine, datatype: str = "FP32") -> Iterator[Served]:
    host = hosted(engine)
    try:
        yield Served(host, datatype)
    finally:
        host.close()


def cut(rows: Array, split: Sequence[int]) -> list[Array]:
    ends = np.cumsum(split)
    return [rows[end - count : end] for end, count in zip(ends, split, strict=True)]


@pytest.mark.parametrize("rows", range(1, MAX_BATCH + 1))
@every
def test_row_i_of_the_answer_belongs_to_row_i_of_the_batch(
    case: EngineCase, tmp_path: Path, rows: int
) -> None:
    engine = case.loaded(tmp_path)
    batch = values("FP32", rows)
    answer = engine.infer({"x": batch})["y"]
    assert_same(answer, batch)
    for row in range(rows):
        assert_same(engine.infer({"x": batch[row : row + 1]})["y"], answer[row : row + 1])


@computing
def test_a_row_is_answered_the_same_in_whatever_batch_it_is(
    case: EngineCase, tmp_path: Path
) -> None:
    engine = case.loaded(tmp_path, cases.SOFTMAX)
    x = values("FP32", MAX_BATCH) / 7
    expected = computed(cases.SOFTMAX, x)
    for rows in range(1, MAX_BATCH + 1):
        for first in range(MAX_BATCH - rows + 1):
            part = slice(first, first + rows)
            assert_close(engine.infer({"x": x[part]})["y"], expected[part], case.tolerance)


@every
def test_the_buckets_asked_for_are_in_the_metadata(case: EngineCase, tmp_path: Path) -> None:
    assert case.loaded(tmp_path, buckets=BUCKETS).metadata.buckets == BUCKETS
    plain = case.loaded(tmp_path).metadata.buckets
    assert plain == () or plain[-1] == MAX_BATCH


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: "+".join(map(str, split)))
@pytest.mark.parametrize("kind", [cases.RECIPROCAL, cases.SOFTMAX])
@pytest.mark.parametrize("case", able(cases.RECIPROCAL, cases.SOFTMAX))
def test_padding_to_a_bucket_does_not_change_results(
    case: EngineCase, tmp_path: Path, kind: str, split: tuple[int, ...]
) -> None:
    rows = sum(split)
    x = values("FP32", rows, first=6) / 3
    with serving(case.loaded(tmp_path, kind, buckets=BUCKETS)) as padded:
        found = padded.answers(cut(x, split))
        result = padded.run(cut(x, split))
    run_rows = next(bucket for bucket in BUCKETS if bucket >= rows)
    assert result.padded_rows == run_rows - rows
    assert [len(part) for part in found] == list(split)
    assert_close(np.concatenate(found), computed(kind, x), case.tolerance)
    engine = case.loaded(tmp_path, kind)
    assert_close(np.concatenate(found), engine.infer({"x": x})["y"], case.tolerance)
    engine.close()


@pytest.mark.parametrize(("case", "datatype"), pairs(sorted(DATATYPES)))
def test_padding_changes_no_bit_of_any_datatype(
    case: EngineCase, tmp_path: Path, datatype: str
) -> None:
    engine = case.loaded(tmp_path, datatype=datatype, buckets=BUCKETS)
    with serving(engine, datatype) as served:
        for split in SPLITS:
            parts = cut(values(datatype, sum(split)), split)
            for found, part in zip(served.answers(parts), parts, strict=True):
                assert_same(found, part)


class Watched:
    """An engine that keeps everything that goes in and comes out."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.seen: list[tuple[Array, Array]] = []

    @property
    def metadata(self) -> ModelMetadata:
        return self._engine.metadata

    def infer(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        found = self._engine.infer(batch)
        self.seen.append((batch["x"].copy(), found["y"].copy()))
        return found

    def close(self) -> None:
        self._engine.close()


@pytest.mark.parametrize("case", able(cases.RECIPROCAL))
def test_padding_gives_the_model_nothing_that_it_has_no_answer_for(
    case: EngineCase, tmp_path: Path
) -> None:
    """Rows of zeros would: 1 / 0. Neither the real rows nor those of the padding are ever inf."""
    watched = Watched(case.loaded(tmp_path, cases.RECIPROCAL, buckets=BUCKETS))
    host = Instance(name="m/1#0", model="m", version="1", engine=watched)
    served = Served(host)
    for split in SPLITS:
        served.answers(cut(values("FP32", sum(split), first=6), split))
    host.close()
    assert [len(x) for x, _ in watched.seen] == [
        next(bucket for bucket in BUCKETS if bucket >= sum(split)) for split in SPLITS
    ]
    for x, y in watched.seen:
        assert np.isfinite(y).all()
        assert (x != 0).all()


@pytest.mark.parametrize("case", able(cases.RECIPROCAL))
def test_a_row_without_an_answer_spoils_no_other(case: EngineCase, tmp_path: Path) -> None:
    good, bad = values("FP32", 2, first=6), np.array([[0, np.nan, np.inf]], np.float32)
    with serving(case.loaded(tmp_path, cases.RECIPROCAL, buckets=BUCKETS)) as served:
        for parts in ([good, bad], [bad, good], [good[:1], bad, good[1:]]):
            answers = served.answers(parts)
            for part, found in zip(parts, answers, strict=True):
                if part is bad:
                    assert found.tolist()[0][0] == np.inf
                    assert np.isnan(found[0][1])
                    assert found[0][2] == 0
                else:
                    assert_close(found, computed(cases.RECIPROCAL, part), case.tolerance)


@pytest.mark.parametrize("case", able(cases.FIXED))
def test_a_model_whose_batch_axis_is_a_number_serves_batches_of_up_to_as_many_rows(
    case: EngineCase, tmp_path: Path
) -> None:
    engine = case.loaded(tmp_path, cases.FIXED, max_batch_size=cases.FIXED_ROWS)
    assert engine.metadata.inputs[0].shape == (-1, 3)
    assert engine.metadata.buckets == (cases.FIXED_ROWS,)
    with serving(engine) as served:
        for split in SPLITS:
            if sum(split) <= cases.FIXED_ROWS:
                parts = cut(values("FP32", sum(split)), split)
                for found, part in zip(served.answers(parts), parts, strict=True):
                    assert_same(found, part)


@pytest.mark.parametrize("datatype", ["FP32"])
@pytest.mark.parametrize("case", able(cases.WIDE))
def test_buckets_and_a_dimension_that_varies_go_together(
    case: EngineCase, tmp_path: Path, datatype: str
) -> None:
    with serving(case.loaded(tmp_path, cases.WIDE, buckets=BUCKETS), datatype) as served:
        for width in (5, 1, 64, 5):
            parts = [np.full((n, width), n, np.float32) for n in (1, 2)]
            for found, part in zip(served.answers(parts), parts, strict=True):
                assert_same(found, part)


@computing
def test_recorded_graphs_change_no_answer(case: EngineCase, tmp_path: Path) -> None:
    """On a GPU the first runs of a bucket are plain, one is recorded, and the rest are replayed."""
    engine = case.loaded(tmp_path, cases.SOFTMAX, buckets=BUCKETS, has_graphs=True)
    with serving(engine) as served:
        for n in range(12):
            for rows in (1, 3, 8):
                x = values("FP32", rows, first=n) / 20
                (found,) = served.answers([x])
                assert_close(found, computed(cases.SOFTMAX, x), case.tolerance)


@computing
def test_two_instances_in_two_threads_do_not_disturb_each_other(
    case: EngineCase, tmp_path: Path
) -> None:
    served = [hosted(case.loaded(tmp_path, cases.SOFTMAX, buckets=BUCKETS)) for _ in range(2)]
    ready = threading.Barrier(2)
    troubles: list[BaseException] = []

    def call(number: int) -> None:
        try:
            asked = Served(served[number])
            ready.wait(HANG_S)
            for n in range(100):
                x = values("FP32", 1 + (n + number) % MAX_BATCH, first=n * (number + 1)) / 50
                (found,) = asked.answers([x])
                assert_close(found, computed(cases.SOFTMAX, x), case.tolerance)
        except BaseException as exc:  # raised in the test's own thread below
            troubles.append(exc)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * HANG_S)
        assert not thread.is_alive()
    for host in served:
        host.close()
    if troubles:
        raise troubles[0]


@every
def test_an_engine_may_be_closed_by_another_thread_than_the_one_that_made_it(
    case: EngineCase, tmp_path: Path
) -> None:
    engine = case.loaded(tmp_path)
    assert_same(engine.infer({"x": values("FP32", 1)})["y"], values("FP32", 1))
    thread = threading.Thread(target=engine.close)
    thread.start()
    thread.join(HANG_S)
    assert not thread.is_alive()


@pytest.mark.parametrize(("case", "datatype"), pairs([BYTES]))
def test_text_of_any_length_is_padded_and_cut(
    case: EngineCase, tmp_path: Path, datatype: str
) -> None:
    rows = np.array([["", "a" * 10_000, "ü"], ["b\0", "", "c"]], dtype=object)
    for position, text in np.ndenumerate(rows):
        rows[position] = text.encode()
    with serving(case.loaded(tmp_path, datatype=datatype, buckets=BUCKETS), datatype) as served:
        (found,) = served.answers([rows])
        assert_same(found, rows)
