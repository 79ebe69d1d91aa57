"""Infer calls whose whole body is the only input, on their way through a front.

What such a body means depends on the model's signature, which the engine process has. The front
reads it by a stand-in, as a vector of bytes under a name that no caller can have given: the name is
told by identity. The engine end reads the same body again, by the real signature.
"""

from __future__ import annotations

from typing import Final

from engines.base import ModelMetadata, TensorSpec

RAW_INPUT: Final = "".join(("a whole ", "body"))
"""Compared by identity; made at run time, so that no other text is this object."""

STAND_IN: Final = ModelMetadata(
    inputs=(TensorSpec(name=RAW_INPUT, datatype="UINT8", shape=(-1,)),),
    outputs=(),
    max_batch_size=0,
    platform="",
    engine="",
    device="",
)


class RawSignatures:
    """The part of a catalog that reading a request may ask for."""

    def signature(self, name: str, version: str) -> ModelMetadata:
        """Return the stand-in, whatever the model."""
        return STAND_IN
