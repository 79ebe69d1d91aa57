"""CUDA asked for on a machine without it: refused with the reason, or fallen back and said so.

A real gateway in a process of its own, and `sluice check` beside it, on the same files: what the
one prints and the other answers must be the same reason. On a machine with a GPU there is nothing
to refuse, and these are skipped.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from engines import devices
from tests.support.gateway import GatewayProcess, metric, toml, with_free_ports
from tests.support.models import write_identity

pytestmark = pytest.mark.skipif(bool(devices.cuda().gpus), reason="this machine has a GPU")

WHY_NOT: Final = devices.why_not("cuda:0").removeprefix("cuda:0: ")
ON_GPU: Final = "instance_group { kind: KIND_GPU }"
ON_CPU: Final = "instance_group { kind: KIND_CPU }"


def add(folder: Path, model: str, text: str | None = None) -> None:
    """Put an identity into the repository of a folder."""
    write_identity(folder / "models" / model / "1" / "model.onnx", "FP32", [4])
    if text is not None:
        (folder / "models" / model / "config.pbtxt").write_text(text)


@contextmanager
def served(folder: Path, **models: str) -> Iterator[GatewayProcess]:
    """Serve the folder's models with these settings of [models]."""
    with GatewayProcess({"models": models}, folder) as gateway:
        yield gateway
        assert gateway.stop() == 0


def index(gateway: GatewayProcess) -> dict[str, tuple[str, str]]:
    """Return state and reason of every model, as RepositoryIndex answers them."""
    rows = httpx.post(f"http://{gateway.at.http}/v2/repository/index", json={}).json()
    return {row["name"]: (row["state"], row["reason"]) for row in rows}


def answers(gateway: GatewayProcess, model: str) -> dict[str, str]:
    """Return what the model's configuration says of its engine."""
    found: Any = httpx.get(f"http://{gateway.at.http}/v2/models/{model}/config").json()
    return {key: value["string_value"] for key, value in found["parameters"].items()}


def infer(gateway: GatewayProcess, model: str) -> httpx.Response:
    """Ask version 1 of a model."""
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
    return httpx.post(f"http://{gateway.at.http}/v2/models/{model}/versions/1/infer", json=body)


def checked(folder: Path, **models: str) -> tuple[int, list[str]]:
    """Run `sluice check` on the folder's models; return its exit code and its complaints."""
    path = folder / "check.toml"
    path.write_text(toml(with_free_ports({"models": models})))
    found = subprocess.run(
        [sys.executable, "-m", "gateway", "check", "--config", str(path)],
        capture_output=True,
        text=True,
    )
    return found.returncode, found.stderr.replace(f"{folder}/", "").splitlines()


def test_a_model_that_asks_for_a_gpu_is_refused_and_the_others_serve(tmp_path: Path) -> None:
    add(tmp_path, "gpu", ON_GPU)
    add(tmp_path, "cpu")
    with served(tmp_path) as gateway:
        rows = index(gateway)
        assert rows["cpu"] == ("READY", "")
        state, reason = rows["gpu"]
        assert state == "UNAVAILABLE"
        assert WHY_NOT in reason
        refused = infer(gateway, "gpu")
        assert refused.status_code == 503
        assert WHY_NOT in refused.json()["error"], "whoever calls it is told as well"
        assert httpx.get(f"http://{gateway.at.http}/v2/models/gpu/ready").status_code == 503
        assert infer(gateway, "cpu").json()["outputs"][0]["data"] == [1, 2, 3, 4]
        assert metric(gateway.at.metrics, "sluice_version_ready", model="gpu") == 0
        assert answers(gateway, "cpu")["sluice.device"] == "cpu"
    code, lines = checked(tmp_path)
    at = "models/gpu/config.pbtxt: instance_group[0].kind"
    assert (code, lines) == (2, [f"sluice: {at}: cuda:0 was asked for: {WHY_NOT}"])


def test_a_gpu_in_the_settings_refuses_every_model_that_does_not_name_the_cpu(
    tmp_path: Path,
) -> None:
    add(tmp_path, "digits")
    add(tmp_path, "letters", "max_batch_size: 4")
    add(tmp_path, "here", ON_CPU)
    with served(tmp_path, device="cuda") as gateway:
        rows = index(gateway)
        assert rows["here"] == ("READY", "")
        for model in ("digits", "letters"):
            state, reason = rows[model]
            assert state == "UNAVAILABLE"
            assert WHY_NOT in reason
        assert infer(gateway, "digits").status_code == 503
    code, lines = checked(tmp_path, device="cuda")
    fault = f"$.models.device: cuda:0 was asked for: {WHY_NOT}"
    assert (code, lines) == (2, [f"sluice: check.toml: {fault}"])


def test_a_choice_falls_back_to_the_cpu_and_says_so_to_clients_and_to_people(
    tmp_path: Path,
) -> None:
    add(tmp_path, "digits")
    add(tmp_path, "here", ON_CPU)
    with served(tmp_path, device="auto") as gateway:
        assert index(gateway) == {"digits": ("READY", ""), "here": ("READY", "")}
        assert infer(gateway, "digits").json()["outputs"][0]["data"] == [1, 2, 3, 4]
        told = answers(gateway, "digits")
        assert told["sluice.device"] == "cpu"
        assert told["sluice.providers"] == "CPUExecutionProvider"
        assert WHY_NOT in told["sluice.fallback"]
        assert told["sluice.engine"].startswith("onnxruntime ")
        assert "sluice.fallback" not in answers(gateway, "here"), "it had no choice"
        fallback = {"model": "digits", "version": "1", "device": "cpu"}
        assert metric(gateway.at.metrics, "sluice_device_fallback", **fallback) == 1
        assert metric(gateway.at.metrics, "sluice_device_fallback", model="here") == 0
    code, lines = checked(tmp_path, device="auto")
    note = f"$.models.device: auto means the CPU here, for digits: cuda:0: {WHY_NOT}"
    assert (code, lines) == (0, [f"sluice: check.toml: note: {note}"])


def test_an_accelerator_is_refused_with_the_reason_in_the_log_too(tmp_path: Path) -> None:
    accelerator = 'gpu_execution_accelerator { name: "tensorrt" }'
    add(tmp_path, "fast", f"optimization {{ execution_accelerators {{ {accelerator} }} }}")
    with served(tmp_path) as gateway:
        state, reason = index(gateway)["fast"]
        assert state == "UNAVAILABLE"
        assert "TensorrtExecutionProvider was asked for" in reason
        (event,) = gateway.events("version unavailable")
        assert (event["model"], event["reason"]) == ("fast", reason)
