"""The logic around TensorRT's runtime, on a stand-in for it (tests/support/fake_trt.py)."""

from __future__ import annotations

import gc
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from engines.base import EngineConfig, TensorSpec
from engines.errors import (
    DeviceFailed,
    DeviceUnavailable,
    InvalidInput,
    ModelLoadError,
    OutOfMemory,
)
from engines.gpu.engine import LaneEngine
from engines.gpu.host import HostMemory
from engines.trt import load, profiles
from engines.trt.kernels import KernelCache
from tests.support.fake_trt import SCRATCH_BYTES, FakeTensorRT, fake_plan
from tests.support.models import write_mlp
from tests.support.trt_models import (
    write_conv,
    write_nonzero,
    write_scaled,
    write_two_outputs,
    write_typed,
)


@dataclass
class Site:
    memory: HostMemory
    trt: FakeTensorRT
    folder: Path

    def engine(
        self,
        model: Path,
        given: Sequence[str],
        config: EngineConfig | None = None,
        kernels: KernelCache | None = None,
    ) -> LaneEngine:
        plan = fake_plan(model, [profiles.parse(text) for text in given], name=self.trt.name)
        return load.engine_over(
            self.trt.flavour(),
            load.Plan(plan, "ab" * 32, "FP16"),
            config or EngineConfig(device="cuda:0"),
            self.memory,
            kernels,
        )

    def scaled(self, given: Sequence[str], config: EngineConfig | None = None) -> LaneEngine:
        """Doubles `x` of (rows, length)."""
        return self.engine(write_scaled(self.folder / "model.onnx"), given, config)


