"""`sluice build`: an ONNX file into a plan of TensorRT or TensorRT-RTX, ahead of serving.

Prints how far it is to standard error, and what was made to standard output.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from engines import budget, devices
from engines.errors import ModelLoadError
from engines.trt import build, profiles, recipe
from engines.trt.api import KINDS, Flavour, choose
from engines.trt.profiles import InvalidRecipe, Range
from engines.trt.recipe import Recipe
from gateway.cli import route_input

if TYPE_CHECKING:
    # Private in argparse, and the only name of what `add_subparsers` returns.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

EPILOG: Final = (
    "exit codes: 0 built; 1 it could not be built: the model is not understood, no TensorRT, no "
    "GPU; 2 the command line is wrong, or does not fit the model"
)
ENGINES: Final = {kind.replace("_", "-"): kind for kind in KINDS}
STEP: Final = 0.1
"""Of a build, between two lines where nobody watches."""


def add_parser(commands: Commands) -> None:
    """Add `build` to the command line."""
    parser = commands.add_parser(
        "build", help="build a plan of an ONNX file, ahead of serving", epilog=EPILOG
    )
    parser.set_defaults(run=run)
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument(
        "--profile",
        type=_profile,
        action="append",
        default=[],
        metavar="NAME:MIN,BEST,MAX",
        help=f"shapes of the inputs that vary, apart by ';', such as {profiles.EXAMPLE}; again for "
        "one more profile",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: beside it, as .plan")
    parser.add_argument(
        "--workspace-mib",
        type=route_input.positive,
        metavar="N",
        help="most scratch memory of a kernel; default: all of the GPU's",
    )
    parser.add_argument("--timing-cache", type=Path, metavar="FILE", help="read and written again")
    parser.add_argument(
        "--compute-capability",
        action="append",
        default=[],
        metavar="N.N",
        help="GPU to build for, such as 8.9; again for one more; tensorrt-rtx only",
    )
    parser.add_argument("--level", type=int, choices=recipe.LEVELS, help="effort; default: 3")
    parser.add_argument(
        "--flag",
        action="append",
        default=[],
        choices=(*recipe.FLAGS, recipe.NO_TF32),
        help="of the builder; again for one more",
    )
    parser.add_argument("--device", default="cuda:0", help="where tensorrt builds; default: cuda:0")


def run(arguments: argparse.Namespace) -> int:
    """Build; return the exit code."""
    shown = Shown(sys.stderr)
    try:
        return _run(arguments, shown)
    except InvalidRecipe as exc:
        return _failed(shown, exc, 2)
    except ModelLoadError as exc:
        return _failed(shown, exc, 1)
    except KeyboardInterrupt:
        shown.clear()
        raise


def _run(arguments: argparse.Namespace, shown: Shown) -> int:
    model: Path = arguments.model
    out: Path = arguments.out or model.with_suffix(".plan")
    if not model.is_file():
        raise InvalidRecipe(f"{model} is not a file")
    if out == model or not out.parent.is_dir():
        raise InvalidRecipe(f"--out {out}: no place to write a plan")
    flavour = choose(ENGINES[arguments.engine])
    if arguments.timing_cache is not None and not flavour.has_timing_cache:
        raise InvalidRecipe(f"{flavour.title} measures no kernels and has no timing cache")
    described = Recipe(
        profiles=tuple(arguments.profile),
        workspace_bytes=(arguments.workspace_mib or 0) << 20,
        level=arguments.level,
        capabilities=tuple(arguments.compute_capability),
        flags=tuple(arguments.flag),
    )
    hardware = {} if flavour.is_rtx else _on_gpu(flavour, arguments.device)
    began_s = time.monotonic()
    built = build.build(
        flavour,
        model,
        described,
        timing_cache=arguments.timing_cache,
        on_progress=shown.progress,
    )
    shown.clear()
    key = build.key(flavour, model, described, hardware)
    try:
        build.write(out, built, key, datetime.now(UTC).isoformat(timespec="seconds"))
    except OSError as exc:
        raise ModelLoadError(f"{out} cannot be written: {exc.strerror}") from exc
    size = budget.shown(len(built.plan))
    print(f"{out}: {size}, {flavour}, built in {time.monotonic() - began_s:.1f} s")
    return 0


def _on_gpu(flavour: Flavour, device: str) -> dict[str, object]:
    """Make a GPU the one that is built on, and return what it is: TensorRT measures there."""
    try:
        kind, index = devices.parse(device)
    except ValueError as exc:
        raise InvalidRecipe(f"--device: {exc}") from exc
    if kind == "cpu":
        raise InvalidRecipe(f"--device: {flavour.title} builds on GPUs only")
    hardware = devices.hardware_key(f"cuda:{index}")
    from engines.gpu.cuda import CudaMemory  # needs the package cuda-bindings

    CudaMemory(index)
    return hardware


def _profile(text: str) -> dict[str, Range]:
    try:
        return profiles.parse(text)
    except InvalidRecipe as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def _failed(shown: Shown, sentence: object, code: int) -> int:
    shown.clear()
    print(f"sluice: {sentence}", file=sys.stderr)
    return code


class Shown:
    """How far a build is: one line that is written over on a terminal, else a line now and then."""

    def __init__(self, to: TextIO) -> None:
        self._to = to
        self._is_watched = to.isatty()
        self._next = 0.0
        self._width = 0

    def progress(self, phase: str, fraction: float) -> bool:
        """Show a share of the work."""
        text = f"building: {fraction:4.0%} {phase}"
        if self._is_watched:
            print(f"\r{text:<{self._width}}", end="", file=self._to, flush=True)
            self._width = len(text)
        elif fraction >= self._next:
            print(text, file=self._to, flush=True)
            self._next = fraction + STEP
        return True

    def clear(self) -> None:
        """Leave an empty line behind."""
        if self._width:
            print(f"\r{'':<{self._width}}\r", end="", file=self._to, flush=True)
            self._width = 0
