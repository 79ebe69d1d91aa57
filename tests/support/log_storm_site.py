"""The gateway that a storm (log_storm.py) comes over: its models and routes, and what is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from tests.support.gateway import free_port
from tests.support.models import write_fake
from tests.support.transports import Ask, Given
from tests.support.witness import OK

WIDTH: Final = 64
BAD: Final = 14.0
INVALID: Final = (400, "INVALID_ARGUMENT")
PROMISES: Final = (*OK, *INVALID)
NAMES: Final = ("split", "wide", "quiet")


def ask(name: str, *elements: float) -> Ask:
    """Return a call with one row."""
    row = Given(name="x", datatype="FP32", shape=(1, len(elements)), elements=elements)
    return Ask(model=name, inputs=(row,))


GOOD_ASK: Final = ask("split", 1.0, 2.0, 3.0, 4.0)
BAD_ASK: Final = ask("split", 1.0, BAD, 3.0, 4.0)
WIDE_ASK: Final = ask("wide", *(float(n) for n in range(1, WIDTH + 1)))
QUIET_ASK: Final = ask("quiet", 4.0, 3.0, 2.0, 1.0)


def configuration(folder: Path, url: str, **settings: object) -> dict[str, Any]:  # Any: TOML
    """Write the models, and return the configuration of the gateway."""
    for version in (1, 2):
        write_fake(folder / "models" / "echo" / str(version) / "model.json", bad_on=BAD)
    wide = [{"name": tensor, "datatype": "FP32", "shape": [-1, WIDTH]} for tensor in ("x", "y")]
    path = folder / "models" / "wider" / "1" / "model.json"
    write_fake(path, inputs=wide[:1], outputs=wide[1:])
    listeners = ("http", "grpc", "metrics", "admin")
    server: dict[str, Any] = {name: f"127.0.0.1:{free_port()}" for name in listeners}
    split = {
        "stable": {"model": "echo", "version": "1", "weight": 70},
        "canary": {"model": "echo", "version": "2", "weight": 30},
    }
    only = {"stable": {"model": "echo", "version": "1", "weight": 100}}
    large = {"stable": {"model": "wider", "version": "1", "weight": 100}}
    shadow = {"model": "echo", "version": "2", "sample": 50}
    log = {
        "spool": {"segment_bytes": 256 << 10, "max_bytes": 512 << 20, "min_free_bytes": 0},
        "capture": {"max_bytes": 128, "full_share": 0.3},
        "audit_s": 1.0,
        "timeout_s": 1.0,
        "shutdown_s": 2.0,
    }
    return {
        "server": {**server, "replica": "gw-1"},
        "redis": {"url": url},
        "prediction_log": {**log, **settings},
        "routes": {
            "split": {"variants": split, "shadows": {"next": shadow}},
            "wide": {"variants": large},
            "quiet": {"variants": only},
        },
    }
