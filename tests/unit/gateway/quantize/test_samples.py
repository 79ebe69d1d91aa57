from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.tensors import Array
from gateway.quantize import samples
from gateway.quantize.faults import WrongInput
from gateway.quantize.graphs import Port, Signature
from gateway.quantize.samples import Sample

BATCHED = Signature((Port("x", "FP32", (-1, 4)),), (Port("y", "FP32", (-1,)),))
SINGLE = Signature((Port("x", "FP32", (3, 4)),), (Port("y", "FP32", (2,)),))
SCALAR = Signature((Port("x", "FP32", (-1,)),), (Port("y", "FP32", ()),))
TWO = Signature(
    (Port("ids", "INT64", (-1, -1)), Port("mask", "FP32", (-1,))), (Port("y", "FP32", (-1,)),)
)


def saved(folder: Path, **arrays: Array) -> Path:
    path = folder / "rows.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]  # its own types mistake names for options
    return path


def counted(*shape: int, dtype: str = "f4") -> Array:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def test_rows_of_a_batched_model_become_samples_of_one_row(tmp_path: Path) -> None:
    found = samples.from_npz(saved(tmp_path, x=counted(3, 4, dtype="f8")), BATCHED)
    assert [s["x"].shape for s in found] == [(1, 4)] * 3
    assert {s["x"].dtype for s in found} == {np.dtype("f4")}
    assert np.array_equal(np.concatenate([s["x"] for s in found]), counted(3, 4))


def test_rows_of_a_model_without_a_batch_axis_are_whole_inputs(tmp_path: Path) -> None:
    found = samples.from_npz(saved(tmp_path, x=counted(5, 3, 4)), SINGLE)
    assert [s["x"].shape for s in found] == [(3, 4)] * 5
    assert np.array_equal(found[4]["x"], counted(5, 3, 4)[4])


def test_rows_of_a_model_with_a_fixed_first_axis_are_cut_to_its_size(tmp_path: Path) -> None:
    found = samples.from_npz(saved(tmp_path, x=counted(7, 4)), SINGLE)
    assert [s["x"].shape for s in found] == [(3, 4)] * 2  # the last row fills no piece


def test_other_arrays_of_the_file_are_let_be(tmp_path: Path) -> None:
    path = saved(tmp_path, ids=counted(4, 2, dtype="i4"), mask=counted(4), label=counted(9))
    found = samples.from_npz(path, TWO)
    assert [sorted(s) for s in found] == [["ids", "mask"]] * 4
    assert found[0]["ids"].dtype == np.int64


@pytest.mark.parametrize(
    ("arrays", "signature", "why"),
    [
        ({"z": counted(3, 4)}, BATCHED, r"no array 'x'; it has 'z'"),
        ({"x": counted(3, 5)}, BATCHED, r"'x' has shape \[3, 5\], the input is 'x' FP32 \[-1, 4\]"),
        ({"x": counted(2, 3, 4)}, BATCHED, r"'x' has shape \[2, 3, 4\], the input is"),
        ({"x": counted(6, 3)}, SINGLE, r"'x' has shape \[6, 3\], the input is 'x' FP32 \[3, 4\]"),
        ({"x": counted(6, 2, 4)}, SINGLE, r"'x' has shape \[6, 2, 4\], the input is"),
        ({"x": counted(6)}, SCALAR, "no batch axis: give each array one axis more"),
        ({"x": np.array([["a", "b", "c", "d"]])}, BATCHED, r"'x' is <U1, the input"),
        ({"x": np.array([[1, 2, np.nan, 4]])}, BATCHED, "not finite"),
        ({"ids": counted(3, 2), "mask": counted(3)}, TWO, "'ids' is float32, the input 'ids' INT"),
        (
            {"ids": counted(3, 2, dtype="i8"), "mask": counted(2)},
            TWO,
            "differ in their rows: 'ids' 3, 'mask' 2",
        ),
        ({"x": np.array([[{}]])}, BATCHED, "'x' is no plain array"),
    ],
)
def test_arrays_that_the_model_does_not_take_are_refused_by_name(
    tmp_path: Path, arrays: dict[str, Array], signature: Signature, why: str
) -> None:
    with pytest.raises(WrongInput, match=why):
        samples.from_npz(saved(tmp_path, **arrays), signature)


@pytest.mark.parametrize("datatype", ["BYTES", "BF16"])
def test_datatypes_that_numpy_files_do_not_hold_are_refused(tmp_path: Path, datatype: str) -> None:
    signature = Signature((Port("x", datatype, (-1, 4)),), BATCHED.outputs)
    with pytest.raises(WrongInput, match=f"input 'x' {datatype} .* does not read"):
        samples.from_npz(saved(tmp_path, x=counted(3, 4)), signature)


def test_files_that_are_no_npz_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongInput, match=r"cannot read .*No such file"):
        samples.from_npz(tmp_path / "absent.npz", BATCHED)
    for name, content in (("a", b""), ("b", b"text"), ("c", b"PK\x03\x04 broken")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WrongInput, match=r"is no \.npz file of plain arrays"):
            samples.from_npz(tmp_path / name, BATCHED)
    np.save(tmp_path / "one.npy", counted(3, 4))
    with pytest.raises(WrongInput, match="savez writes one"):
        samples.from_npz(tmp_path / "one.npy", BATCHED)


def test_a_pickle_in_the_file_is_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:  # Any: pickle's own contract
            return (pytest.fail, ("the pickle was opened",))

    with pytest.raises(WrongInput, match="no plain array"):
        samples.from_npz(saved(tmp_path, x=np.array([Trap()], object)), BATCHED)


def test_every_fourth_sample_is_held_out_and_none_is_lost() -> None:
    given: list[Sample] = [{"x": np.array([[n]])} for n in range(10)]
    split = samples.split(given)
    assert [int(s["x"][0, 0]) for s in split.held_out] == [3, 7]
    assert [int(s["x"][0, 0]) for s in split.calibration] == [0, 1, 2, 4, 5, 6, 8, 9]


def test_samples_of_one_form_are_joined_to_batches() -> None:
    short: list[Sample] = [{"ids": np.full((1, 2), n)} for n in range(40)]
    long: list[Sample] = [{"ids": np.full((2, 5), n)} for n in range(3)]
    found = samples.batches([*short[:20], *long, *short[20:]], is_batched=True)
    assert [s["ids"].shape for s in found] == [(32, 2), (8, 2), (6, 5)]
    assert np.array_equal(np.concatenate([s["ids"] for s in found[:2]])[:, 0], np.arange(40))
    assert samples.rows(found, is_batched=True) == 46


def test_runs_of_a_model_without_a_batch_axis_are_never_joined() -> None:
    runs: list[Sample] = [{"x": counted(3, 4)} for _ in range(5)]
    assert samples.batches(runs, is_batched=False) == runs
    assert samples.rows(runs, is_batched=False) == 5
