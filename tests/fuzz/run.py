"""Coverage-guided fuzzing of one target: `python -m tests.fuzz.run TARGET [libFuzzer's options]`.

Needs atheris, which is no dependency of the product: the README beside this file says how. The
corpus is kept between runs in .fuzz/TARGET below the working directory; the target's seeds are
written there first. A finding is left as .fuzz/TARGET-crash-*; `tests.fuzz.replay` runs it alone.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path
from typing import Any, Final

from tests.fuzz.targets import TARGETS, load

FOLDER: Final = Path(".fuzz")
INSTRUMENTED: Final = ["gateway", "engines"]


def write_seeds(folder: Path, seeds: list[bytes]) -> None:
    """Write seeds under the names that libFuzzer itself would give them."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (folder / hashlib.sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)


def write_words(path: Path, words: tuple[bytes, ...]) -> None:
    """Write a dictionary of libFuzzer."""
    lines = ['"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in words]
    path.write_text("".join(lines))


def main() -> None:
    """Fuzz until libFuzzer's options say stop, or something is found."""
    atheris: Any = importlib.import_module("atheris")  # Any: not installed where types are checked
    name, *options = sys.argv[1:]
    if name not in TARGETS:
        raise SystemExit(f"the targets are {', '.join(TARGETS)}")
    with atheris.instrument_imports(include=INSTRUMENTED):
        target = load(name)
    corpus = FOLDER / name
    write_seeds(corpus, target.seeds())
    words = FOLDER / f"{name}.dict"
    write_words(words, target.WORDS)
    arguments = [sys.argv[0], f"-dict={words}", f"-artifact_prefix={FOLDER}/{name}-", *options]
    atheris.Setup([*arguments, str(corpus)], target.one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
