"""Runs single inputs of a target without atheris: `python -m tests.fuzz.replay TARGET FILE...`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.fuzz.targets import load


def main() -> None:
    """Run each file; the first finding ends the program with its traceback."""
    name, *paths = sys.argv[1:]
    target = load(name)
    for path in paths:
        target.one(Path(path).read_bytes())
        sys.stdout.write(f"{path}: nothing found\n")


if __name__ == "__main__":
    main()
