"""The model files of a run: made where they are missing, found where they were made before."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import Final

from loadtests.gpu.graph import WEIGHTS_FILE, Graph

MAX_ROWS: Final = 1024
"""Of a batch that an exported program takes."""
_RUNTIMES: Final = {"pytorch": "torch", "onnxruntime": "onnxruntime"}
"""What an engine needs to run."""
_WRITERS: Final = {"pytorch": "torch", "onnxruntime": "onnx"}
"""What is needed to write its files."""
_FILES: Final = {"pytorch": "model.pt2", "onnxruntime": "model.onnx"}


class PackageMissing(Exception):
    """The sentence says which, and what to do."""


def check(engine: str) -> None:
    """Raise PackageMissing unless an engine's runtime is installed."""
    if util.find_spec(_RUNTIMES[engine]) is None:
        raise PackageMissing(f"the package {_RUNTIMES[engine]} is not installed")


def model(folder: Path, engine: str, network: str, graph: Graph) -> tuple[Path, ...]:
    """Return the files of a network for an engine, the model first; what is missing is written.

    Raises:
        PackageMissing: a file is missing, and so is the package that writes it.
    """
    home = folder / network
    path = home / _FILES[engine]
    if not path.exists():
        _write(engine, home, path, graph)
    if engine == "pytorch":
        return (path,)
    graph.write_weights(home)
    return path, home / WEIGHTS_FILE


def _write(engine: str, home: Path, path: Path, graph: Graph) -> None:
    writer = _WRITERS[engine]
    if util.find_spec(writer) is None:
        raise PackageMissing(
            f"{path.name} is missing and so is the package {writer} to write it: make it elsewhere "
            "with --prepare and name its folder with --models"
        )
    # Imported here: each needs its package.
    if engine == "pytorch":
        from loadtests.gpu import torch_file

        torch_file.write(graph, home, max_rows=MAX_ROWS)
    else:
        from loadtests.gpu import onnx_file

        onnx_file.write(graph, home)
