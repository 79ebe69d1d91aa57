from __future__ import annotations

from dataclasses import dataclass, field

from loadtests.bench.measure import Sample, interleaved


def sample(case: str, wall_s: float = 2.0) -> Sample:
    return Sample(
        case=case, requests=1_000, failures=3, rows=4_000, batches=250, wall_s=wall_s, cpu_s=0.25
    )


@dataclass
class Scripted:
    """A case that records how long it was asked to run."""

    name: str
    label: str = "nothing"
    asked_s: list[float] = field(default_factory=list)

    def measure(self, duration_s: float) -> Sample:
        self.asked_s.append(duration_s)
        return sample(self.name, wall_s=duration_s)


def test_a_sample_gives_cost_rate_and_batch_size() -> None:
    found = sample("one")
    assert found.cpu_us_per_request == 250.0
    assert found.rows_per_s == 2_000.0
    assert found.rows_per_batch == 16.0


def test_the_cases_of_a_round_follow_each_other_after_one_warm_up_each() -> None:
    cases = [Scripted("a"), Scripted("b")]
    seen: list[str] = []
    samples = interleaved(cases, rounds=2, duration_s=2.0, warm_up_s=1.0, on_round=seen.append)
    assert [s.case for s in samples] == ["a", "b", "a", "b"]
    assert {s.wall_s for s in samples} == {2.0}
    assert [case.asked_s for case in cases] == [[1.0, 2.0, 2.0]] * 2
    assert seen == [
        "warming up a",
        "warming up b",
        "round 1 of 2: a",
        "round 1 of 2: b",
        "round 2 of 2: a",
        "round 2 of 2: b",
    ]


def test_a_warm_up_of_0_is_left_out() -> None:
    case = Scripted("a")
    interleaved([case], rounds=1, duration_s=0.3, warm_up_s=0.0, on_round=lambda line: None)
    assert case.asked_s == [0.3]
