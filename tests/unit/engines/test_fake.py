"""The scripted engine: what its file may say, and that it does what the script says."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.base import EngineConfig, ModelSpec, TensorSpec, VersionPolicy
from engines.errors import (
    DeviceFailed,
    DeviceUnavailable,
    EngineClosed,
    InvalidInput,
    ModelLoadError,
)
from engines.fake import FakeEngine, load
from engines.warmup import warm_up
from tests.support.batching import HANG_S
from tests.support.models import write_fake

FLOATS = {"name": "x", "datatype": "FP32", "shape": [-1, 4]}
TEXT = {"name": "t", "datatype": "BYTES", "shape": [-1, 1]}


def loaded(tmp_path: Path, **script: object) -> FakeEngine:
    return load(write_fake(tmp_path / "model.json", **script), EngineConfig())


def test_a_script_without_frills_echoes_its_input(tmp_path: Path) -> None:
    engine = loaded(tmp_path)
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    assert engine.infer({"x": rows})["y"].tolist() == rows.tolist()
    assert engine.metadata.platform == "fake"
    assert engine.metadata.device == "cpu"
    assert (engine.batches_run, engine.rows_run) == (1, 2)


@pytest.mark.parametrize(
    ("scripted", "configured", "expected"),
    [(8, None, 8), (None, None, 64), (8, 4, 4), (8, 0, 0)],
)
def test_the_configuration_decides_the_batch_size_before_the_script_and_the_default(
    tmp_path: Path, scripted: int | None, configured: int | None, expected: int
) -> None:
    script = {} if scripted is None else {"max_batch_size": scripted}
    path = write_fake(tmp_path / "model.json", **script)
    engine = load(path, EngineConfig(max_batch_size=configured))
    assert engine.metadata.max_batch_size == expected


def test_latency_is_a_base_and_a_part_per_row(tmp_path: Path) -> None:
    pauses: list[float] = []
    script = loaded(tmp_path, latency_ms=2, per_row_ms=0.5).script
    engine = FakeEngine(
        inputs=loaded(tmp_path).metadata.inputs,
        outputs=loaded(tmp_path).metadata.outputs,
        script=script,
        sleep=pauses.append,
    )
    engine.infer({"x": np.zeros((4, 4), np.float32)})
    assert pauses == [pytest.approx(0.004)]


def test_a_scripted_failure_is_foreign_and_a_scripted_bad_value_is_the_callers(
    tmp_path: Path,
) -> None:
    engine = loaded(tmp_path, fail_on=13, bad_on=14)
    with pytest.raises(RuntimeError, match="scripted failure"):
        engine.infer({"x": np.full((1, 4), 13, np.float32)})
    with pytest.raises(InvalidInput, match="cannot take the value 14"):
        engine.infer({"x": np.full((1, 4), 14, np.float32)})
    engine.infer({"x": np.full((1, 4), 15, np.float32)})


def test_batches_fail_after_the_scripted_number_whatever_they_hold(tmp_path: Path) -> None:
    engine = loaded(tmp_path, fail_after=2)
    for _ in range(2):
        engine.infer({"x": np.zeros((1, 4), np.float32)})
    for _ in range(3):
        with pytest.raises(RuntimeError, match="scripted failure"):
            engine.infer({"x": np.zeros((1, 4), np.float32)})


def test_a_scripted_death_is_the_end_of_this_copy_and_of_no_other(tmp_path: Path) -> None:
    engine = loaded(tmp_path, die_on=13)
    engine.infer({"x": np.full((2, 4), 12, np.float32)})
    for value in (13, 12):
        with pytest.raises(DeviceFailed, match="cpu failed: scripted death"):
            engine.infer({"x": np.full((2, 4), value, np.float32)})
    another = loaded(tmp_path, die_on=13)
    assert another.infer({"x": np.full((1, 4), 12, np.float32)})["y"].tolist() == [[12] * 4]
    engine.close()
    with pytest.raises(EngineClosed):
        engine.infer({"x": np.full((2, 4), 12, np.float32)})


def test_a_fake_that_may_choose_its_device_says_why_it_is_no_gpu(tmp_path: Path) -> None:
    path = write_fake(tmp_path / "model.json")
    chosen = load(path, EngineConfig(device="auto")).metadata
    assert (chosen.device, chosen.fallback) == ("cpu", "the fake has only a cpu")
    assert load(path, EngineConfig()).metadata.fallback == ""


def test_buckets_are_told_and_a_batch_of_other_rows_is_a_failure(tmp_path: Path) -> None:
    engine = loaded(tmp_path, max_batch_size=8, buckets=[1, 4, 8])
    assert engine.metadata.buckets == (1, 4, 8)
    for rows in (1, 4, 8):
        engine.infer({"x": np.zeros((rows, 4), np.float32)})
    with pytest.raises(RuntimeError, match=r"3 rows are none of the buckets \(1, 4, 8\)"):
        engine.infer({"x": np.zeros((3, 4), np.float32)})


def test_the_configuration_decides_the_buckets_before_the_script(tmp_path: Path) -> None:
    path = write_fake(tmp_path / "model.json", max_batch_size=8, buckets=[1, 4, 8])
    config = EngineConfig(max_batch_size=6, buckets=(3, 6))
    assert load(path, config).metadata.buckets == (3, 6)


def test_a_declaration_narrows_the_scripts_signature_or_contradicts_it(tmp_path: Path) -> None:
    spec = {"datatype": "FP32", "shape": [-1, -1]}
    sides = {"inputs": [{"name": "x", **spec}], "outputs": [{"name": "y", **spec}]}
    path = write_fake(tmp_path / "model.json", **sides)
    narrow = TensorSpec(name="x", datatype="FP32", shape=(5,))
    assert load(path, EngineConfig(inputs=(narrow,))).metadata.inputs[0].shape == (-1, 5)
    other = TensorSpec(name="x", datatype="INT64", shape=(5,))
    with pytest.raises(ModelLoadError, match="input 'x' is declared INT64, the model has FP32"):
        load(path, EngineConfig(inputs=(other,)))


@pytest.mark.parametrize(
    ("script", "harmless", "fatal"), [({"hang_on": 13}, 12, 13), ({"hang_after": 1}, 0, 0)]
)
def test_a_batch_that_hangs_holds_its_thread_until_the_engine_is_closed(
    tmp_path: Path, script: dict[str, int], harmless: int, fatal: int
) -> None:
    engine = loaded(tmp_path, **script)
    engine.infer({"x": np.full((1, 4), harmless, np.float32)})
    outcome: list[BaseException] = []

    def hang() -> None:
        try:
            engine.infer({"x": np.full((1, 4), fatal, np.float32)})
        except EngineClosed as exc:
            outcome.append(exc)

    thread = threading.Thread(target=hang, daemon=True)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    engine.close()
    thread.join(HANG_S)
    assert not thread.is_alive()
    assert [type(exc) for exc in outcome] == [EngineClosed]


@pytest.mark.parametrize("script", [{"hang_after": 4}, {"fail_after": 4}])
def test_a_script_can_spare_the_warm_up(tmp_path: Path, script: dict[str, int]) -> None:
    engine = loaded(tmp_path, max_batch_size=8, **script)
    config = EngineConfig()
    spec = ModelSpec(
        name="m",
        directory=tmp_path,
        backend="fake",
        filename="model.json",
        instances=1,
        engine=config,
        batching=None,
        versions=VersionPolicy(),
    )
    warm_up(engine, spec)
    assert engine.batches_run == 4


def test_outputs_take_the_inputs_in_turn_and_their_own_datatypes(tmp_path: Path) -> None:
    outputs = [
        {"name": "a", "datatype": "INT64", "shape": [-1, 4]},
        {"name": "b", "datatype": "BYTES", "shape": [-1, 1]},
        {"name": "c", "datatype": "FP32", "shape": [-1, 4]},
    ]
    engine = loaded(tmp_path, inputs=[FLOATS, TEXT], outputs=outputs, fail_on=99)
    text = np.array([[b"\xff"]], dtype=object)
    answer = engine.infer({"x": np.full((1, 4), 2.0, np.float32), "t": text})
    assert answer["a"].dtype == np.int64
    assert answer["a"].tolist() == [[2, 2, 2, 2]]
    assert answer["b"].tolist() == [[b"\xff"]]
    assert answer["c"].tolist() == [[2.0] * 4]


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ({"inputs": [FLOATS | {"datatype": "FP8"}]}, "'x' has the unknown datatype 'FP8'"),
        ({"inputs": []}, "at least one input and one output"),
        ({"outputs": []}, "at least one input and one output"),
        ({"inputs": [FLOATS | {"shape": [4]}]}, "'x' has the shape [4] without a first axis"),
        ({"inputs": [TEXT]}, "'y' cannot echo 't': one of them is BYTES"),
        ({"inputs": [{"name": "x"}]}, "KeyError('datatype')"),
        ({"inputs": [FLOATS | {"shape": ["wide"]}]}, "ValueError"),
        ({"latency_ms": "slow"}, "ValueError"),
        ({"max_batch_size": None}, "TypeError"),
        ({"fail_on": "never"}, "ValueError"),
        ({"hang_on": []}, "ValueError"),
        ({"hang_after": True}, "ValueError"),
        ({"fail_after": 1.5}, "ValueError"),
        ({"die_on": "never"}, "ValueError"),
        ({"buckets": 4}, "TypeError"),
        ({"buckets": ["four"]}, "ValueError"),
        ({"max_batch_size": 8, "buckets": [4]}, "the last of [4] is not max_batch_size 8"),
        ({"max_batch_size": 8, "buckets": [4, 1, 8]}, "are not ascending row counts from 1"),
    ],
)
def test_a_script_that_describes_no_model_is_a_load_error(
    tmp_path: Path,
    script: dict[str, Any],  # Any: free JSON, wrong on purpose
    sentence: str,
) -> None:
    with pytest.raises(ModelLoadError) as refused:
        loaded(tmp_path, **script)
    assert sentence in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe"])
def test_a_file_that_is_no_script_is_a_load_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"model\.json does not load"):
        load(path, EngineConfig())


@pytest.mark.parametrize(
    "config", [EngineConfig(device="cuda:0"), EngineConfig(providers=(("tensorrt", {}),))]
)
def test_the_fake_never_stands_in_for_an_accelerator(tmp_path: Path, config: EngineConfig) -> None:
    with pytest.raises(DeviceUnavailable, match="the fake has only a cpu"):
        load(write_fake(tmp_path / "model.json"), config)
