"""An HTTP server that answers from a table: the admin API as the command line's unit tests see it.

A real socket and real HTTP, but no gateway: what the gateway itself answers is tested elsewhere.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

Json = Any  # Any: JSON


@dataclass(frozen=True, slots=True)
class Scripted:
    """One answer; bytes go out as they are, everything else as JSON."""

    body: Json
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def raw(self) -> bytes:
        """The body's bytes."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One request as it came."""

    line: str
    """Method and path, without the query."""
    query: dict[str, str]
    headers: dict[str, str]
    """Names in lower case; values as UTF-8."""
    body: Json
    """None: there was none."""


class ScriptedAdmin:
    """What is answered to which request, and what came."""

    def __init__(self) -> None:
        self.url = ""
        self.seen: list[Seen] = []
        self._answers: dict[str, list[Scripted]] = {}

    def on(self, line: str, *answers: Scripted | Json) -> None:
        """Script the answers to a request such as "GET /v1/routes"; the last one is repeated."""
        self._answers[line] = [a if isinstance(a, Scripted) else Scripted(a) for a in answers]

    def answer(self, seen: Seen) -> Scripted:
        """Return the next answer to a request."""
        self.seen.append(seen)
        left = self._answers.get(seen.line)
        if not left:
            return Scripted({"error": f"the test has no answer to {seen.line}"}, 500)
        return left.pop(0) if len(left) > 1 else left[0]

    @property
    def lines(self) -> list[str]:
        """Every request so far, by method and path."""
        return [seen.line for seen in self.seen]

    @property
    def writes(self) -> list[Seen]:
        """Every request so far that could change something."""
        return [seen for seen in self.seen if not seen.line.startswith("GET ")]


@contextmanager
def scripted_admin() -> Iterator[ScriptedAdmin]:
    """Serve a script on a free port of the loopback."""
    script = ScriptedAdmin()

    class Exchange(BaseHTTPRequestHandler):
        def _exchange(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            raw = self.rfile.read(length)
            parts = urlsplit(self.path)
            values = {k.lower(): v.encode("latin-1").decode() for k, v in self.headers.items()}
            answer = script.answer(
                Seen(
                    line=f"{self.command} {unquote(parts.path)}",
                    query=dict(parse_qsl(parts.query, keep_blank_values=True)),
                    headers=values,
                    body=json.loads(raw) if raw else None,
                )
            )
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(answer.raw)))
            self.end_headers()
            self.wfile.write(answer.raw)

        do_GET = do_PUT = do_POST = do_DELETE = _exchange  # noqa: N815 - names of the protocol

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Exchange)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


AT: Final = "2026-11-21T11:00:00.123Z"


def document(revision: int = 42, **fields: Json) -> dict[str, Json]:
    """Return a route document: stable and canary, 90 to 10."""
    canary = fields.pop("canary", 10)
    return {
        "name": "digits",
        "revision": revision,
        "generation": 1,
        "kind": "rollout",
        "salt": "digits",
        "key": ["header:x-user-id", "parameter:user"],
        "missing_key": "random",
        "stable": "stable",
        "variants": {
            "stable": {"model": "digits", "version": "1", "weight": 100 - canary},
            "canary": {"model": "digits", "version": "2", "weight": canary},
        },
        "rules": [],
        "shadows": {},
        "fallback": None,
        "rollback_window_s": 3600,
        "derived": {"slots": [], "epoch": revision, "carryover": [], "warm": []},
        "meta": {
            "reason": "more canary",
            "actor": "ann",
            "verb": "setWeights",
            "created_at": AT,
            "parent": revision - 1,
            "digest": f"{revision:064x}",
        },
    } | fields


def written(revision: int = 43, **fields: Json) -> dict[str, Json]:
    """Return the answer to a write that gave the canary 20 percent."""
    return {
        "document": document(revision, canary=20),
        "changed": True,
        "moved_share_percent": 10.0,
        "diff": [
            {"path": "/variants/canary/weight", "from": 10, "to": 20},
            {"path": "/variants/stable/weight", "from": 90, "to": 80},
        ],
        "loads": [],
        "dry_run": False,
    } | fields


def convergence(*revisions: int, wanted: int = 43, **fields: Json) -> dict[str, Json]:
    """Return the convergence of replicas a, b, ... that are at some revisions."""
    rows = [
        {
            "replica": name,
            "revision": revision,
            "generation": 1,
            "digest": f"{revision:064x}",
            "pending": "" if revision >= wanted else "loading digits/2",
            "age_s": 0.4,
            "converged": revision >= wanted,
        }
        for name, revision in zip("abcdef", revisions, strict=False)
    ]
    return {
        "route": "digits",
        "revision": wanted,
        "generation": 1,
        "digest": f"{wanted:064x}",
        "converged": all(revision >= wanted for revision in revisions),
        "replicas": rows,
    } | fields
