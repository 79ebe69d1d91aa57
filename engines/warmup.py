"""Runs a loaded engine on made-up batches, so that no caller pays for its first runs.

Knows engines and shapes; knows no queue and no state: the repository calls it on a loader thread.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import numpy as np

from engines.base import Engine, LanedEngine, ModelSpec, TensorSpec
from engines.errors import DeviceFailed, ModelLoadError
from engines.tensors import BYTES, DATATYPES, Array

logger = logging.getLogger(__name__)

MAX_WARMUP_ROWS: Final = 1024


def warm_up(engine: Engine, spec: ModelSpec) -> None:
    """Run the engine at each batch size that it is expected to see, the largest first.

    The largest goes first so that arenas are sized once. Dimensions that vary are tried as 1; a
    model that refuses such a made-up shape is warned about, not condemned.

    Raises:
        ModelLoadError: a batch of the model's own fixed shape fails, or the device does.
    """
    metadata = engine.metadata
    first = 1 if metadata.max_batch_size else 0
    is_guessed = any(-1 in tensor.shape[first:] for tensor in metadata.inputs)
    runs = engine.warmup_runs if isinstance(engine, LanedEngine) else 1
    for rows in warmup_sizes(spec, metadata.max_batch_size, metadata.buckets):
        batch = {tensor.name: zeros(tensor, rows) for tensor in metadata.inputs}
        try:
            for _ in range(runs):
                engine.infer(batch)
        except Exception as exc:  # foreign: whatever the runtime raises for a shape it dislikes
            if not is_guessed or isinstance(exc, DeviceFailed):
                raise ModelLoadError(f"warm-up with {rows} rows failed: {exc}") from exc
            logger.warning("warm-up skipped", extra={"model": spec.name, "reason": str(exc)})
            return


def warmup_sizes(spec: ModelSpec, max_batch_size: int, buckets: Sequence[int] = ()) -> list[int]:
    """Return the batch sizes to warm up, largest first; one entry without a batch axis.

    Every bucket, where there are any: the engine never sees another size.
    """
    if max_batch_size == 0:
        return [1]
    sizes = set(buckets) or set(spec.warmup_batch_sizes)
    if not sizes:
        limit = min(max_batch_size, MAX_WARMUP_ROWS)
        sizes = {limit, *(1 << n for n in range(limit.bit_length()))}
        if spec.batching is not None:
            sizes.update(spec.batching.preferred_batch_sizes)
    return sorted((size for size in sizes if 1 <= size <= max_batch_size), reverse=True)


def zeros(tensor: TensorSpec, rows: int) -> Array:
    """Return an input of zeros (empty strings for BYTES), varying dimensions as `rows`, then 1."""
    shape = [1 if dimension == -1 else dimension for dimension in tensor.shape]
    if tensor.shape and tensor.shape[0] == -1:
        shape[0] = rows
    if tensor.datatype == BYTES:
        return np.full(shape, b"", dtype=object)
    return np.zeros(shape, DATATYPES[tensor.datatype].dtype)
