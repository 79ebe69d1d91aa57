"""The client of the admin API, against a real HTTP server that answers from a table."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from gateway.cli.admin_client import (
    Address,
    AdminClient,
    AdminError,
    Conflicting,
    GatewayFailed,
    NotAllowed,
    NotThere,
    Refused,
    RevisionMoved,
    Unreachable,
    Write,
    WrongAddress,
)
from tests.support.admin_script import (
    Scripted,
    ScriptedAdmin,
    convergence,
    document,
    scripted_admin,
    written,
)
from tests.support.gateway import free_port

Json = Any  # Any: JSON
ROUTE = "GET /v1/routes/digits"
VERB = "POST /v1/routes/digits:setWeights"


@pytest.fixture
def admin() -> Iterator[ScriptedAdmin]:
    with scripted_admin() as script:
        yield script


def client(admin: ScriptedAdmin, **options: Any) -> AdminClient:  # Any: of the client
    return AdminClient(Address.parse(admin.url), **options)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://10.0.0.1:8003", "http://10.0.0.1:8003"),
        ("10.0.0.1:8003", "http://10.0.0.1:8003"),
        ("gateway", "http://gateway:80"),
        ("https://gateway/sluice/", "https://gateway:443/sluice"),
        ("http://[::1]:8003", "http://[::1]:8003"),
    ],
)
def test_an_address_may_be_short(url: str, shown: str) -> None:
    assert str(Address.parse(url)) == shown


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("ftp://x", "'ftp://x' is neither http:// nor https://"),
        ("http://:8003", "'http://:8003' names no host"),
        ("http://x:port", "'http://x:port' has a port that is none"),
        ("http://x:99999", "'http://x:99999' has a port that is none"),
        ("http://ann:secret@x", "give scheme, host and port only; a key goes into SLUICE_TOKEN"),
        ("http://x?a=b", "give scheme, host and port only; a key goes into SLUICE_TOKEN"),
    ],
)
def test_an_address_that_cannot_be_one_is_refused(url: str, sentence: str) -> None:
    with pytest.raises(WrongAddress) as caught:
        Address.parse(url)
    assert str(caught.value) == sentence


def test_an_answer_is_kept_as_it_came_beside_its_value(admin: ScriptedAdmin) -> None:
    raw = b'{ "routes": [], "new": 1 }'
    admin.on("GET /v1/routes", Scripted(raw))
    reply = client(admin).routes()
    assert reply.text == raw.decode()
    assert reply.value.routes == []


def test_weights_are_exact_decimals_both_ways(admin: ScriptedAdmin) -> None:
    shown = document()
    shown["variants"]["canary"]["weight"] = 33.3333
    admin.on(ROUTE, shown)
    admin.on(VERB, written())
    found = client(admin).route("digits").value
    assert found.variants["canary"].weight == Decimal("33.3333")
    weights = {"canary": Decimal("0.0001"), "b": Decimal(20)}
    body = {"weights": weights}
    client(admin).write("digits", Write(method="POST", verb="setWeights", reason="x", body=body))
    assert admin.writes[0].body == {"weights": {"canary": 0.0001, "b": 20}}


def test_a_name_cannot_leave_its_place_in_the_path(admin: ScriptedAdmin) -> None:
    admin.on("GET /v1/routes/a/../b?c#d", document(name="odd"))
    assert client(admin).route("a/../b?c#d").value.name == "odd"


def test_a_prefix_is_kept(admin: ScriptedAdmin) -> None:
    admin.on("GET /sluice/v1/routes", {"routes": []})
    AdminClient(Address.parse(admin.url + "/sluice/")).routes()
    assert admin.lines == ["GET /sluice/v1/routes"]


def test_every_call_carries_the_token_and_a_write_says_who_and_why(admin: ScriptedAdmin) -> None:
    admin.on(ROUTE, document())
    admin.on(VERB, written())
    ours = client(admin, token="key", actor="Jürgen")
    ours.route("digits")
    ours.write(
        "digits",
        Write(
            method="POST",
            verb="setWeights",
            reason="größer",
            if_match='"g1-42"',
            flags=("dry_run", "reseed"),
            wait_s=5.0,
        ),
    )
    look, write = admin.seen
    assert look.headers["authorization"] == write.headers["authorization"] == "Bearer key"
    assert "x-actor" not in look.headers
    assert write.headers["x-actor"] == "Jürgen"
    assert write.headers["x-reason"] == "größer"
    assert write.headers["if-match"] == '"g1-42"'
    assert write.headers["prefer"] == "wait=5"
    assert "if-none-match" not in write.headers
    assert write.query == {"dry_run": "true", "reseed": "true"}
    assert write.body is None


def test_a_route_that_must_not_exist_is_put_so(admin: ScriptedAdmin) -> None:
    admin.on("PUT /v1/routes/digits", Scripted(written(1), 201))
    write = Write(method="PUT", reason="new", body=document(), must_not_exist=True)
    assert client(admin).write("digits", write).status == 201
    assert admin.seen[0].headers["if-none-match"] == "*"
    assert "if-match" not in admin.seen[0].headers


def test_questions_travel_in_the_query(admin: ScriptedAdmin) -> None:
    explained = {"route": "digits", "revision": 42, "reason": "slot"}
    admin.on("GET /v1/routes/digits/explain", explained)
    asked = {"key": "a b&c=ü", "header.x-region": "eu"}
    client(admin).explain("digits", asked)
    assert admin.seen[0].query == asked


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Refused),
        (422, Refused),
        (413, Refused),
        (404, NotThere),
        (409, Conflicting),
        (428, Conflicting),
        (412, RevisionMoved),
        (401, NotAllowed),
        (403, NotAllowed),
        (500, GatewayFailed),
        (504, GatewayFailed),
        (302, GatewayFailed),
    ],
)
def test_each_status_is_its_own_error(
    admin: ScriptedAdmin, status: int, kind: type[AdminError]
) -> None:
    admin.on(ROUTE, Scripted({"error": "because"}, status))
    with pytest.raises(AdminError) as caught:
        client(admin).route("digits")
    assert type(caught.value) is kind
    assert str(caught.value) == "because"
    assert caught.value.body == b'{"error": "because"}'


def test_an_invalid_document_has_a_pointer_per_fault(admin: ScriptedAdmin) -> None:
    faults = [{"pointer": "/kind", "detail": "unknown"}, {"pointer": "", "detail": "too big"}]
    admin.on(VERB, Scripted({"error": "x", "errors": faults}, 422))
    with pytest.raises(Refused) as caught:
        client(admin).write("digits", Write(method="POST", verb="setWeights", reason="x"))
    assert [(f.pointer, f.detail) for f in caught.value.faults] == [
        ("/kind", "unknown"),
        ("", "too big"),
    ]


@pytest.mark.parametrize("current", [document(43), None])
def test_a_stale_condition_comes_with_what_is_there_now(
    admin: ScriptedAdmin, current: Json
) -> None:
    admin.on(VERB, Scripted({"error": "stale", "current": current}, 412))
    with pytest.raises(RevisionMoved) as caught:
        client(admin).write("digits", Write(method="POST", verb="setWeights", reason="x"))
    assert (caught.value.current.revision if caught.value.current else None) == (
        43 if current else None
    )


def test_a_store_that_is_down_says_when_to_come_back(admin: ScriptedAdmin) -> None:
    admin.on(ROUTE, Scripted({"error": "no store"}, 503, {"retry-after": "1"}))
    with pytest.raises(GatewayFailed, match=r"^no store \(try again in 1 s\)$"):
        client(admin).route("digits")


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"<html>", 200, "answered something that this command cannot read"),
        (b'{"name": "x"}', 200, "Object missing required field `revision`"),
        (b"<html>", 404, "answered HTTP 404 without a reason; is it the admin listener?"),
        (b"[]", 500, "answered HTTP 500 without a reason; is it the admin listener?"),
        (b"{}", 500, "answered HTTP 500"),
    ],
)
def test_what_is_no_admin_listener_is_a_failure(
    admin: ScriptedAdmin, body: bytes, status: int, sentence: str
) -> None:
    admin.on(ROUTE, Scripted(body, status))
    with pytest.raises(GatewayFailed) as caught:
        client(admin).route("digits")
    assert sentence in str(caught.value)


def test_nobody_there_is_unreachable() -> None:
    port = free_port()
    with pytest.raises(Unreachable) as caught:
        AdminClient(Address(host="127.0.0.1", port=port)).routes()
    sentence = f"cannot reach http://127.0.0.1:{port}: Connection refused"
    assert str(caught.value) == sentence


def test_a_host_that_has_no_address_is_unreachable() -> None:
    # A label is empty: no name server is asked.
    with pytest.raises(Unreachable, match=r"^cannot reach http://no\.\.where:80: "):
        AdminClient(Address.parse("no..where")).routes()


def test_a_gateway_that_says_nothing_is_given_up(admin: ScriptedAdmin) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = Address(host="127.0.0.1", port=silent.getsockname()[1])
        ours = AdminClient(address, timeout_s=0.05)
        with pytest.raises(Unreachable, match=r"gave no answer: it took too long$"):
            ours.routes()
        write = Write(method="POST", verb="abort", reason="x")
        with pytest.raises(Unreachable, match="nobody knows whether the change was made"):
            ours.write("digits", write)


def test_an_answer_that_breaks_off_is_no_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def break_off() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{"rou')

        thread = threading.Thread(target=break_off)
        thread.start()
        address = Address(host="127.0.0.1", port=server.getsockname()[1])
        with pytest.raises(Unreachable, match="gave no answer: IncompleteRead"):
            AdminClient(address).routes()
        thread.join()


def test_what_is_asked_about_a_route_has_its_own_path(admin: ScriptedAdmin) -> None:
    admin.on("GET /v1/routes/digits/revisions", {"revisions": []})
    changed = {"from": 1, "to": 2, "moved_share_percent": 0}
    admin.on("GET /v1/routes/digits/revisions/1..2", changed)
    admin.on("GET /v1/routes/digits/convergence", convergence(43))
    admin.on("GET /v1/routes/digits/stats", {"route": "digits", "epoch": 1, "variants": []})
    admin.on("GET /v1/audit", {"entries": []})
    ours = client(admin)
    ours.history("digits", 3)
    assert ours.difference("digits", 1, 2).value.second == 2
    assert ours.convergence("digits").value.converged
    assert ours.statistics("digits").value.variants == []
    ours.audit({"route": "digits", "since": "24h"})
    assert admin.seen[0].query == {"limit": "3"}
    assert admin.seen[4].query == {"route": "digits", "since": "24h"}
