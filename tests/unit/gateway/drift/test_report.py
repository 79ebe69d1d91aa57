"""The report in words and as JSON."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np

from gateway.drift import report
from gateway.drift.concept import ConceptVerdict
from tests.support.drift import mixed_table, normal_table, reference_of, report_of


def test_the_table_has_a_line_per_column_with_the_drifting_ones_first() -> None:
    reference = reference_of(normal_table(1, 1_000, 3))
    lines = report.text(report_of(reference, normal_table(2, 500, 3, shifted=[2]))).splitlines()
    assert lines[0] == "digits: DRIFT (data): 1 of 3 features"
    assert lines[2].split() == [
        "column", "kind", "psi", "ks", "wasserstein", "p", "missing", "out", "of", "range",
        "verdict",
    ]  # fmt: skip
    assert lines[3].split()[:2] == ["in.x.2", "number"]
    assert lines[3].endswith("drift")
    assert [line.split()[0] for line in lines[4:6]] == ["in.x.0", "in.x.1"]
    assert any(line.startswith("rule          A column drifts if psi >= 0.2") for line in lines)


def test_the_report_is_json_with_every_figure() -> None:
    made = report_of(reference_of(mixed_table(1)), mixed_table(2))
    found = msgspec.json.decode(msgspec.json.encode(report.document(made)))
    assert found["verdict"] == "ok"
    assert {column["name"] for column in found["columns"]} == {
        name for name in mixed_table(1) if name.startswith(("in.", "out."))
    }
    assert set(found["columns"][0]) >= {"psi", "ks", "wasserstein", "p", "adjusted_p", "missing"}
    assert found["errors"]["requests"] == 500
    assert found["thresholds"]["level"] == 0.05


def test_what_was_left_out_is_said() -> None:
    table = normal_table(1, 300, 2)
    made = report_of(reference_of(table), normal_table(2, 300, 2) | {"in.new": np.zeros(300)})
    text = report.text(made)
    assert "not in the reference, so not judged: in.new" in text
    bare = {"0": table["in.x.0"], "gone": table["in.x.1"]}
    assert "not in the log, so not judged: gone" in report.text(
        report_of(reference_of(bare), normal_table(2, 300, 2))
    )


def test_names_cannot_write_to_the_terminal() -> None:
    table = {"in.\x1b[31mred\nline": np.random.default_rng(1).normal(size=100)}
    text = report.text(report_of(reference_of(table), table))
    assert "\x1b" not in text
    assert "in.\\x1b[31mred\\nline  number" in text


def test_too_few_rows_are_said_to_be_too_few() -> None:
    made = report_of(reference_of(normal_table(1, 100, 2)), normal_table(2, 10, 2))
    assert report.headline(made) == "NOT JUDGED: 10 rows are too few"
    assert report.document(made)["verdict"] == "not judged"


def test_what_labels_say_is_one_sentence() -> None:
    made = report_of(reference_of(normal_table(1, 100, 2)), normal_table(2, 100, 2))
    concept = ConceptVerdict(
        labelled=80, rate=0.25, baseline=0.05, upper=0.09, evidence=1_234.0, needed=80.0,
        recent_rate=0.3, since_window=4, is_drifted=True, is_from_reference=True,
    )  # fmt: skip
    drifted = replace(made, verdict=replace(made.verdict, concept=concept))
    (note,) = report.notes(drifted)
    assert note == (
        "labels: 80 rows, 25 % wrong, 30 % since window 4; reference 5 %; "
        "evidence 1.23e+03 of 80 needed: drift"
    )
    assert report.headline(drifted) == "DRIFT (concept): 0 of 2 features"


def test_probabilities_are_short() -> None:
    assert [report.probability(p) for p in (1.0, 0.0314, 4.2e-7, 0.0)] == [
        "1.000", "0.031", "4.2e-07", "<1e-99",
    ]  # fmt: skip


def test_of_many_columns_the_table_has_those_that_drift_and_counts_the_rest() -> None:
    table = normal_table(1, 500, 60)
    made = report_of(reference_of(table), normal_table(2, 500, 60, shifted=[41, 57]))
    lines = report.text(made).splitlines()
    assert sum(line.endswith(" drift") for line in lines) == 2
    assert "and 40 more columns that are ok" in lines
