"""Triton's config.pbtxt: the one place that knows it, in both directions.

`ModelConfigs.read_spec` makes the repository's ModelSpec of a model folder; `describe` makes the
ModelConfig that clients are answered, of that spec and of what the engine found in the model file.
Nothing else in the project names a field of ModelConfig, and nothing here loads a model or speaks
a protocol.

Read next: fields.py, the table of what is honoured, refused and ignored; docs/model-repository.md
says the same to users.
"""

from gateway.model_config.configs import ModelConfigs
from gateway.model_config.describe import ModelConfigDocument

__all__ = ["ModelConfigDocument", "ModelConfigs"]
