"""A gateway with a rule for everything that can be ruled, and where to look for what got out."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Final

import redis
from onnx import helper

from gateway.demo.redis_server import RedisServer
from tests.support.erasures import files_with
from tests.support.gateway import GatewayProcess
from tests.support.models import write_fake, write_graph, write_identity
from tests.support.privacy import MASTER_KEY, write_keys
from tests.support.transports import Ask, Given

COLUMNS: Final = ("gone", "round", "open")
STEP: Final = 1_000.0
OVERS: Final = ("full", "statistics", "thumbnail", "reference", "truncate")
RULES: Final = ("none", "drop", "hash", "seal")
MAX_BYTES: Final = 512
FAILS_ON: Final = 5_432.125
"""The model `failing` fails for it."""
_LARGE: Final = 60
"""Times that a tensor is repeated to be over the limit."""
_SECRET_PLACES: Final = ("keys", "master", "models", "sluice.toml")


@dataclass(slots=True)
class Markers:
    """Values that may stand nowhere, all different, in the forms in which they might."""

    needles: list[bytes] = field(default_factory=list)
    kept: list[bytes] = field(default_factory=list)
    """That have to stand somewhere: else the search would find nothing whatever happened."""
    _count: int = 0

    def text(self) -> bytes:
        """Return a text that may stand nowhere."""
        self._count += 1
        made = b"MARK-%d-of-somebody" % self._count
        self.needles.append(made)
        return made

    def number(self) -> float:
        """Return a number that may stand nowhere: as FP64, or as text."""
        self._count += 1
        made = 7_654_321.0 + self._count * 1_003 + 0.123456789
        self.needles += (struct.pack("<d", made), repr(made).encode())
        return made

    def open_number(self) -> float:
        """Return a number that is to be found."""
        self._count += 1
        made = 1_234.56789 + self._count
        self.kept.append(struct.pack("<d", made))
        return made


@dataclass(frozen=True, slots=True)
class PrivacySite:
    """A folder for gateways, and their Redis."""

    folder: Path
    server: RedisServer
    redis_folder: Path

    def prepare(self) -> None:
        """Write models and keys."""
        models = self.folder / "models"
        write_identity(models / "text" / "1" / "model.onnx", "BYTES", [1])
        write_identity(models / "table" / "1" / "model.onnx", "FP64", [len(COLUMNS)])
        write_graph(
            models / "both" / "1" / "model.onnx",
            nodes=[
                helper.make_node("Identity", ["x"], ["y"]),
                helper.make_node("Identity", ["who"], ["echo"]),
            ],
            inputs={"x": ("BYTES", ["rows", 1]), "who": ("BYTES", ["rows", 1])},
            outputs={"y": ("BYTES", ["rows", 1]), "echo": ("BYTES", ["rows", 1])},
        )
        write_fake(models / "failing" / "1" / "model.json", fail_on=FAILS_ON)
        write_keys(self.folder / "keys")
        (self.folder / "master").write_text(MASTER_KEY.hex() + "\n")
        (self.folder / "master").chmod(0o600)

    def config(self, subject: str, **settings: object) -> dict[str, Any]:  # Any: TOML
        """Return a configuration: a route for each rule and way to reduce large tensors.

        `settings` are of the server, but for `queue_bytes`, of the capture.
        """
        queue_bytes = settings.pop("queue_bytes", 64 << 20)
        names: dict[str, Any] = {  # Any: TOML
            "failing": {"features": {"x": {"bucket": STEP}}},
            "both": {"features": {"x": "seal", "y": "hash"}},
        }
        routes: dict[str, Any] = {}  # Any: TOML
        for rule, over in product(RULES, OVERS):
            rules = {} if rule == "none" else {"x": rule, "y": rule}
            capture = {"x": over, "y": over}
            names[f"text-{rule}-{over}"] = {"features": rules, "capture": capture}
            routes[f"text-{rule}-{over}"] = _route("text")
        of_columns: dict[str, Any] = {}  # Any: TOML
        for tensor in "xy":
            of_columns |= {f"{tensor}.gone": "drop", f"{tensor}.round": {"bucket": STEP}}
        tables = {"drop": "drop", "seal": "seal", "columns": None, "hash": "hash"}
        for (rule, action), over in product(tables.items(), OVERS):
            of_name: dict[str, Any] = {"capture": {"x": over, "y": over}}  # Any: TOML
            of_name["columns"] = {"x": COLUMNS, "y": COLUMNS} if rule == "columns" else {}
            of_name["features"] = of_columns if rule == "columns" else {"x": action, "y": action}
            names[f"table-{rule}-{over}"] = of_name
            routes[f"table-{rule}-{over}"] = _route("table")
        spool = {"segment_bytes": 1 << 20, "max_bytes": 64 << 20, "min_free_bytes": 0}
        return {
            "redis": {"url": self.server.url},
            "server": {"replica": "gw-1", **settings},
            "models": {"repository": str(self.folder / "models"), "intra_op_threads": 1},
            "prediction_log": {
                "linger_ms": 1,
                "spool": spool,
                "capture": {
                    "max_bytes": MAX_BYTES,
                    "full_share": 1.0,
                    "queue_bytes": queue_bytes,
                },
                "privacy": {
                    "subject": subject,
                    "key_file": "../keys",
                    "master_key_file": "../master",
                },
                "names": names,
            },
            "routes": routes,
        }

    def serve(self, subject: str, **settings: object) -> GatewayProcess:
        """Start a gateway; wait for it with `with`."""
        return GatewayProcess(self.config(subject, **settings), self.folder / "gw")

    def server_saves(self) -> None:
        """Have Redis write its memory into a file."""
        with redis.Redis.from_url(self.server.url, protocol=2) as client:
            client.save()

    def found(self, needles: list[bytes]) -> list[str]:
        """Return where one of the needles stands: files of the gateway and of Redis."""
        folders = self.folder / "gw", self.redis_folder
        found = [one for folder in folders for one in files_with(folder, needles)]
        return [one for one in found if not one.startswith(_SECRET_PLACES)]


def _route(model: str) -> dict[str, Any]:  # Any: TOML
    version = {"model": model, "version": "1"}
    limits = {"queue_items": 1_000, "deadline_ms": 20_000}
    return {
        "variants": {"stable": {**version, "weight": 100}},
        "shadows": {"next": {**version, "sample": 100, "limits": limits}},
    }


def asks(markers: Markers, who: Mapping[str, Any]) -> Iterator[Ask]:  # Any: fields of an Ask
    """Yield calls of every route, small and large, and calls that are refused."""
    for rule, over in product(RULES, OVERS):
        for times in (1, _LARGE):
            elements = [markers.text()] * times
            yield _ask(f"text-{rule}-{over}", "BYTES", (times, 1), elements, who)
    for rule, over in product(("drop", "seal", "columns", "hash"), OVERS):
        for times in (1, _LARGE):
            is_open = rule == "columns" and (times == 1 or over in ("full", "reference"))
            last = markers.open_number() if is_open else 2.5
            row = [markers.number(), markers.number(), last if rule == "columns" else 2.5]
            name = f"table-{rule}-{over}"
            yield _ask(name, "FP64", (times, len(COLUMNS)), row * times, who)
    yield from _refused(markers, who)


def _refused(markers: Markers, who: Mapping[str, Any]) -> Iterator[Ask]:  # Any: as above
    text, name = markers.text, "table-columns-full"
    yield _ask(name, "BYTES", (1, 3), [text(), text(), text()], who)
    yield _ask(name, "FP64", (1, 4), [markers.number() for _ in range(4)], who)
    yield _ask(name, "FP64", (4,), [markers.number() for _ in range(4)], who)
    yield _ask("table-hash-full", "FP64", (2, 3), [markers.number() for _ in range(5)], who)
    yield _ask("table-seal-full", "FP64", (1, 2), [markers.number() for _ in range(2)], who)
    yield _ask("text-hash-full", "BYTES", (3, 1), [text(), text()], who)
    yield _ask("text-seal-truncate", "BYTES", (9, 1), [text()] * _LARGE, who)
    markers.needles.append(struct.pack("<f", FAILS_ON))
    yield _ask("failing", "FP32", (1, 4), [FAILS_ON, 1.0, 2.0, 3.0], who)
    note = Given(name="note", datatype="BYTES", shape=(1, 1), elements=[text()])
    yield _with(_ask("text-none-full", "BYTES", (1, 1), [text()], who), note)
    yield _with(_ask(name, "FP64", (1, 3), [markers.number(), markers.number(), 0.5], who), note)


def _ask(
    model: str, datatype: str, shape: tuple[int, ...], elements: list[Any], who: Mapping[str, Any]
) -> Ask:  # Any: elements of any datatype, fields of an Ask
    given = Given(name="x", datatype=datatype, shape=shape, elements=elements)
    return _with(Ask(model=model, inputs=(given,), **who))


def _with(ask: Ask, *more: Given) -> Ask:
    return replace(ask, inputs=(*ask.inputs, *more))