@pytest.fixture(params=["when it is waited for", "ahead of time"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    haste = None if request.param == "when it is waited for" else random.Random(5)
    memory = HostMemory(haste=haste, device="cuda:0")
    return Site(memory, FakeTensorRT(memory), tmp_path)


def rows(count: int, width: int = 4) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    drawn = np.random.default_rng(count).normal(0, 1, (count, width))
    return drawn.astype(np.float32)


def test_the_metadata_are_those_of_the_plan(site: Site) -> None:
    engine = site.scaled(["x:1x4,8x4,32x4"])
    metadata = engine.metadata
    assert metadata.inputs == (TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),)
    assert metadata.outputs == (TensorSpec(name="y", datatype="FP32", shape=(-1, 4)),)
    assert metadata.max_batch_size == 32
    assert metadata.buckets == (1, 2, 4, 8, 16, 32)
    assert metadata.platform == "tensorrt_plan"
    assert metadata.engine == "tensorrt 11.4.0.106"
    assert metadata.device == "cuda:0"
    assert metadata.artifact_sha256 == "ab" * 32
    assert metadata.precision == "FP16"
    assert metadata.memory_bytes > SCRATCH_BYTES
    engine.close()


def test_answers_are_right_for_every_row_count(site: Site) -> None:
    engine = site.engine(
        write_conv(site.folder / "model.onnx"), ["image:1x3x16x16,8x3x16x16,8x3x16x16"]
    )
    assert engine.metadata.inputs[0].shape == (-1, 3, 16, 16)
    alone = [
        engine.infer({"image": rows(8, 768)[at : at + 1].reshape(1, 3, 16, 16)})["y"]
        for at in range(8)
    ]
    for count in (1, 2, 4, 8):
        found = engine.infer({"image": rows(8, 768)[:count].reshape(count, 3, 16, 16)})["y"]
        np.testing.assert_allclose(found, np.concatenate(alone[:count]), rtol=1e-4, atol=1e-5)
    assert site.trt.violations == []
    engine.close()


def test_several_inputs_and_outputs_find_their_places(site: Site) -> None:
    model = write_two_outputs(site.folder / "model.onnx")
    engine = site.engine(model, ["a:1x4,8x4,8x4;b:1x4,8x4,8x4"])
    found = engine.infer({"a": rows(4), "b": rows(4) * 3})
    np.testing.assert_array_equal(found["sum"], rows(4) + rows(4) * 3)
    np.testing.assert_array_equal(found["difference"], rows(4) - rows(4) * 3)
    assert site.trt.violations == []


def test_outputs_that_nobody_declared_have_a_place_all_the_same(site: Site) -> None:
    declared = (TensorSpec(name="difference", datatype="FP32", shape=(4,)),)
    model = write_two_outputs(site.folder / "model.onnx")
    engine = site.engine(
        model, ["a:1x4,8x4,8x4;b:1x4,8x4,8x4"], EngineConfig(max_batch_size=8, outputs=declared)
    )
    assert set(engine.infer({"a": rows(2), "b": rows(2)})) == {"difference"}
    assert site.trt.violations == []
    engine.close()
    assert site.memory.leaks == ()


def test_each_lane_has_a_context_and_all_compute_on_one_stream(site: Site) -> None:
    engine = site.scaled(["x:1x4,8x4,8x4"], EngineConfig(lanes=3))
    leases = []
    for number in range(3):
        lease = engine.acquire({"x": (4, 4)})
        lease.inputs["x"][...] = rows(4) + number
        engine.submit(lease)
        leases.append(lease)
    for number, lease in enumerate(leases):
        np.testing.assert_array_equal(engine.collect(lease)["y"], (rows(4) + number) * 2)
        engine.release(lease)
    assert site.trt.contexts == 3 + 1, "one more is asked for shapes"
    assert len(site.trt.streams) == 1
    assert site.trt.violations == []


def test_the_profile_is_chosen_by_the_rows_and_only_when_it_changes(site: Site) -> None:
    engine = site.scaled(["x:1x4,1x4,4x4", "x:8x4,16x4,16x4"], EngineConfig(lanes=1))
    assert engine.metadata.buckets == (1, 2, 4, 8, 16)
    site.trt.chosen.clear()
    for count in (1, 2, 4, 8, 16, 2):
        np.testing.assert_array_equal(engine.infer({"x": rows(count)})["y"], rows(count) * 2)
    assert site.trt.chosen == [0, 1, 0]
    assert site.trt.violations == []


def test_buckets_are_those_that_profiles_take_and_their_best(site: Site) -> None:
    assert site.scaled(["x:4x4,6x4,12x4"]).metadata.buckets == (4, 6, 8, 12)


def test_buckets_that_are_configured_are_kept(site: Site) -> None:
    config = EngineConfig(max_batch_size=16, buckets=(2, 16))
    assert site.scaled(["x:1x4,8x4,32x4"], config).metadata.buckets == (2, 16)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (EngineConfig(max_batch_size=64), "max_batch_size is 64, and the plan's profiles take at"),
        (EngineConfig(buckets=(2, 32)), "no profile of the plan takes a batch of 2 rows"),
        (EngineConfig(max_batch_size=5), "no profile of the plan takes a batch of 5 rows"),
        (EngineConfig(buckets=(8, 64)), "max_batch_size is 64, and the plan's profiles take at"),
        (
            EngineConfig(inputs=(TensorSpec(name="x", datatype="INT64", shape=(4,)),)),
            "input 'x' is declared INT64, the model has FP32",
        ),
    ],
)
def test_a_configuration_that_contradicts_the_plan_is_refused(
    site: Site, config: EngineConfig, why: str
) -> None:
    with pytest.raises(ModelLoadError, match=why):
        site.scaled(["x:8x4,8x4,32x4"], config)


def test_a_plan_of_one_batch_size_is_served_with_that_bucket(site: Site) -> None:
    engine = site.scaled(["x:8x4"], EngineConfig(max_batch_size=8))
    assert engine.metadata.max_batch_size == 8
    assert engine.metadata.buckets == (8,)
    np.testing.assert_array_equal(engine.infer({"x": rows(8)})["y"], rows(8) * 2)


def test_a_plan_without_a_batch_axis_runs_as_it_is(site: Site) -> None:
    model = write_conv(site.folder / "model.onnx", rows=4)
    engine = site.engine(model, [], EngineConfig(max_batch_size=0))
    assert engine.metadata.max_batch_size == 0
    assert engine.metadata.inputs[0].shape == (4, 3, 16, 16)
    assert engine.infer({"image": rows(4, 768).reshape(4, 3, 16, 16)})["y"].shape == (4, 5)


def test_axes_that_vary_are_held_to_the_profiles(site: Site) -> None:
    engine = site.scaled(["x:1x1,8x64,8x128"], EngineConfig(max_batch_size=8))
    assert engine.metadata.inputs[0].shape == (-1, -1)
    assert engine.metadata.outputs[0].shape == (-1, -1)
    for width in (1, 7, 128):
        np.testing.assert_array_equal(engine.infer({"x": rows(2, width)})["y"], rows(2, width) * 2)
    with pytest.raises(InvalidInput, match=r"'x' \[2, 129\]: no profile of the plan"):
        engine.infer({"x": rows(2, 129)[:, :129]})
    np.testing.assert_array_equal(engine.infer({"x": rows(2, 5)})["y"], rows(2, 5) * 2)
    assert site.trt.violations == []


