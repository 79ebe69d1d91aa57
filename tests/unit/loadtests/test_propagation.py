from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from loadtests import paced, propagation
from loadtests.paced import Seen, Traffic

HISTORY = {1: {("odd", "2")}, 2: {("even", "1")}, 3: {("odd", "2"), ("even", "1")}}


def test_answers_that_a_revision_explains_are_not_mixed() -> None:
    seen = [Seen(1, "odd", "2"), Seen(2, "even", "1"), Seen(3, "odd", "2"), Seen(3, "even", "1")]
    assert paced.mixed(seen, HISTORY) == []


@pytest.mark.parametrize(
    "seen",
    [
        Seen(1, "even", "1"),  # the number of one revision, the content of another
        Seen(1, "odd", "1"),  # the variant of one, the version of another
        Seen(4, "odd", "2"),  # a revision that never was
        Seen(0, "odd", "2"),  # no revision at all
    ],
)
def test_answers_that_no_revision_explains_are_mixed(seen: Seen) -> None:
    assert paced.mixed([Seen(1, "odd", "2"), seen], HISTORY) == [seen]


def test_percentiles_are_values_that_were_measured() -> None:
    spread = propagation.spread([float(n) for n in range(200, 0, -1)])
    assert (spread.p50, spread.p90, spread.p99, spread.max) == (100.0, 180.0, 198.0, 200.0)
    alone = propagation.spread([7.0])
    assert (alone.p50, alone.p90, alone.p99, alone.max) == (7.0, 7.0, 7.0, 7.0)


def test_the_first_revision_is_favoured_as_its_number_says() -> None:
    variants = propagation.route()["variants"]
    assert {name for name, v in variants.items() if v["weight"]} == {propagation.favoured(1)}


class Server:
    """Answers each request with the next of some bytes; closes the connection without any."""

    def __init__(self, answers: Iterable[bytes]) -> None:
        self._answers = iter(answers)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer until nothing is left."""
        while await reader.read(65_536):
            answer = next(self._answers, b"")
            if not answer:
                break
            writer.write(answer)
        writer.close()


def answer(revision: int, *, status: int = 200) -> bytes:
    body = b'{"model_name":"mlp","model_version":"2"}'
    head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n"
    head += f"x-sluice-revision: {revision}\r\nx-sluice-variant: odd\r\n\r\n"
    return head.encode() + body


async def observe(answers: Iterable[bytes], until: int) -> Traffic:
    server = await asyncio.start_server(Server(answers).serve, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()[:2]
    async with server, Traffic([address], b"any", connections=1, pause_s=0.001) as traffic:
        await traffic.reached(until, within_s=10)
    return traffic


def test_what_answers_say_is_counted_and_the_first_of_each_revision_is_timed() -> None:
    traffic = asyncio.run(observe([answer(1), answer(1), answer(3), *[answer(9)] * 2_000], 9))
    assert traffic.answers[Seen(1, "odd", "2")] == 2
    (observed,) = traffic.replicas
    assert observed.reached_s(2) == observed.first_s[3] < observed.first_s[9]
    assert observed.reached_s(10) is None
    assert traffic.failed == traffic.decreased == []


def test_a_revision_that_goes_back_on_a_connection_is_seen() -> None:
    traffic = asyncio.run(observe([answer(5), answer(4), *[answer(9)] * 2_000], 9))
    assert traffic.decreased == ["revision 4 after 5"]


def test_errors_and_lost_connections_are_failures_and_the_load_goes_on() -> None:
    given = [answer(1), answer(1, status=503), b"", *[answer(9)] * 2_000]
    traffic = asyncio.run(observe(given, 9))
    refused, lost = traffic.failed
    assert refused.startswith("503: ")
    assert lost.startswith("LoopFailed: the connection ended before its answer")


def test_a_revision_that_does_not_come_is_an_error() -> None:
    async def wait() -> None:
        server = await asyncio.start_server(Server([answer(1)] * 2_000).serve, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()[:2]
        async with server, Traffic([address], b"any", connections=1) as traffic:
            with pytest.raises(TimeoutError):
                await traffic.reached(2, within_s=0.05)

    asyncio.run(wait())
