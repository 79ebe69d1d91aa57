"""The models of tests/support/engine_cases.py as exported programs of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from torch.export import Dim

from tests.support import engine_cases as cases
from tests.support.torch_models import Identity, example, rows, write_exported


class Reciprocal(torch.nn.Module):
    """y = 1 / x."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": 1 / x}


class Softmax(torch.nn.Module):
    """y = softmax(x @ W)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.from_numpy(cases.WEIGHT.copy()))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": torch.softmax(x @ self.get_buffer("weight"), dim=-1)}


class Sum(torch.nn.Module):
    """y = x + z."""

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": x + z}


_MODULES: Final = {cases.RECIPROCAL: Reciprocal, cases.SOFTMAX: Softmax, cases.SUM: Sum}


def write(path: Path, kind: str, datatype: str) -> Path:
    """Write an exported program of a kind."""
    module = _MODULES.get(kind, Identity)()
    if kind == cases.UNBATCHED:
        return write_exported(path, module, [example(datatype, cases.WIDTH)])
    if kind == cases.FIXED:
        return write_exported(path, module, [example(datatype, cases.FIXED_ROWS, cases.WIDTH)])
    if kind == cases.WIDE:
        dynamic = {"x": {0: rows(), 1: Dim("width", min=1)}}
        return write_exported(path, module, [example(datatype, 2, 5)], dynamic=dynamic)
    count = 2 if kind == cases.SUM else 1
    batch = rows()
    dynamic = {name: {0: batch} for name in ("x", "z")[:count]}
    args = [example(datatype, 2, cases.WIDTH) for _ in range(count)]
    return write_exported(path, module, args, dynamic=dynamic)
