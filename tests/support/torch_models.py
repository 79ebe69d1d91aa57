"""Small models of torch, written as the files that users bring: exported, scripted, compiled."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

from engines.pytorch.arrays import DTYPES


class Identity(torch.nn.Module):
    """Gives its input back, under the name y."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": x}


class Scaled(torch.nn.Module):
    """Two inputs, the second by keyword; three outputs, nested, one of them an input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 4)
        self.register_buffer("offset", torch.arange(4.0))

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> dict[str, Any]:
        scaled = self.linear(x) * scale + self.offset
        return {"scaled": scaled, "rest": (x.sum(1), x)}


def example(datatype: str, *shape: int) -> torch.Tensor:
    """Return zeros of a protocol datatype."""
    return torch.zeros(shape, dtype=DTYPES[datatype])


# Any: dynamic shapes are nested as the module's arguments are.
def write_exported(
    path: Path,
    module: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Any = None,
) -> Path:
    """Export a module and save the program."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own modules
        exported = torch.export.export(
            module.eval(), tuple(args), dict(kwargs or {}), dynamic_shapes=dynamic
        )
        torch.export.save(exported, path)
    return path


def rows(most: int | None = None, least: int = 1) -> Any:
    """Return a batch dimension for `write_exported`."""
    return Dim("rows", min=least, max=most)


def write_identity(path: Path, datatype: str, shape: Sequence[int], batch_axis: bool) -> Path:
    """Write an exported x -> y of that item shape, with or without a batch axis that varies."""
    whole = (2, *shape) if batch_axis else tuple(shape)
    dynamic = {"x": {0: rows()}} if batch_axis else None
    return write_exported(path, Identity(), [example(datatype, *whole)], dynamic=dynamic)


def write_script(path: Path, module: torch.nn.Module) -> Path:
    """Write a module as TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module.eval()), str(path))
    return path


def write_compiled(
    path: Path,
    module: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Any = None,
) -> Path:
    """Compile a module to a package for this machine; takes a C++ compiler and half a minute."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(
            module.eval(), tuple(args), dict(kwargs or {}), dynamic_shapes=dynamic
        )
        torch._inductor.aoti_compile_and_package(exported, package_path=str(path))
    return path


class Evil:
    """Writes a file when it is unpickled: what a pickle may do to who loads it."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    # Any: what pickle asks of a class.
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)
