"""Arrays of numpy as tensors of torch and back, without a copy where that is safe.

Knows the datatypes of both; knows no model. torch has no read-only tensors and warns, once per
process, of the first array of that kind: requests arrive in read-only bytes, so the warning is
spent here, at load, on an array of our own. Whoever may write to such an input copies it before.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
import torch

from engines.tensors import Array

DTYPES: Final[Mapping[str, torch.dtype]] = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "FP32": torch.float32,
    "FP64": torch.float64,
    "BF16": torch.bfloat16,
}
"""All of the protocol's but BYTES: torch has no text."""
DATATYPES: Final[Mapping[torch.dtype, str]] = {dtype: name for name, dtype in DTYPES.items()}
# Weights are kept in these; integers of other widths are positions and counters.
_PRECISIONS: Final = frozenset({"FP16", "FP32", "FP64", "BF16", "INT8", "UINT8"})


def accept_read_only_arrays() -> None:
    """Let torch give its one warning about read-only arrays, unheard."""
    read_only = np.frombuffer(b"\0\0\0\0", np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.from_numpy(read_only)


def tensor_of(array: Array, dtype: torch.dtype) -> torch.Tensor:
    """Return an array as a tensor over the same memory; BF16 comes as its bit patterns."""
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype is torch.bfloat16 else tensor


def array_of(tensor: torch.Tensor) -> Array:
    """Return a tensor of the CPU as an array over the same memory; BF16 as its bit patterns."""
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    # force: without gradients, and with any lazy negation done; no copy else.
    array: Array = tensor.numpy(force=True)
    return array


def storage_of(tensor: torch.Tensor) -> int:
    """Return what tells the memory of a tensor from other tensors' memory."""
    return tensor.untyped_storage().data_ptr()


def memory_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return what tensors take, those that share their memory counted once."""
    return sum({storage_of(t): t.untyped_storage().nbytes() for t in tensors}.values())


def precision(tensors: Iterable[torch.Tensor]) -> str:
    """Return what weights are kept in, that of the most bytes first: FP16, or INT8+FP32."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        name = DATATYPES.get(tensor.dtype, "")
        if name in _PRECISIONS:
            sizes[name] = sizes.get(name, 0) + tensor.nbytes
    return "+".join(sorted(sizes, key=lambda name: -sizes[name]))
