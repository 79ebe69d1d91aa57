from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import msgspec
import pytest

from loadtests.bench import content
from loadtests.bench.machine import describe
from loadtests.bench.questions import question
from loadtests.smoke import compare
from loadtests.smoke.__main__ import CASES, read_all, spent
from loadtests.smoke.calibration import Calibration
from loadtests.smoke.clients import GrpcClient, HttpClient, Refused, header_block
from loadtests.smoke.compare import Baseline, NotComparable, judge, ratios, unit_for
from loadtests.smoke.costs import CpuMeter, meters, threads_of

BASELINE = {"grpc": 2.0, "json": 4.0}


def test_what_costs_as_much_as_before_passes() -> None:
    assert not any(v.is_over for v in judge(BASELINE, [{"grpc": 2.05, "json": 3.9}]))


@pytest.mark.parametrize(
    ("unit", "changes", "is_apart"),
    [
        ("instructions", {}, False),
        ("instructions", {"cpu": "another", "kernel": "another"}, False),
        ("instructions", {"python": "3.12.1"}, True),
        ("cpu", {}, False),
        ("cpu", {"cpu": "another"}, True),
        ("cpu", {"kernel": "another"}, True),
    ],
)
def test_figures_of_machines_that_count_differently_are_told_and_not_judged(
    unit: str, changes: dict[str, str], is_apart: bool
) -> None:
    here = msgspec.structs.replace(describe(), python="3.11.7")
    there = msgspec.structs.replace(here, **changes)
    assert bool(compare.apart(there, here, unit)) is is_apart


def test_a_slowdown_of_30_percent_in_one_case_is_caught() -> None:
    attempts = [{"grpc": 2.6, "json": 4.0}, {"grpc": 2.62, "json": 4.1}, {"grpc": 2.6, "json": 4.0}]
    over = [verdict for verdict in judge(BASELINE, attempts) if verdict.is_over]
    assert [verdict.case for verdict in over] == ["grpc"]
    assert over[0].change == pytest.approx(0.3)


def test_a_slowdown_on_a_machine_of_half_the_speed_is_caught_and_the_machine_is_not() -> None:
    slow_machine = ratios({"grpc": [80.0, 90.0], "json": [160.0, 170.0]}, [40.0, 44.0])
    assert not any(v.is_over for v in judge(BASELINE, [slow_machine]))
    slower_code = ratios({"grpc": [104.0, 110.0], "json": [160.0, 170.0]}, [40.0, 44.0])
    assert [v.is_over for v in judge(BASELINE, [slower_code])] == [True, False]


def test_noise_in_some_attempts_is_no_slowdown() -> None:
    attempts = [{"grpc": 2.9, "json": 4.0}, {"grpc": 2.1, "json": 5.5}]
    assert not any(verdict.is_over for verdict in judge(BASELINE, attempts))


def test_cases_that_the_baseline_lacks_are_told() -> None:
    with pytest.raises(NotComparable, match="--write"):
        judge(BASELINE, [{"grpc": 2.0, "json": 4.0, "binary": 1.0}])


def test_instructions_are_preferred_and_cpu_time_is_taken_without_them() -> None:
    both = Baseline(setting=describe(), ratios={"cpu": BASELINE, "instructions": BASELINE})
    assert unit_for(both, {"cpu": BASELINE, "instructions": BASELINE}) == "instructions"
    assert unit_for(both, {"cpu": BASELINE}) == "cpu"
    with pytest.raises(NotComparable):
        unit_for(both, {})


def test_the_calibration_loop_does_the_same_work_every_time() -> None:
    results = []
    for _ in range(2):
        calibration = Calibration()
        results.append(calibration.run(50))
        calibration.close()
    assert results[0] == results[1] > 0


def test_what_this_process_consumes_grows_with_its_work() -> None:
    calibration = Calibration()
    calibration.run(200)  # what is done only once is done
    with meters(os.getpid()) as consumed:

        def least(turns: int) -> dict[str, float]:
            """Return what so many turns take by unit; others' noise only adds."""
            found = []
            for _ in range(3):
                before = read_all(consumed)
                calibration.run(turns)
                found.append(spent(before, read_all(consumed), 1))
            return {unit: min(costs[unit] for costs in found) for unit in consumed}

        little, much = least(200), least(2_000)
    calibration.close()
    assert "cpu" in consumed
    for unit, value in much.items():
        assert value > 0, unit
        assert value > 4 * little[unit], unit  # a clock of whole ticks may say 0 for a little
    if "instructions" in consumed:
        assert much["instructions"] == pytest.approx(10 * little["instructions"], rel=0.25)


def test_a_thread_that_is_gone_counts_nothing() -> None:
    assert CpuMeter([2**22 - 1]).read() == 0


def test_every_thread_of_this_process_is_found() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    found = threads_of(os.getpid())
    stop.set()
    thread.join()
    assert os.getpid() in found
    assert thread.native_id in found


def test_the_committed_baseline_has_every_case() -> None:
    path = Path(compare.__file__).parents[1] / "results" / "smoke.json"
    baseline = msgspec.json.decode(path.read_bytes(), type=Baseline)
    for by_case in baseline.ratios.values():
        assert set(by_case) == {case.name for case in CASES}
        assert all(ratio > 0 for ratio in by_case.values())


class Answering:
    """A server on one connection that says what it is told to, whatever it is sent."""

    def __init__(self, said: bytes, *, after: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self.received = b""
        self._thread = threading.Thread(target=self._serve, args=(said, after))
        self._thread.start()

    def _serve(self, said: bytes, after: int) -> None:
        connection, _ = self._listener.accept()
        with connection:
            while len(self.received) < after:
                self.received += connection.recv(65_536)
            connection.sendall(said)

    def close(self) -> None:
        self._thread.join()
        self._listener.close()


def test_an_http_answer_that_is_no_success_ends_the_gate() -> None:
    server = Answering(b"HTTP/1.1 503 x\r\nContent-Length: 4\r\n\r\nbusy", after=1)
    asked = question("json", "tiny", content.Target(name="alone"))
    with HttpClient(server.address, asked, 1) as client, pytest.raises(Refused, match="503: b'bus"):
        client.burst(1)
    server.close()


def test_a_grpc_burst_ends_with_the_last_stream_and_a_reset_ends_the_gate() -> None:
    asked = question("grpc", "tiny", content.Target(name="alone"))
    ends = b"".join(b"\0\0\0\1\5" + number.to_bytes(4, "big") for number in (3, 1))
    server = Answering(b"\0\0\0\4\0\0\0\0\0" + ends, after=2 * len(asked.body))
    with GrpcClient(server.address, asked, 2) as client:
        client.burst(2)
    server.close()
    assert server.received.count(header_block(asked.path, "user-0001")) == 1
    reset = Answering(b"\0\0\4\3\0\0\0\0\1\0\0\0\2", after=1)
    with GrpcClient(reset.address, asked, 1) as client, pytest.raises(Refused, match="type 3"):
        client.burst(1)
    reset.close()
