"""Packages of AOTInductor: a program that was compiled to a library, for one kind of machine.

Knows torch's loader of such packages. A package tells how many tensors go in and come out and how
they are nested, and neither datatypes nor shapes: the model's configuration declares them. What is
declared wrongly would be read as raw memory, so the package's own checks of its inputs are switched
on. They are read from the environment when a package first runs, and stay on.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch._inductor.codecache import get_device_information
from torch.export.pt2_archive import _package
from torch.utils import _pytree as pytree

from engines.base import EngineConfig, TensorSpec
from engines.errors import DeviceUnavailable, ModelLoadError
from engines.pytorch import declarations, names
from engines.pytorch.failures import first_line
from engines.pytorch.formats import ModelFile
from engines.pytorch.program import Program, Shapes, Tensors

_CHECKS: Final = "AOTI_RUNTIME_CHECK_INPUTS"
# Compiled code takes a dimension that varies to be neither 0 nor 1, whatever it was exported with.
_LEAST_ROWS: Final = 2
_DEVICE: Final = "AOTI_DEVICE_KEY"
_CAPABILITY: Final = "AOTI_COMPUTE_CAPABILITY"


def why_not_on(file: ModelFile, device: str) -> str:
    """Return why a package cannot run on a device, in one sentence; empty: it may."""
    kind = device.partition(":")[0]
    built_for = file.built_for.get(_DEVICE, kind)
    if built_for != kind:
        return f"{file.path.name} was compiled for {built_for} and runs there only"
    return _foreign_gpu(file, device) if kind == "cuda" else _foreign_cpu(file)


def _foreign_cpu(file: ModelFile) -> str:
    here: Mapping[str, str] = get_device_information("cpu")
    for what in ("AOTI_PLATFORM", "AOTI_MACHINE"):
        if what in file.built_for and file.built_for[what] != here.get(what):
            return f"{file.path.name} was compiled for {file.built_for[what]}: this is {here[what]}"
    key = "AOTI_CPU_ISA"
    if missing := set(file.built_for.get(key, "").split()) - set(here.get(key, "").split()):
        return (
            f"{file.path.name} was compiled for a CPU with {', '.join(sorted(missing))}, which "
            "this one has not: compile it here"
        )
    return ""


def _foreign_gpu(file: ModelFile, device: str) -> str:
    wanted = file.built_for.get(_CAPABILITY, "")
    if not wanted.isdigit():
        return ""
    major, minor = torch.cuda.get_device_capability(device)
    # Machine code runs on its own and on later GPUs of one generation.
    if int(wanted) // 10 == major and int(wanted) % 10 <= minor:
        return ""
    return (
        f"{file.path.name} was compiled for compute capability {wanted}, {device} has "
        f"{major}{minor}: compile it there"
    )


def open_compiled(file: ModelFile, config: EngineConfig, device: str) -> Program:
    """Load a package.

    Raises:
        ModelLoadError: it cannot be served, or its signature is not declared.
        DeviceUnavailable: it was compiled for another machine.
    """
    if why := why_not_on(file, device):
        raise DeviceUnavailable(why)
    os.environ.setdefault(_CHECKS, "1")
    index = int(device.partition(":")[2] or -1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            contents = _package.load_pt2(
                str(file.path), device_index=index, run_single_threaded=config.has_graphs
            )
        loader = contents.aoti_runners[file.model].loader
        nesting = [pytree.treespec_loads(text) for text in loader.get_call_spec()]
    except Exception as exc:  # foreign: whatever the package's loader raises
        raise ModelLoadError(f"{file.path.name} does not load: {first_line(exc)}") from exc
    try:
        return _program(loader, nesting, config)
    except ModelLoadError as exc:
        raise ModelLoadError(f"{file.path.name}: {exc}") from None


# Any: torch's own loader and nestings; the same below.
def _program(loader: Any, nesting: Sequence[Any], config: EngineConfig) -> Program:
    own_in, own_out = (
        names.leaf_names(tree.unflatten([None] * tree.num_leaves)) for tree in nesting
    )
    declarations.check("a package of AOTInductor", config, own_in)
    given = names.served_names("input", [(name,) for name in own_in], config.inputs)
    inputs = declarations.whole_shapes(config, config.inputs)
    declared = [spec.name for spec in inputs]
    if left := [name for name in given if name not in declared]:
        raise ModelLoadError(f"the model's input {left[0]!r} is not declared")
    outputs = declarations.whole_shapes(config, config.outputs)
    return Program(
        run=_runner(loader, [declared.index(name) for name in given], _taken(own_out, config)),
        inputs=inputs,
        outputs=outputs,
        config=replace(config, max_batch_size=config.max_batch_size or 0),
        least_rows=min(_LEAST_ROWS, config.max_batch_size or 1),
        written=frozenset(declared),  # what the library does to them is not to be seen
        output_shapes=_output_shapes(inputs, outputs),
        can_capture=True,
    )


def _taken(own: Sequence[str], config: EngineConfig) -> list[int]:
    """Return the positions of the declared outputs."""
    if not any(own):
        return declarations.positions(config.outputs, len(own))
    served = names.served_names("output", [(name,) for name in own], config.outputs)
    return [served.index(spec.name) for spec in config.outputs]


def _output_shapes(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> Callable[[Shapes], dict[str, tuple[int, ...]]] | None:
    """Return how the outputs' shapes follow, where the rows alone vary."""
    if not inputs or any(-1 in spec.shape[1:] for spec in (*inputs, *outputs)):
        return None
    name = inputs[0].name

    def output_shapes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
        rows = shapes[name][:1]
        return {
            spec.name: (*rows, *spec.shape[1:]) if spec.shape[:1] == (-1,) else spec.shape
            for spec in outputs
        }

    return output_shapes


def _runner(
    loader: Any, order: Sequence[int], taken: Sequence[int]
) -> Callable[[list[torch.Tensor]], Tensors]:
    def run(tensors: list[torch.Tensor]) -> Tensors:
        outputs = loader.boxed_run([tensors[position] for position in order])
        return [outputs[position] for position in taken]

    return run
