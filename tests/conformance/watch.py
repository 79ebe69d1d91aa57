"""What a server holds, seen from outside, and a well-behaved client that measures and checks it.

Knows /proc and plain infer calls; nothing of attacks.
"""

from __future__ import annotations

import http.client
import json
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from gateway.pb import inference_pb2 as pb
from tests.conformance import frames
from tests.conformance.frames import RawConnection
from tests.conformance.rpc import BASE, message
from tests.support.gateway import GatewayProcess

MODEL: Final = "echo_fp32"
_SAMPLE_S: Final = 0.05


def pid_of(gateway: GatewayProcess) -> int:
    """Return the process id."""
    return gateway._process.pid


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds at one time."""

    rss_bytes: int
    fds: int
    threads: int


def held(pid: int) -> Held:
    """Look at a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    rss_bytes = int(found["VmRSS"].split()[0]) << 10
    fds = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return Held(rss_bytes, fds, int(found["Threads"]))


class Peak:
    """Samples a process until the block ends."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak")
        self.rss_bytes = 0
        self.fds = 0

    def _sample(self) -> None:
        while not self._is_over.is_set():
            now = held(self._pid)
            self.rss_bytes = max(self.rss_bytes, now.rss_bytes)
            self.fds = max(self.fds, now.fds)
            self._is_over.wait(_SAMPLE_S)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join()


class Asking(Protocol):
    """A connection of the well-behaved client."""

    def ask(self, number: int) -> None:
        """Send a request that no other one is like, and check that the answer is its own."""

    def close(self) -> None:
        """Close it."""


def request(number: int, model: str = MODEL) -> bytes:
    """Return an infer request whose id and elements name a number."""
    asked = pb.ModelInferRequest(model_name=model, id=f"n{number}")
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    asked.raw_input_contents.append(struct.pack("<II", number & 0x7FFFFF, number >> 23))
    data: bytes = asked.SerializeToString()
    return data


def check(number: int, data: bytes) -> None:
    """AssertionError unless a message answers `request` of the same number."""
    answer = pb.ModelInferResponse.FromString(data)
    assert answer.id == f"n{number}", (answer.id, number)
    expected = struct.pack("<II", number & 0x7FFFFF, number >> 23)
    assert answer.raw_output_contents[0] == expected, number


class GrpcAsking:
    """Calls one after the other on one HTTP/2 connection."""

    def __init__(self, address: str, model: str = MODEL) -> None:
        self._connection = RawConnection(address).start()
        self._stream = -1
        self._model = model
        self._head = frames.literals(BASE)

    def ask(self, number: int) -> None:
        """Make a call and check its answer."""
        connection = self._connection
        self._stream += 2
        stream = self._stream
        connection.send(
            frames.frame(frames.HEADERS, frames.END_HEADERS, stream, self._head)
            + frames.frame(
                frames.DATA, frames.END_STREAM, stream, message(request(number, self._model))
            )
        )
        received = connection.finish(stream, 30.0)
        assert received.is_ended, f"not answered: {received}, {connection.goaways}"
        assert dict(received.heads[-1]).get("grpc-status") == "0", received.heads
        check(number, bytes(received.data[5:]))
        del connection.streams[stream]

    def close(self) -> None:
        """Close the connection."""
        self._connection.socket.close()


class HttpAsking:
    """Requests one after the other on one HTTP/1.1 connection."""

    def __init__(self, address: str, model: str = MODEL) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=30)
        self._path = f"/v2/models/{model}/infer"

    def ask(self, number: int) -> None:
        """Send a request and check its answer."""
        self._connection.request("POST", self._path, body=http_body(number))
        answer = self._connection.getresponse()
        data = answer.read()
        assert answer.status == 200, data
        http_check(number, data)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def http_body(number: int) -> bytes:
    """Return a JSON request whose id and elements name a number."""
    data = [float(number % 4096), float(number // 4096)]
    given = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": data}
    return json.dumps({"id": f"n{number}", "inputs": [given]}).encode()


def http_check(number: int, data: bytes) -> None:
    """AssertionError unless a body answers `http_body` of the same number."""
    answer = json.loads(data)
    assert answer["id"] == f"n{number}", (answer["id"], number)
    expected = [float(number % 4096), float(number // 4096)]
    assert answer["outputs"][0]["data"] == expected, number


class Client:
    """A well-behaved client: one request after the other until the block ends.

    Each answer must be that of its request; `failures` says where one was not, or none came.
    """

    def __init__(self, asking: Asking, first: int = 0) -> None:
        self._asking = asking
        self._next = first
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="client")
        self.latencies_s: list[float] = []
        self.failures: list[str] = []

    def _run(self) -> None:
        while not self._is_over.is_set():
            begun = time.perf_counter()
            try:
                self._asking.ask(self._next)
            except Exception as exc:  # whatever it is, the client was harmed
                self.failures.append(repr(exc))
                return
            self.latencies_s.append(time.perf_counter() - begun)
            self._next += 1
            self._is_over.wait(0.001)

    @property
    def p99_s(self) -> float:
        """The 99th percentile of the latencies; 0 without any."""
        ordered = sorted(self.latencies_s)
        return ordered[int(len(ordered) * 0.99)] if ordered else 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join()
        self._asking.close()
