from __future__ import annotations

import threading

import pytest

from engines.trt.progress import Progress


class Heard:
    def __init__(self, answers: bool = True) -> None:
        self.shares: list[tuple[str, float]] = []
        self.answers = answers

    def __call__(self, phase: str, fraction: float) -> bool:
        self.shares.append((phase, fraction))
        return self.answers


def test_a_phase_fills_one_step_of_the_phase_around_it() -> None:
    heard = Heard()
    progress = Progress(heard)
    progress.start("build", None, 2)
    progress.start("tactics", "build", 4)
    progress.step("tactics", 0)
    progress.start("nodes", "tactics", 2)
    progress.step("nodes", 0)
    progress.finish("nodes")
    progress.step("tactics", 1)
    progress.finish("tactics")
    progress.step("build", 0)
    progress.step("build", 1)
    progress.finish("build")
    assert heard.shares == [
        ("build", 0.0),
        ("tactics", 0.0),
        ("tactics", 0.125),
        ("nodes", 0.125),
        ("nodes", 0.1875),
        ("tactics", 0.25),
        ("build", 0.5),
        ("build", 1.0),
    ]


def test_the_share_never_falls() -> None:
    heard = Heard()
    progress = Progress(heard)
    progress.start("first", None, 1)
    progress.step("first", 0)
    progress.finish("first")
    progress.start("second", None, 4)
    progress.step("second", 0)
    assert [share for _, share in heard.shares] == [0.0, 1.0, 1.0, 1.0]


def test_a_phase_that_was_left_open_does_not_stay_below_the_next() -> None:
    heard = Heard()
    progress = Progress(heard)
    progress.start("build", None, 2)
    progress.start("one", "build", 2)
    progress.start("two", "build", 2)
    progress.step("two", 0)
    assert heard.shares[-1] == ("two", 0.25)


def test_no_is_heard_once_and_stays() -> None:
    heard = Heard(answers=False)
    progress = Progress(heard)
    progress.start("build", None, 2)
    assert progress.is_cancelled
    assert progress.step("build", 0) is False
    assert len(heard.shares) == 1


@pytest.mark.parametrize("exc", [RuntimeError("boom"), KeyboardInterrupt()])
def test_what_the_watcher_raises_is_kept_for_whoever_builds(exc: BaseException) -> None:
    def fails(phase: str, fraction: float, /) -> bool:
        raise exc

    progress = Progress(fails)
    progress.start("build", None, 2)
    assert progress.raised is exc
    assert progress.step("build", 0) is False


def test_steps_may_come_from_any_thread() -> None:
    heard = Heard()
    progress = Progress(heard)
    progress.start("build", None, 400)
    workers = [
        threading.Thread(
            target=lambda part=part: [progress.step("build", part * 100 + n) for n in range(100)]
        )
        for part in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(heard.shares) == 401
    assert 0.25 <= heard.shares[-1][1] <= 1.0
