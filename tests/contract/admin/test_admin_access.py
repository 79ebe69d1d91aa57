"""Who may use the admin API where it asks for keys: viewers read, operators write."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from tests.support.admin import KEY, Admin, administered, variants
from tests.support.gateway import LoopThread

_ROLES = {"olga": ["operator"], "vic": ["viewer"], "tess": ["tester"]}
READS = (
    "/v1/routes",
    "/v1/routes/mine",
    "/v1/routes/mine/revisions",
    "/v1/routes/mine/revisions/1",
    "/v1/routes/mine/explain",
    "/v1/routes/mine/convergence",
    "/v1/routes/mine/stats",
    "/v1/audit",
    "/v1/models",
)
WRITES = (
    ("PUT", "/v1/routes/mine"),
    ("PATCH", "/v1/routes/mine"),
    ("DELETE", "/v1/routes/mine"),
    *(
        ("POST", f"/v1/routes/mine:{verb}")
        for verb in ("setWeights", "promote", "abort", "undo", "restore")
    ),
    ("POST", "/v1/models/digits/load"),
    ("POST", "/v1/models/digits/unload"),
)
OPEN = ("/v1/health/live", "/v1/health/ready", "/v1/openapi.json")


@pytest.fixture(scope="module")
def guarded(loop_thread: LoopThread, digits_root: Path) -> Iterator[Admin]:
    """Connect as an operator to a gateway that asks for keys, with one route."""
    principals = {
        name: {"key_sha256": sha256(f"key of {name}".encode()).hexdigest(), "roles": roles}
        for name, roles in _ROLES.items()
    }
    config = {"control": {"auth": "token"}, "principals": principals}
    rule = {
        "name": "choice",
        "when": {"role": "tester", "header": {"x-variant": {"in": ["stable", "canary"]}}},
        "to": "$header",
    }
    with administered(loop_thread, digits_root, config, key="key of olga") as admin:
        admin.create("mine", rules=[rule], variants=variants(stable=50, canary=50))
        yield admin


def ask(admin: Admin, method: str, path: str, key: str) -> httpx.Response:
    """Send a request under a key; empty: under none."""
    with httpx.Client(base_url=admin.http.base_url) as client:
        lines = {"authorization": f"Bearer {key}"} if key else {}
        answer = client.request(method, path, headers=lines)
    admin.contract.check(answer)
    return answer


@pytest.mark.parametrize("key", ["", "key of nobody"])
def test_without_a_known_key_everything_but_health_is_401(guarded: Admin, key: str) -> None:
    for method, path in [*(("GET", path) for path in (*READS, "/v1/events")), *WRITES]:
        answer = ask(guarded, method, path, key)
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"] == "Bearer"
    assert [ask(guarded, "GET", path, key).status_code for path in OPEN] == [200, 200, 200]


def test_a_viewer_reads_and_writes_nothing(guarded: Admin) -> None:
    assert {ask(guarded, "GET", path, "key of vic").status_code for path in READS} == {200}
    before = guarded.of("mine")
    for method, path in WRITES:
        answer = ask(guarded, method, path, "key of vic")
        assert answer.status_code == 403, path
        assert "vic" in answer.json()["error"]
    assert guarded.of("mine") == before
    rows = guarded.get("/v1/models")["models"]
    assert ("digits", "1", "READY") in {(r["name"], r["version"], r["state"]) for r in rows}


def test_a_tester_is_no_viewer(guarded: Admin) -> None:
    for path in (*READS, "/v1/events"):
        assert ask(guarded, "GET", path, "key of tess").status_code == 403


def test_an_operator_writes_under_the_own_name_whatever_the_header_says(guarded: Admin) -> None:
    name = guarded.create()
    body = {"rollback_window_s": 1}
    assert guarded.write("PATCH", name, body, headers={"x-actor": "mallory"}).status_code == 200
    assert guarded.of(name)["meta"]["actor"] == "olga"
    entries = guarded.get("/v1/audit", route=name)["entries"]
    assert {(entry["actor"], entry["auth"]) for entry in entries} == {("olga", "token")}


def test_a_tester_chooses_a_variant_and_others_are_counted(guarded: Admin) -> None:
    for variant in ("stable", "canary"):
        chosen = {"x-variant": variant, "authorization": "Bearer key of tess", KEY: "u"}
        lines = guarded.infer("mine", headers=chosen).headers
        assert (lines["x-sluice-variant"], lines["x-sluice-reason"]) == (variant, "rule:choice")
        told = guarded.of(
            "mine", "explain", key="u", role="tester", **{"header.x-variant": variant}
        )
        assert (told["served"], told["rule"], told["override_ignored"]) == (
            variant,
            "choice",
            False,
        )
        ignored = guarded.infer("mine", headers={"x-variant": variant, KEY: "u"}).headers
        told = guarded.of("mine", "explain", key="u", **{"header.x-variant": variant})
        assert ignored["x-sluice-variant"] == told["served"]
        assert (ignored["x-sluice-reason"], told["override_ignored"]) == ("slot", True)
    (forced,) = {row["forced"] for row in guarded.of("mine", "stats")["variants"]}
    assert forced == 1
