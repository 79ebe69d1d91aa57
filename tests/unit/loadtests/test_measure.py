from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from loadtests.bench.measure import Measurable, NotMeasured, Sample, check_counts, interleaved
from loadtests.bench.servers import Counts


def sample(case: str, seconds: float = 2.0) -> Sample:
    return Sample(
        case=case,
        requests=1_000,
        client_requests=990,
        failures=3,
        rows=4_000,
        batches=250,
        seconds=seconds,
        cpu_s=0.25,
    )


@dataclass
class Scripted:
    """A case that records how long it was asked to run, and fails in one of its rounds."""

    name: str
    label: str = "nothing"
    asked_s: list[float] = field(default_factory=list)
    fails_in: int = 0

    def measure(self, duration_s: float) -> Sample:
        self.asked_s.append(duration_s)
        if len(self.asked_s) == self.fails_in:
            raise NotMeasured("gone")
        return sample(self.name, duration_s)


def test_a_sample_gives_cost_rate_and_batch_size() -> None:
    found = sample("one")
    assert found.cpu_us_per_request == 250.0
    assert found.requests_per_s == 495.0
    assert found.rows_per_batch == 16.0


def test_the_cases_of_a_round_follow_each_other() -> None:
    cases = [Scripted("a"), Scripted("b")]
    seen: list[str] = []
    samples = interleaved(cases, rounds=2, duration_s=2.0, on_round=seen.append)
    assert [s.case for s in samples] == ["a", "b", "a", "b"]
    assert seen == ["round 1 of 2: a", "round 1 of 2: b", "round 2 of 2: a", "round 2 of 2: b"]
    assert [case.asked_s for case in cases] == [[2.0, 2.0]] * 2


def test_a_case_that_fails_loses_its_samples_and_the_others_go_on() -> None:
    cases = [Scripted("a", fails_in=2), Scripted("b")]
    failed: list[tuple[str, str]] = []

    def on_failure(case: Measurable, exc: Exception) -> bool:
        failed.append((case.name, str(exc)))
        return True

    samples = interleaved(
        cases, rounds=3, duration_s=1.0, on_round=lambda line: None, on_failure=on_failure
    )
    assert [s.case for s in samples] == ["b", "b", "b"]
    assert failed == [("a", "gone")]
    assert len(cases[0].asked_s) == 2


def test_a_failure_that_nobody_takes_ends_the_run() -> None:
    with pytest.raises(NotMeasured):
        interleaved(
            [Scripted("a", fails_in=1)], rounds=1, duration_s=1.0, on_round=lambda line: None
        )


def counts(requests: int, failures: int = 0) -> Counts:
    return Counts(requests, failures, requests, 1)


@pytest.mark.parametrize(
    ("moved", "client", "slack"),
    [(100, 100, 0), (132, 100, 32), (100, 100, 32), (500, 100, None)],
    ids=["equal", "the end cut off 32", "none was cut off", "a client that counts in windows"],
)
def test_counts_that_agree_pass(moved: int, client: int, slack: int | None) -> None:
    check_counts(counts(moved), client, slack=slack, in_flight=32)


@pytest.mark.parametrize(
    ("moved", "client", "slack", "sentence"),
    [
        (counts(0), 100, 32, "the server counts 0 successes, the client 100"),
        (counts(99), 100, None, "the server counts 99"),
        (counts(101), 100, 0, "the server counts 101"),
        (counts(133), 100, 32, "the server counts 133"),
        (counts(100, 33), 100, 32, "33 failed"),
        (counts(0), 0, 32, "nothing was answered"),
    ],
    ids=["errors under HTTP 200", "one lost", "one too many", "too many", "failures", "nothing"],
)
def test_counts_that_do_not_agree_are_no_measurement(
    moved: Counts, client: int, slack: int | None, sentence: str
) -> None:
    with pytest.raises(NotMeasured, match=sentence):
        check_counts(moved, client, slack=slack, in_flight=32)
