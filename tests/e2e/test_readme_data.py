"""What the README and docs/feedback.md show to data scientists, and of privacy, run as written.

Against the demo. Addresses are those of what runs here; nothing else of the examples is changed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import numpy as np
import pytest

from gateway.prediction_log import reader
from gateway.prediction_log.privacy.keyring import Keyring
from gateway.prediction_log.streams import stream_key
from tests.e2e.test_demo import ANY_PORT, ROOT, STAYS_UP, address, redis_address, staying
from tests.support.erasures import blobs_in
from tests.support.gateway import GatewayProcess, free_port, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.redis]

_BLOCK: Final = re.compile(r"^```(sh|python|toml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_IMAGE: Final = {"name": "image", "datatype": "FP32", "shape": [1, 64], "data": [*range(64)]}
_LIMIT_S: Final = 30.0


def examples(document: str, start: str = "", end: str = "") -> list[tuple[str, str]]:
    """Return the blocks between two headings: language and text."""
    text = (ROOT / document).read_text()
    text = text[text.index(start) :]
    return _BLOCK.findall(text[: text.index(end)] if end else text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """A demo that stays up, and a folder to work in that knows it as .demo."""

    folder: Path
    http: str
    grpc: str
    redis_url: str
    monitor: str
    """Where the drift monitor serves its metrics."""

    def here(self, text: str) -> str:
        """Return an example with the addresses of this demo."""
        text = re.sub(r"(localhost|127\.0\.0\.1):8000", self.http, text)
        text = text.replace("127.0.0.1:8001", self.grpc).replace("127.0.0.1:9109", self.monitor)
        return text.replace("redis://127.0.0.1:6379/0", self.redis_url)

    def predict(self, user: str = "", at: str = "") -> str:
        """Send a prediction; return its request id."""
        answer = httpx.post(
            f"http://{at or self.http}/v2/models/digits/infer",
            json={"inputs": [_IMAGE]},
            headers={"x-user-id": user} if user else {},
        )
        assert answer.status_code == 200, answer.text
        return answer.headers["x-request-id"]

    def command(self, language: str, text: str) -> list[str]:
        """Return how an example is run."""
        shell = ["bash", "-euo", "pipefail", "-c"]
        return [*(shell if language == "sh" else [sys.executable, "-c"]), self.here(text)]

    def run(self, language: str, text: str, folder: Path | None = None) -> str:
        """Run an example to its end; return what it printed."""
        done = subprocess.run(
            self.command(language, text),
            cwd=folder or self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @contextmanager
    def endless(self, text: str) -> Iterator[Callable[[], str]]:
        """Run an example that does not end; yield what says what it has printed so far."""
        output = self.folder / "printed.txt"
        with output.open("wb") as file:
            process = subprocess.Popen(
                self.command("sh", text),
                cwd=self.folder,
                env=environment(),
                stdout=file,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        try:
            yield output.read_text
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(_LIMIT_S)


def environment() -> dict[str, str]:
    """Return the environment of a shell in which .venv is active."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    folder = tmp_path_factory.mktemp("readme")
    with staying(folder / ".demo") as (_, text):
        assert STAYS_UP in text, text
        host, port = redis_address(text)
        yield Demo(
            folder=folder,
            http="{}:{}".format(*address(text, "HTTP")),
            grpc="{}:{}".format(*address(text, "gRPC")),
            redis_url=f"redis://{host}:{port}/0",
            monitor=f"127.0.0.1:{free_port()}",
        )


def test_every_example_for_data_scientists_runs_as_written(demo: Demo) -> None:
    found = examples("README.md", "## Read it", "### Whose data it is")
    assert [language for language, _ in found] == ["sh", "python", "sh", "sh"]
    tail, frame, feedback, drift = (text for _, text in found)

    with demo.endless(tail) as printed:
        asked: list[str] = []

        def is_shown() -> bool:  # it begins with what comes now, whenever that is
            asked.append(demo.predict())
            return any(request_id in printed() for request_id in asked)

        wait_until(is_shown, "the record of a prediction is printed", _LIMIT_S)

    said = demo.run("python", frame)
    assert "100 % complete: " in said
    assert "out.probabilities.0" in said

    client = reader.connect(demo.redis_url)

    def nines() -> int:
        labels: list[object] = reader.read_frame(client, "digits").columns["label"].tolist()
        return labels.count(9)

    before = nines()  # another test may have sent some
    assert json.loads(demo.run("sh", feedback)) == {"items": [{"status": "accepted"}]}
    wait_until(lambda: nines() == before + 1, "the label is joined", _LIMIT_S)

    with demo.endless(drift) as printed:
        wait_until(lambda: "following 'digits'" in printed(), "the monitor runs", _LIMIT_S)
        assert "digits: NO DRIFT: 0 of 64 features" in printed()
        assert "sluice_drift_windows_total" in httpx.get(f"http://{demo.monitor}/metrics").text
    assert "<html" in (demo.folder / "drift.html").read_text()[:200]
    client.close()


def test_every_example_of_privacy_runs_as_written(demo: Demo) -> None:
    (_, settings), (_, commands) = examples("README.md", "### Whose data it is", "## What it costs")
    folder = demo.folder / "private"
    folder.mkdir()
    (folder / "models").symlink_to(demo.folder / ".demo" / "models")
    text = f"{(demo.folder / '.demo' / 'sluice.toml').read_text()}\n{settings}"
    (folder / "sluice.toml").write_text(text)
    keys, erase = commands.strip().splitlines()
    assert "made" in demo.run("sh", keys, folder)

    environ = ANY_PORT | {"SLUICE__SERVER__REPLICA": "private"}
    with GatewayProcess(text, folder, environ=environ) as gateway:
        client = reader.connect(demo.redis_url)
        stream = stream_key("digits", "private")
        tag = Keyring.load(folder / "secrets" / "log-keys").tag("ann")

        def entries() -> list[bytes]:
            return blobs_in(client, stream)

        rids = [demo.predict(user, gateway.at.http) for user in ("ann", "bob", "ann")]
        wait_until(lambda: len(entries()) >= 3, "the records are shipped", _LIMIT_S)
        assert sum(tag in blob for blob in entries()) == 2
        said = demo.run("sh", erase, folder)
        assert "records destroyed in streams: 2 live" in said
        receipt = json.loads((folder / "receipt.json").read_text())
        assert receipt["body"]["is_complete"]
        assert receipt["body"]["replicas"]["acknowledged"] == 2
        left = reader.read_frame(client, "digits").columns["rid"]
        assert np.isin(rids, left).tolist() == [False, True, False]
        assert not any(tag in blob for blob in entries())
        client.close()


def test_every_example_of_feedback_runs_as_written(demo: Demo, tmp_path: Path) -> None:
    (tmp_path / "protos").symlink_to(ROOT / "protos")
    printed = [demo.run(*example, tmp_path) for example in examples("docs/feedback.md")]
    assert printed == [
        '{"items":[{"status":"accepted"}]}',
        "accepted \n",
        "",
        "ACCEPTED \nACCEPTED \n",
    ]
