"""What torch raises while a batch runs, in the engines' own words.

Knows torch's exceptions and sentences; most of its errors are plain RuntimeErrors, told apart by
how they begin. What is not known here stays what it is: a fault of the model or of ours.
"""

from __future__ import annotations

import re
from typing import Final

import torch

from engines.errors import DeviceFailed, EngineError, InvalidInput, OutOfMemory

_NO_MEMORY: Final = ("can't allocate memory", "not enough memory", "ALLOC_FAILED")
_DEVICE: Final = ("CUDA error", "CUDA driver error", "cuDNN error", "cuda runtime error")
_GUARD: Final = "Guard failed: "
# A compiled package's own checks, and conditions that a program was exported with.
_SHAPES: Final = re.compile(
    r"input_handles\[|expected inputs vector|expected size |Runtime assertion failed"
)
_INDEX: Final = re.compile(r"\bindex\b.*\bout of (range|bounds)\b")
# The lines above the last are a listing of the script.
_SCRIPT: Final = "The following operation failed in the TorchScript interpreter"
_RAISED: Final = re.compile(r"^(RuntimeError|builtins\.\w+): ((\w+Error): )?")


def translated(exc: Exception, device: str) -> EngineError | None:
    """Return what an exception of a run means to the engine's caller; None: it is not known."""
    if isinstance(exc, EngineError):
        return exc
    text = first_line(exc)
    if isinstance(exc, torch.OutOfMemoryError) or any(word in text for word in _NO_MEMORY):
        return OutOfMemory(device)
    if isinstance(exc, torch.AcceleratorError) or text.startswith(_DEVICE):
        return DeviceFailed(device, text)
    if isinstance(exc, AssertionError) and text.startswith(_GUARD):
        condition = text.removeprefix(_GUARD)
        return InvalidInput(f"the model was exported for inputs of which {condition}")
    is_refusal = isinstance(exc, (RuntimeError, IndexError)) and (
        _SHAPES.match(text) or _INDEX.search(text)
    )
    if is_refusal or isinstance(exc, torch.jit.Error):  # the latter: a script's own `raise`
        return InvalidInput(f"the model does not take this input: {text}")
    return None


def first_line(exc: Exception) -> str:
    """Return what an exception says, in one line."""
    lines = str(exc).strip().splitlines() or [type(exc).__name__]
    if lines[0].startswith(_SCRIPT):
        return _RAISED.sub("", lines[-1])
    return lines[0]
