"""Other projects' servers: where each is installed, what it is asked, and whether it answers right.

Each lives in a virtual environment of its own under .bench/, made by `make bench-peers` from
loadtests/peers/<name>/requirements.txt, and runs loadtests/peers/<name>/serve.py MODEL PORT. One
that is not installed is reported as such.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from loadtests.bench import models, questions, verify
from loadtests.bench.cases import ModelName
from loadtests.bench.content import Target
from loadtests.bench.generator import Where
from loadtests.bench.questions import Question, WrongAnswer

ADAPTERS: Final = Path(__file__).parents[1] / "peers"
ENVIRONMENTS: Final = Path(__file__).parents[2] / ".bench"
MODEL: Final[ModelName] = "tiny"
_OIP_PATH: Final = f"/v2/models/{MODEL}/infer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another server."""

    name: str
    folder: str
    """Of its adapter, and of its environment."""
    distribution: str
    """Whose version is reported."""
    path: str = _OIP_PATH
    is_oip: bool = True
    """Whether it speaks the Open Inference Protocol; else it takes {"data": [[30 floats]]}."""
    how: str
    """How it is set up, for the report."""

    @property
    def python(self) -> Path:
        """The interpreter of its environment."""
        return ENVIRONMENTS / self.folder / "bin" / "python"

    @property
    def script(self) -> Path:
        """The adapter."""
        return ADAPTERS / self.folder / "serve.py"

    def version(self) -> str | None:
        """Return the installed version, None where it is not installed."""
        if not self.python.exists():
            return None
        code = f"import importlib.metadata as m; print(m.version({self.distribution!r}))"
        done = subprocess.run(
            [str(self.python), "-c", code], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() or None


PEERS: Final[Mapping[str, Peer]] = {
    peer.name: peer
    for peer in (
        Peer(
            name="MLServer",
            folder="mlserver",
            distribution="mlserver",
            how="custom runtime, its adaptive batching on (32 requests, 1 ms), one worker",
        ),
        Peer(
            name="KServe",
            folder="kserve",
            distribution="kserve",
            how="kserve.Model, no batching (its batcher is a sidecar of Kubernetes)",
        ),
        Peer(
            name="LitServe",
            folder="litserve",
            distribution="litserve",
            path="/predict",
            is_oip=False,
            how="LitAPI, its batching on (32 requests, 1 ms), one worker",
        ),
        Peer(
            name="BentoML",
            folder="bentoml",
            distribution="bentoml",
            path="/predict",
            is_oip=False,
            how="service with a batchable method (64 rows), one worker",
        ),
        Peer(
            name="Ray Serve",
            folder="ray",
            distribution="ray",
            path="/predict",
            is_oip=False,
            how="one replica, serve.batch (32 requests, 1 ms), 200 requests at once",
        ),
        Peer(
            name="FastAPI",
            folder="fastapi",
            distribution="fastapi",
            how="pydantic model, onnxruntime per request, uvicorn with one worker, no batching",
        ),
    )
}


def question(peer: Peer) -> Question:
    """Make the question that a peer understands: the same 30 floats."""
    if peer.is_oip:
        return questions.question("json", MODEL, Target(name=MODEL))
    body = msgspec.json.encode({"data": questions.row(MODEL).tolist()})
    return Question(protocol="json", model=MODEL, path=peer.path, body=body)


def check(peer: Peer, where: Where) -> None:
    """Ask once; raises WrongAnswer if the three numbers of the answer are not the model's."""
    asked = question(peer)
    answer, _ = verify.post(where, asked.path, asked.body, asked.headers)
    try:
        document = msgspec.json.decode(answer)
    except msgspec.DecodeError as exc:
        raise WrongAnswer(f"{peer.name}: {answer[:200]!r}: {exc}") from None
    found = list(_floats(document))
    if len(found) != models.TINY[-1]:
        raise WrongAnswer(f"{peer.name}: {len(found)} numbers in {answer[:200]!r}")


def check_values(peer: Peer, where: Where, files: questions.ModelFiles) -> None:
    """Ask once; raises WrongAnswer if the answer is not what onnxruntime gives in-process."""
    asked = question(peer)
    answer, _ = verify.post(where, asked.path, asked.body, asked.headers)
    found = np.array(list(_floats(msgspec.json.decode(answer))), np.float32)
    wanted = files.expected(MODEL, "1")
    if found.shape != wanted.shape or not np.allclose(found, wanted, atol=questions.TOLERANCE):
        raise WrongAnswer(f"{peer.name}: {found} instead of {wanted}")


def _floats(document: Any) -> Iterator[float]:  # Any: JSON
    """Yield every number with a point, in order: shapes are whole numbers."""
    if isinstance(document, float):
        yield document
    elif isinstance(document, list):
        for item in document:
            yield from _floats(item)
    elif isinstance(document, dict):
        for item in document.values():
            yield from _floats(item)
