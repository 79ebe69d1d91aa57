"""What onnxruntime's exceptions mean: it raises few classes, so the text has to tell.

Pure. The texts are those of its CUDA provider ("CUDA failure 700: ..."), of cuBLAS and cuDNN, and
of its memory arena. What is recognised becomes one of our errors; anything else is left as it is,
for the caller who knows whether a model or a request is to blame.
"""

from __future__ import annotations

import re
from typing import Final

from engines.errors import DeviceFailed, OutOfMemory

_CUDA_FAILURE: Final = re.compile(r"CUDA (?:failure|error) (\d+)")
_OUT_OF_MEMORY: Final = re.compile(
    r"CUDA (?:failure|error) 2\b|out of memory|Failed to allocate memory|"
    r"(?:CUBLAS|CUDNN)_STATUS_ALLOC_FAILED|Available memory of \d+ is smaller",
    re.IGNORECASE,
)
_LIBRARY_FAILED: Final = re.compile(
    r"(?:CUBLAS|CUDNN)_STATUS_(?:\w*EXECUTION_FAILED|INTERNAL_ERROR|NOT_INITIALIZED)"
)
# CUDA errors after which no call of the process on that device succeeds.
_STICKY: Final = frozenset({46, 101, 214, 220, 226, 700, 702, *range(708, 722), 999})
_PREFIX: Final = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")


def of_run(device: str, exc: Exception) -> Exception:
    """Return what a failed run on a GPU is to be raised as; the exception itself if unknown."""
    text = str(exc)
    if _OUT_OF_MEMORY.search(text):
        return OutOfMemory(device)
    number = _CUDA_FAILURE.search(text)
    if (number and int(number[1]) in _STICKY) or _LIBRARY_FAILED.search(text):
        return DeviceFailed(device, first_line(exc))
    return exc


def is_of_device(exc: Exception) -> bool:
    """Whether a load failed for the sake of the GPU or its libraries, not for the model's."""
    text = str(exc)
    return bool(
        _CUDA_FAILURE.search(text)
        or _OUT_OF_MEMORY.search(text)
        or _LIBRARY_FAILED.search(text)
        or re.search(r"CUDNN|CUBLAS|cannot open shared object|Invalid device ID", text)
    )


def first_line(exc: Exception) -> str:
    """Return the first line of what onnxruntime says, without its own prefix."""
    line = str(exc).strip().partition("\n")[0]
    return _PREFIX.sub("", line).strip()
