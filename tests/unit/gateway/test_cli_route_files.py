"""`sluice route apply` and `diff -f`: files that become routes, and files that cannot.

Against a real HTTP server that answers from a table; the gateway itself is not here.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli.main import run
from tests.support.admin_script import (
    Scripted,
    ScriptedAdmin,
    document,
    scripted_admin,
    written,
)

ROUTE = "GET /v1/routes/digits"
PUT = "PUT /v1/routes/digits"
WHY = ["--reason", "looks good"]
NONE = Scripted({"error": "there is no route 'digits'"}, 404)


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ScriptedAdmin]:
    """Return a scripted admin API with the route digits at revision 42."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLUICE_TOKEN", raising=False)
    monkeypatch.setenv("SLUICE_ACTOR", "ann")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with scripted_admin() as script:
        monkeypatch.setenv("SLUICE_ADMIN", script.url)
        script.on(ROUTE, document(42))
        yield script


def route(*arguments: str) -> int:
    return run(["route", *arguments])


TOML = """
name = "digits"
[variants]
stable = { model = "digits", version = "1", weight = 99.9999 }
canary = { model = "digits", version = "2", weight = 0.0001 }
[[rules]]
name = "acme"
when = { tenant = "acme" }
to = "stable"
expires = 2026-12-01T00:00:00Z
"""
DECODED = {
    "name": "digits",
    "variants": {
        "stable": {"model": "digits", "version": "1", "weight": 99.9999},
        "canary": {"model": "digits", "version": "2", "weight": 0.0001},
    },
    "rules": [
        {
            "name": "acme",
            "when": {"tenant": "acme"},
            "to": "stable",
            "expires": "2026-12-01T00:00:00Z",
        }
    ],
}


def test_a_file_replaces_the_revision_that_was_read(admin: ScriptedAdmin) -> None:
    Path("route.toml").write_text(TOML)
    admin.on(PUT, written(43))
    assert route("apply", "-f", "route.toml", *WHY) == 0
    assert admin.lines == [ROUTE, PUT]
    assert admin.seen[1].body == DECODED
    assert admin.seen[1].headers["if-match"] == '"g1-42"'
    assert "if-none-match" not in admin.seen[1].headers


def test_a_file_creates_a_route_that_is_not_there(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("route").write_text(json.dumps(DECODED))
    admin.on(ROUTE, NONE)
    created = document(1)
    created["meta"] |= {"verb": "create", "parent": 0}
    admin.on(PUT, Scripted(written(1, document=created), 201))
    assert route("apply", "-f", "route", *WHY) == 0
    assert admin.writes[0].headers["if-none-match"] == "*"
    assert "if-match" not in admin.writes[0].headers
    assert capsys.readouterr().out.startswith("digits: created at revision 1\n")
    assert route("apply", "-f", "route", *WHY, "--revision", "3") == 4


def test_a_route_that_appeared_meanwhile_is_not_replaced(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("route.toml").write_text(TOML)
    admin.on(ROUTE, NONE)
    admin.on(PUT, Scripted({"error": "exists", "current": document(1)}, 412))
    assert route("apply", "-f", "route.toml", *WHY) == 5
    assert capsys.readouterr().err.startswith("sluice: digits exists by now\n")


def test_applying_what_is_in_force_is_fine(
    admin: ScriptedAdmin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(json.dumps(document(42)).encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    unchanged = written(42, changed=False, moved_share_percent=0, diff=[])
    admin.on(PUT, unchanged)
    assert route("apply", "-f", "-", *WHY) == 0
    assert admin.writes[0].body == document(42)
    assert capsys.readouterr().out == "digits: unchanged at revision 42\n"


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("route.toml", b"name = ", "route.toml: Invalid value"),
        ("route.toml", b"\xff", "route.toml: 'utf-8' codec can't decode"),
        ("route.toml", b"kind = 'rollout'", "route.toml is no route document: it has no 'name'"),
        ("route.json", b"[]", "route.json is no route document: it has no 'name'"),
        ("route.json", b'{"name": ""}', "route.json is no route document: it has no 'name'"),
        ("route.json", b'{"name": ', "route.json: Expecting value"),
        ("route", b'{"name": "x", "name": "y"}', "route: the key 'name' is there twice"),
    ],
)
def test_a_file_that_is_no_route_document_is_exit_code_three(
    admin: ScriptedAdmin,
    name: str,
    text: bytes,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path(name).write_bytes(text)
    assert route("apply", "-f", name, *WHY) == 3
    assert capsys.readouterr().err.startswith(f"sluice: {sentence}")
    assert admin.seen == []


def test_a_file_is_compared_with_what_is_in_force_by_a_dry_run(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("route.toml").write_text(TOML)
    admin.on(PUT, written(43, dry_run=True))
    assert route("diff", "-f", "route.toml") == 0
    assert admin.writes[0].query == {"dry_run": "true"}
    assert admin.writes[0].headers["if-match"] == '"g1-42"'
    assert capsys.readouterr().out.startswith("dry run, nothing is changed: digits: revision 42")
