"""Ground truth over both protocols: the same items, the same results, the same labels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import grpc
import msgspec
import pytest
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gateway.demo.redis_server import RedisServer
from gateway.prediction_log.record import LoggedLabel
from tests.support.feedback_senders import SENDERS, Sent, fresh_id, labels, now_us
from tests.support.gateway import GatewayInProcess, LoopThread, in_process, metric, wait_until
from tests.support.redis import running_redis
from tests.support.served import CONFIG
from tests.support.transports import UNLIMITED, Outcome

pytestmark = pytest.mark.redis

KEY: Final = "a key of nobody else"
LOG: Final = {"linger_ms": 1, "spool": {"segment_bytes": 1 << 20, "max_bytes": 8 << 20}}
DAY_US: Final = 86_400_000_000
SERVICE: Final = "sluice.v1.Feedback"
NAME: Final = "split"
"""A route, which has a name as models have."""


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    """Run a Redis for the module."""
    with running_redis() as server:
        yield server


def configured(url: str, **feedback: object) -> dict[str, Any]:  # Any: what a TOML file holds
    """Return the configuration of the shared gateway, with a prediction log."""
    ada = {"key_sha256": sha256(KEY.encode()).hexdigest()}
    log = {**LOG, "feedback": feedback}
    return {**CONFIG, "redis": {"url": url}, "prediction_log": log, "principals": {"ada": ada}}


@pytest.fixture(scope="module")
def logging_gateway(
    loop_thread: LoopThread, served_root: Path, redis_server: RedisServer
) -> Iterator[GatewayInProcess]:
    """Serve the shared repository with a prediction log."""
    with in_process(loop_thread, configured(redis_server.url), served_root) as running:
        yield running


@pytest.fixture(scope="module")
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """Connect to the module's Redis."""
    with redis.Redis.from_url(redis_server.url) as connected:
        yield connected


GIVEN: Final = {
    "an integer": Sent(target=7),
    "a number": Sent(target=7.5),
    "a whole number with a point": Sent(target=7.0),
    "a text": Sent(target="seven"),
    "a yes": Sent(target=True),
    "null": Sent(target=None),
    "a list": Sent(target=[7, 0.5, None, {"a": []}]),
    "a map": Sent(target={"class": "seven", "box": [0, 1]}),
    "nothing": Sent(has_target=False),
    "a wrong id": Sent(request_id="17"),
    "no id": Sent(request_id=""),
    "a correlation id": Sent(request_id="", correlation_id="order 17"),
    "too late": Sent(request_id=fresh_id(now_us() - 40 * DAY_US)),
    "of the future": Sent(request_id=fresh_id(now_us() + DAY_US)),
    "all fields": Sent(
        time_us=1_789_992_000_250_000,
        source="reviewer",
        weight=0.25,
        label_version=3,
        idempotency_key="k",
    ),
    "known tomorrow": Sent(time_us=now_us() + DAY_US),
    "no weight": Sent(weight=0.0),
    "a version below 0": Sent(label_version=-1),
    "a long source": Sent(source="s" * 257),
    "too large": Sent(target="x" * (64 << 10)),
    "too deep": Sent(target=json.loads("[" * 33 + "]" * 33)),
}


def comparable(label: LoggedLabel) -> LoggedLabel:
    """Return a label without what differs from one sending to the next."""
    received_us = label.ts_us == label.received_us
    ts_us = 0 if received_us else label.ts_us
    return msgspec.structs.replace(
        label, seq=0, ts_us=ts_us, received_us=0, rid=b"", idempotency_key=""
    )


def wait_labels(client: redis.Redis, count: int) -> list[LoggedLabel]:
    """Return the route's labels once Redis has so many."""
    wait_until(lambda: len(labels(client, NAME)) >= count, f"{count} labels in Redis")
    return labels(client, NAME)


def test_the_same_items_get_the_same_results_and_become_the_same_labels(
    logging_gateway: GatewayInProcess, client: redis.Redis
) -> None:
    results, written = [], []
    for name, make in SENDERS.items():
        items = []
        for number, given in enumerate(GIVEN.values()):
            # Another prediction for each protocol, so that neither repeats the other.
            rid = fresh_id() if given.request_id is None else given.request_id
            items.append(replace(given, request_id=rid, idempotency_key=f"{name} {number}"))
        before = len(labels(client, NAME))
        with make(logging_gateway.at) as sender:
            answer = sender.send(NAME, items)
        assert answer.came_to(Outcome.OK), answer.error
        accepted = sum(status == "accepted" for status, _ in answer.results)
        shipped = wait_labels(client, before + accepted)
        results.append(answer.results)
        written.append([comparable(label) for label in shipped[before:]])
    assert results[0] == results[1]
    assert written[0] == written[1]
    by_given = dict(zip(GIVEN, results[0], strict=True))
    invalid = [given for given, (status, _) in by_given.items() if status == "invalid"]
    assert invalid == [
        "nothing",
        "a wrong id",
        "no id",
        "of the future",
        "known tomorrow",
        "no weight",
        "a version below 0",
        "a long source",
        "too large",
        "too deep",
    ]
    assert by_given["too late"][0] == "too_late"
    assert [label.target for label in written[0]][:8] == [
        given.target for given in list(GIVEN.values())[:8]
    ]