def test_a_shape_that_depends_on_values_is_refused_at_load(site: Site) -> None:
    model = write_nonzero(site.folder / "model.onnx")
    with pytest.raises(ModelLoadError, match="'y' has a shape that depends on the inputs' values"):
        site.engine(model, ["x:1x4,8x4,8x4"], EngineConfig(max_batch_size=0))


def test_tensors_that_are_no_plain_device_memory_are_refused(site: Site) -> None:
    site.trt.packed_tensors = {"y"}
    with pytest.raises(ModelLoadError, match="output 'y' of the plan is CHW32, and only LINEAR"):
        site.scaled(["x:1x4,8x4,8x4"])
    site.trt.packed_tensors = set()
    site.trt.host_tensors = {"x"}
    with pytest.raises(ModelLoadError, match="input 'x' of the plan is a shape"):
        site.scaled(["x:1x4,8x4,8x4"])


@pytest.mark.parametrize("datatype", ["FP16", "INT8", "INT32", "INT64", "BOOL", "UINT8"])
def test_every_datatype_arrives(site: Site, datatype: str) -> None:
    engine = site.engine(write_typed(site.folder / "model.onnx", datatype), ["x:1x4,8x4,8x4"])
    dtype = engine.acquire({"x": (4, 4)}).inputs["x"].dtype
    given = (np.abs(rows(4)) * 10).astype(dtype)
    assert engine.metadata.inputs[0].datatype == datatype
    np.testing.assert_array_equal(engine.infer({"x": given})["y"], given)


def test_graphs_are_recorded_per_lane_and_shape_from_contexts_of_their_own(site: Site) -> None:
    engine = site.scaled(["x:1x4,8x4,8x4"], EngineConfig(lanes=2, has_graphs=True))
    for turn in range(12):
        count = (2, 4, 8)[turn % 3]
        for _ in range(2):
            found = engine.infer({"x": rows(count) + turn})["y"]
            np.testing.assert_array_equal(found, (rows(count) + turn) * 2)
    stats = engine.statistics()
    assert stats.graphs == 2 * 3
    assert stats.graph_hits == 24 - 12
    assert site.trt.contexts == 2 * 3 + 1
    assert site.trt.violations == [], "no context was set up again that a graph holds on to"
    engine.close()
    assert site.memory.leaks == ()


def test_shapes_without_bound_are_not_recorded(site: Site) -> None:
    config = EngineConfig(max_batch_size=8, lanes=1, has_graphs=True)
    engine = site.scaled(["x:1x1,8x64,8x128"], config)
    for width in range(1, 9):
        for _ in range(4):
            engine.infer({"x": rows(2, width)})
    assert engine.statistics().graphs == 0
    assert site.trt.contexts == 1 + 1
    assert site.trt.violations == []


def test_closing_gives_everything_back(site: Site) -> None:
    for _ in range(3):
        memory = HostMemory(device="cuda:0")
        trt = FakeTensorRT(memory)
        engine = Site(memory, trt, site.folder).scaled(
            ["x:1x4,8x4,8x4", "x:8x4,32x4,32x4"], EngineConfig(has_graphs=True)
        )
        for _ in range(8):
            engine.infer({"x": rows(4)})
        engine.close()
        engine.close()
        gc.collect()
        assert memory.leaks == ()
        assert trt.alive == 0
        assert trt.violations == []


def test_a_plan_that_the_runtime_does_not_take_is_refused_with_its_reason(site: Site) -> None:
    site.trt.refusal = "IRuntime: Error Code 1: Serialization (the tag is wrong. In x at a.cpp:1)"
    with pytest.raises(ModelLoadError) as caught:
        site.scaled(["x:1x4,8x4,8x4"])
    assert "TensorRT 11.4.0.106 does not load the plan on cuda:0: the tag is wrong" in str(
        caught.value
    )


def test_a_plan_for_which_there_is_too_little_memory_is_not_tried(site: Site) -> None:
    config = EngineConfig(memory_reserve_bytes=1 << 40)
    with pytest.raises(DeviceUnavailable, match="the plan on cuda:0 needs about"):
        site.scaled(["x:1x4,8x4,8x4"], config)
    assert site.trt.alive == 0


