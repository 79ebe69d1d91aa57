"""What hostile models, files and requests do to a whole gateway: to its other models, nothing.

Real processes over real files: what is broken says why wherever somebody looks, and a model's own
slowness is its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from engines import devices
from tests.support.gateway import GatewayProcess, toml, with_free_ports
from tests.support.models import write_countdown, write_fake, write_graph, write_identity

Row = dict[str, Any]  # JSON
PROGRAMS: Final = 6
NO_DEVICE: Final = pytest.mark.skipif(bool(devices.cuda().gpus), reason="this machine has a GPU")


def rows(shape: list[int], value: float, datatype: str = "FP32") -> Row:
    count = 1
    for size in shape:
        count *= size
    return {"name": "x", "datatype": datatype, "shape": shape, "data": [value] * count}


def infer(gateway: GatewayProcess, model: str, row: Row, limit_s: float = 30) -> httpx.Response:
    url = f"http://{gateway.at.http}/v2/models/{model}/infer"
    return httpx.post(url, json={"inputs": [row]}, timeout=limit_s)


def index(gateway: GatewayProcess) -> dict[str, tuple[str, str]]:
    """Return state and reason of every model."""
    found = httpx.post(f"http://{gateway.at.http}/v2/repository/index", json={}).json()
    return {entry["name"]: (entry["state"], entry["reason"]) for entry in found}


def checked(folder: Path) -> dict[str, str]:
    """Run `sluice check`; return the last fault of each model that has any."""
    path = folder / "check.toml"
    path.write_text(toml(with_free_ports({})))
    command = [sys.executable, "-m", "gateway", "check", "--config", str(path)]
    found = subprocess.run(command, capture_output=True, text=True)
    faults = [line for line in found.stderr.splitlines() if ": note:" not in line]
    assert found.returncode == (2 if faults else 0)
    start = f"sluice: {folder}/models/"
    assert all(line.startswith(start) for line in faults)
    return {line.removeprefix(start).replace(":", "/").split("/")[0]: line for line in faults}


def test_a_request_that_makes_a_model_loop_holds_up_nobody_else(tmp_path: Path) -> None:
    write_countdown(tmp_path / "models" / "loop" / "1" / "model.onnx")
    write_fake(tmp_path / "models" / "echo" / "1" / "model.json")
    with GatewayProcess({}, tmp_path) as gateway:
        for _ in range(50):  # the gateway learns that this model's batches are short
            assert infer(gateway, "loop", rows([1, 1], 1)).status_code == 200
        long = threading.Thread(target=infer, args=(gateway, "loop", rows([1, 1], 8e6)))
        started_at = time.monotonic()
        long.start()
        slowest_s = 0.0
        while long.is_alive():
            asked_at = time.monotonic()
            assert infer(gateway, "echo", rows([1, 4], 1)).status_code == 200
            slowest_s = max(slowest_s, time.monotonic() - asked_at)
        took_s = time.monotonic() - started_at
        assert took_s > 0.5, "the loop was no burden: this shows nothing"
        assert slowest_s < took_s / 2
        gateway.kill()


def test_many_programs_of_torch_that_are_loaded_at_once_all_come_up(tmp_path: Path) -> None:
    torch_models = pytest.importorskip("tests.support.torch_models")
    for number in range(PROGRAMS):
        path = tmp_path / "models" / f"net{number}" / "1" / "model.pt2"
        path.parent.mkdir(parents=True)
        torch_models.write_identity(path, "FP32", [4], True)
    with GatewayProcess({}, tmp_path) as gateway:
        assert set(index(gateway).values()) == {("READY", "")}
        for number in range(PROGRAMS):
            answer = infer(gateway, f"net{number}", rows([3, 4], number))
            assert answer.json()["outputs"][0]["data"] == [number] * 12
        assert gateway.stop() == 0


def test_what_a_script_dies_of_is_one_sentence_without_a_listing(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch_models = pytest.importorskip("tests.support.torch_models")
    folder = tmp_path / "models" / "net"
    (folder / "1").mkdir(parents=True)
    torch_models.write_script(folder / "1" / "model.pt", torch.nn.Linear(4, 2))
    (folder / "config.pbtxt").write_text(
        """max_batch_size: 8
           input { name: "INPUT__0" data_type: TYPE_FP32 dims: 5 }
           output { name: "OUTPUT__0" data_type: TYPE_FP32 dims: 2 }"""
    )
    with GatewayProcess({}, tmp_path) as gateway:
        state, reason = index(gateway)["net"]
        assert state == "UNAVAILABLE"
        assert reason.startswith("warm-up with 8 rows failed: mat1 and mat2 shapes cannot be")
        assert "\n" not in reason
        refused = infer(gateway, "net", rows([1, 5], 1))
        assert refused.status_code == 503
        assert reason in refused.json()["error"], "also who names no version is told why"
        assert gateway.stop() == 0


@NO_DEVICE
def test_check_and_gateway_agree_on_what_can_be_served(tmp_path: Path) -> None:
    texts = {
        "fine": "instance_group { kind: KIND_CPU count: 3 }",
        "gpus": "instance_group { kind: KIND_GPU gpus: [ 0, 1, 2 ] }",
        "mixed": "instance_group { kind: KIND_GPU } instance_group { kind: KIND_CPU }",
        "lanes": 'parameters { key: "lanes" value { string_value: "99" } }',
        "no_axis": 'parameters { key: "batch_buckets" value { string_value: "1,4" } } '
        'input { name: "x" data_type: TYPE_FP32 dims: [ -1, 4 ] }',
        "other_file": 'platform: "pytorch_libtorch"',
        "other_version": "version_policy { specific { versions: 7 } }",
        "no_cpu": 'backend: "tensorrt_rtx" instance_group { kind: KIND_CPU }',
        "precision": """optimization { execution_accelerators { gpu_execution_accelerator {
            name: "tensorrt" parameters { key: "precision_mode" value: "FP8" } } } }""",
        "one_bucket": 'parameters { key: "batch_buckets" value { string_value: "4" } }',
    }
    for model, text in texts.items():
        path = tmp_path / "models" / model / "1" / "model.onnx"
        write_identity(path, "FP32", [4])
        (tmp_path / "models" / model / "config.pbtxt").write_text(text)
    fixed = ("FP32", [4, 4])
    onnx_helper = pytest.importorskip("onnx").helper
    write_graph(
        tmp_path / "models" / "one_bucket" / "1" / "model.onnx",
        nodes=[onnx_helper.make_node("Identity", ["x"], ["y"])],
        inputs={"x": fixed},
        outputs={"y": fixed},
    )
    faults = checked(tmp_path)
    with GatewayProcess({}, tmp_path) as gateway:
        found = index(gateway)
        assert set(found) == set(texts)
        unavailable = {model for model, (state, _) in found.items() if state != "READY"}
        assert unavailable == set(faults) == set(texts) - {"fine", "one_bucket"}
        for count, code in ((1, 200), (3, 200), (4, 200), (5, 400)):
            answer = infer(gateway, "one_bucket", rows([count, 4], 2))
            assert answer.status_code == code
            assert code != 200 or answer.json()["outputs"][0]["data"] == [2] * 4 * count
        for model in unavailable:
            refused = infer(gateway, model, rows([1, 4], 1))
            assert refused.status_code == 503
            assert found[model][1] in refused.json()["error"]
        assert gateway.stop() == 0


def test_session_entries_that_the_documents_promise_reach_the_session(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "digits"
    write_identity(folder / "1" / "model.onnx", "FP32", [4])
    entry = {"key": "optimization.minimal_build_optimizations", "value": "banana"}
    (folder / "config.pbtxt").write_text(
        f"parameters {{ key: {json.dumps(entry['key'])} "
        f"value {{ string_value: {json.dumps(entry['value'])} }} }}"
    )
    with GatewayProcess({}, tmp_path) as gateway:
        state, reason = index(gateway)["digits"]
        assert state == "UNAVAILABLE"
        assert entry["key"] in reason
        assert gateway.stop() == 0
