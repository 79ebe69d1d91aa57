from __future__ import annotations

import os
import subprocess
import sys

import pytest

from loadtests.bench.process_tree import (
    Memory,
    ProcessTimes,
    parse_rollup,
    parse_stat,
    read_processes,
    tree,
    tree_cpu_s,
    tree_memory,
    tree_ticks,
)

# Fields 1 to 17 and a few more of a real line; the name is as awkward as names can be.
STAT = "4711 (a (b) c) S 42 4700 4711 0 -1 4194304 900 80 0 0 150 30 7 3 20 0 9 0 12345 0 0"
ROLLUP = """\
00400000-7ffc6a5f5000 ---p 00000000 00:00 0                              [rollup]
Rss:              107312 kB
Pss:               98765 kB
Pss_Dirty:         80000 kB
"""
PROCESSES = {
    1: ProcessTimes(0, 1, 1_000),
    10: ProcessTimes(1, 10, 1),
    11: ProcessTimes(10, 10, 20),
    12: ProcessTimes(11, 12, 300),
    13: ProcessTimes(10, 10, 4_000),
    20: ProcessTimes(1, 1, 50_000),
    30: ProcessTimes(1, 10, 600_000),
}


def test_a_stat_line_gives_the_parent_the_group_and_all_four_times() -> None:
    assert parse_stat(STAT) == ProcessTimes(parent=42, group=4700, ticks=150 + 30 + 7 + 3)


def test_a_tree_is_a_process_its_descendants_and_what_is_left_of_its_group() -> None:
    assert set(tree(PROCESSES, 10)) == {10, 11, 12, 13, 30}
    assert tree_ticks(PROCESSES, 10) == 604_321


def test_a_process_that_leads_no_group_has_its_descendants_only() -> None:
    assert tree_ticks(PROCESSES, 11) == 320
    assert tree_ticks(PROCESSES, 20) == 50_000


def test_a_process_that_is_gone_has_no_ticks() -> None:
    with pytest.raises(KeyError):
        tree_ticks({1: ProcessTimes(0, 1, 1)}, 2)


def test_memory_is_read_in_bytes() -> None:
    assert parse_rollup(ROLLUP) == Memory(pss_bytes=98765 << 10, rss_bytes=107312 << 10)


def test_this_process_and_its_parent_are_found() -> None:
    processes = read_processes()
    assert processes[os.getpid()].parent == os.getppid()
    assert os.getppid() in processes


def test_the_work_of_a_child_that_has_ended_counts_on() -> None:
    before_s = tree_cpu_s(os.getpid())
    busy = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", busy], check=True)
    assert tree_cpu_s(os.getpid()) - before_s >= 0.25


def test_the_memory_of_a_child_is_part_of_the_trees() -> None:
    holding = "data = bytearray(64 << 20); print('ready', flush=True); input()"
    before = tree_memory(os.getpid())
    with subprocess.Popen(
        [sys.executable, "-c", holding], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        grown = tree_memory(os.getpid()).pss_bytes - before.pss_bytes
        child.communicate("\n")
    assert 64 << 20 <= grown < 96 << 20
