"""Whether a model may be loaded into the GPU memory that is left, by estimate, before it is tried.

Pure arithmetic: knows neither devices nor runtimes. What a model will take cannot be known before
it runs; a load that clearly cannot fit is refused here with its figures, so that it does not take
the memory that the models which serve already may still ask for.
"""

from __future__ import annotations

from typing import Final

from engines.errors import DeviceUnavailable

LOAD_FACTOR: Final = 4
"""Memory at load as a multiple of the file: weights as read, as laid out, and room to choose."""

_UNITS: Final = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def estimate_bytes(file_bytes: int, largest_batch_bytes: int, lanes: int) -> int:
    """Return about how much device memory a copy of a model takes at its most.

    Args:
        file_bytes: size of the model's files.
        largest_batch_bytes: inputs and outputs of the largest batch.
        lanes: sets of buffers, each with room for the largest batch.
    """
    return LOAD_FACTOR * file_bytes + lanes * largest_batch_bytes


def admit(*, need_bytes: int, free_bytes: int, reserve_bytes: int, what: str) -> None:
    """Let a load pass if the memory that it leaves free is at least the reserve.

    Args:
        need_bytes: what the load takes, by estimate.
        free_bytes: free on the device now.
        reserve_bytes: to be left free; 0: let everything pass, for the runtime itself to refuse.
        what: begins the sentence of a refusal, such as ``model.onnx on cuda:0``.

    Raises:
        DeviceUnavailable: there is too little; with the figures.
    """
    if not reserve_bytes or need_bytes + reserve_bytes <= free_bytes:
        return
    raise DeviceUnavailable(
        f"{what} needs about {shown(need_bytes)}, and of {shown(free_bytes)} that are free "
        f"{shown(reserve_bytes)} must stay so"
    )


def shown(size_bytes: int) -> str:
    """Return a size for people: ``1.5 GiB``."""
    for unit_bytes, unit in _UNITS:
        if size_bytes >= unit_bytes:
            return f"{size_bytes / unit_bytes:.1f} {unit}"
    return f"{size_bytes} bytes"
