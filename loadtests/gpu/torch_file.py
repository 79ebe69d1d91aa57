"""Writes a network as a program of torch.export. The only file here that needs torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import torch
from torch.export import Dim
from torch.nn import functional

from loadtests.gpu.graph import INPUT, OUTPUT, Graph

FILE: Final = "model.pt2"
_EXAMPLE_ROWS: Final = 2
_UNFINISHED: Final = ".part"

_Values = list[torch.Tensor]
_Attributes = Mapping[str, int]


class _Module(torch.nn.Module):
    """Runs a graph's operations one after the other."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph
        for name in graph.weights:
            value = torch.from_numpy(graph.value(name))
            self.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        values: dict[str, torch.Tensor] = {INPUT: x, **dict(self.named_parameters())}
        for operation in self._graph.operations:
            given = [values[name] for name in operation.inputs]
            values[operation.output] = _KINDS[operation.kind](given, operation.attributes)
        return {OUTPUT: values[self._graph.result]}


def write(graph: Graph, folder: Path, *, max_rows: int) -> Path:
    """Write model.pt2 into a folder, for batches of up to so many rows; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    example = torch.from_numpy(graph.batch(_EXAMPLE_ROWS)[INPUT])
    path = folder / FILE
    unfinished = path.with_suffix(f"{_UNFINISHED}{path.suffix}")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's own modules
        exported = torch.export.export(
            _Module(graph).eval(),
            (example,),
            dynamic_shapes={INPUT: {0: Dim("rows", min=1, max=max_rows)}},
        )
        torch.export.save(exported, unfinished)
    return unfinished.replace(path)


def _convolution(values: _Values, attributes: _Attributes) -> torch.Tensor:
    value, weight, bias = values
    stride, padding = attributes["stride"], attributes["padding"]
    return functional.conv2d(value, weight, bias, stride=stride, padding=padding)


def _max_pool(values: _Values, attributes: _Attributes) -> torch.Tensor:
    size, stride, padding = (attributes[key] for key in ("size", "stride", "padding"))
    return functional.max_pool2d(values[0], size, stride, padding)


def _attention(values: _Values, attributes: _Attributes) -> torch.Tensor:
    rows, places, width = values[0].shape
    heads = attributes["heads"]
    query, key, content = (
        value.reshape(rows, places, heads, width // heads).transpose(1, 2) for value in values
    )
    mixed = functional.scaled_dot_product_attention(query, key, content)
    return mixed.transpose(1, 2).reshape(rows, places, width)


_KINDS: Final[Mapping[str, Callable[[_Values, _Attributes], torch.Tensor]]] = {
    "add": lambda values, _: values[0] + values[1],
    "attention": _attention,
    "convolution": _convolution,
    "embed": lambda values, _: functional.embedding(values[1], values[0]),
    "first_place": lambda values, _: values[0][:, 0],
    "gelu": lambda values, _: functional.gelu(values[0]),
    "layer_norm": lambda values, _: functional.layer_norm(
        values[0], values[0].shape[-1:], values[1], values[2], 1e-5
    ),
    "linear": lambda values, _: functional.linear(values[0], values[1].t(), values[2]),
    "max_pool": _max_pool,
    "mean_of_channels": lambda values, _: values[0].mean((2, 3)),
    "relu": lambda values, _: functional.relu(values[0]),
    "tanh": lambda values, _: torch.tanh(values[0]),
}
