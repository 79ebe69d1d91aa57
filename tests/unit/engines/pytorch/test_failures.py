"""What torch's exceptions mean; those of a GPU cannot be raised here, and are made by hand."""

from __future__ import annotations

import pytest
import torch

from engines.errors import DeviceFailed, EngineError, InvalidInput, OutOfMemory
from engines.pytorch.failures import first_line, translated


@pytest.mark.parametrize(
    ("exc", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), OutOfMemory),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x"), OutOfMemory),
        (RuntimeError("CUDA error: an illegal memory access was encountered\nmore"), DeviceFailed),
        (torch.AcceleratorError("unspecified launch failure"), DeviceFailed),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), DeviceFailed),
        (AssertionError("Guard failed: x.size()[0] <= 8"), InvalidInput),
        (
            RuntimeError("Runtime assertion failed for expression u0 <= 5 on node 'le'"),
            InvalidInput,
        ),
        (IndexError("index 9 is out of bounds for dimension 0 with size 4"), InvalidInput),
    ],
)
def test_an_exception_of_torch_becomes_an_engines(exc: Exception, kind: type[EngineError]) -> None:
    found = translated(exc, "cuda:0")
    assert type(found) is kind
    assert "\n" not in str(found)


def test_what_is_not_known_is_left_alone() -> None:
    for exc in (ValueError("index 3"), RuntimeError("mat1 and mat2"), AssertionError(), KeyError()):
        assert translated(exc, "cpu") is None


def test_an_engines_own_error_stays_itself() -> None:
    exc = InvalidInput("no")
    assert translated(exc, "cpu") is exc


def test_a_device_that_failed_says_why() -> None:
    exc = RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ...")
    why = "cuda:1 failed: CUDA error: an illegal memory access was encountered"
    assert str(translated(exc, "cuda:1")) == why


def test_an_exception_without_words_is_named() -> None:
    assert first_line(MemoryError()) == "MemoryError"
