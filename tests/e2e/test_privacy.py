"""What is dropped, hashed, sealed or rounded, and whose data it is, reaches no file in raw form.

A real gateway and a real Redis, whose files can be searched. Every rule for texts and for numbers
is asked in each way of reducing large tensors, small and large, by every wire form, with shadows,
and in requests that are refused. Then the markers are searched for as bytes: in segment files,
files of references, the gateway's own log, its pages, Redis' append-only file and a snapshot of its
memory. What is to be kept has to be found there, so that the search is known to find anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from gateway.prediction_log.privacy.keyring import Keyring, rotate
from gateway.prediction_log.record import LoggedPrediction, decode_any
from gateway.prediction_log.streams import StreamKind, streams_key
from tests.support.erasures import plain_redis
from tests.support.gateway import GatewayProcess, metric, wait_until
from tests.support.privacy_site import Markers, PrivacySite, asks
from tests.support.transports import RAW, TRANSPORTS, Ask, Given, connected

pytestmark = [pytest.mark.slow, pytest.mark.redis, pytest.mark.timeout(60)]

HEADER = "header:x-customer"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[PrivacySite]:
    with plain_redis() as (server, client):
        found: Any = client.config_get("dir")  # Any: as redis-py types it
        made = PrivacySite(tmp_path, server, Path(found["dir"]))
        made.prepare()
        yield made


def who_of(source: str, name: str) -> dict[str, Any]:
    """Return the fields of a call that name a subject; Any: they are of several types."""
    kind, _, key = source.partition(":")
    return {} if kind == "input" else {f"{kind}s": {key: name}}


def ask_everything(
    gateway: GatewayProcess, markers: Markers, source: str = HEADER, names: Any = TRANSPORTS
) -> set[int | str]:
    """Ask for everything by some transports, each with a subject of its own; return the codes."""
    codes = set()
    with connected(gateway.at, names) as transports:
        for transport in transports:
            subject = markers.text()
            for ask in asks(markers, who_of(source, subject.decode())):
                if not transport.cannot_carry.intersection(given.datatype for given in ask.inputs):
                    codes.add(transport.infer(ask).code)
            if source.startswith("input:"):
                codes.add(transport.infer(ask_of_subject(markers, subject)).code)
    return codes


def ask_of_subject(markers: Markers, subject: bytes) -> Ask:
    """Return a call for a model that takes the subject in a tensor, and says it again."""
    x = Given(name="x", datatype="BYTES", shape=(2, 1), elements=[markers.text()] * 2)
    who = Given(name="who", datatype="BYTES", shape=(2, 1), elements=[subject] * 2)
    return Ask(model="both", inputs=(x, who))


def pages(gateway: GatewayProcess) -> bytes:
    """Return all that a gateway tells about itself."""
    urls = [f"http://{gateway.at.metrics}/metrics", f"http://{gateway.at.http}/v2/models/stats"]
    urls += [f"http://{gateway.at.admin}/v1/{path}" for path in ("models", "audit", "routes")]
    return b"".join(httpx.get(url).content for url in urls)


def settled(gateway: GatewayProcess) -> None:
    wait_until(
        lambda: metric(gateway.at.metrics, "sluice_log_spooled_records") == 0, "all is shipped", 20
    )


def assert_nothing_got_out(site: PrivacySite, markers: Markers) -> None:
    assert site.found(markers.needles) == []
    assert [kept for kept in markers.kept if not site.found([kept])] == []


def tags_in(site: PrivacySite, name: str, kind: StreamKind) -> list[bytes]:
    """Return the tags of the records of a name."""
    tags = []
    with redis.Redis.from_url(site.server.url, protocol=2) as client:
        keys: Any = client.smembers(streams_key(name, kind))  # Any: as redis-py types it
        for key in keys:
            entries: Any = client.xrange(key)  # Any: as above
            found = [decode_any(fields[b"r"]) for _, fields in entries]
            tags += [one.subject for one in found if isinstance(one, LoggedPrediction)]
    return tags


@pytest.mark.parametrize(
    ("source", "settings"),
    [
        (HEADER, {}),
        ("parameter:customer", {"queue_bytes": 1}),  # large tensors are skipped
        ("input:who", {}),
        (HEADER, {"workers": 2}),
    ],
    ids=["header", "parameter", "input", "workers"],
)
def test_nothing_raw_reaches_a_file_or_a_page(
    site: PrivacySite, source: str, settings: dict[str, int]
) -> None:
    markers = Markers()
    with site.serve(source, **settings) as gateway:
        codes = ask_everything(gateway, markers, source)
        assert {200, 400, 500, "OK", "INVALID_ARGUMENT", "INTERNAL"} >= codes >= {200, 400, "OK"}
        settled(gateway)
        told = pages(gateway)
        assert [needle for needle in markers.needles if needle in told] == []
        assert site.found(markers.needles) == []  # while segments are larger than what is in them
        assert gateway.stop() == 0
    site.server_saves()
    if "queue_bytes" in settings:
        markers.kept = []
    assert_nothing_got_out(site, markers)


def test_nothing_raw_stands_in_what_a_killed_gateway_leaves(site: PrivacySite) -> None:
    markers = Markers()
    site.server.kill()
    with site.serve(HEADER) as gateway:
        ask_everything(gateway, markers, names=RAW)
        gateway.kill()
    assert site.found(markers.needles) == []
    site.server.start()
    with redis.Redis.from_url(site.server.url, protocol=2) as client:
        client.config_set("rdbcompression", "no")
    with site.serve(HEADER) as gateway:
        settled(gateway)
        assert gateway.stop() == 0
    site.server_saves()
    assert_nothing_got_out(site, markers)
    assert Keyring.load(site.folder / "keys").numbers == [0]


def test_shadows_have_the_tag_of_the_subject_and_a_new_key_is_used_at_once(
    site: PrivacySite,
) -> None:
    ask = Ask(
        model="table-columns-full",
        inputs=(Given(name="x", datatype="FP64", shape=(1, 3), elements=[1.0, 2.0, 3.0]),),
        headers={"x-customer": "alice"},
    )
    keys = site.folder / "keys"
    with site.serve(HEADER) as gateway, connected(gateway.at, RAW) as transports:

        def shadow_tags() -> set[bytes]:
            for transport in transports:
                transport.infer(ask)
            return set(tags_in(site, ask.model, StreamKind.SHADOW))

        wait_until(lambda: shadow_tags() == {*Keyring.load(keys).tags("alice")}, "tags", 20)
        rotate(keys)
        wait_until(lambda: shadow_tags() == {*Keyring.load(keys).tags("alice")}, "new tags", 20)

        content = keys.read_bytes()
        keys.unlink()
        wait_until(lambda: "the keys stay as they were" in gateway.log, "it says so", 10)
        for transport in transports:
            assert transport.infer(replace(ask, headers={"x-customer": "bob"})).code in (200, "OK")
        keys.write_bytes(content)
        settled(gateway)
        assert Keyring.load(keys).tag("bob") in tags_in(site, ask.model, StreamKind.LIVE)
