"""The command as it is typed, in this process; tests/e2e/test_quantized_shadow.py has a gateway."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from gateway.cli import quantize
from gateway.prediction_log import reader
from gateway.prediction_log.record import LoggedTensor, Reduced
from gateway.prediction_log.streams import StreamKind
from tests.support.log_streams import prediction, put
from tests.support.models import write_graph, write_identity, write_mlp
from tests.support.redis import running_redis

ROWS: Final = 80

Typed = Callable[[str], tuple[int, str, str]]
"""Runs a command line; returns the exit code, output and errors."""


@pytest.fixture
def typed(
    mlp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Typed:
    """Run commands in a folder with model.onnx and its rows.npz."""
    (tmp_path / "model.onnx").write_bytes(mlp.read_bytes())
    rows = np.random.default_rng(8).normal(size=(ROWS, 16)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=rows)
    monkeypatch.chdir(tmp_path)
    top = argparse.ArgumentParser(prog="sluice")
    quantize.add_parser(top.add_subparsers())

    def run(line: str) -> tuple[int, str, str]:
        try:
            parsed = top.parse_args(["quantize", *shlex.split(line)])
            code: int = parsed.run(parsed)
        except SystemExit as exc:
            code = int(str(exc.code))
        return code, *capsys.readouterr()

    return run


def properties(path: str) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_int8_from_a_file_is_calibrated_compared_written_and_marked(typed: Typed) -> None:
    code, said, errors = typed("model.onnx --to int8 --calibration rows.npz --out 2/model.onnx")
    assert (code, errors) == (0, "")
    size = os.path.getsize("2/model.onnx")
    of = os.path.getsize("model.onnx")
    first, used, _, output = said.splitlines()
    assert first == (
        f"2/model.onnx: INT8 QDQ, {size:,} bytes, {size / of:.0%} of its parent's {of:,}"
    )
    assert used == "calibrated with 60 rows, compared on 20 others"
    name, difference, relative, agreement, what = output.split()
    assert (name, what) == ("y", "(argmax)")
    assert 0 < float(difference) < 0.5
    assert 0 < float(relative.rstrip("%")) < 20
    assert float(agreement.rstrip("%")) >= 80
    found = properties("2/model.onnx")
    assert found["sluice.precision"] == "INT8 QDQ"
    assert found["sluice.recipe"] == "int8 for cpu, weights per tensor"
    assert len(found["sluice.parent_sha256"]) == 64


def test_fp16_needs_no_rows_and_says_that_it_was_not_compared(typed: Typed) -> None:
    code, said, errors = typed("model.onnx --to fp16 --out 3/model.onnx --exclude Gemm_4")
    assert (code, errors) == (0, "")
    assert "FP16" in said
    assert "not compared: no rows were given" in said
    assert properties("3/model.onnx")["sluice.recipe"] == "fp16 without Gemm_4"
    code, said, _ = typed("model.onnx --to fp16 --calibration rows.npz --out 4/model.onnx")
    assert code == 0
    assert f"\ncompared on {ROWS} rows\n" in said


def test_agreement_below_what_is_wanted_is_shown_and_nothing_is_written(typed: Typed) -> None:
    """Ten classes with nearly the same weights: in 7 bits they are the same."""
    weights = 1 + np.random.default_rng(4).normal(0, 1e-4, (16, 10)).astype(np.float32)
    write_graph(
        Path("alike.onnx"),
        nodes=[onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        inputs={"x": ("FP32", ["n", 16])},
        outputs={"y": ("FP32", ["n", 10])},
        constants={"w": weights},
    )
    line = "alike.onnx --to int8 --calibration rows.npz --out 2/model.onnx --min-agreement"
    code, said, errors = typed(f"{line} 0.6")
    assert code == 1
    assert "(argmax)" in said
    assert "of its answers are its parent's, 60.00% are wanted" in errors
    assert not os.path.exists("2/model.onnx")
    assert typed(f"{line} 0")[0] == 0


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("model.onnx --to int8", "int8 needs rows to calibrate with"),
        ("model.onnx --to int8 --calibration rows.npz --from-log x", "not both"),
        ("model.onnx --to int8 --calibration rows.npz --no-keep-io", "goes with --to fp16"),
        ("model.onnx --to fp16 --for tensorrt", "--for and --per-channel go with --to int8"),
        ("model.onnx --to fp16 --per-channel", "--for and --per-channel go with --to int8"),
        ("model.onnx --to fp16 --min-agreement 0.9", "--min-agreement needs rows"),
        ("model.onnx --to fp16 --min-agreement 97", "'97' is no share between 0 and 1"),
        ("model.onnx --to fp16 --records 0", "'0' is not a whole number from 1 on"),
        ("model.onnx --to fp8", "invalid choice: 'fp8'"),
        ("absent.onnx --to fp16", "cannot read absent.onnx: No such file"),
        ("rows.npz --to fp16", "rows.npz is no ONNX model"),
        ("model.onnx --to int8 --calibration absent.npz", "cannot read absent.npz"),
        ("model.onnx --to fp16 --exclude Conv", "no node is called 'Conv'"),
        ("model.onnx --to int8 --from-log x", "cannot read sluice.toml"),
        ("model.onnx --to int8 --from-log x --redis nonsense", "--redis: "),
    ],
)
def test_what_is_wrong_is_told_in_a_line_with_exit_code_2(
    typed: Typed, line: str, why: str
) -> None:
    code, said, errors = typed(f"{line} --out 2/model.onnx")
    assert (code, said) == (2, "")
    assert why in errors
    assert "Traceback" not in errors
    assert not os.path.exists("2")


def test_few_rows_are_refused(typed: Typed) -> None:
    np.savez("few.npz", x=np.zeros((15, 16)))
    code, _, errors = typed("model.onnx --to int8 --calibration few.npz --out 2/model.onnx")
    assert (code, errors) == (2, "sluice: 15 rows are too few to calibrate with: 16 at least\n")


def test_a_file_that_is_there_is_replaced_only_by_force(typed: Typed) -> None:
    line = "model.onnx --to fp16 --out 2/model.onnx"
    assert typed(line)[0] == 0
    before = Path("2/model.onnx").stat().st_ino
    code, _, errors = typed(line)
    assert (code, "is there already; --force" in errors) == (2, True)
    assert Path("2/model.onnx").stat().st_ino == before
    assert typed(f"{line} --force")[0] == 0
    assert os.listdir("2") == ["model.onnx"]
    code, _, errors = typed("model.onnx --to fp16 --out model.onnx --force")
    assert (code, "is the model itself" in errors) == (2, True)


def test_values_that_are_too_large_for_fp16_are_told_by_node(typed: Typed) -> None:
    np.savez("large.npz", x=np.full((20, 16), 1e6))
    code, _, errors = typed("model.onnx --to fp16 --calibration large.npz --out 2/model.onnx")
    assert code == 1
    assert "FP16 holds numbers up to 65504, and larger ones come from input 'x' (1e+06)" in errors
    assert not os.path.exists("2")


def test_a_single_number_per_row_has_nothing_that_could_agree(typed: Typed) -> None:
    write_mlp(Path("price.onnx"), [16, 8, 1], seed=1)
    line = "price.onnx --to int8 --calibration rows.npz --out 2/model.onnx"
    code, said, _ = typed(line)
    assert code == 0
    assert said.splitlines()[-1].split()[-1] == "-"
    code, _, errors = typed(f"{line} --force --min-agreement 0.9")
    assert (code, "no output has classes" in errors) == (2, True)


def test_models_that_int8_does_not_help_are_refused(typed: Typed) -> None:
    write_identity(Path("identity.onnx"), "FP32", [16])
    code, _, errors = typed("identity.onnx --to int8 --calibration rows.npz --out 2/model.onnx")
    assert code == 2
    assert errors.startswith("sluice: INT8 would not help the model: it has none of Conv, ")


def test_without_onnx_the_extra_is_named(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, _, errors = typed("model.onnx --to fp16 --out 2/model.onnx")
    assert code == 1
    assert errors == "sluice: this needs onnx: pip install 'sluice-gateway[quantize]'\n"


def test_a_package_that_does_not_start_is_told_from_one_that_is_not_there(
    typed: Typed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "onnx.py").write_text("raise ImportError('libprotobuf.so: undefined symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "onnx"]:
        monkeypatch.delitem(sys.modules, name)
    code, _, errors = typed("model.onnx --to fp16 --out 2/model.onnx")
    assert code == 1
    assert errors == (
        "sluice: onnx is installed and does not start: libprotobuf.so: undefined symbol\n"
    )


class TestFromTheLog:
    pytestmark = pytest.mark.redis

    @pytest.fixture
    def redis_url(self) -> Iterator[str]:
        with running_redis() as server:
            yield server.url

    def line(self, redis_url: str, more: str = "") -> str:
        return (
            f"model.onnx --to int8 --from-log digits --redis {redis_url} --out 2/model.onnx {more}"
        )

    def whole(self, number: int, start: float) -> LoggedTensor:
        values = np.random.default_rng(number).normal(start, 1, (1, 16)).astype("<f4")
        return LoggedTensor("FP32", (1, 16), values.tobytes())

    def test_the_newest_records_are_used(self, typed: Typed, redis_url: str) -> None:
        client = reader.connect(redis_url)
        old = [prediction(n, inputs={"x": self.whole(n, 1_000)}) for n in range(1, 50)]
        new = [prediction(n, inputs={"x": self.whole(n, 0)}) for n in range(50, 90)]
        put(client, [*old, *new])
        client.close()
        code, said, errors = typed(self.line(redis_url, "--records 40"))
        assert (code, errors) == (0, "")
        assert "calibrated with 30 rows, compared on 10 others" in said
        scales = {
            constant.name: numpy_helper.to_array(constant)
            for constant in onnx.load("2/model.onnx").graph.initializer
        }
        assert scales["x_scale"] < 0.1  # of the old ones it would be 4

    def test_where_live_records_have_statistics_the_whole_copies_are_used(
        self, typed: Typed, redis_url: str
    ) -> None:
        client = reader.connect(redis_url)
        statistics = {"x": LoggedTensor("FP32", (1, 16), Reduced(kind="stat"))}
        put(client, [prediction(n, inputs=statistics) for n in range(1, 60)])
        code, _, errors = typed(self.line(redis_url))
        assert code == 2
        assert "none of 59 records has its inputs whole: 59 keep only statistics of 'x'" in errors
        assert "set full_share for whole copies" in errors
        copies = [prediction(n, inputs={"x": self.whole(n, 0)}) for n in range(1, 30)]
        put(client, copies, kind=StreamKind.BIG)
        client.close()
        code, said, _ = typed(self.line(redis_url))
        assert code == 0
        assert "calibrated with 22 rows, compared on 7 others" in said

    def test_records_that_cannot_be_used_are_counted(self, typed: Typed, redis_url: str) -> None:
        client = reader.connect(redis_url)
        good = [prediction(n, inputs={"x": self.whole(n, 0)}) for n in range(1, 21)]
        put(client, [*good, prediction(30, error="EngineFailed")])
        client.close()
        code, _, errors = typed(self.line(redis_url))
        assert (code, errors) == (0, "sluice: 1 records were left out\n")

    def test_a_name_that_the_log_does_not_have_is_told(self, typed: Typed, redis_url: str) -> None:
        code, _, errors = typed(self.line(redis_url))
        assert code == 2
        assert "the log has nothing of 'digits'; it has no name at all" in errors

    def test_a_redis_that_does_not_answer_is_told(self, typed: Typed) -> None:
        code, _, errors = typed(self.line("redis://127.0.0.1:1/0"))
        assert code == 1
        assert "cannot read the prediction log: " in errors
        assert "Traceback" not in errors


def test_a_model_of_two_inputs_and_whole_number_outputs(typed: Typed) -> None:
    nodes = [
        onnx.helper.make_node("MatMul", ["a", "w"], ["scores"]),
        onnx.helper.make_node("Add", ["scores", "b"], ["sum"]),
        onnx.helper.make_node("ArgMax", ["sum"], ["label"], axis=1),
    ]
    rng = np.random.default_rng(0)
    write_graph(
        Path("two.onnx"),
        nodes=nodes,
        inputs={"a": ("FP32", ["n", 8]), "b": ("FP32", ["n", 4])},
        outputs={"label": ("INT64", ["n", 1])},
        constants={"w": rng.normal(size=(8, 4)).astype(np.float32)},
    )
    np.savez("two.npz", a=rng.normal(size=(200, 8)), b=rng.normal(size=(200, 4)))
    code, said, _ = typed(
        "two.onnx --to int8 --calibration two.npz --out 2/model.onnx --min-agreement 0.9"
    )
    assert code == 0
    assert said.splitlines()[-1].startswith("label")
    assert said.endswith("% (equal)\n")
