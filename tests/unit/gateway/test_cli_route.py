"""`sluice route`: how it finds the gateway, its exit codes, and the commands that only look.

Against a real HTTP server that answers from a table; the gateway itself is not here.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.main import run
from gateway.cli.route_session import wants_colours
from tests.support.admin_script import (
    Scripted,
    ScriptedAdmin,
    convergence,
    document,
    scripted_admin,
)
from tests.support.gateway import free_port

Json = Any  # Any: JSON
ROUTE = "GET /v1/routes/digits"
LIST = "GET /v1/routes"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in an empty folder, with none of the variables that the commands read."""
    monkeypatch.chdir(tmp_path)
    for name in ("SLUICE_ADMIN", "SLUICE_TOKEN", "SLUICE_ACTOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedAdmin]:
    """Return a scripted admin API that SLUICE_ADMIN names."""
    with scripted_admin() as script:
        monkeypatch.setenv("SLUICE_ADMIN", script.url)
        yield script


def test_without_a_hint_it_is_the_default_port(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gateway.cli.route_session.DEFAULT_ADMIN", f"127.0.0.1:{free_port()}")
    assert run(["route", "list"]) == 1
    assert capsys.readouterr().err.startswith("sluice: cannot reach http://127.0.0.1:")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_configuration_in_the_folder_says_where_the_gateway_is(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scripted_admin() as script:
        script.on(LIST, {"routes": []})
        port = script.url.rpartition(":")[2]
        Path("sluice.toml").write_text(f'[server]\nadmin = "{host}:{port}"\n')
        assert run(["route", "list"]) == 0
        Path("sluice.toml").rename("other.toml")
        assert run(["route", "list", "--config", "other.toml"]) == 0
        monkeypatch.setenv("SLUICE__SERVER__ADMIN", f"127.0.0.1:{free_port()}")
        assert run(["route", "list", "--config", "other.toml"]) == 1


def test_an_argument_wins_over_the_environment_and_that_over_the_configuration(
    admin: ScriptedAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin.on(LIST, {"routes": []})
    Path("sluice.toml").write_text("this is no configuration")
    assert run(["route", "list"]) == 0
    monkeypatch.setenv("SLUICE_ADMIN", f"http://127.0.0.1:{free_port()}")
    assert run(["route", "list"]) == 1
    assert run(["route", "list", "--admin", admin.url]) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config", "none.toml"], "none.toml: $: cannot read none.toml: No such file"),
        (["--admin", "ftp://x"], "--admin: 'ftp://x' is neither"),
        (["--token", "a\nb"], "--token: a token is printable ASCII"),
    ],
)
def test_a_gateway_that_cannot_be_named_is_exit_code_two(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["route", "list", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"sluice: {sentence}")


def test_the_token_comes_from_the_argument_or_the_environment(
    admin: ScriptedAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin.on(LIST, {"routes": []})
    run(["route", "list"])
    monkeypatch.setenv("SLUICE_TOKEN", "from-the-environment")
    run(["route", "list"])
    run(["route", "list", "--token", "given"])
    assert [seen.headers.get("authorization") for seen in admin.seen] == [
        None,
        "Bearer from-the-environment",
        "Bearer given",
    ]


@pytest.mark.parametrize(
    ("status", "code"),
    [(500, 1), (503, 1), (400, 3), (422, 3), (404, 4), (409, 5), (412, 5), (428, 5), (401, 7)],
)
def test_exit_codes_say_what_kind_of_no_it_was(
    admin: ScriptedAdmin, status: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    admin.on(ROUTE, Scripted({"error": "because"}, status))
    assert run(["route", "get", "digits"]) == code
    captured = capsys.readouterr()
    assert captured.err == "sluice: because\n"
    assert captured.out == ""


def test_with_json_an_error_is_a_document_too(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    admin.on(ROUTE, Scripted({"error": "because"}, 404))
    assert run(["route", "get", "digits", "--json"]) == 4
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"error": "because"}
    assert captured.err == "sluice: because\n"


def test_a_sentence_of_the_gateway_cannot_move_the_cursor(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    admin.on(ROUTE, Scripted({"error": "no \x1b[2J"}, 404))
    run(["route", "get", "digits"])
    assert capsys.readouterr().err == "sluice: no \\x1b[2J\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["get"],
        ["list", "digits"],
        ["get", "digits", "--interval", "0"],
        ["list", "--timeout", "soon"],
        ["history", "digits", "--limit", "0"],
        ["history", "digits", "--limit", "-1"],
        ["set-weight", "digits"],
        ["set-weight", "digits", "canary"],
        ["set-weight", "digits", "canary=much"],
        ["set-weight", "digits", "canary=nan"],
        ["set-weight", "digits", "=20"],
        ["set-weight", "digits", "a=1", "--revision", "1", "--if-match", "g1-1"],
        ["set-weight", "digits", "a=1", "--reseed", "--accept-carryover"],
        ["set-weight", "digits", "a=1", "--if-match", "42"],
        ["set-weight", "digits", "a=1", "--wait", "-1"],
        ["abort", "digits", "--revision", "4"],
        ["undo", "digits", "--to-revision", "x"],
        ["explain", "digits", "--header", "x-user-id"],
        ["apply"],
        ["diff", "digits", "a", "b"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_exit_code_two(
    arguments: list[str], admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(["route", *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: sluice ")
    assert admin.seen == []


def test_a_name_that_is_no_unicode_is_exit_code_two(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["route", "get", "\udc80"]) == 2
    assert "no Unicode text" in capsys.readouterr().err
    assert admin.seen == []


def test_routes_are_listed_as_a_table_or_as_the_gateway_says_it(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = json.dumps({"routes": [document()]}, indent=1)
    admin.on(LIST, Scripted(raw.encode()))
    assert run(["route", "list"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line == "digits        42  rollout  stable 90 %, canary 10 %  stable"
    assert run(["route", "list", "--json"]) == 0
    assert capsys.readouterr().out == raw + "\n"


def test_a_route_is_shown_with_its_numbers_and_replicas(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"revision": 42, "variant": "canary", "requests": 7, "share_percent": 9.5}
    admin.on(ROUTE, document())
    admin.on(f"{ROUTE}/stats", {"route": "digits", "epoch": 1, "variants": [row]})
    admin.on(f"{ROUTE}/convergence", Scripted({"error": "the store is down"}, 503))
    assert run(["route", "get", "digits"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("digits: revision 42, rollout, stable is stable\n")
    assert "9.50 %" in out
    assert out.endswith("replicas: not known (the store is down)\n")


def test_the_json_of_a_route_is_its_document_alone(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    admin.on(ROUTE, document())
    assert run(["route", "get", "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == document()
    assert admin.lines == [ROUTE]


def watched(arguments: list[str]) -> int:
    return run(["route", "get", "digits", "-w", "--interval", "0.005", *arguments])


def test_a_watched_route_is_drawn_again_only_when_it_changed(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = Scripted({"error": "there is no route 'digits'"}, 404)
    admin.on(ROUTE, document(42), document(42), document(43), document(43), gone)
    admin.on(f"{ROUTE}/stats", {"route": "digits", "epoch": 1, "variants": []})
    admin.on(f"{ROUTE}/convergence", convergence(42, wanted=42))
    assert watched([]) == 4
    captured = capsys.readouterr()
    drawn = [line for line in captured.out.splitlines() if line.startswith("digits: revision")]
    assert [line[:19] for line in drawn] == ["digits: revision 42", "digits: revision 43"]
    assert captured.err == "sluice: there is no route 'digits'\n"


def test_a_watched_route_as_json_is_a_line_per_change(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = Scripted({"error": "gone"}, 404)
    admin.on(ROUTE, document(42), document(42), document(43), gone)
    assert watched(["--json"]) == 4
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [document(42), document(43), {"error": "gone"}]


def test_a_watch_survives_a_gateway_that_restarts(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    down = Scripted({"error": "the server is shutting down"}, 503)
    gone = Scripted({"error": "gone"}, 404)
    admin.on(ROUTE, document(), down, down, document(), gone)
    assert watched(["--json"]) == 4
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 3
    assert captured.err == "sluice: the server is shutting down; trying again\nsluice: gone\n"


def test_ctrl_c_ends_a_watch(admin: ScriptedAdmin, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = threading.Event()

    def interrupted(_: float) -> None:
        looked.set()
        raise KeyboardInterrupt

    admin.on(ROUTE, document())
    monkeypatch.setattr("time.sleep", interrupted)
    assert watched(["--json"]) == 130
    assert looked.is_set()


def test_explain_sends_the_facts_and_says_the_sentence(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = {
        "route": "digits",
        "revision": 42,
        "key": "user-1",
        "slot": 292417,
        "reason": "slot",
        "variant": "stable",
        "served": "stable",
        "model": "digits",
        "version": "1",
    }
    admin.on(f"{ROUTE}/explain", answer)
    facts = ["--header", "x-region=eu", "--header", "x-a=b=c", "--parameter", "user=u"]
    assert run(["route", "explain", "digits", "--key", "user-1", *facts, "--role", "tester"]) == 0
    assert admin.seen[0].query == {
        "key": "user-1",
        "header.x-region": "eu",
        "header.x-a": "b=c",
        "parameter.user": "u",
        "role": "tester",
    }
    assert capsys.readouterr().out == (
        "user-1 is in slot 292417 of revision 42: variant stable (digits 1), by its slot\n"
    )


def test_history_audit_and_differences_ask_for_what_is_wanted(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    admin.on(f"{ROUTE}/revisions", {"revisions": []})
    admin.on("GET /v1/audit", {"entries": []})
    changed = {"from": 41, "to": 42, "moved_share_percent": 0, "diff": []}
    admin.on(f"{ROUTE}/revisions/41..42", changed)
    assert run(["route", "history", "digits", "--limit", "3"]) == 0
    assert run(["route", "audit"]) == 0
    assert run(["route", "audit", "digits", "--since", "24h", "--actor", "ann"]) == 0
    assert run(["route", "diff", "digits", "41", "42"]) == 0
    assert [seen.query for seen in admin.seen] == [
        {"limit": "3"},
        {},
        {"route": "digits", "since": "24h", "actor": "ann"},
        {},
    ]
    assert capsys.readouterr().out.endswith("digits: revisions 41 and 42 do not differ\n")


@pytest.mark.parametrize(("revisions", "code"), [((43, 43), 0), ((43, 42), 6)])
def test_convergence_is_an_exit_code_too(
    admin: ScriptedAdmin, revisions: tuple[int, ...], code: int
) -> None:
    admin.on(f"{ROUTE}/convergence", convergence(*revisions))
    assert run(["route", "convergence", "digits"]) == code
    assert run(["route", "convergence", "digits", "--json"]) == code


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals_whose_user_did_not_say_no() -> None:
    assert wants_colours(Terminal(), {})
    assert wants_colours(Terminal(), {"NO_COLOR": ""})
    assert not wants_colours(Terminal(), {"NO_COLOR": "1"})
    assert not wants_colours(Terminal(), {"TERM": "dumb"})
    assert not wants_colours(io.StringIO(), {})
