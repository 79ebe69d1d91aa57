"""What a session serves, as metadata: the session's own words, the declaration and the file's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import onnxruntime as ort

from engines.base import EngineConfig, ModelMetadata, TensorSpec
from engines.declared import declare
from engines.ort.datatypes import specs
from engines.ort.model_file import ModelFile
from engines.ort.providers import CPU
from engines.tensors import BYTES

PRECISION_KEY: Final = "sluice.precision"
"""Metadata that our own quantisation writes into a model."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model file, read but for its weights."""

    sha256: str
    file: ModelFile | None
    """None: it is no ONNX protobuf."""


# Any: untyped session.
def describe(
    session: Any, config: EngineConfig, artifact: Artifact, *, device: str, fallback: str = ""
) -> ModelMetadata:
    """Return what a session serves.

    Raises:
        ModelLoadError: the file contradicts its declaration, or holds types without a name here.
    """
    declared = declare(
        config, specs(session.get_inputs(), "input"), specs(session.get_outputs(), "output")
    )
    providers = tuple(session.get_providers())
    return ModelMetadata(
        inputs=declared.inputs,
        outputs=declared.outputs,
        max_batch_size=declared.max_batch_size,
        buckets=declared.buckets,
        platform="onnxruntime_onnx",
        engine=f"onnxruntime {ort.__version__}",
        device=device,
        providers=providers,
        artifact_sha256=artifact.sha256,
        precision=_precision(session, artifact.file),
        fallback=fallback,
        is_steady=providers == (CPU,)
        and not (artifact.file is None or artifact.file.has_control_flow)
        and is_fixed(declared.inputs, has_batch_axis=declared.max_batch_size > 0),
    )


def is_fixed(tensors: Sequence[TensorSpec], *, has_batch_axis: bool) -> bool:
    """Whether the number of rows alone tells how many bytes these tensors have."""
    first = 1 if has_batch_axis else 0
    return all(-1 not in spec.shape[first:] and spec.datatype != BYTES for spec in tensors)


def _precision(session: Any, file: ModelFile | None) -> str:  # Any: untyped session
    written = session.get_modelmeta().custom_metadata_map.get(PRECISION_KEY, "")
    return str(written) or (file.precision if file is not None else "")