@pytest.mark.parametrize("name", SENDERS)
def test_what_one_protocol_accepted_is_a_duplicate_on_the_other(
    logging_gateway: GatewayInProcess, name: str
) -> None:
    given = Sent(request_id=fresh_id())
    other = next(sender for sender in SENDERS if sender != name)
    with SENDERS[name](logging_gateway.at) as first:
        assert first.send(NAME, [given]).results == [("accepted", "")]
    with SENDERS[other](logging_gateway.at) as second:
        assert second.send(NAME, [given]).results == [("duplicate", "it was accepted before")]


@pytest.mark.parametrize("name", SENDERS)
def test_a_call_that_is_none_is_refused_with_the_protocols_status(
    logging_gateway: GatewayInProcess, name: str
) -> None:
    given = Sent(request_id=fresh_id())
    with SENDERS[name](logging_gateway.at) as sender:
        unknown = sender.send("nobody", [given])
        assert unknown.came_to(Outcome.NOT_FOUND), unknown
        assert "'nobody'" in unknown.error
        for items in ([], [given] * 1_001):
            assert sender.send(NAME, items).came_to(Outcome.INVALID)
        assert sender.send_bytes(NAME, b"\xff").came_to(Outcome.INVALID)
        assert sender.send_bytes(NAME, bytes((4 << 20) + 1)).came_to(Outcome.TOO_LARGE)


@pytest.mark.parametrize("name", SENDERS)
def test_a_thousand_items_are_taken_and_counted(
    logging_gateway: GatewayInProcess, name: str
) -> None:
    at = logging_gateway.at.metrics
    before = metric(at, "sluice_feedback_items_total", model="mlp", result="accepted")
    items = [Sent(request_id=fresh_id()) for _ in range(1_000)]
    with SENDERS[name](logging_gateway.at) as sender:
        answer = sender.send("mlp", items)
    assert answer.results == [("accepted", "")] * 1_000
    after = metric(at, "sluice_feedback_items_total", model="mlp", result="accepted")
    assert after - before == 1_000


@pytest.mark.parametrize("name", SENDERS)
def test_feedback_that_the_configuration_does_not_allow_is_refused(
    gateway: GatewayInProcess,
    loop_thread: LoopThread,
    served_root: Path,
    redis_server: RedisServer,
    name: str,
) -> None:
    given = Sent(request_id=fresh_id())
    with SENDERS[name](gateway.at) as sender:
        no_log = sender.send(NAME, [given])
    assert no_log.came_to(Outcome.FORBIDDEN), no_log
    config = configured(redis_server.url, enabled=False)
    with (
        in_process(loop_thread, config, served_root) as off,
        SENDERS[name](off.at) as sender,
    ):
        assert sender.send(NAME, [given]).came_to(Outcome.FORBIDDEN)


@pytest.mark.parametrize("name", SENDERS)
def test_only_callers_with_a_key_may_send_where_one_is_required(
    loop_thread: LoopThread, served_root: Path, redis_server: RedisServer, name: str
) -> None:
    given = Sent(request_id=fresh_id())
    config = configured(redis_server.url, require_principal=True)
    with (
        in_process(loop_thread, config, served_root) as strict,
        SENDERS[name](strict.at) as sender,
    ):
        nobody = sender.send(NAME, [given])
        assert nobody.code in (401, "UNAUTHENTICATED")
        known = sender.send(NAME, [given], key=KEY)
        assert known.results == [("accepted", "")]


def test_no_feedback_is_taken_while_draining(
    loop_thread: LoopThread, served_root: Path, redis_server: RedisServer
) -> None:
    config = configured(redis_server.url)
    with in_process(loop_thread, config, served_root) as ending:
        for make in SENDERS.values():
            with make(ending.at) as sender:
                assert sender.send(NAME, [Sent(request_id=fresh_id())]).came_to(Outcome.OK)
        loop_thread.call(ending.app.lifecycle.drain)
        for make in SENDERS.values():
            with make(ending.at) as sender:
                refused = sender.send(NAME, [Sent(request_id=fresh_id())])
                assert refused.came_to(Outcome.UNAVAILABLE), refused
                assert refused.error == "the server is shutting down"


def test_the_service_is_listed_described_and_healthy(logging_gateway: GatewayInProcess) -> None:
    asked = reflection_pb2.ServerReflectionRequest
    questions = [asked(list_services=""), asked(file_containing_symbol=SERVICE)]
    with grpc.insecure_channel(logging_gateway.at.grpc, options=UNLIMITED) as channel:
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # Any: untyped
        listed, described = list(reflection.ServerReflectionInfo(iter(questions), timeout=15))
        health: Any = health_pb2_grpc.HealthStub(channel)  # Any: untyped
        checked = health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=15)
    assert SERVICE in {service.name for service in listed.list_services_response.service}
    (file,) = described.file_descriptor_response.file_descriptor_proto
    assert b"label_version" in file
    assert checked.status == health_pb2.HealthCheckResponse.SERVING
