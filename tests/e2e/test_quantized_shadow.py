"""docs/quantized-models.md, run as written: a trained network to INT8 and FP16 on live traffic.

A real gateway, a real Redis, the demo's network as version 1. Addresses are those of what runs
here; nothing else of the examples is changed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import numpy.typing as npt
import pytest

from gateway.demo import digits
from gateway.prediction_log import reader
from gateway.prediction_log.reader import StreamKind
from tests.e2e.test_readme_data import environment, examples
from tests.support.gateway import GatewayProcess, metric, wait_until
from tests.support.redis import running_redis
from tests.support.traffic import Operator

pytestmark = [pytest.mark.slow, pytest.mark.redis]

DOCUMENT: Final = "docs/quantized-models.md"
LIMIT_S: Final = 60.0
ASKED: Final = 300
LEAST_AGREEMENT: Final = 0.97
_TOLD: Final = re.compile(r"^(\w+): (\d+) rows, agreement ([\d.]+)%, .* ([\d.e-]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A folder with a repository and a configuration, and the gateway that serves it."""

    folder: Path
    gateway: GatewayProcess
    redis_url: str
    pictures: npt.NDArray[np.float32]

    def run(self, language: str, text: str) -> str:
        """Run an example to its end; return what it printed."""
        text = text.replace("localhost:8000", self.gateway.at.http)
        text = text.replace("redis://127.0.0.1:6379/0", self.redis_url)
        shell = ["bash", "-euo", "pipefail", "-c"]
        done = subprocess.run(
            [*(shell if language == "sh" else [sys.executable, "-c"]), text],
            cwd=self.folder,
            env=environment() | {"SLUICE_ADMIN": f"http://{self.gateway.at.admin}"},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def ask(self, count: int) -> list[int]:
        """Ask for so many pictures, one per request; return the labels."""
        labels = []
        with httpx.Client(base_url=f"http://{self.gateway.at.http}") as client:
            for picture in self.pictures[np.arange(count) % len(self.pictures)]:
                image = {"name": "image", "datatype": "FP32", "shape": [1, digits.PIXELS]}
                answer = client.post(
                    "/v2/models/digits/infer",
                    json={"inputs": [image | {"data": picture.tolist()}]},
                )
                assert answer.status_code == 200, answer.text
                outputs = {o["name"]: o["data"] for o in answer.json()["outputs"]}
                labels += outputs["label"]
        wait_until(
            lambda: metric(self.gateway.at.metrics, "sluice_log_spooled_records") == 0,
            "all records are in Redis",
            LIMIT_S / 2,
        )
        return labels


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("quantized")
    data = digits.load()
    network = digits.fitted(digits.fit_network, data)
    content = digits.graph(digits.layers(network)).SerializeToString()
    path = folder / "models" / "digits" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with running_redis() as server:
        config = {
            "server": dict.fromkeys(("http", "grpc", "metrics", "admin"), "127.0.0.1:0"),
            "models": {"repository": str(folder / "models")},
            "redis": {"url": server.url},
        }
        with GatewayProcess(config, folder) as gateway:
            yield Site(
                folder=folder,
                gateway=gateway,
                redis_url=server.url,
                pictures=data.held_out.astype(np.float32),
            )
            assert gateway.stop() == 0


def steps() -> tuple[str, str, str, str, str]:
    """Return the examples: make, shadow, compare, promote, undo."""
    found = examples(DOCUMENT)
    assert [language for language, _ in found] == ["sh", "sh", "python", "sh", "sh"]
    make, shadow, compare, promote, undo = (text for _, text in found)
    return make, shadow, compare, promote, undo


def by_rid(site: Site, kind: StreamKind) -> dict[str, list[dict[str, Any]]]:  # Any: cells
    """Return the rows of the log, by the id of the live request."""
    client = reader.connect(site.redis_url)
    columns = reader.read_frame(client, "digits", kind=kind).columns
    client.close()
    key = "rid" if kind is StreamKind.LIVE else "parent_rid"
    rows: dict[str, list[dict[str, Any]]] = {}
    for index, rid in enumerate(columns[key]):
        row = {name: column[index] for name, column in columns.items()}
        rows.setdefault(rid, []).append(row)
    return rows


def test_a_network_is_quantised_shadowed_compared_and_promoted_as_documented(site: Site) -> None:
    make, shadow, compare, promote, undo = steps()
    asked = site.ask(ASKED)
    assert len(asked) == ASKED

    told = site.run("sh", make)
    assert re.search(r"models/digits/2/model.onnx: INT8 QDQ, [\d,]+ bytes, \d+% of its", told)
    assert re.search(r"models/digits/3/model.onnx: FP16, [\d,]+ bytes, \d+% of its", told)
    assert "calibrated with 225 rows, compared on 75 others" in told
    assert f"compared on {ASKED} rows" in told
    sizes = [
        (site.folder / "models" / "digits" / version / "model.onnx").stat().st_size
        for version in ("1", "2", "3")
    ]
    assert sizes[1] < 0.45 * sizes[0]
    assert sizes[2] < 0.6 * sizes[0]

    assert "int8" in site.run("sh", shadow)
    with Operator(site.gateway.at) as operator:
        wait_until(lambda: len(site.gateway.events("shadow ready")) == 2, "copies are loaded")
        live = site.ask(ASKED)
        assert live == asked

        def counts() -> dict[str, Any]:  # Any: JSON
            found: dict[str, Any] = operator.get("/routes/digits/stats")["shadows"]
            return found

        wait_until(lambda: all(s["in_flight"] == 0 for s in counts().values()), "all answered")
        sent = {name: s["sent"] for name, s in counts().items()}
        assert {s["eligible"] for s in counts().values()} == {ASKED}
        assert min(sent.values()) > 0.9 * ASKED, counts()  # the rest was too slow for its limits
        check_comparison(site, compare, sent)

        site.run("sh", promote)
        assert precision(site, "2") == "INT8 QDQ"
        stable = operator.get("/routes/digits")["variants"]
        assert sum(v["weight"] for v in stable.values() if v["version"] == "2") == 100
        quantised = site.ask(ASKED)
        agreement = np.mean(np.equal(quantised, asked))
        assert agreement >= LEAST_AGREEMENT
        site.run("sh", undo)
        weights = {
            v["version"]: v["weight"] for v in operator.get("/routes/digits")["variants"].values()
        }
        assert weights == {"1": 90, "2": 10}


def check_comparison(site: Site, compare: str, sent: Mapping[str, int]) -> None:
    """Run the documented comparison, which shows the agreement, and hold it against the log."""

    def logged() -> int:
        return sum(map(len, by_rid(site, StreamKind.SHADOW).values()))

    wait_until(lambda: logged() == sum(sent.values()), "the shadows' records are there")
    said = {name: rest for name, *rest in _TOLD.findall(site.run("python", compare))}
    live, copies = by_rid(site, StreamKind.LIVE), by_rid(site, StreamKind.SHADOW)
    assert copies.keys() <= live.keys()
    assert said.keys() == {"int8", "fp16"}
    for name, version in (("int8", "2"), ("fp16", "3")):
        pairs = [
            (row, live[rid][0])
            for rid, rows in copies.items()
            for row in rows
            if row["served"] == name
        ]
        assert {row["version"] for row, _ in pairs} == {version}
        same = np.mean([row["out.label"] == other["out.label"] for row, other in pairs])
        rows, agreement, difference = said[name]
        assert int(rows) == len(pairs) == sent[name]
        assert float(agreement) == pytest.approx(100 * same, abs=0.01)
        assert same >= LEAST_AGREEMENT
        assert 0 < float(difference) < 0.25


def precision(site: Site, version: str) -> str:
    """Return what the gateway says that a version's weights are kept in."""
    url = f"http://{site.gateway.at.http}/v2/models/digits/versions/{version}/config"
    parameters = httpx.get(url).raise_for_status().json()["parameters"]
    found: str = parameters["sluice.precision"]["string_value"]
    return found
