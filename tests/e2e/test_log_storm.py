"""The loss contract after a storm: seeded, so that one that finds something can be run again.

`python -m tests.support.log_storm --seconds 600 --seed 7` lets a longer one pass.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.log_storm import run

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(240)]

SECONDS = 20.0


@pytest.mark.parametrize(("seed", "append"), [(1, "loop"), (4, "thread")])
def test_after_a_storm_everything_promised_is_there_once_and_a_reader_says_so(
    tmp_path: Path, seed: int, append: str
) -> None:
    outcome = run(tmp_path, seconds=SECONDS, seed=seed, append=append)
    assert outcome.problems == [], outcome.text
    assert outcome.promised > 500, outcome.text
