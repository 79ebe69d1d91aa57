"""Whether an answer can be written in the form that its caller wants, told by the engine process.

A front writes the answer; but what the form cannot carry must be known before the request is
counted and logged, or the books would say that it was answered. Looking costs about a microsecond
per tensor of floats; only where something is wrong the codec writes it, for its sentence.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from engines.tensors import BYTES, DATATYPES, Tensor
from gateway.http_api import codec
from gateway.request import InferResponse


class CheckedForm:
    """Stands in for the writer of an answer."""

    __slots__ = ("_by_output", "_default_binary")

    def __init__(self, *, default_binary: bool, by_output: Mapping[str, bool]) -> None:
        self._default_binary = default_binary
        self._by_output = by_output

    def write(self, response: InferResponse) -> None:
        """Raise Unrepresentable where the caller's form cannot carry an output."""
        for tensor in response.outputs:
            is_binary = self._by_output.get(tensor.name, self._default_binary)
            if not is_binary and _is_doubtful(tensor):
                form = codec.AnswerForm(
                    default_binary=self._default_binary, by_output=self._by_output
                )
                codec.encode(response, form)
                return


ALL_JSON = CheckedForm(default_binary=False, by_output={}).write


def _is_doubtful(tensor: Tensor) -> bool:
    """Whether JSON may be unable to carry a tensor."""
    if tensor.datatype == BYTES:
        return not bytes(tensor.data).isascii()
    dtype = DATATYPES[tensor.datatype].dtype
    if tensor.datatype == "BF16":
        return True
    if dtype.kind != "f":
        return False
    return b"\0" in np.isfinite(np.frombuffer(tensor.data, dtype)).tobytes()
