"""The fuzzer's targets find nothing in what clients send, nor in small changes of it.

A short run without the fuzzer, so that the targets themselves stay alive; what was once found by
the long runs is a test beside the code it was found in.
"""

from __future__ import annotations

from random import Random
from typing import Final

import pytest

from tests.fuzz.targets import TARGETS, load

CHANGED: Final = 400


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_finds_nothing_in_its_own_seeds(name: str) -> None:
    target = load(name)
    seeds = target.seeds()
    assert len(seeds) > 3
    for seed in seeds:
        target.one(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_finds_nothing_in_seeds_with_a_few_bytes_changed(name: str) -> None:
    target = load(name)
    seeds = target.seeds()
    random = Random(name)
    for _ in range(CHANGED):
        changed = bytearray(random.choice(seeds))
        for _ in range(random.randrange(1, 4)):
            at = random.randrange(len(changed) + 1)
            new = random.choice((b"", random.randbytes(1), random.choice(target.WORDS)))
            changed[at : at + random.randrange(3)] = new
        target.one(bytes(changed))
