"""A model's configuration as both protocols answer it: bytes and text, made once.

Knows no protobuf, so that the HTTP adapter and the pipeline can hold one without importing it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfigDocument:
    """The answer of the ModelConfig call for one version of a model, or for a route."""

    name: str
    """The model's, or the route's."""
    version: str
    """The version whose inputs and outputs these are."""
    wire: bytes
    """A serialized inference.ModelConfig."""
    json: str
    """The same as a JSON object with the field names of the proto file; integers are numbers."""
