"""GPU samples: the real nvidia-ml-py over a management library that is compiled to answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from engines.nvml import Sampler
from tests.support.driver_stubs import management_library

pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")

ROOT: Final = Path(__file__).parents[3]

_PRELUDE: Final = """
import dataclasses, json, logging, os, sys, threading, time
from engines.nvml import Sampler

class Lines(logging.Handler):
    def emit(self, record):
        lines.append([record.levelname, record.getMessage(), getattr(record, "reason", "")])

lines = []
logging.getLogger().addHandler(Lines())
logging.getLogger().setLevel(logging.DEBUG)

def until(condition):
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit, "nothing came of it"
        time.sleep(0.002)

def running():
    return [t for t in threading.enumerate() if t.name == "gpu-samples"]

def told():
    return [dataclasses.asdict(s) for s in sampler.samples]

sampler = Sampler(0.01)
sampler.start()
"""


def ran(folder: Path, program: str) -> tuple[object, str]:
    """Run a program whose loader finds this folder first; return what it prints, and its stderr."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "HANGS": str(folder / "hangs")}
    command = [sys.executable, "-c", _PRELUDE + program]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


TELL: Final = """
until(lambda: sampler.samples)
print(json.dumps([told(), lines]))
"""


def test_every_gpu_is_sampled_with_all_that_it_tells(tmp_path: Path) -> None:
    management_library(tmp_path)
    told, _ = ran(tmp_path, TELL)
    assert isinstance(told, list)
    (first, second), lines = told
    assert lines == []
    for sample in (first, second):
        assert 0 < sample.pop("memory_utilization_ratio") < 1
    common = {
        "memory_total_bytes": 80 << 30,
        "power_watts": 123.456,
        "temperature_celsius": 61,
        "ecc_errors": 7,
    }
    assert first == {
        **common,
        "index": 0,
        "uuid": "GPU-0",
        "name": 'Stub "GPU" 0',
        "utilization_ratio": 0.25,
        "memory_used_bytes": 5 << 30,
        "process_memory_bytes": 3072,
    }
    assert second == {
        **common,
        "index": 1,
        "uuid": "GPU-1",
        "name": 'Stub "GPU" 1',
        "utilization_ratio": 0.75,
        "memory_used_bytes": (5 << 30) + 1,
        "process_memory_bytes": None,
    }


def test_what_a_slice_does_not_support_is_none_and_the_rest_is_there(tmp_path: Path) -> None:
    management_library(tmp_path, "MIG", "OLD", "GPUS=1")
    told, _ = ran(tmp_path, TELL)
    assert isinstance(told, list)
    ((sample,), lines) = told
    absent = {name for name, value in sample.items() if value is None}
    assert absent == {
        "utilization_ratio",
        "memory_utilization_ratio",
        "process_memory_bytes",
        "power_watts",
        "ecc_errors",
    }
    assert sample["memory_used_bytes"] == 5 << 30
    assert lines == []


def test_a_gpu_that_is_lost_is_left_out_and_the_other_keeps_its_number(tmp_path: Path) -> None:
    management_library(tmp_path, "LOST=0")
    told, _ = ran(tmp_path, TELL)
    assert isinstance(told, list)
    (samples, lines) = told
    assert [sample["index"] for sample in samples] == [1]
    assert lines == [["DEBUG", "a GPU cannot be asked", ""]]


def test_samples_are_renewed(tmp_path: Path) -> None:
    management_library(tmp_path)
    program = """
until(lambda: sampler.samples)
first = sampler.samples[0].memory_utilization_ratio
until(lambda: sampler.samples[0].memory_utilization_ratio != first)
print("true")
"""
    assert ran(tmp_path, program)[0] is True


def test_start_and_stop_may_come_in_any_number(tmp_path: Path) -> None:
    management_library(tmp_path, "TELL_END")
    program = """
until(lambda: sampler.samples)
sampler.start()
threads = [len(running())]
sampler.stop()
sampler.stop()
threads.append(len(running()))
empty = sampler.samples == ()
sampler.start()
until(lambda: sampler.samples)
threads.append(len(running()))
sampler.stop()
print(json.dumps([threads, empty]))
"""
    told, stderr = ran(tmp_path, program)
    assert told == [[1, 0, 1], True]
    assert stderr.count("nvmlShutdown") == 2


def test_a_driver_that_hangs_holds_up_stop_for_a_second_at_most(tmp_path: Path) -> None:
    management_library(tmp_path, "HANG")
    program = """
until(lambda: os.path.exists(os.environ["HANGS"]))
begun = time.monotonic()
sampler.stop()
print(json.dumps([time.monotonic() - begun, told()]))
"""
    told, _ = ran(tmp_path, program)
    assert isinstance(told, list)
    seconds, samples = told
    assert 0.9 < seconds < 5
    assert samples == []


@pytest.mark.parametrize(
    ("defines", "reason"),
    [(("INIT=9",), "Driver Not Loaded"), (None, "NVML Shared Library Not Found")],
)
def test_without_a_driver_there_is_one_debug_line_no_sample_and_no_thread(
    tmp_path: Path, defines: tuple[str, ...] | None, reason: str
) -> None:
    if defines is None:
        (tmp_path / "libnvidia-ml.so.1").write_bytes(b"no library, though it may have a real one")
    else:
        management_library(tmp_path, *defines)
    program = """
until(lambda: not running())
sampler.stop()
print(json.dumps([told(), lines]))
"""
    assert ran(tmp_path, program)[0] == [[], [["DEBUG", "no GPU metrics", reason]]]


def test_a_driver_without_gpus_has_no_samples_and_no_thread(tmp_path: Path) -> None:
    management_library(tmp_path, "GPUS=0")
    program = "until(lambda: not running())\nprint(json.dumps([told(), lines]))"
    assert ran(tmp_path, program)[0] == [[], []]


def test_without_the_package_there_is_one_debug_line(tmp_path: Path) -> None:
    program = """
until(lambda: not running())
sampler.stop()
lines.clear()
sys.modules["pynvml"] = None  # what an import finds where there is no such package
sampler.start()
until(lambda: not running())
print(json.dumps([told(), lines]))
"""
    missing = ["DEBUG", "no GPU metrics", "nvidia-ml-py is not installed"]
    assert ran(tmp_path, program)[0] == [[], [missing]]


def test_a_sampler_that_was_not_started_has_no_samples_and_can_be_stopped() -> None:
    sampler = Sampler()
    assert sampler.samples == ()
    sampler.stop()
    assert sampler.samples == ()
