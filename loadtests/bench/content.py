"""What the measured servers serve: a model repository, routes and the prediction log's settings.

  tiny 1, 2   30-64-3: next to nothing to compute
  mid 1       256-1024-1024-1024-10
  image 1     the channel means of 3x224x224
Routes: `split` (tiny 90/10 over versions 1 and 2), `alone` (tiny 1), `mid-route`, `image-route`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtests.bench import models
from loadtests.bench.cases import Asked, ModelName

KEY_HEADER: Final = "x-user-id"
MAX_BATCH_SIZE: Final = 64
LOG_ENTRIES: Final = 100_000
"""Kept per stream: a long run does not fill the machine's memory."""
SHAPES: Final[Mapping[ModelName, tuple[int, ...]]] = {
    "tiny": (models.TINY[0],),
    "mid": (models.MEDIUM[0],),
    "image": models.IMAGE,
}
_SPLITS: Final = {
    "split": (("stable", "tiny", "1", 90), ("canary", "tiny", "2", 10)),
    "alone": (("stable", "tiny", "1", 100),),
    "mid-route": (("stable", "mid", "1", 100),),
    "image-route": (("stable", "image", "1", 100),),
}
_ROUTES: Final[Mapping[tuple[ModelName, Asked], str]] = {
    ("tiny", "split"): "split",
    ("tiny", "route"): "alone",
    ("mid", "route"): "mid-route",
    ("image", "route"): "image-route",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A public name, and a version where one is asked for."""

    name: str
    version: str = ""

    @property
    def path(self) -> str:
        """Of its resource on the predict listener."""
        return f"/v2/models/{self.name}" + (f"/versions/{self.version}" if self.version else "")


def target(model: ModelName, asked: Asked) -> Target:
    """Return what a case asks for; raises KeyError for a way that the model is not served in."""
    if asked == "version":
        return Target(name=model, version="1")
    return Target(name=_ROUTES[model, asked])


def write_models(root: Path, *, threads: int) -> None:
    """Fill a model repository with what the cases ask for."""
    for version, seed in (("1", 1), ("2", 2)):
        models.write_mlp(model_file(root, "tiny", version), models.TINY, seed=seed)
    models.write_mlp(model_file(root, "mid"), models.MEDIUM, seed=3)
    models.write_channel_means(model_file(root, "image"))
    for name in SHAPES:
        models.write_config(
            root / name, max_batch_size=MAX_BATCH_SIZE, is_batched=True, threads=threads
        )


def model_file(root: Path, model: ModelName, version: str = "1") -> Path:
    """Return where the ONNX file of a version lies."""
    return root / model / version / "model.onnx"


def tables() -> str:
    """Return the routes and the prediction log's settings, as TOML."""
    lines = ["[prediction_log]", f"retention.max_entries = {LOG_ENTRIES}"]
    for route, variants in _SPLITS.items():
        lines += [f"[routes.{route}]", f'key = ["header:{KEY_HEADER}"]']
        lines.append(f"[routes.{route}.variants]")
        for variant, model, version, weight in variants:
            settings = f"model = {json.dumps(model)}, version = {json.dumps(version)}"
            lines.append(f"{variant} = {{ {settings}, weight = {weight} }}")
    return "\n".join(lines) + "\n"
