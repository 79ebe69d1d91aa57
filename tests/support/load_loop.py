"""`python -m tests.support.load_loop CASE LOADS FOLDER`: load, run, close, again and again.

Prints bytes resident, and taken of the GPU if one is used, before every tenth part of the loads and
after the last. In a process of its own, so that nothing but the engine counts. CASE is a name of
tests/support/engine_cases.py, or `parse` and `build` for what TensorRT-RTX does without a GPU.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from engines import devices
from tests.support import engine_cases as cases
from tests.support.engine_cases import BUCKETS, ON_CPU, ON_GPU, SOFTMAX, TENSORRT_RTX, EngineCase

PARTS: Final = 10


def resident_bytes() -> int:
    """Return what this process holds in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def device_bytes(device: str) -> int:
    """Return what is taken of a GPU's memory, by whomever; 0 of the CPU."""
    kind, index = devices.parse(device)
    if kind == "cpu":
        return 0
    from engines.gpu.cuda import CudaMemory

    memory = CudaMemory(index)
    free, total = memory.memory_info()
    memory.close()
    return total - free


def loader(case: EngineCase, folder: Path) -> Callable[[], None]:
    """Return one round: load, run every bucket, close."""
    kind = cases.IDENTITY if SOFTMAX in case.cannot else SOFTMAX
    case.written(folder, kind)

    def once() -> None:
        engine = case.loaded(folder, kind, buckets=BUCKETS)
        for rows in BUCKETS:
            engine.infer({"x": cases.values("FP32", rows)})
        engine.close()

    return once


def parser(folder: Path) -> Callable[[], None]:
    """Return one round: parse an ONNX file with TensorRT-RTX."""
    from engines.trt import api, parse

    flavour, model = api.choose("tensorrt_rtx"), TENSORRT_RTX.written(folder, SOFTMAX)
    return lambda: [parse.signature(flavour, model)].clear()


def builder(folder: Path) -> Callable[[], None]:
    """Return one round: build a plan with TensorRT-RTX."""
    from engines.trt import api, build
    from engines.trt import load as loading

    flavour, model = api.choose("tensorrt_rtx"), TENSORRT_RTX.written(folder, SOFTMAX)
    recipe = loading.recipe_of(flavour, model, TENSORRT_RTX.config(buckets=BUCKETS))
    return lambda: [build.build(flavour, model, recipe)].clear()


def main(arguments: Sequence[str]) -> int:
    """Run the loads and print a JSON list of pairs: bytes resident, and on the device."""
    name, loads, folder = arguments[0], int(arguments[1]), Path(arguments[2])
    by_name = {case.name: case for case in (*ON_CPU, *ON_GPU)}
    if name == "parse":
        once = parser(folder)
    elif name == "build":
        once = builder(folder)
    else:
        once = loader(by_name[name], folder)
    device = by_name[name].device if name in by_name else "cpu"
    found = []
    for number in range(loads + 1):
        if number % (loads // PARTS) == 0:
            gc.collect()
            found.append((resident_bytes(), device_bytes(device)))
        if number < loads:
            once()
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
