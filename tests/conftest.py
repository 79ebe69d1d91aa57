"""Fixtures that several packages of tests share: one event loop, one gateway that serves them all.

Both live as long as the session; whoever needs another configuration starts a gateway of its own
(tests/support/gateway.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from hypothesis import HealthCheck, settings

from tests.support.gateway import GatewayInProcess, LoopThread, in_process
from tests.support.served import CONFIG, write_served
from tests.support.transports import RAW, TRANSPORTS, TYPED, UNLIMITED, Transport

# The machine may be busy with something else: a slow example is no failure.
settings.register_profile("sluice", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sluice")


@pytest.fixture(scope="session")
def loop_thread() -> Iterator[LoopThread]:
    """Run an event loop in a thread."""
    loop = LoopThread()
    yield loop
    loop.close()


@pytest.fixture(scope="session")
def served_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the repository that tests/support/served.py describes."""
    return write_served(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def gateway(loop_thread: LoopThread, served_root: Path) -> Iterator[GatewayInProcess]:
    """Serve the repository of tests/support/served.py from this process."""
    with in_process(loop_thread, CONFIG, served_root) as running:
        yield running


@pytest.fixture(scope="session")
def transports(gateway: GatewayInProcess) -> Iterator[dict[str, Transport]]:
    """Connect every transport to the shared gateway."""
    connected = {name: connect(gateway.at) for name, connect in TRANSPORTS.items()}
    yield connected
    for transport in connected.values():
        transport.close()


@pytest.fixture(params=list(TRANSPORTS))
def transport(request: pytest.FixtureRequest, transports: dict[str, Transport]) -> Transport:
    """Run the test once per transport."""
    name: str = request.param
    return transports[name]


@pytest.fixture(params=RAW)
def raw_transport(request: pytest.FixtureRequest, transports: dict[str, Transport]) -> Transport:
    """Run the test once per transport whose inputs travel as bytes."""
    name: str = request.param
    return transports[name]


@pytest.fixture(params=TYPED)
def typed_transport(request: pytest.FixtureRequest, transports: dict[str, Transport]) -> Transport:
    """Run the test once per transport whose inputs travel as elements."""
    name: str = request.param
    return transports[name]


@pytest.fixture
def client(gateway: GatewayInProcess) -> Iterator[httpx.Client]:
    """Connect an HTTP client to the predict port of the shared gateway."""
    with httpx.Client(base_url=f"http://{gateway.at.http}", timeout=15) as connected:
        yield connected


@pytest.fixture
def channel(gateway: GatewayInProcess) -> Iterator[grpc.Channel]:
    """Connect a gRPC channel to the shared gateway."""
    with grpc.insecure_channel(gateway.at.grpc, options=UNLIMITED) as connected:
        yield connected
