from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from gateway.prediction_log.log import PredictionLog
from gateway.prediction_log.reader.completeness import NOT_IN_STREAM
from gateway.prediction_log_config import PredictionLogConfig
from loadtests.micro import log_rates, log_reading
from loadtests.micro.log_load import BATCH, FEATURES, NAME, Feed, NotMeasured, check, make_batches
from loadtests.micro.log_rates import Results
from loadtests.micro.log_reading import Gap, Read, Reading

NO_REDIS = "redis://127.0.0.1:1/0"
RECORDS, READ = 640, 1_024
GAPS: list[Gap] = [(3, 3, NOT_IN_STREAM), (7, 9, NOT_IN_STREAM)]


def reading_of(*, before: list[Gap], after: list[Gap], rows_after: int = 96) -> Reading:
    def read(rows: int, gaps: list[Gap]) -> Read:
        return Read(
            rows=rows,
            columns=65,
            seconds=0.5,
            pandas_s=None,
            before_mib=50.0,
            peak_mib=60.0,
            report="what the report says",
            is_complete=not gaps,
            gaps=gaps,
        )

    return Reading(
        records=100, before=read(100, before), deleted=4, made=GAPS, after=read(rows_after, after)
    )


@pytest.mark.redis
def test_a_small_run_measures_every_durability_and_names_the_gaps(tmp_path: Path) -> None:
    """In a process of its own, since it turns the garbage collector down."""
    path = tmp_path / "results" / "log-rates.json"
    sizes = ["--records", str(RECORDS), "--rounds", "1", "--read", str(READ)]
    command = [sys.executable, "-m", "loadtests.micro.log_rates", *sizes, "--output", str(path)]
    ours = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run(command, env=ours, capture_output=True, text=True, check=False)
    assert path.exists(), done.stderr
    results = msgspec.json.decode(path.read_bytes(), type=Results)
    assert [rate.durability for rate in results.rates] == list(log_rates.DURABILITIES)
    for rate in results.rates:
        (sample,) = rate.samples
        assert sample.intake_us > 0
        assert sample.shipping_us > 0
        assert sample.whole_us > 0
        assert 4 * FEATURES < sample.spool_bytes < 1_000
        assert 1 <= sample.shipped_at_once <= RECORDS
    assert results.reading is not None
    assert results.reading.is_exact
    assert results.reading.before.rows == READ
    assert results.reading.after.rows == READ - log_reading.DELETED
    assert all(line in done.stdout for line in log_rates.shown(results))
    assert done.returncode == (not results.is_good)


def test_a_gap_that_was_not_made_or_is_not_named_is_not_exact() -> None:
    assert reading_of(before=[], after=GAPS).is_exact
    assert not reading_of(before=[], after=GAPS[:1]).is_exact
    assert not reading_of(before=[], after=[*GAPS, (50, 50, NOT_IN_STREAM)]).is_exact
    assert not reading_of(before=[], after=[(3, 3, "queue_bytes"), GAPS[1]]).is_exact
    assert not reading_of(before=GAPS[:1], after=GAPS).is_exact
    assert not reading_of(before=[], after=GAPS, rows_after=97).is_exact
    assert "OTHERS ARE NAMED" in "\n".join(reading_of(before=[], after=[]).shown())


def test_a_hundred_numbers_are_chosen_the_last_and_some_in_a_row_but_not_the_first() -> None:
    for records in (log_reading.SMALLEST, 1_000_000):
        numbers = log_reading.chosen(records)
        found = log_reading.ranges(numbers)
        assert len(set(numbers)) == log_reading.DELETED
        assert min(numbers) > 1
        assert max(numbers) == records
        assert sum(last - first + 1 for first, last in found) == log_reading.DELETED
        assert max(last - first + 1 for first, last in found) >= 37


def test_numbers_that_touch_are_one_range() -> None:
    assert log_reading.ranges([2, 3, 4, 6, 8, 9]) == [(2, 4), (6, 6), (8, 9)]
    assert log_reading.ranges([]) == []


def test_the_records_are_what_the_pipeline_makes_of_a_batch() -> None:
    batches = make_batches()
    assert {len(batch) for batch in batches} == {BATCH}
    assert len({record.rid for batch in batches for record in batch}) == len(batches) * BATCH
    for batch in batches[:2]:
        (execution,) = {record.execution for record in batch}
        assert execution is not None
        assert execution.rows == BATCH
        assert len({bytes(record.inputs[0].data) for record in batch}) == BATCH
        assert len({bytes(record.outputs[0].data) for record in batch}) == BATCH
        for record in batch:
            assert record.inputs[0].array().shape == (1, FEATURES)
            assert record.outputs[0].array().shape == (1, 3)


def test_what_was_dropped_is_no_measurement(tmp_path: Path) -> None:
    """Nothing takes the records, and there is room for 64 of them."""
    config = PredictionLogConfig(durability="memory", buffer_records=64)

    async def scenario() -> None:
        log = PredictionLog(config, url=NO_REDIS, replica="gw-1", base=tmp_path)
        await log.start()
        try:
            await asyncio.wait_for(Feed(log, 64).run(), 10)
            with pytest.raises(NotMeasured, match="dropped: queue_records"):
                await asyncio.wait_for(Feed(log, 10 * BATCH).run(), 10)
            with pytest.raises(NotMeasured, match="64 records were offered"):
                check(log, offered=64)
            assert log.statistics().by_name()[NAME]
        finally:
            await log.close(0)

    asyncio.run(scenario())


def test_the_settings_differ_from_the_defaults_by_durability_and_by_room() -> None:
    for durability, changes in log_rates.DURABILITIES.items():
        config = log_rates.settings(durability, 1_000_000)
        assert {name: getattr(config, name) for name in changes} == changes
        assert config.buffer_records > 1_000_000
        assert config.batch_records == PredictionLogConfig().batch_records
        assert config.spool == PredictionLogConfig().spool
    default = log_rates.DURABILITIES[log_rates.DEFAULT]
    assert default == {name: getattr(PredictionLogConfig(), name) for name in default}


def test_the_file_system_is_that_of_the_nearest_mount() -> None:
    mounts = "dev / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\ndev2 /tmp/a xfs rw 0 0\n"
    assert log_rates.filesystem(Path("/tmp/a/b"), mounts) == "xfs"
    assert log_rates.filesystem(Path("/tmp/ab"), mounts) == "tmpfs"
    assert log_rates.filesystem(Path("/home/x"), mounts) == "ext4"
    assert log_rates.filesystem(Path("/tmp/a"), mounts + "over /tmp/a overlay rw 0 0\n") == (
        "overlay"
    )


@pytest.mark.parametrize(
    "arguments", [["--records", "31"], ["--rounds", "0"], ["--read", "500"]], ids=" ".join
)
def test_sizes_that_measure_nothing_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        log_rates.main(arguments)
    assert arguments[0] in capsys.readouterr().err
