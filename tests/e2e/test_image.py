"""The images without Docker: their build and their command, from the files that they copy alone.

What pip would download is taken from this environment; everything else is what the Dockerfiles say.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx
import pytest

from engines import devices
from tests.support import dockerfile
from tests.support.dockerfile import Stage, copied
from tests.support.gateway import free_port, wait_until
from tests.support.models import write_mlp

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("gateway", "router", "engines")
READY: Final = "http://127.0.0.1:8000/v2/health/ready"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the distribution from what the images copy, and install it into a folder."""
    folder = tmp_path_factory.mktemp("image")
    (build,) = (s for s in dockerfile.read(ROOT / "Dockerfile.cpu") if s.name == "build")
    for copy in copied(build):
        source, target = ROOT / copy.source, folder / copy.target.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    plain = ["--quiet", "--no-deps", "--disable-pip-version-check"]
    pip(["wheel", *plain, "--no-build-isolation", "--wheel-dir", f"{folder}", f"{folder}/src"])
    (wheel,) = folder.glob("*.whl")
    pip(["install", *plain, "--no-index", "--target", f"{folder}/site", f"{wheel}"])
    return folder / "site"


def pip(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_both_images_build_the_distribution_from_the_same_files() -> None:
    sources = []
    for name in ("Dockerfile.cpu", "Dockerfile.gpu"):
        (build,) = (s for s in dockerfile.read(ROOT / name) if s.name == "build")
        sources.append({copy.source for copy in copied(build)})
    assert sources[1] - sources[0] == {"deploy/constraints-gpu.txt"}
    assert sources[0] < sources[1]


def test_every_module_and_every_file_that_it_reads_is_installed(installed: Path) -> None:
    made = {path.relative_to(installed) for path in installed.rglob("*") if path.is_file()}
    for package in PACKAGES:
        sources = {p for p in (ROOT / package).rglob("*") if p.is_file() and p.suffix != ".pyc"}
        missing = {path.relative_to(ROOT) for path in sources} - made
        assert missing == set()


@contextmanager
def served(
    installed: Path, folder: Path, image: Stage
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run an image's command with its environment; what it mounts and writes is in the folder."""
    http = free_port()
    environment = {
        **os.environ,
        **{k: v for k, v in dockerfile.environment(image).items() if k.startswith("SLUICE__")},
        "PYTHONPATH": str(installed),
        "SLUICE__SERVER__HTTP": f"127.0.0.1:{http}",
        **{f"SLUICE__SERVER__{name}": "127.0.0.1:0" for name in ("GRPC", "METRICS", "ADMIN")},
        "SLUICE__MODELS__REPOSITORY": str(folder / "models"),
        "SLUICE__MODELS__CACHE": str(folder / "cache"),
        "SLUICE__CONTROL__STATE": str(folder / "state"),
    }
    (configured,) = (c for c in copied(image) if c.source == "deploy/sluice.toml")
    rest = image.one("CMD").exec_form()
    rest[rest.index(str(configured.target))] = str(ROOT / configured.source)
    program = image.one("ENTRYPOINT").exec_form()
    assert program == ["sluice"]
    command = [sys.executable, str(installed / "bin" / "sluice"), *rest]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
    try:
        yield http, process
    finally:
        process.kill()
        process.wait()


def is_healthy(image: Stage, http: int) -> bool:
    """Run the image's health check against another port."""
    program, flag, source = image.one("HEALTHCHECK").exec_form()
    assert (program, source.count(READY)) == ("python3", 1)
    asked = source.replace(READY, READY.replace(":8000/", f":{http}/"))
    done = subprocess.run([sys.executable, flag, asked], capture_output=True, check=False)
    return done.returncode == 0


def test_the_image_becomes_healthy_and_stops_at_its_signal(installed: Path, tmp_path: Path) -> None:
    image = dockerfile.read(ROOT / "Dockerfile.cpu")[-1]
    write_mlp(tmp_path / "models" / "mlp" / "1" / "model.onnx", [4, 3], seed=1)
    with served(installed, tmp_path, image) as (http, process):
        assert not is_healthy(image, free_port())
        wait_until(lambda: is_healthy(image, http), "the image is healthy", limit_s=30)
        assert httpx.get(f"http://127.0.0.1:{http}/v2/models/mlp/ready").status_code == 200
        process.send_signal(signal.Signals[image.one("STOPSIGNAL").text])
        assert process.wait(15) == 0, (tmp_path / "log").read_text()


def test_the_gpu_image_refuses_its_models_where_there_is_no_gpu(
    installed: Path, tmp_path: Path
) -> None:
    why = devices.why_not("cuda:0")
    if not why:
        pytest.skip("this machine has a GPU")
    image = dockerfile.read(ROOT / "Dockerfile.gpu")[-1]
    write_mlp(tmp_path / "models" / "mlp" / "1" / "model.onnx", [4, 3], seed=1)
    with served(installed, tmp_path, image) as (http, process):
        (row,) = index(http, process)
        assert row["state"] == "UNAVAILABLE"
        assert why.removeprefix("cuda:0: ") in row["reason"]


def index(http: int, process: subprocess.Popen[bytes]) -> list[dict[str, str]]:
    """Return the repository index, as soon as no version is loading."""
    limit = time.monotonic() + 30
    while time.monotonic() < limit and process.poll() is None:
        try:
            asked = httpx.post(f"http://127.0.0.1:{http}/v2/repository/index")
        except httpx.TransportError:
            time.sleep(0.05)
            continue
        rows: list[dict[str, str]] = asked.json()
        if rows and all(row.get("state") in ("READY", "UNAVAILABLE") for row in rows):
            return rows
        time.sleep(0.05)
    raise AssertionError("there was no index")
