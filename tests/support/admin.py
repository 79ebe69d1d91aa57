"""Gateways whose routes are changed in tests, and a client that holds every answer to its word.

The repository: model `digits` with the alike versions 1, 2 and 3 (a row of four comes back; a batch
that holds FAIL_ON fails), version 4 whose file is broken, and version 5 that wants another input;
model `spare`, alike too, for tests that unload one; model `wreck`, whose only version is broken.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx

from tests.support.gateway import Document, GatewayInProcess, LoopThread
from tests.support.models import write_fake
from tests.support.openapi import Contract, description

BROKEN: Final = "4"
OTHER_INPUTS: Final = "5"
KEY: Final = "x-user-id"
REASON: Final = "because the test wants it"
MERGE_PATCH: Final = "application/merge-patch+json"
CONTROL: Final = {"poll_ms": 50}
"""A gateway looks at its store 20 times a second: nobody waits for what it hears no hint of."""
FAIL_ON: Final = 13.0
_ROW: Final = {"name": "x", "datatype": "FP32", "shape": [1, 4]}
_names = count(1)
Json = Any  # Any: a JSON document


def write_repository(root: Path) -> Path:
    """Write the repository and return its folder."""
    for version in ("1", "2", "3"):
        write_fake(root / "digits" / version / "model.json", fail_on=FAIL_ON)
    write_fake(root / "spare" / "1" / "model.json")
    for broken in (root / "digits" / BROKEN, root / "wreck" / "1"):
        broken.mkdir(parents=True)
        (broken / "model.json").write_text("this is no JSON")
    other = [{"name": "pixels", "datatype": "FP32", "shape": [-1, 4]}]
    write_fake(root / "digits" / OTHER_INPUTS / "model.json", inputs=other)
    return root


def variants(**weights: float) -> Json:
    """Return variants of digits: the first has version 1, the second version 2 ..."""
    return {
        name: {"model": "digits", "version": str(number), "weight": weight}
        for number, (name, weight) in enumerate(weights.items(), 1)
    }


class Admin:
    """A client of one gateway.

    Every exchange is held against the description of the API, unless `is_checked` is false: for
    those that no description allows.
    """

    def __init__(
        self, gateway: GatewayInProcess, *, key: str = "", contract: Contract | None = None
    ) -> None:
        self.gateway = gateway
        self.contract = contract or Contract(description())
        self.is_checked = True
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.Client(
            base_url=f"http://{gateway.at.admin}",
            headers=headers,
            event_hooks={"response": [self._check]},
            timeout=20,
        )
        self.predict = httpx.Client(base_url=f"http://{gateway.at.http}", timeout=20)

    def _check(self, response: httpx.Response) -> None:
        if self.is_checked:
            self.contract.check(response)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.http.close()
        self.predict.close()

    def get(self, path: str, **query: str | int) -> Json:
        """Return what a GET answers; it must be 200."""
        answer = self.http.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def of(self, name: str, what: str = "", **query: str | int) -> Json:
        """Return what a route answers: itself, or its stats, revisions ..."""
        return self.get(f"/v1/routes/{name}" + (f"/{what}" if what else ""), **query)

    def etag(self, name: str) -> str:
        """Return a route's tag."""
        return self.http.get(f"/v1/routes/{name}").headers["etag"]

    def send(
        self,
        method: str,
        path: str,
        body: Json = None,
        *,
        reason: str | bytes = REASON,
        headers: Mapping[str, str | bytes] | None = None,
    ) -> httpx.Response:
        """Send a write as it stands, with nothing but a reason and a content type added.

        The path begins with the route's name and may end with a query.
        """
        kind = MERGE_PATCH if method == "PATCH" else "application/json"
        lines: dict[str, str | bytes] = {"content-type": kind} if body is not None else {}
        lines |= {"x-reason": reason} if reason else {}
        lines |= headers or {}
        raw = [
            (key.encode(), value.encode() if isinstance(value, str) else value)
            for key, value in lines.items()
        ]
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        return self.http.request(method, f"/v1/routes/{path}", content=content, headers=raw)

    def write(
        self,
        method: str,
        path: str,
        body: Json = None,
        *,
        headers: Mapping[str, str | bytes] | None = None,
    ) -> httpx.Response:
        """Send a write to the route's current revision."""
        tag = {"if-match": self.etag(re.split("[:?]", path)[0])}
        return self.send(method, path, body, headers={**tag, **(headers or {})})

    def verb(self, name: str, verb: str, body: Json = None) -> Json:
        """Carry a verb out on the current revision and return its answer; it must be 200."""
        answer = self.write("POST", f"{name}:{verb}", body or {})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def patch(self, path: str, body: Json) -> Json:
        """Patch the current revision and return the answer; it must be 200."""
        answer = self.write("PATCH", path, body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def create(self, name: str = "", **fields: Json) -> str:
        """Create a route, 90/10 by header if nothing else is said, and return its name."""
        name = name or f"route-{next(_names)}"
        body = {"key": [f"header:{KEY}"], "variants": variants(stable=90, canary=10)} | fields
        answer = self.send("PUT", name, body, headers={"if-none-match": "*"})
        assert answer.status_code == 201, answer.text
        return name

    def infer(
        self,
        name: str,
        key: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        parameters: Mapping[str, Json] | None = None,
        value: float = 1.0,
    ) -> httpx.Response:
        """Send one row to a route; headers as UTF-8."""
        lines = ({KEY: key} if key else {}) | dict(headers or {})
        raw = [(name.encode(), text.encode()) for name, text in lines.items()]
        body = {"inputs": [{**_ROW, "data": [value] * 4}], "parameters": dict(parameters or {})}
        return self.predict.post(f"/v2/models/{name}/infer", json=body, headers=raw)

    def shares(self, name: str, keys: int) -> dict[str, int]:
        """Send one request for each of some keys and return how many each variant answered."""
        found: dict[str, int] = {}
        for number in range(keys):
            answer = self.infer(name, f"user-{number}")
            assert answer.status_code == 200, answer.text
            variant = answer.headers["x-sluice-variant"]
            found[variant] = found.get(variant, 0) + 1
        return found


@contextmanager
def administered(
    loop: LoopThread, root: Path, config: Document, *, key: str = ""
) -> Iterator[Admin]:
    """Serve the repository and connect to it for the length of a block."""
    control = {**CONTROL, **config.get("control", {})}
    gateway = GatewayInProcess(loop, {**config, "control": control}, root)
    try:
        with Admin(gateway, key=key) as admin:
            yield admin
    finally:
        gateway.stop()
