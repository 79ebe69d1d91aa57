"""Health for our transport: checks, and watches that follow what the server says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest
from grpc_health.v1 import health_pb2

from gateway.grpc_transport.health import SERVICE, Health
from gateway.grpc_transport.server import Server
from gateway.http2.limits import Limits
from tests.conformance import frames
from tests.conformance.frames import DATA, END_STREAM, RawConnection, frame
from tests.conformance.rpc import message, with_fields
from tests.support.gateway import HOST, LoopThread

OURS: Final = "a.Service"
SERVING, NOT_SERVING, UNKNOWN = 1, 2, 3


class Served:
    """A health service on a server of our transport."""

    def __init__(self, loop: LoopThread) -> None:
        self._loop = loop
        self.health = Health((OURS,))
        self.server = loop.call(self._make)
        loop.run(self.server.start())
        self.address = f"{HOST}:{self.server.port}"

    def _make(self) -> Server:
        return Server(
            methods=self.health.methods,
            limits=Limits(),
            max_message_bytes=1 << 20,
            compression="none",
            name="test",
            host=HOST,
            port=0,
        )

    def set_ready(self, *, is_ready: bool) -> None:
        self._loop.call(lambda: self.health.set_ready(is_ready=is_ready))

    def end(self) -> None:
        self._loop.call(self.health.end)

    def watches(self) -> int:
        """Return how many calls the server has."""
        return self._loop.call(lambda: self.server.statistics().calls)

    def stop(self) -> None:
        self._loop.run(self.server.stop(1.0))


@pytest.fixture
def served(loop_thread: LoopThread) -> Iterator[Served]:
    running = Served(loop_thread)
    yield running
    running.stop()


@pytest.fixture
def connection(served: Served) -> Iterator[RawConnection]:
    with RawConnection(served.address) as connected:
        yield connected.start()


def ask(connection: RawConnection, method: str, name: str, stream: int = 1) -> None:
    """Send a request, and that there is no other."""
    asked = health_pb2.HealthCheckRequest(service=name).SerializeToString()
    head = frames.headers(stream, with_fields(__path=f"/{SERVICE}/{method}"))
    connection.send(head + frame(DATA, END_STREAM, stream, message(asked)))


def statuses(connection: RawConnection, count: int, stream: int = 1) -> list[int]:
    """Return so many statuses as they came; each message is of seven bytes."""
    received = connection.on(stream)
    connection.wait(lambda: len(received.data) >= 7 * count or received.is_over)
    data = bytes(received.data)
    messages = [data[start + 5 : start + 7] for start in range(0, len(data), 7)]
    return [health_pb2.HealthCheckResponse.FromString(one).status for one in messages]


def test_nothing_serves_before_it_is_said_to(served: Served, connection: RawConnection) -> None:
    ask(connection, "Check", "")
    assert statuses(connection, 1) == [NOT_SERVING]


@pytest.mark.parametrize("name", ["", OURS])
def test_a_check_says_what_was_said_last(
    served: Served, connection: RawConnection, name: str
) -> None:
    served.set_ready(is_ready=True)
    ask(connection, "Check", name)
    assert statuses(connection, 1) == [SERVING]
    served.set_ready(is_ready=False)
    ask(connection, "Check", name, stream=3)
    assert statuses(connection, 1, stream=3) == [NOT_SERVING]


def test_an_unknown_service_is_not_found(served: Served, connection: RawConnection) -> None:
    ask(connection, "Check", "nobody")
    (head,) = connection.finish(1).heads
    assert dict(head)["grpc-status"] == "5"


def test_a_watch_gets_the_status_at_once_and_every_new_one(
    served: Served, connection: RawConnection
) -> None:
    ask(connection, "Watch", OURS)
    assert statuses(connection, 1) == [NOT_SERVING]
    for is_ready in (True, True, False):
        served.set_ready(is_ready=is_ready)
    assert statuses(connection, 3) == [NOT_SERVING, SERVING, NOT_SERVING]


def test_a_watch_of_nobody_goes_on_and_hears_nothing(
    served: Served, connection: RawConnection
) -> None:
    ask(connection, "Watch", "nobody")
    ask(connection, "Watch", OURS, stream=3)
    assert statuses(connection, 1) == [UNKNOWN]
    served.set_ready(is_ready=True)
    assert statuses(connection, 2, stream=3) == [NOT_SERVING, SERVING]
    assert statuses(connection, 1) == [UNKNOWN]
    assert not connection.on(1).is_over


def test_a_watch_that_is_cancelled_is_forgotten(served: Served, connection: RawConnection) -> None:
    ask(connection, "Watch", OURS)
    ask(connection, "Watch", OURS, stream=3)
    assert statuses(connection, 1, stream=3) == [NOT_SERVING]
    connection.send(frames.reset(1))
    connection.wait(lambda: served.watches() == 1)
    served.set_ready(is_ready=True)
    assert statuses(connection, 2, stream=3) == [NOT_SERVING, SERVING]
    assert statuses(connection, 1) == [NOT_SERVING]


def test_the_end_ends_every_watch_and_those_to_come(
    served: Served, connection: RawConnection
) -> None:
    ask(connection, "Watch", OURS)
    assert statuses(connection, 1) == [NOT_SERVING]
    served.end()
    assert dict(connection.finish(1).heads[-1])["grpc-status"] == "14"
    ask(connection, "Watch", OURS, stream=3)
    assert dict(connection.finish(3).heads[-1])["grpc-status"] == "14"


def test_a_malformed_request_is_refused_in_the_words_of_grpcio(
    served: Served, connection: RawConnection
) -> None:
    head = frames.headers(1, with_fields(__path=f"/{SERVICE}/Watch"))
    connection.send(head + frame(DATA, END_STREAM, 1, message(b"\xff")))
    (fields,) = connection.finish(1).heads
    assert dict(fields)["grpc-status"] == "2"
    assert dict(fields)["grpc-message"].startswith("Unexpected <class ")
