"""Model folders with a config.pbtxt, for tests that read them. Model files may be empty."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Protocol

import pytest

from gateway.config import ModelsConfig
from gateway.model_config import ModelConfigs
from gateway.model_config.read import ConfiguredSpec

MODEL: Final = "digits"


class ReadModel(Protocol):
    """`read_model` with its root bound."""

    def __call__(
        self,
        text: str | bytes | None,
        *,
        settings: ModelsConfig | None = None,
        file: str = "model.onnx",
        usable_cores: int = 4,
    ) -> ConfiguredSpec:
        """Write and read the folder."""


def write_model(root: Path, text: str | bytes | None, *, file: str = "model.onnx") -> Path:
    """Write the model `digits` with versions 1 and 2; `text` is its config.pbtxt, None: no file."""
    directory = root / MODEL
    for version in ("1", "2"):
        (directory / version).mkdir(parents=True)
        (directory / version / file).touch()
    if text is not None:
        data = text if isinstance(text, bytes) else text.encode()
        (directory / "config.pbtxt").write_bytes(data)
    return directory


def read_model(
    root: Path,
    text: str | bytes | None,
    *,
    settings: ModelsConfig | None = None,
    file: str = "model.onnx",
    usable_cores: int = 4,
) -> ConfiguredSpec:
    """Write the model `digits` and read its specification."""
    configs = ModelConfigs(settings=settings or ModelsConfig(), usable_cores=usable_cores)
    return configs.read_spec(write_model(root, text, file=file))


def ignored_fields(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the fields named by the one warning, none if there was no warning."""
    records = [r for r in caplog.records if r.getMessage() == "config.pbtxt fields ignored"]
    assert len(records) <= 1
    return [field for record in records for field in record.__dict__["fields"]]
