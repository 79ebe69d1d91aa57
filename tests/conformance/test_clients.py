"""Clients that others wrote, unmodified, against our gRPC transport.

tritonclient and perf_analyzer have tests of their own in tests/e2e, on the same transport.
"""

from __future__ import annotations

import json
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.pb import inference_pb2 as pb
from tests.conformance.agree import OWN, gateways
from tests.conformance.aio_client import slow
from tests.conformance.frames import MAX_WINDOW, RawConnection
from tests.conformance.rpc import SERVICE, message
from tests.conformance.watch import check, request
from tests.support.gateway import HOST, GatewayProcess, free_port
from tests.support.models import write_fake
from tests.support.transports import UNLIMITED

pytestmark = pytest.mark.slow

_ROOT: Final = Path(__file__).parents[2]
_NODE: Final = _ROOT / ".bench" / "conformance"
_LIMIT_S: Final = 50
_INSTALL_LIMIT_S: Final = 120
_NODE_CHECKS: Final = (
    "unary",
    "stream",
    "deadline",
    "cancel",
    "gzip",
    "metadata",
    "errors",
    "large",
    "many",
    "keepalive",
)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway with our transport."""
    with gateways(tmp_path_factory.mktemp("clients"), (OWN,)) as (gateway,):
        yield gateway
        assert gateway.stop() == 0, gateway.log


@pytest.fixture
def channel(own: GatewayProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(own.at.grpc, options=UNLIMITED) as connected:
        yield connected


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs client.cjs, without its arguments."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed")
    _NODE.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(Path(__file__).parent / "node" / name, _NODE)
    if not (_NODE / "node_modules" / "@grpc" / "grpc-js").exists():
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        made = subprocess.run(
            command,
            cwd=_NODE,
            capture_output=True,
            text=True,
            timeout=_INSTALL_LIMIT_S,
            check=False,
        )
        if made.returncode:
            pytest.skip(f"npm cannot install @grpc/grpc-js: {made.stderr[-300:]}")
    script = shutil.copy(Path(__file__).parent / "node" / "client.cjs", _NODE)
    return ["node", str(script)]


@pytest.fixture(scope="module")
def protos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the protocol's files where their imports look for them."""
    folder = tmp_path_factory.mktemp("protos")
    shutil.copytree(_ROOT / "protos", folder / "gateway" / "pb")
    return folder


def infer(channel: grpc.Channel) -> Any:  # Any: grpcio's callable
    return channel.unary_unary(SERVICE + "ModelInfer")


def stream(channel: grpc.Channel) -> Any:  # Any: as above
    return channel.stream_stream(SERVICE + "ModelStreamInfer")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=_ROOT, capture_output=True, text=True, timeout=_LIMIT_S, check=False
    )


def test_grpcio_gets_its_own_answers(channel: grpc.Channel) -> None:
    for number in range(100):
        answer, call = infer(channel).with_call(request(number), timeout=10)
        check(number, answer)
        assert dict(call.trailing_metadata())["x-request-id"]


def test_grpcio_may_have_three_thousand_calls_in_flight(channel: grpc.Channel) -> None:
    """Three times as many as the server takes on a connection: the client waits with the rest."""
    futures = [infer(channel).future(request(n), timeout=40) for n in range(3_000)]
    for number, future in enumerate(futures):
        check(number, future.result())


def test_grpcio_streams(channel: grpc.Channel) -> None:
    answers = stream(channel)(iter([request(n) for n in range(500)]), timeout=20)
    ids = [pb.ModelStreamInferResponse.FromString(m).infer_response.id for m in answers]
    assert ids == [f"n{n}" for n in range(500)]


@pytest.mark.parametrize("timeout_s", [0.001, 0.05, 0.1])
def test_grpcio_deadlines_hold(channel: grpc.Channel, timeout_s: float) -> None:
    begun = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        infer(channel)(slow(), timeout=timeout_s)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - begun < timeout_s + 0.2


def test_grpcio_cancels(channel: grpc.Channel) -> None:
    call = infer(channel).future(slow(), timeout=10)
    time.sleep(0.05)
    assert call.cancel()
    check(1, infer(channel)(request(1), timeout=10))


