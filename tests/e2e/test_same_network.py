"""One network of ResNet-18's size through every engine: the same answers, up to rounding.

The weights are random and the same for all. How near two engines have to be is a share of the
largest output, because single outputs may be near zero.
"""

from __future__ import annotations

from pathlib import Path
from queue import Queue
from typing import Final, NamedTuple

import numpy as np
import pytest

from engines.base import Engine, EngineConfig, TensorSpec
from engines.batch_queue import Batch, CallbackRequest
from engines.errors import EngineError
from engines.instance import BatchResult
from engines.tensors import Array, from_array
from engines.trt import api, build, plans
from engines.trt import load as loading
from tests.support import resnet
from tests.support.engine_cases import (
    ON_GPU,
    ORT_CPU,
    TORCH_CPU,
    EngineCase,
    hosted,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SIZE: Final = 224
BUCKETS: Final = (1, 4, 8)
BATCHES: Final = (1, 3, 8)
"""Rows; three are padded to four."""
TOLERANCE: Final = 2e-5
"""Of FP32 throughout: eighteen layers of sums in another order."""
GPU_TOLERANCE: Final = 1e-2
"""Where products may be taken of numbers with the ten bits of TF32."""
ANSWER_LIMIT_S: Final = 60.0


class Network(NamedTuple):
    """The files of one network, and what it is asked."""

    weights: resnet.Weights
    onnx: Path
    torch: Path
    images: Array

    def file_of(self, case: EngineCase) -> Path:
        """Return the file that an engine takes."""
        return self.torch if case.filename.endswith(".pt2") else self.onnx


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    folder = tmp_path_factory.mktemp("resnet")
    weights = resnet.draw_weights(seed=18)
    return Network(
        weights,
        resnet.write_onnx(folder / "model.onnx", weights, SIZE),
        resnet.write_torch(folder / "model.pt2", weights, SIZE),
        resnet.images(max(BATCHES), SIZE),
    )


def config(case: EngineCase) -> EngineConfig:
    return EngineConfig(
        max_batch_size=BUCKETS[-1], buckets=BUCKETS, device=case.device, intra_op_threads=2
    )


def answers(engine: Engine, images: Array, rows: int) -> tuple[Array, int]:
    """Send so many requests of one image as one batch; return all answers, and the padding."""
    host = hosted(engine)
    requests = tuple(
        CallbackRequest(
            inputs=(from_array("x", "FP32", images[row : row + 1]),),
            rows=1,
            shape_key=(),
            enqueued_ns=0,
            on_done=lambda _: None,
        )
        for row in range(rows)
    )
    results: Queue[BatchResult] = Queue()
    host.start(Batch(requests=requests, rows=rows, reason="full"), results.put)
    result = results.get(timeout=ANSWER_LIMIT_S)
    parts = []
    for outcome in result.outcomes:
        assert not isinstance(outcome, EngineError), outcome
        parts.append(outcome[0].array())
    assert not result.isolated
    host.close()
    return np.concatenate(parts), result.padded_rows


def distance(found: Array, expected: Array) -> float:
    """Return the largest difference as a share of the largest output."""
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_it_is_of_the_size_of_resnet_18(network: Network) -> None:
    assert resnet.parameters(network.weights) == resnet.PARAMETERS
    assert 46e6 < network.onnx.stat().st_size < 48e6


def test_onnxruntime_and_torch_give_equal_outputs_padded_and_not(network: Network) -> None:
    plain = ORT_CPU.load(network.onnx, EngineConfig(max_batch_size=8, intra_op_threads=2))
    expected = plain.infer({"x": network.images})["y"]
    plain.close()
    assert expected.std() > 0.1, "outputs that say nothing"
    assert len(set(expected.argmax(axis=1))) > 1
    for case in (ORT_CPU, TORCH_CPU):
        for rows in BATCHES:
            engine = case.load(network.file_of(case), config(case))
            found, padded_rows = answers(engine, network.images, rows)
            assert padded_rows == (1 if rows == 3 else 0)
            assert distance(found, expected[:rows]) < TOLERANCE, (case.name, rows)
            assert found.argmax(axis=1).tolist() == expected[:rows].argmax(axis=1).tolist()


def test_both_files_are_described_alike(network: Network) -> None:
    told = [case.load(network.file_of(case), config(case)) for case in (ORT_CPU, TORCH_CPU)]
    for engine in told:
        metadata = engine.metadata
        assert metadata.inputs == (
            TensorSpec(name="x", datatype="FP32", shape=(-1, 3, SIZE, SIZE)),
        )
        assert metadata.outputs == (TensorSpec(name="y", datatype="FP32", shape=(-1, 1000)),)
        assert metadata.buckets == BUCKETS
        engine.close()


def test_tensorrt_rtx_builds_it_into_a_plan_that_says_what_it_is(
    network: Network, tmp_path: Path
) -> None:
    flavour = api.choose("tensorrt_rtx")
    recipe = loading.recipe_of(flavour, network.onnx, config(ON_GPU[-1]))
    plan, path = build.kept(
        flavour,
        network.onnx,
        recipe,
        cache=tmp_path,
        hardware={"gpu": "none: a test"},
        built_at="2026-01-01T00:00:00+00:00",
    )
    assert len(plan) > 4 * resnet.PARAMETERS  # the weights are in it, in FP32
    assert path is not None
    facts = plans.inspect(path)
    assert facts.sidecar is not None
    assert facts.header.version == flavour.version
    assert facts.sidecar.inputs == (
        TensorSpec(name="x", datatype="FP32", shape=(-1, 3, SIZE, SIZE)),
    )
    assert facts.sidecar.outputs == (TensorSpec(name="y", datatype="FP32", shape=(-1, 1000)),)
    (profile,) = facts.sidecar.profiles
    assert (profile["x"].least[0], profile["x"].most[0]) == (1, 8)
    assert plans.fault("model.plan", facts, flavour.name, flavour.version) == ""


@pytest.mark.gpu
@pytest.mark.parametrize("case", ON_GPU, ids=lambda case: case.name)
def test_a_gpu_gives_the_cpus_outputs_within_its_precision(
    case: EngineCase, network: Network
) -> None:
    if why := case.why_not_here():
        pytest.skip(f"{case.name}: {why}")
    plain = ORT_CPU.load(network.onnx, EngineConfig(max_batch_size=8, intra_op_threads=2))
    expected = plain.infer({"x": network.images})["y"]
    for rows in BATCHES:
        engine = case.load(network.file_of(case), config(case))
        found, padded_rows = answers(engine, network.images, rows)
        assert padded_rows == (1 if rows == 3 else 0)
        assert distance(found, expected[:rows]) < GPU_TOLERANCE
