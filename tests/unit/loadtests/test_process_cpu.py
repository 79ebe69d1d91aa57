from __future__ import annotations

import os
import subprocess
import sys

import pytest

from loadtests.bench.process_cpu import (
    ProcessTimes,
    parse_stat,
    read_processes,
    tree_cpu_s,
    tree_ticks,
)

# Fields 1 to 17 and a few more of a real line; the name is as awkward as names can be.
STAT = "4711 (a (b) c) S 42 4711 4711 0 -1 4194304 900 80 0 0 150 30 7 3 20 0 9 0 12345 0 0"


def test_a_stat_line_gives_the_parent_and_all_four_times() -> None:
    assert parse_stat(STAT) == ProcessTimes(parent=42, ticks=150 + 30 + 7 + 3)


def test_a_tree_is_a_process_and_all_that_descend_from_it() -> None:
    processes = {
        1: ProcessTimes(0, 1_000),
        10: ProcessTimes(1, 1),
        11: ProcessTimes(10, 20),
        12: ProcessTimes(11, 300),
        13: ProcessTimes(10, 4_000),
        20: ProcessTimes(1, 50_000),
    }
    assert tree_ticks(processes, 10) == 4_321
    assert tree_ticks(processes, 12) == 300


def test_a_process_that_is_gone_has_no_ticks() -> None:
    with pytest.raises(KeyError):
        tree_ticks({1: ProcessTimes(0, 1)}, 2)


def test_this_process_and_its_parent_are_found() -> None:
    assert read_processes()[os.getpid()].parent == os.getppid()


def test_the_work_of_a_child_counts_while_it_runs_and_after_it_was_waited_for() -> None:
    work = "import time; s = time.process_time()\nwhile time.process_time() - s < 0.3: pass\n"
    before_s = tree_cpu_s(os.getpid())
    child = subprocess.Popen(
        [sys.executable, "-c", work + "print('done', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        running_s = tree_cpu_s(os.getpid()) - before_s
        child.communicate(b"\n")
    ended_s = tree_cpu_s(os.getpid()) - before_s
    assert running_s >= 0.28
    assert ended_s >= running_s
