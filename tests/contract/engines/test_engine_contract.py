"""What every engine promises (engines/base.py), asked of each engine in the same words.

The engines and what each cannot are in tests/support/engine_cases.py. Most models are the identity,
so an answer proves which rows it belongs to. Read next: test_engine_batches.py (batches, buckets
and threads), test_engine_faults.py (what is refused), test_engine_memory.py, and test_plans.py for
what TensorRT-RTX can be asked without a GPU.

BF16 on ONNX Runtime: numpy has no such type, so its tensors travel as bit patterns (uint16) both
ways. onnxruntime's CPU provider runs Identity on BF16, as is seen here, and Cast; other operators
were not tried, and a model that needs one without a kernel is a load error.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines.base import TensorSpec
from engines.errors import EngineClosed
from engines.tensors import BYTES, DATATYPES, Array, from_array, join_rows, split_rows
from tests.support import engine_cases as cases
from tests.support.engine_cases import (
    MAX_BATCH,
    EngineCase,
    able,
    assert_close,
    assert_same,
    computed,
    in_turn,
    pairs,
    values,
)

every = pytest.mark.parametrize("case", able())


@pytest.fixture(autouse=True)
def _here(case: EngineCase) -> None:
    """Skip, with the reason, an engine whose device this machine has not."""
    if why := case.why_not_here():
        pytest.skip(f"{case.name}: {why}")


@every
def test_metadata_tell_the_signature_and_where_it_really_runs(
    case: EngineCase, tmp_path: Path
) -> None:
    metadata = case.loaded(tmp_path).metadata
    assert metadata.inputs == (TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),)
    assert metadata.outputs == (TensorSpec(name="y", datatype="FP32", shape=(-1, 3)),)
    assert metadata.max_batch_size == MAX_BATCH
    assert metadata.device == case.device
    assert metadata.platform
    assert metadata.engine.split()[0] in case.name
    assert metadata.engine.split()[1][0].isdigit()
    assert metadata.fallback == ""
    assert case.name == "fake" or len(metadata.artifact_sha256) == 64


@every
def test_the_digest_tells_the_file_and_not_its_place(case: EngineCase, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    path = case.written(tmp_path / "a")
    (tmp_path / "b" / path.name).write_bytes(path.read_bytes())
    other = case.written(tmp_path / "c", cases.SUM)
    digests = [
        case.load(file, case.config()).metadata.artifact_sha256
        for file in (path, tmp_path / "b" / path.name, other)
    ]
    assert digests[0] == digests[1]
    assert case.name == "fake" or digests[0] != digests[2]


@every
def test_an_engine_that_may_choose_its_device_says_why_it_runs_on_the_cpu(
    case: EngineCase, tmp_path: Path
) -> None:
    metadata = case.loaded(tmp_path, device="auto").metadata
    assert metadata.device in ("cpu", "cuda:0")
    assert bool(metadata.fallback) == (metadata.device == "cpu")
    assert "\n" not in metadata.fallback


@pytest.mark.parametrize(("case", "datatype"), pairs(sorted(DATATYPES)))
def test_every_datatype_comes_back_bit_for_bit(
    case: EngineCase, tmp_path: Path, datatype: str
) -> None:
    engine = case.loaded(tmp_path, datatype=datatype)
    assert engine.metadata.inputs[0].datatype == datatype
    assert engine.metadata.outputs[0].datatype == datatype
    rows = values(datatype, 4)
    (answer,) = engine.infer({"x": rows}).values()
    assert_same(answer, rows)


@pytest.mark.parametrize(("case", "datatype"), pairs(sorted(set(DATATYPES) - {"BOOL", BYTES})))
def test_every_pattern_of_bits_comes_back_as_it_is(
    case: EngineCase, tmp_path: Path, datatype: str
) -> None:
    """Infinities, negative zeros and subnormal numbers are values like others."""
    engine = case.loaded(tmp_path, datatype=datatype)
    dtype = DATATYPES[datatype].dtype
    drawn = np.random.default_rng(7).integers(0, 256, 8 * 3 * dtype.itemsize, np.uint8)
    rows = drawn.view(dtype).reshape(8, 3)
    if datatype.startswith("FP"):
        rows = np.where(np.isnan(rows), dtype.type(0), rows)  # a signalling NaN may become quiet
        rows[0] = [np.inf, -0.0, np.finfo(dtype).smallest_subnormal]
    elif datatype == "BF16":
        rows = np.where((rows & 0x7F80) == 0x7F80, np.uint16(0x7F80), rows)
    assert engine.infer({"x": rows})["y"].tobytes() == rows.tobytes()


@pytest.mark.parametrize(("case", "datatype"), pairs(["BF16", BYTES, "FP16", "BOOL", "FP32"]))
def test_rows_that_arrived_as_bytes_of_a_body_come_back_as_these_bytes(
    case: EngineCase, tmp_path: Path, datatype: str
) -> None:
    engine = case.loaded(tmp_path, datatype=datatype)
    parts = [from_array("x", datatype, values(datatype, n, first=10 * n)) for n in (1, 3, 2)]
    odd = [p._replace(data=memoryview(b"\n" + bytes(p.data))[1:]) for p in parts]
    for group in (parts, odd, odd[:1]):
        answer = engine.infer({"x": join_rows(group)})["y"]
        cut = split_rows("y", datatype, answer, [p.shape[0] for p in group])
        assert [bytes(t.data) for t in cut] == [bytes(p.data) for p in group]


@pytest.mark.parametrize("case", able(cases.WIDE))
def test_a_dimension_that_varies_takes_any_size_in_any_order(
    case: EngineCase, tmp_path: Path
) -> None:
    engine = case.loaded(tmp_path, cases.WIDE)
    assert engine.metadata.inputs[0].shape == (-1, -1)
    assert engine.metadata.outputs[0].shape == (-1, -1)
    for rows, width in ((2, 5), (1, 1), (8, 64), (3, 7), (1, 64), (2, 5)):
        batch = np.arange(rows * width, dtype=np.float32).reshape(rows, width)
        assert_same(engine.infer({"x": batch})["y"], batch)


@pytest.mark.parametrize("case", able(cases.UNBATCHED))
def test_a_model_without_a_batch_axis_takes_and_gives_its_own_shape(
    case: EngineCase, tmp_path: Path
) -> None:
    engine = case.loaded(tmp_path, cases.UNBATCHED)
    assert engine.metadata.max_batch_size == 0
    assert engine.metadata.buckets == ()
    assert engine.metadata.inputs[0].shape == (3,)
    assert_same(engine.infer({"x": values("FP32", 1)[0]})["y"], values("FP32", 1)[0])


@pytest.mark.parametrize("case", able(cases.SUM))
def test_inputs_are_told_apart_by_their_names(case: EngineCase, tmp_path: Path) -> None:
    engine = case.loaded(tmp_path, cases.SUM)
    assert sorted(spec.name for spec in engine.metadata.inputs) == ["x", "z"]
    x, z = values("FP32", 2), 100 * values("FP32", 2, first=50)
    expected = x if case.name == "fake" else x + z  # it echoes the first
    for batch in ({"x": x, "z": z}, {"z": z, "x": x}):
        assert_same(engine.infer(batch)["y"], expected)


@pytest.mark.parametrize("kind", [cases.RECIPROCAL, cases.SOFTMAX])
@pytest.mark.parametrize("case", able(cases.RECIPROCAL, cases.SOFTMAX))
def test_what_is_computed_is_right(case: EngineCase, tmp_path: Path, kind: str) -> None:
    engine = case.loaded(tmp_path, kind)
    x = values("FP32", 5, first=6) / 3
    assert_close(engine.infer({"x": x})["y"], computed(kind, x), case.tolerance)


@pytest.mark.parametrize(("case", "datatype"), pairs(["FP32", "BF16", BYTES, "BOOL"]))
def test_an_answer_is_not_changed_by_the_next_call_nor_by_its_input(
    case: EngineCase, tmp_path: Path, datatype: str
) -> None:
    engine = case.loaded(tmp_path, datatype=datatype)
    first = values(datatype, 3)
    answer = engine.infer({"x": first})["y"]
    kept = answer.copy()
    for start in range(20):
        engine.infer({"x": values(datatype, 3, first=start + 1)})
    first[:] = values(datatype, 3, first=1)
    assert_same(answer, kept)
    assert answer is not engine.infer({"x": kept})["y"]


@pytest.mark.parametrize("case", able(cases.SOFTMAX))
def test_a_computed_answer_is_not_changed_by_the_next_call(
    case: EngineCase, tmp_path: Path
) -> None:
    engine = case.loaded(tmp_path, cases.SOFTMAX)
    batches = [{"x": values("FP32", 3, first=n) / 10} for n in range(20)]
    answers = in_turn(engine, batches)
    assert_close(
        np.concatenate(answers),
        np.concatenate([computed(cases.SOFTMAX, batch["x"]) for batch in batches]),
        case.tolerance,
    )


@every
def test_an_answer_outlives_its_engine(case: EngineCase, tmp_path: Path) -> None:
    engine = case.loaded(tmp_path)
    answer = engine.infer({"x": values("FP32", 3)})["y"]
    engine.close()
    del engine
    case.loaded(tmp_path).infer({"x": values("FP32", 3, first=9)})
    assert_same(answer, values("FP32", 3))


@pytest.mark.parametrize(("case", "datatype"), pairs(["FP32", "BF16"]))
def test_an_input_is_not_written_to(case: EngineCase, tmp_path: Path, datatype: str) -> None:
    engine = case.loaded(tmp_path, datatype=datatype)
    given = values(datatype, 3)
    read_only = given.copy()
    read_only.flags.writeable = False
    answer = engine.infer({"x": read_only})["y"]
    assert_same(read_only, given)
    assert_same(answer, given)


@pytest.mark.parametrize("case", able(cases.SUM))
def test_rows_that_do_not_lie_in_one_piece_are_taken_as_well(
    case: EngineCase, tmp_path: Path
) -> None:
    engine = case.loaded(tmp_path)
    whole = np.arange(48, dtype=np.float32).reshape(8, 6)
    scattered: Array = whole[::2, ::2]
    assert_same(engine.infer({"x": scattered})["y"], scattered.copy())


@every
def test_a_closed_engine_refuses_to_run_and_may_be_closed_again(
    case: EngineCase, tmp_path: Path
) -> None:
    engine = case.loaded(tmp_path)
    engine.infer({"x": values("FP32", 1)})
    engine.close()
    engine.close()
    with pytest.raises(EngineClosed):
        engine.infer({"x": values("FP32", 1)})
    assert engine.metadata.max_batch_size == MAX_BATCH


@every
def test_an_engine_that_ran_nothing_closes(case: EngineCase, tmp_path: Path) -> None:
    case.loaded(tmp_path).close()


@every
def test_a_model_can_be_loaded_again_beside_and_after_itself(
    case: EngineCase, tmp_path: Path
) -> None:
    first, second = case.loaded(tmp_path), case.loaded(tmp_path)
    first.close()
    third = case.loaded(tmp_path)
    for engine in (second, third):
        assert_same(engine.infer({"x": values("FP32", 2)})["y"], values("FP32", 2))
