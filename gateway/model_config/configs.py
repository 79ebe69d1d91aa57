"""Both directions of a model's configuration, bound to the settings that they need.

Holds no model and no message: a spec carries its own. Safe to use from any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engines.base import ModelMetadata, ModelSpec
from gateway.config import ModelsConfig
from gateway.model_config import read
from gateway.model_config.describe import ModelConfigDocument, describe
from gateway.model_config.read import ConfiguredSpec, Surroundings


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfigs:
    """Reads model folders for the repository and describes versions for the catalog."""

    settings: ModelsConfig
    usable_cores: int
    """Cores that this process may use; shared by the instances of a model."""

    base: Path = Path()
    """The configuration file's folder, which the settings' paths are relative to."""

    def read_spec(self, directory: Path) -> ConfiguredSpec:
        """Read a model folder's configuration; blocking. What has no effect is logged.

        Raises:
            ModelLoadError: the file cannot be read or served; the sentence names file and field.
        """
        spec = self.look(directory)
        read.report(spec)
        return spec

    def look(self, directory: Path) -> ConfiguredSpec:
        """Read a model folder's configuration as `read_spec` does, and log nothing."""
        surroundings = Surroundings(
            settings=self.settings, usable_cores=self.usable_cores, base=self.base
        )
        return read.read_spec(directory, surroundings)

    def describe(
        self, spec: ModelSpec, metadata: ModelMetadata, version: str, *, name: str = ""
    ) -> ModelConfigDocument:
        """Return the configuration in force for a loaded version, under a route's name if given."""
        return describe(spec, metadata, version, name=name)
