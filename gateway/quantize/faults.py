"""Why a model was not quantised, and the packages that it takes."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

_DISTRIBUTIONS: Final = {"onnx": "sluice-gateway[quantize]", "onnxruntime": "sluice-gateway[cpu]"}


class CannotQuantize(Exception):
    """It cannot be done; the text is one sentence for a person."""


class WrongInput(CannotQuantize):
    """What was asked for, or what it was given, is wrong."""


def package(name: str) -> Any:  # Any: modules without types, and optional
    """Import a module of onnx or onnxruntime.

    Raises:
        CannotQuantize: it is not installed, or does not start.
    """
    root = name.partition(".")[0]
    try:
        return import_module(name)
    except ModuleNotFoundError as exc:
        install = f"pip install '{_DISTRIBUTIONS[root]}'"
        raise CannotQuantize(f"this needs {exc.name}: {install}") from exc
    except (ImportError, OSError) as exc:
        raise CannotQuantize(f"{root} is installed and does not start: {first_line(exc)}") from exc


def first_line(exc: Exception) -> str:
    """Return what a foreign exception says, without what follows."""
    return next((line.strip() for line in str(exc).splitlines() if line.strip()), repr(exc))
