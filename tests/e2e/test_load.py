"""The load tests themselves, for a few seconds: do they run, judge rightly, and clean up?

Nothing here looks at a rate. The splits are judged by 6 sigma, which chance does not reach.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec
import pytest

from loadtests import http_loop
from loadtests.bench import report
from loadtests.bench.content import Target
from loadtests.bench.generator import GeneratorFailed
from loadtests.bench.own_loops import GrpcLoop, HttpLoop
from loadtests.bench.questions import question
from loadtests.smoke.compare import Baseline
from tests.support.gateway import GatewayProcess, free_port, wait_until
from tests.support.models import write_fake

ROOT: Final = Path(__file__).parents[2]
LIMIT_S: Final = 60
INTS: Final = {"datatype": "INT32", "shape": [-1, 4]}
FAIL_ON: Final = 5
"""A third of the random rows hold it: whole numbers are drawn from 0 to 9."""


def route(model: str, key: str) -> dict[str, object]:
    variants = {
        "stable": {"model": model, "version": "1", "weight": 90},
        "canary": {"model": model, "version": "2", "weight": 10},
    }
    return {"key": [key], "variants": variants}


CONFIG: Final = {
    "routes": {
        "honest": route("echo", "header:x-user-id"),
        "skewed": route("echo", "header:user-agent"),
        "failing": route("failing", "header:x-user-id"),
    }
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A live gateway: a route as it should be, one whose keys never vary, one that fails."""
    folder = tmp_path_factory.mktemp("load")
    for version in ("1", "2"):
        write_fake(folder / "models" / "echo" / version / "model.json")
        write_fake(
            folder / "models" / "failing" / version / "model.json",
            inputs=[{"name": "x", **INTS}],
            outputs=[{"name": "y", **INTS}],
            max_batch_size=0,
            fail_on=FAIL_ON,
        )
    with GatewayProcess(CONFIG, folder) as running:
        yield running


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the demos of this module train their models, once."""
    return tmp_path_factory.mktemp("demo")


def environment(**added: str) -> dict[str, str]:
    """Return ours, without what would redirect the gateways that are started here."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SLUICE")}
    return ours | added


