"""Units of experiments: counted exactly by one replica, added up over several in a real Redis."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator

import pytest
import redis

from gateway.demo.redis_server import RedisServer
from gateway.route_control.redis_units import EXPIRE_S, RedisUnitBoard, units_key
from gateway.route_control.store import StoreDown
from gateway.route_control.units import SAMPLED_PART, UnitCounter
from router.slots import SLOTS, KeySpace
from tests.support.redis import running_redis

SALT = "exp1"
UNIT_SPACE = KeySpace(SALT + "/unit")


def is_sampled(key: bytes) -> bool:
    return UNIT_SPACE.slot(key) < SLOTS // SAMPLED_PART


def sampled_keys(count: int, *, start: int = 0) -> list[bytes]:
    """Return keys that are counted under SALT."""
    found: list[bytes] = []
    n = start
    while len(found) < count:
        key = b"user-%d" % n
        n += 1
        if is_sampled(key):
            found.append(key)
    return found


KNOWN = sampled_keys(300)


def see_all(
    counter: UnitCounter, keys: list[bytes], *, epoch: int = 1, variant: str = "a", route: str = "r"
) -> None:
    for key in keys:
        counter.see(route, epoch, SALT, variant, key)


def test_each_sampled_key_is_counted_once_however_often_it_asks() -> None:
    counter, keys = UnitCounter(), [b"user-%d" % n for n in range(20_000)]
    expected: Counter[str] = Counter()
    for n, key in enumerate(keys):
        variant = "a" if n % 10 else "b"
        expected[variant] += is_sampled(key)
        for _ in range(1 + n % 3):
            counter.see("r", 1, SALT, variant, key)
    assert counter.counts("r", 1) == dict(expected)
    assert 20_000 / 64 * 0.8 < expected.total() < 20_000 / 64 * 1.2


def test_the_sample_is_one_slot_in_sixty_four_of_a_key_space_of_its_own() -> None:
    """Independent of the variants: the same share of the keys of every variant is sampled."""
    counter, split = UnitCounter(), KeySpace(SALT)
    keys = [b"user-%d" % n for n in range(40_000)]
    sizes: Counter[str] = Counter()
    for key in keys:
        variant = "b" if split.slot(key) < 100_000 else "a"
        sizes[variant] += 1
        counter.see("r", 1, SALT, variant, key)
    counts = counter.counts("r", 1)
    assert sum(counts.values()) == sum(is_sampled(key) for key in keys)
    for variant, size in sizes.items():  # five standard deviations
        assert abs(counts[variant] - size / 64) < 5 * (size / 64) ** 0.5


def test_another_salt_samples_other_keys() -> None:
    counter, keys = UnitCounter(), KNOWN
    for key in keys:
        counter.see("r", 1, "exp2", "a", key)
    assert sum(counter.counts("r", 1).values()) < len(keys) / 8


def test_a_unit_seen_in_two_variants_counts_in_both() -> None:
    counter = UnitCounter()
    see_all(counter, KNOWN[:10], variant="a")
    see_all(counter, KNOWN[5:12], variant="b")
    assert counter.counts("r", 1) == {"a": 10, "b": 7}


def test_a_request_without_a_key_is_no_unit() -> None:
    counter = UnitCounter()
    for salt in (f"salt-{n}" for n in range(200)):  # under some of them the empty key is sampled
        counter.see("r", 1, salt, "a", b"")
    assert counter.counts("r", 1) == {}
    assert any(KeySpace(f"salt-{n}/unit").slot(b"") < SLOTS // 64 for n in range(200))


def test_routes_and_epochs_are_counted_apart() -> None:
    counter = UnitCounter()
    see_all(counter, KNOWN[:3], route="r", epoch=1)
    see_all(counter, KNOWN[:5], route="r", epoch=2)
    see_all(counter, KNOWN[:7], route="s", epoch=1)
    assert [counter.counts("r", 1), counter.counts("r", 2), counter.counts("s", 1)] == [
        {"a": 3},
        {"a": 5},
        {"a": 7},
    ]
    assert counter.counts("r", 3) == counter.counts("unknown", 1) == {}


def test_over_the_limit_known_units_stay_and_new_ones_of_any_variant_are_not_counted() -> None:
    counter = UnitCounter(limit_units=10)
    see_all(counter, KNOWN[:7], variant="a")
    assert not counter.is_saturated
    see_all(counter, KNOWN[7:20], variant="b")
    see_all(counter, KNOWN[20:40], variant="a")
    see_all(counter, KNOWN[:10], variant="c")
    assert counter.counts("r", 1) == {"a": 7, "b": 3}
    assert counter.is_saturated
    assert counter.saturated() == [("r", 1)]
    see_all(counter, KNOWN[:4], epoch=2)
    assert counter.counts("r", 2) == {"a": 4}
    assert counter.saturated() == [("r", 1)]


def test_only_the_newest_two_epochs_of_a_route_are_kept() -> None:
    counter = UnitCounter()
    for epoch in (3, 5, 9):
        see_all(counter, KNOWN[:epoch], epoch=epoch)
    see_all(counter, KNOWN[:2], epoch=4)  # late requests
    see_all(counter, KNOWN[:2], epoch=3)
    assert [counter.counts("r", epoch) for epoch in (3, 4, 5, 9)] == [{}, {}, {"a": 5}, {"a": 9}]
    see_all(counter, KNOWN[:8], epoch=5)
    assert counter.counts("r", 5) == {"a": 8}


def test_an_epoch_under_another_salt_begins_anew() -> None:
    """After a split history the same number may mean another split: never add the two up."""
    counter = UnitCounter()
    see_all(counter, KNOWN)
    other = [key for n in range(5_000) if KeySpace("exp2/unit").slot(key := b"k%d" % n) < 15_625]
    for key in other:
        counter.see("r", 1, "exp2", "b", key)
    assert counter.counts("r", 1) == {"b": len(other)}
    assert [(n.variant, len(n.units)) for n in counter.take_new()] == [("b", len(other))]


def test_routes_that_are_not_retained_are_forgotten() -> None:
    counter = UnitCounter()
    for route in ("r", "s", "t"):
        see_all(counter, KNOWN[:2], route=route)
    counter.retain({"s"})
    assert [counter.counts(route, 1) for route in ("r", "s", "t")] == [{}, {"a": 2}, {}]
    assert [new.route for new in counter.take_new()] == ["s"]


def test_what_is_new_is_handed_out_once_as_the_first_eight_bytes_of_the_hash() -> None:
    counter = UnitCounter()
    see_all(counter, KNOWN[:3], variant="a")
    see_all(counter, KNOWN[3:5], variant="b", epoch=2)
    taken = {(n.route, n.epoch, n.variant): set(n.units) for n in counter.take_new()}
    hashes = [UNIT_SPACE.hash(key).to_bytes(8, "big") for key in KNOWN[:5]]
    assert taken == {("r", 1, "a"): set(hashes[:3]), ("r", 2, "b"): set(hashes[3:])}
    assert counter.take_new() == []
    see_all(counter, KNOWN[:4], variant="a")
    assert [list(n) for n in counter.take_new()] == [["r", 1, "a", [hashes[3]]]]
    assert counter.counts("r", 1) == {"a": 4}


def test_handing_out_in_parts_gives_everybody_a_part_and_everything_in_the_end() -> None:
    counter = UnitCounter()
    see_all(counter, KNOWN[:100], variant="a")
    see_all(counter, KNOWN[100:103], variant="b")
    first = counter.take_new(20)
    assert [(n.variant, len(n.units)) for n in first] == [("a", 10), ("b", 3)]
    parts = [first]
    while new := counter.take_new(20):
        assert sum(len(n.units) for n in new) <= 20
        parts.append(new)
    units = [unit for part in parts for n in part for unit in n.units]
    assert len(units) == len(set(units)) == 103
    see_all(counter, KNOWN[103:105], variant="a")
    see_all(counter, KNOWN[105:107], variant="b")
    assert [len(n.units) for n in counter.take_new(1)] == [1, 1]


def test_what_is_given_back_is_handed_out_again() -> None:
    counter = UnitCounter()
    see_all(counter, KNOWN[:5])
    taken = counter.take_new()
    counter.give_back(taken)
    see_all(counter, KNOWN[:6])
    (again,) = counter.take_new()
    assert len(again.units) == 6
    assert set(taken[0].units) < set(again.units)
    assert counter.counts("r", 1) == {"a": 6}


def test_what_is_given_back_for_a_forgotten_epoch_is_forgotten() -> None:
    counter = UnitCounter()
    see_all(counter, KNOWN[:5], epoch=1)
    taken = counter.take_new()
    for epoch in (2, 3):
        see_all(counter, KNOWN[:1], epoch=epoch)
    counter.give_back(taken)
    assert sorted(n.epoch for n in counter.take_new()) == [2, 3]
    counter.retain(())
    counter.give_back(taken)
    assert counter.take_new() == []


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with running_redis(append_only=False) as running:
        yield running


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as connected:
        yield connected


@pytest.mark.redis
def test_units_of_several_replicas_are_counted_once(
    server: RedisServer, client: redis.Redis
) -> None:
    async def scenario() -> tuple[list[int], dict[str, int]]:
        board = RedisUnitBoard(server.url, timeout_s=5)
        replicas = [UnitCounter(), UnitCounter(), UnitCounter()]
        see_all(replicas[0], KNOWN[:100])
        see_all(replicas[1], KNOWN[50:150])
        see_all(replicas[2], KNOWN[150:170], variant="b")
        shared = [await board.share(counter) for counter in replicas]
        shared.append(await board.share(replicas[0]))
        counts = await board.counts("r", 1, ["a", "b", "c"])
        await board.close()
        return shared, counts

    shared, counts = asyncio.run(scenario())
    assert shared == [100, 100, 20, 0]
    assert counts == {"a": 150, "b": 20, "c": 0}
    assert sorted(client.keys()) == [b"rt:{r}:units:1:a", b"rt:{r}:units:1:b"]
    assert {len(unit) for unit in client.sscan_iter(units_key("r", 1, "a"))} == {8}
    assert EXPIRE_S - 60 < client.ttl(units_key("r", 1, "b")) <= EXPIRE_S == 2_592_000


@pytest.mark.redis
def test_more_than_one_batch_of_several_routes_arrives_whole(server: RedisServer) -> None:
    keys = sampled_keys(3_000)

    async def scenario() -> tuple[int, list[dict[str, int]]]:
        board, counter = RedisUnitBoard(server.url, timeout_s=5), UnitCounter()
        see_all(counter, keys, route="r")
        see_all(counter, keys[:2_500], route="s", variant="b")
        shared = await board.share(counter)
        counts = [await board.counts("r", 1, ["a"]), await board.counts("s", 1, ["b"])]
        await board.close()
        return shared, counts

    assert asyncio.run(scenario()) == (5_500, [{"a": 3_000}, {"b": 2_500}])


@pytest.mark.redis
def test_without_redis_units_wait_and_arrive_when_it_is_back(server: RedisServer) -> None:
    async def scenario() -> dict[str, int]:
        board, counter = RedisUnitBoard(server.url, timeout_s=1), UnitCounter()
        see_all(counter, KNOWN[:50])
        await board.share(counter)
        server.kill()
        see_all(counter, KNOWN[50:120])
        for _ in range(2):
            with pytest.raises(StoreDown):
                await board.share(counter)
            with pytest.raises(StoreDown):
                await board.counts("r", 1, ["a"])
        assert counter.counts("r", 1) == {"a": 120}
        server.start()
        assert await board.share(counter) == 70
        counts = await board.counts("r", 1, ["a"])
        await board.close()
        return counts

    assert asyncio.run(scenario()) == {"a": 70}  # this server kept nothing over the restart


@pytest.mark.redis
def test_a_server_that_does_not_answer_is_given_up_in_time_and_units_wait(
    server: RedisServer,
) -> None:
    async def scenario() -> tuple[float, dict[str, int]]:
        board, counter = RedisUnitBoard(server.url, timeout_s=0.3), UnitCounter()
        see_all(counter, KNOWN[:10])
        await board.share(counter)
        see_all(counter, KNOWN[10:30])
        os.kill(server.pid, signal.SIGSTOP)
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        try:
            with pytest.raises(StoreDown):
                await board.share(counter)
            took_s = loop.time() - start_s
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert await board.share(counter) == 20
        counts = await board.counts("r", 1, ["a"])
        await board.close()
        return took_s, counts

    took_s, counts = asyncio.run(scenario())
    assert took_s < 5
    assert counts == {"a": 30}  # once, whether or not the lost attempt arrived


@pytest.mark.redis
def test_a_cancelled_share_loses_no_unit(server: RedisServer) -> None:
    async def scenario() -> dict[str, int]:
        board, counter = RedisUnitBoard(server.url, timeout_s=5), UnitCounter()
        see_all(counter, KNOWN[:30])
        os.kill(server.pid, signal.SIGSTOP)
        try:
            task = asyncio.create_task(board.share(counter))
            done, _ = await asyncio.wait([task], timeout=0.2)
            assert not done
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert await board.share(counter) == 30
        counts = await board.counts("r", 1, ["a"])
        await board.close()
        return counts

    assert asyncio.run(scenario()) == {"a": 30}


@pytest.mark.redis
def test_a_key_that_holds_something_else_keeps_nobody_else_waiting(
    server: RedisServer, client: redis.Redis
) -> None:
    client.set(units_key("r", 1, "a"), "no set")

    async def scenario() -> dict[str, int]:
        board, counter = RedisUnitBoard(server.url, timeout_s=5), UnitCounter()
        see_all(counter, KNOWN[:20], variant="a")
        see_all(counter, KNOWN[20:50], variant="b")
        with pytest.raises(StoreDown, match="WRONGTYPE"):
            await board.share(counter)
        with pytest.raises(StoreDown, match="WRONGTYPE"):
            await board.counts("r", 1, ["a", "b"])
        assert await board.counts("r", 1, ["b"]) == {"b": 30}
        client.delete(units_key("r", 1, "a"))
        assert await board.share(counter) == 20
        counts = await board.counts("r", 1, ["a", "b"])
        await board.close()
        return counts

    assert asyncio.run(scenario()) == {"a": 20, "b": 30}


@pytest.mark.redis
def test_a_server_without_memory_refuses_units_and_they_wait(
    server: RedisServer, client: redis.Redis
) -> None:
    async def scenario() -> int:
        board, counter = RedisUnitBoard(server.url, timeout_s=5), UnitCounter()
        see_all(counter, KNOWN[:20])
        client.config_set("maxmemory", "1")
        with pytest.raises(StoreDown):
            await board.share(counter)
        client.config_set("maxmemory", "0")
        shared = await board.share(counter)
        await board.close()
        return shared

    assert asyncio.run(scenario()) == 20


@pytest.mark.redis
def test_many_may_ask_the_board_at_once(server: RedisServer) -> None:
    async def scenario() -> list[dict[str, int]]:
        board, counter = RedisUnitBoard(server.url, timeout_s=5), UnitCounter()
        see_all(counter, KNOWN[:40])
        await board.share(counter)
        answers = await asyncio.gather(*(board.counts("r", 1, ["a"]) for _ in range(50)))
        await board.close()
        await board.close()
        return answers

    assert asyncio.run(scenario()) == [{"a": 40}] * 50