def test_a_context_that_is_not_made_at_load_is_a_load_error(site: Site) -> None:
    site.trt.max_contexts = 0
    with pytest.raises(ModelLoadError, match="makes no execution context: no memory for one more"):
        site.scaled(["x:1x4,8x4,8x4"])


def test_a_context_that_is_not_made_later_is_a_lack_of_memory(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.trt.max_contexts = 2
    engine = site.scaled(["x:1x4,8x4,8x4"], EngineConfig(lanes=2))
    engine.infer({"x": rows(4)})
    with pytest.raises(OutOfMemory):
        engine.infer({"x": rows(4)})
    assert [record.message for record in caplog.records] == ["no execution context"]
    np.testing.assert_array_equal(engine.infer({"x": rows(4)})["y"], rows(4) * 2)


def test_work_that_fails_on_the_device_loses_the_copy(site: Site) -> None:
    engine = site.scaled(["x:1x4,8x4,8x4"])
    site.memory.fail_next("work", DeviceFailed("cuda:0", "an illegal access"))
    with pytest.raises(DeviceFailed, match="an illegal access"):
        engine.infer({"x": rows(4)})
    with pytest.raises(DeviceFailed, match="an illegal access"):
        engine.infer({"x": rows(4)})
    engine.close()


def test_a_refusal_to_queue_work_says_why(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = site.scaled(["x:1x4,8x4,8x4"])
    monkeypatch.setattr("tests.support.fake_trt.SCRATCH_BYTES", 0)
    monkeypatch.setattr("tests.support.fake_trt.FakeEngine.device_memory_size_v2", 1 << 40)
    with pytest.raises(DeviceFailed, match=r"TensorRT 11.* refuses: work was queued without"):
        engine.infer({"x": rows(4)})


class TestRtx:
    """What TensorRT-RTX adds."""

    @pytest.fixture
    def rtx(self, site: Site) -> Site:
        return Site(site.memory, FakeTensorRT(site.memory, "tensorrt_rtx"), site.folder)

    def loaded(self, rtx: Site, path: Path | None, config: EngineConfig) -> LaneEngine:
        kernels = KernelCache(rtx.trt.flavour(), path)
        return rtx.engine(
            write_mlp(rtx.folder / "model.onnx", [4, 4], 1), ["x:1x4,8x4,8x4"], config, kernels
        )

    def test_kernels_that_were_compiled_are_kept_for_the_next_start(self, rtx: Site) -> None:
        path = rtx.folder / "cache" / "model.kernels"
        engine = self.loaded(rtx, path, EngineConfig())
        assert engine.metadata.platform == "tensorrt_rtx_plan"
        engine.infer({"x": rows(4)})
        engine.infer({"x": rows(4)})
        engine.close()
        assert path.read_bytes() == b"kernels of 2"
        assert rtx.trt.kernels == []
        again = Site(HostMemory(device="cuda:0"), rtx.trt, rtx.folder)
        rtx.trt.memory = again.memory
        self.loaded(again, path, EngineConfig()).close()
        assert rtx.trt.kernels == [b"kernels of 2"]
        assert rtx.trt.violations == []

    def test_kernels_that_cannot_be_kept_stop_nothing(
        self, rtx: Site, caplog: pytest.LogCaptureFixture
    ) -> None:
        (rtx.folder / "a file").touch()
        engine = self.loaded(rtx, rtx.folder / "a file" / "kernels", EngineConfig())
        engine.infer({"x": rows(4)})
        engine.close()
        assert [record.message for record in caplog.records] == ["compiled kernels not kept"]
        assert rtx.memory.leaks == ()

    def test_kernels_of_another_driver_are_compiled_again(self, rtx: Site) -> None:
        path = rtx.folder / "model.kernels"
        path.write_bytes(b"of another driver")
        engine = self.loaded(rtx, path, EngineConfig())
        engine.infer({"x": rows(4)})
        engine.close()
        assert path.read_bytes() == b"kernels of 1"

    @pytest.mark.parametrize("is_capturable", [True, False])
    def test_graphs_are_recorded_where_the_context_says_it_can(
        self, rtx: Site, is_capturable: bool
    ) -> None:
        rtx.trt.is_capturable = is_capturable
        engine = self.loaded(rtx, None, EngineConfig(lanes=1, has_graphs=True))
        for _ in range(4):
            engine.infer({"x": rows(4)})
        assert engine.statistics().graphs == int(is_capturable)
        assert rtx.trt.violations == []
