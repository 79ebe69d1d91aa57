"""The measurements of docs/gpu-results.md, over small networks on the CPU: does the script work?

Real processes: a gateway, callers over gRPC, engines of onnxruntime and torch. Nothing here looks
at a rate. What only a GPU has (lanes in an engine, its utilisation) is shown in parts: the engine
loop over host memory, and the refusal where there is no GPU.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import pytest

from engines import devices, registry
from engines.base import EngineConfig
from engines.gpu.host import HostMemory
from loadtests.gpu import files, report
from loadtests.gpu.caller import Message, Report
from loadtests.gpu.callers import Callers, Load, LoadFailed, merged
from loadtests.gpu.comparisons import PLANS
from loadtests.gpu.graph import OUTPUT, WEIGHTS_FILE
from loadtests.gpu.in_process import overlapped
from loadtests.gpu.networks import NETWORKS
from loadtests.gpu.results import Comparison, Pair, Results, Turn
from loadtests.gpu.variants import VARIANTS, Serving
from tests.support import lanes

ROOT: Final = Path(__file__).parents[2]
LIMIT_S: Final = 100.0
MEASURED: Final = ("pytorch/bert", "onnxruntime/resnet50")
"""Both engines and both networks; the other two pairs differ in nothing but the file."""


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "loadtests.gpu", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def turn(side: str, rows: int, **others: float) -> Turn:
    return Turn(side=side, rows=rows, seconds=2.0, cpu_s=1.0, **others)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_one_command_measures_everything_and_says_so_in_json_and_in_words(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    quick = ("--device", "cpu", "--quick", "--seconds", "0.25", "--callers", "2")
    only = [option for name in MEASURED for option in ("--only", name)]
    done = run(*quick, *only, "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    results = msgspec.json.decode(out.read_bytes(), type=Results)
    assert results.skipped == {}
    assert [f"{pair.engine}/{pair.network}" for pair in results.pairs] == list(MEASURED)
    assert (results.setting.device, results.setting.gpu, results.is_quick) == ("cpu", "", True)
    assert {"onnxruntime", "torch"} <= results.setting.versions.keys()
    for pair in results.pairs:
        check_pair(pair, results.rounds)
        assert f"### {pair.network}, {pair.engine}" in done.stdout
    assert "shows that the script runs" in done.stdout, "nobody takes these figures for a GPU's"
    assert report.shown(results)[0] in done.stdout


def check_pair(pair: Pair, rounds: int) -> None:
    """Check that one engine with one network was measured whole."""
    assert list(pair.buckets) == [1, 2, 4]
    assert all(len(rates) == rounds and min(rates) > 0 for rates in pair.buckets.values())
    assert [found.name for found in pair.comparisons] == [plan.name for plan in PLANS]
    for found in pair.comparisons:
        assert len(found.turns) == rounds * len(found.sides), found.name
        for taken in found.turns:
            assert taken.rows > 0
            assert taken.gpu_busy is None, "a CPU has no such figure"
            assert (taken.p99_ms or 0) >= (taken.p50_ms or 0)
    by_name = {found.name: found for found in pair.comparisons}
    # The engines have no lanes on a CPU, so there is nothing to overlap.
    assert by_name["gateway"].sides == ["in-process", "gateway"]
    assert (by_name["gateway"].median("gateway", "rows_per_batch") or 0) > 2, "they were batched"
    buckets = by_name["buckets"]
    assert buckets.total("any size", lambda taken: taken.padded_rows) == 0
    assert buckets.total("buckets", lambda taken: taken.padded_rows) > 0
    shadow = by_name["shadow"]
    assert shadow.total("live alone", lambda taken: taken.copies) == 0
    assert shadow.total("with a shadow", lambda taken: taken.copies_answered) > 0
    assert [found.median(found.sides[0], "rows_per_batch") for found in (by_name["graphs"],)] == [1]


@pytest.mark.skipif(bool(devices.cuda().gpus), reason="this machine has a GPU")
def test_without_a_gpu_nothing_is_measured_in_its_place() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"gpu: {devices.why_not('cuda:0')}\n"


@pytest.mark.parametrize("name", NETWORKS)
def test_both_engines_give_the_same_answers(tmp_path: Path, name: str) -> None:
    graph = NETWORKS[name].graph(is_quick=True)
    batch = graph.batch(3)
    answers = {}
    for engine in ("onnxruntime", "pytorch"):
        path = files.model(tmp_path, engine, name, graph)[0]
        loaded = registry.loaders()[engine](path, EngineConfig(max_batch_size=4))
        answers[engine] = loaded.infer(batch)[OUTPUT]
        loaded.close()
    one, other = answers.values()
    assert np.ptp(one, axis=0).max() > 1e-3, "rows with the same answer could be mixed up"
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_weights_that_did_not_travel_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = NETWORKS["bert"].graph(is_quick=True)
    model, weights = files.model(tmp_path, "onnxruntime", "bert", graph)
    assert model.stat().st_size < 10_000 < weights.stat().st_size
    before = weights.read_bytes()
    weights.unlink()
    # As on a machine without the package onnx.
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert files.model(tmp_path, "onnxruntime", "bert", graph) == (model, weights)
    assert weights.read_bytes() == before
    assert weights.name == WEIGHTS_FILE
    model.unlink()
    with pytest.raises(files.PackageMissing, match="--prepare"):
        files.model(tmp_path, "onnxruntime", "bert", graph)


@pytest.mark.parametrize(("name", "millions"), [("resnet50", 25.5), ("bert", 109.2)])
def test_the_networks_are_of_the_sizes_that_they_are_called_by(name: str, millions: float) -> None:
    graph = NETWORKS[name].graph(is_quick=False)
    assert round(graph.parameters / 1e6, 1) == millions
    quick = NETWORKS[name].graph(is_quick=True)
    assert {step.kind for step in quick.operations} == {step.kind for step in graph.operations}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_all_lanes_are_kept_busy_and_given_back(count: int) -> None:
    model = lanes.scaled()
    memory = HostMemory()
    engine, executor = lanes.build(memory, model, lanes=count)
    batches, seconds = overlapped(engine, lanes.batch_of(model, 4, 3, seed=1), 0.05)
    assert batches == executor.computed > count
    assert seconds >= 0.05
    assert f"{count} of {count} lanes free" in repr(engine)
    engine.close()
    assert memory.leaks == ()


def test_a_lane_that_fails_ends_the_loop_with_its_error() -> None:
    memory = HostMemory()
    engine, executor = lanes.build(memory, lanes=2)
    executor.fails_next["enqueue"] = ValueError("no such kernel")
    with pytest.raises(ValueError, match="no such kernel"):
        overlapped(engine, lanes.batch_of(lanes.scaled(), 4, 3, seed=1), 5.0)
    engine.close()


def test_variants_are_the_same_in_this_process_and_behind_the_gateway() -> None:
    serving = Serving(engine="pytorch", device="cuda:1", max_batch=6)
    config, text = (of(VARIANTS["graphs"]) for of in (serving.config, serving.config_text))
    assert isinstance(config, EngineConfig)
    assert (config.buckets, config.device, config.has_graphs) == ((1, 2, 4, 6), "cuda:1", True)
    assert 'key: "batch_buckets" value { string_value: "1,2,4,6" }' in str(text)
    assert "kind: KIND_GPU gpus: [ 1 ]" in str(text)
    assert "cuda { graphs: true }" in str(text)
    assert "batch_buckets" not in serving.config_text(VARIANTS["unpadded"])


def test_a_ratio_is_the_median_of_the_rounds_not_the_ratio_of_the_medians() -> None:
    rows = [(100, 90), (200, 100), (400, 380)]
    turns = [turn(side, n) for pair in rows for side, n in zip(("a", "b"), pair, strict=True)]
    found = Comparison(name="n", about="", load="", turns=turns)
    assert found.median("a", "rows_per_s") == 100.0
    assert found.ratio("b", "rows_per_s") == 0.9
    assert found.ratio("b", "p99_ms") is None, "nobody waited in line"


def test_failed_requests_leave_no_figures(tmp_path: Path) -> None:
    good = {"latencies_us": [1.0, 2.0], "rows": 2, "all_rows": 3}
    answered = merged([Report(**good, failures=[], failed=0)] * 2)  # type: ignore[arg-type]
    assert (answered.requests, answered.rows, answered.all_rows) == (4, 4, 6)
    with pytest.raises(LoadFailed, match="7 requests failed, the first: status 5"):
        merged([Report(**good, failures=["status 5: no"], failed=7)])  # type: ignore[arg-type]
    request = tmp_path / "request"
    request.write_bytes(b"")
    with Callers(1) as callers:
        load = Load(messages=(Message(str(request), 1),), in_flight=1)
        callers.begin(("127.0.0.1", 1), load, settle_s=0.0, seconds=0.1)
        with pytest.raises(LoadFailed, match=r"1 requests failed, the first: .*Refused"):
            callers.end()