@pytest.mark.parametrize("kind", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_grpcio_compresses(channel: grpc.Channel, kind: grpc.Compression) -> None:
    check(5, infer(channel)(request(5), timeout=10, compression=kind))


def test_grpcio_sends_metadata(channel: grpc.Channel) -> None:
    sent = (("x-a", "1"), ("x-a", "2"), ("x-data-bin", b"\x00\xff"), ("x-long", "v" * 3_000))
    check(6, infer(channel)(request(6), timeout=10, metadata=sent))


def test_grpcio_moves_twenty_megabytes_both_ways(channel: grpc.Channel) -> None:
    data = bytes(range(256)) * (20 << 12)
    asked = pb.ModelInferRequest(model_name="echo_fp32")
    asked.inputs.add(name="x", datatype="FP32", shape=[1, len(data) // 4])
    asked.raw_input_contents.append(data)
    answer = pb.ModelInferResponse.FromString(infer(channel)(asked.SerializeToString(), timeout=30))
    assert answer.raw_output_contents[0] == data


def test_grpcio_keeps_a_connection_alive_by_pings(own: GatewayProcess) -> None:
    """One a second, with a call open: no abuse."""
    options = (
        *UNLIMITED,
        ("grpc.keepalive_time_ms", 1_000),
        ("grpc.keepalive_timeout_ms", 1_000),
        ("grpc.http2.max_pings_without_data", 0),
    )
    is_over = threading.Event()

    def requests() -> Iterator[bytes]:
        yield request(1)
        is_over.wait(20)

    with grpc.insecure_channel(own.at.grpc, options=options) as channel:
        answers = stream(channel)(requests())
        next(answers)
        time.sleep(4.5)
        is_over.set()
        assert list(answers) == []


@pytest.mark.parametrize("service", ["", SERVICE.strip("/")])
def test_a_health_probe_is_told_serving(channel: grpc.Channel, service: str) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)  # Any: generated without types
    answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_the_asyncio_client_of_grpcio_passes_its_checks(own: GatewayProcess) -> None:
    finished = run(sys.executable, "-m", "tests.conformance.aio_client", own.at.grpc)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("name", _NODE_CHECKS)
def test_grpc_js_passes(own: GatewayProcess, node: list[str], protos: Path, name: str) -> None:
    finished = run(*node, own.at.grpc, str(protos), name)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)


def test_curl_calls(own: GatewayProcess, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    sent, answer, heads = (tmp_path / name for name in ("sent", "answer", "heads"))
    sent.write_bytes(message(request(8)))
    fields = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    finished = run(
        *("curl", "--silent", "--show-error", "--http2-prior-knowledge", *fields),
        *("--data-binary", f"@{sent}", "--output", str(answer), "--dump-header", str(heads)),
        f"http://{own.at.grpc}{SERVICE}ModelInfer",
    )
    assert finished.returncode == 0, finished.stderr
    check(8, answer.read_bytes()[5:])
    assert "HTTP/2 200" in heads.read_text()
    assert "grpc-status: 0" in heads.read_text()


def test_h2load_is_answered_every_time(own: GatewayProcess, tmp_path: Path) -> None:
    if shutil.which("h2load") is None:
        pytest.skip("h2load is not installed")
    sent = tmp_path / "sent"
    sent.write_bytes(message(request(8)))
    fields = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    finished = run(
        *("h2load", "-n", "5000", "-c", "8", "-m", "64", "-d", str(sent), *fields),
        f"http://{own.at.grpc}{SERVICE}ModelInfer",
    )
    assert "5000 succeeded, 0 failed, 0 errored, 0 timeout" in finished.stdout, finished.stdout
    assert "status codes: 5000 2xx" in finished.stdout, finished.stdout


class Restarted:
    """A gateway on one port that is stopped by SIGTERM, and started again."""

    def __init__(self, folder: Path) -> None:
        write_fake(folder / "models" / "echo_fp32" / "1" / "model.json", **_ANY_WIDTH)
        self._folder = folder
        self.address = f"{HOST}:{free_port()}"
        self._config = {
            "server": {"grpc": self.address, "grpc_transport": OWN},
            "models": {"repository": str(folder / "models")},
        }
        self._count = 0
        self.live = self.start()

    def start(self) -> GatewayProcess:
        """Start it on the port."""
        self._count += 1
        self.live = GatewayProcess(self._config, self._folder / str(self._count)).wait_ready()
        return self.live

    def again(self) -> None:
        """Stop it, which must end well, and start it."""
        self.live.signal(signal.SIGTERM)
        assert self.live.wait() == 0, self.live.log
        self.start()


_SIDE: Final = {"datatype": "FP32", "shape": [-1, -1]}
_ANY_WIDTH: Final[dict[str, Any]] = {  # Any: a script of the fake engine
    "inputs": [{"name": "x", **_SIDE}],
    "outputs": [{"name": "y", **_SIDE}],
    "latency_ms": 5,
}


@pytest.fixture
def restarted(tmp_path: Path) -> Iterator[Restarted]:
    gateway = Restarted(tmp_path)
    yield gateway
    gateway.live.kill()


def test_grpcio_goes_on_after_a_drain_and_loses_no_call_that_was_taken(
    restarted: Restarted,
) -> None:
    codes: Counter[grpc.StatusCode] = Counter()
    is_over = threading.Event()
    options = (
        *UNLIMITED,
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 100),
    )
    with grpc.insecure_channel(restarted.address, options=options) as channel:

        def call() -> None:
            number = 0
            while not is_over.is_set():
                number += 1
                try:
                    check(number, infer(channel)(request(number), timeout=10))
                except grpc.RpcError as exc:
                    codes[exc.code()] += 1
                    is_over.wait(0.02)
                else:
                    codes[grpc.StatusCode.OK] += 1

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        restarted.again()
        before = codes[grpc.StatusCode.OK]
        time.sleep(0.7)
        is_over.set()
        for thread in threads:
            thread.join()
    assert codes[grpc.StatusCode.OK] > before
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}


def test_grpc_js_goes_on_after_a_drain(restarted: Restarted, node: list[str], protos: Path) -> None:
    with subprocess.Popen(
        [*node, restarted.address, str(protos), "reconnect"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as client:
        assert client.stderr is not None
        assert client.stderr.readline() == "ready\n"
        restarted.again()
        time.sleep(1.0)
        out, err = client.communicate(timeout=10)
    assert client.returncode == 0, err
    seen = json.loads(out)
    assert seen["last"] == 0
    assert set(seen["codes"]) <= {"0", "14"}


def test_a_connection_that_is_drained_is_told_twice(restarted: Restarted) -> None:
    """GOAWAY with the greatest stream id first, then, after a round trip, with the last one."""
    with RawConnection(restarted.address) as connection:
        connection.start()
        restarted.live.signal(signal.SIGTERM)
        connection.wait(lambda: connection.is_closed, 10.0)
        assert [goaway[:2] for goaway in connection.goaways] == [(MAX_WINDOW, 0), (0, 0)]
    assert restarted.live.wait() == 0


def test_numbers_are_distinct() -> None:
    """The checks of this file compare what `request` tells apart."""
    assert struct.unpack("<II", request(1 << 24)[-8:]) == (0, 2)
    assert len({request(n) for n in range(1_000)}) == 1_000
