"""Which programs go through lanes, in which row counts, with how large buffers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from engines.base import EngineConfig
from engines.declared import declare
from engines.errors import ModelLoadError
from engines.pytorch.exported import open_exported
from engines.pytorch.formats import identify
from engines.pytorch.plan import Plan, plan_of
from tests.support.torch_models import Identity, rows, write_exported


class Positive(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, torch.nonzero(x > 0)


# Any: see `write_exported`; fields of EngineConfig.
def plan(folder: Path, module: nn.Module, dynamic: Any, **config: Any) -> Plan | None:
    path = write_exported(folder / "model.pt2", module, [torch.zeros(6, 3)], dynamic=dynamic)
    program = open_exported(identify(path), EngineConfig(**config), "cpu")
    return plan_of(program, declare(program.config, program.inputs, program.outputs))


def test_lanes_take_any_row_count_where_no_graph_is_recorded(tmp_path: Path) -> None:
    assert plan(tmp_path, Identity(), {"x": {0: rows(16)}}) == Plan((), {})
    assert plan(tmp_path, Identity(), None) == Plan((), {})


def test_graphs_are_recorded_for_a_few_row_counts(tmp_path: Path) -> None:
    found = plan(tmp_path, Identity(), {"x": {0: rows(12)}}, has_graphs=True)
    assert found == Plan((1, 2, 4, 8, 12), {})
    chosen = plan(
        tmp_path,
        Identity(),
        {"x": {0: rows(12)}},
        has_graphs=True,
        max_batch_size=8,
        buckets=(3, 8),
    )
    assert chosen == Plan((3, 8), {})


def test_no_row_count_is_below_the_programs_least(tmp_path: Path) -> None:
    dynamic = {"x": {0: Dim("rows", min=3, max=16)}}
    assert plan(tmp_path, Identity(), dynamic) == Plan((3, 4, 8, 16), {})
    with pytest.raises(ModelLoadError, match="at least 3 rows, not for 2"):
        plan(tmp_path, Identity(), dynamic, max_batch_size=8, buckets=(2, 8))


def test_dimensions_with_a_bound_have_a_largest_size(tmp_path: Path) -> None:
    bounded = {"x": {0: rows(), 1: Dim("columns", min=1, max=10)}}
    size = 8 * 10 * 4
    found = plan(tmp_path, Identity(), bounded, max_batch_size=8)
    assert found == Plan((), {"x": size, "y": size})
    free = {"x": {0: rows(), 1: Dim("columns", min=1)}}
    assert plan(tmp_path, Identity(), free, max_batch_size=8) is None


def test_sizes_that_depend_on_values_and_no_lanes_mean_no_lanes(tmp_path: Path) -> None:
    assert plan(tmp_path, Positive(), {"x": {0: rows(8)}}) is None
    assert plan(tmp_path, Identity(), {"x": {0: rows(8)}}, lanes=0) is None