def run(*arguments: str, **added: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=environment(**added),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def load(live: GatewayProcess, route: str) -> subprocess.CompletedProcess[str]:
    at = live.at
    where = ("--http", at.http, "--grpc", at.grpc, "--admin", at.admin, "--route", route)
    return run("loadtests.run", *where, "--duration", "2", "--users", "4", "--sigmas", "6")


def test_a_healthy_route_passes_and_its_figures_are_printed(live: GatewayProcess) -> None:
    done = load(live, "honest")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {
        name: line.removeprefix(name).split()
        for line in done.stdout.splitlines()
        for name in ("http json honest", "http binary honest", "grpc ModelInfer honest")
        if line.startswith(name)
    }
    assert len(rows) == 3
    for requests, failed, per_s, *percentiles in rows.values():
        assert int(requests.replace(",", "")) > 0
        assert failed == "0"
        assert float(per_s.replace(",", "")) > 0
        assert len(percentiles) == 4
        assert sorted(map(float, percentiles)) == list(map(float, percentiles))
    assert "configured split: canary 10 %, stable 90 %" in done.stdout
    for protocol in ("HTTP", "gRPC"):
        assert f"split over {protocol}, random keys, interval of 6 sigma" in done.stdout
    assert done.stdout.count("expected 10.00%, within ") == 2
    assert done.stdout.endswith("no failures, every split within its interval\n")


def test_a_split_outside_its_interval_is_a_failure(live: GatewayProcess) -> None:
    done = load(live, "skewed")
    assert done.returncode == 1, done.stdout + done.stderr
    for protocol in ("HTTP", "gRPC"):
        assert f"FAILED: over {protocol} 'canary' got " in done.stdout


def test_failed_requests_are_counted_told_and_a_failure(live: GatewayProcess) -> None:
    done = load(live, "failing")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "requests failed" in done.stdout
    assert "http json failing: HTTP 500: " in done.stdout
    assert "grpc ModelInfer failing: INTERNAL: " in done.stdout


def test_a_route_that_is_not_there_is_told_before_anything_is_sent(live: GatewayProcess) -> None:
    done = load(live, "nowhere")
    assert done.returncode == 2
    assert "no route and no model is named 'nowhere'" in done.stderr
    assert done.stdout == ""


def demo_ports() -> tuple[list[str], list[int], Mapping[str, str]]:
    """Return options for the load, the ports in them, and the environment for the demo."""
    ports = [free_port() for _ in range(3)]
    names = ("--http", "--grpc", "--admin")
    options = [
        text
        for name, port in zip(names, ports, strict=True)
        for text in (name, f"127.0.0.1:{port}")
    ]
    return options, ports, {"SLUICE__SERVER__METRICS": "127.0.0.1:0"}


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.redis
def test_where_nothing_listens_the_demo_is_started_loaded_and_stopped(demo_folder: Path) -> None:
    options, ports, added = demo_ports()
    arguments = (*options, "--dir", str(demo_folder), "--duration", "2", "--sigmas", "6")
    done = run("loadtests.run", *arguments, **added)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"starting the demo in {demo_folder}" in done.stdout
    assert "http json digits" in done.stdout
    assert not any(is_open(port) for port in ports)
    assert "stopping Redis" in (demo_folder / "load-demo.log").read_text()


@pytest.mark.redis
def test_a_load_that_is_told_to_end_stops_the_demo_that_it_started(demo_folder: Path) -> None:
    options, ports, added = demo_ports()
    command = [sys.executable, "-m", "loadtests.run", *options, "--dir", str(demo_folder)]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(**added), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while "Locust users" not in (line := process.stdout.readline()):
            assert line, "it ended before the load began"
        assert all(is_open(port) for port in ports)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    wait_until(lambda: not any(is_open(port) for port in ports), "the demo's ports are closed")


@pytest.mark.redis
@pytest.mark.parametrize("clients", [[], ["--own-clients"]], ids=["any clients", "own clients"])
def test_a_smoke_run_of_the_bench_measures_what_it_can(clients: list[str], tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    done = run("loadtests.bench", "--smoke", "--output", str(output), *clients)
    results = report.read(output)
    # wrk and h2load need not be installed; our own loops are always there.
    assert done.returncode == (1 if results.skipped else 0), done.stdout + done.stderr
    assert done.stdout.index("Known bias") < done.stdout.index("| case | CPU")
    measured = {sample.case for sample in results.samples}
    assert len(measured) + len(results.skipped) == 5
    for sample in results.samples:
        assert sample.requests > 0
        assert sample.cpu_s > 0
        assert any(sample.case in line for line in done.stdout.splitlines())
    if clients:
        assert not results.skipped
        assert "loop" in results.plan.generators["tiny: tiny grpc h2load 32"]
    for why in results.skipped.values():
        assert "not on PATH" in why


@pytest.mark.redis
def test_the_gate_passes_against_its_own_baseline_and_catches_a_cheaper_one(tmp_path: Path) -> None:
    path = tmp_path / "smoke.json"
    short = ("--baseline", str(path), "--requests", "320", "--rounds", "2")
    made = run("loadtests.smoke", "--write", *short)
    assert made.returncode == 0, made.stdout + made.stderr
    baseline = msgspec.json.decode(path.read_bytes(), type=Baseline)
    generous = {u: {c: r * 3 for c, r in cases.items()} for u, cases in baseline.ratios.items()}
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(baseline, ratios=generous)))
    passed = run("loadtests.smoke", *short)
    assert passed.returncode == 0, passed.stdout + passed.stderr
    cheap = {u: {c: r / 3 for c, r in cases.items()} for u, cases in baseline.ratios.items()}
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(baseline, ratios=cheap)))
    failed = run("loadtests.smoke", *short)
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert failed.stdout.count("OVER") >= 4
    assert "over +15% in 3 attempts" in failed.stderr


NOBODY: Final = Target(name="nobody")


def split_address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def test_our_http_loop_tells_of_answers_that_are_errors(live: GatewayProcess) -> None:
    asked = question("json", "tiny", NOBODY)
    loop = HttpLoop(asked=asked, address=split_address(live.at.http), concurrency=2)
    with pytest.raises(GeneratorFailed, match=r"refused, first with 404: .*is named 'nobody'"):
        loop.run(0.1)


def test_our_grpc_loop_tells_of_answers_that_are_errors(live: GatewayProcess) -> None:
    asked = question("grpc", "tiny", NOBODY)
    loop = GrpcLoop(asked=asked, address=split_address(live.at.grpc), concurrency=2)
    with pytest.raises(GeneratorFailed, match="NOT_FOUND: no route and no model is named 'nobody'"):
        loop.run(0.1)


def test_a_connection_that_ends_early_ends_the_loop() -> None:
    async def scenario() -> None:
        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        async with server:
            address = server.sockets[0].getsockname()
            with pytest.raises(http_loop.LoopFailed, match="the connection ended before"):
                await http_loop.closed_loop(
                    address,
                    iter([(1, http_loop.post("/", b"", {}))]),
                    lambda tag, answer: None,
                    connections=1,
                )

    asyncio.run(scenario())
