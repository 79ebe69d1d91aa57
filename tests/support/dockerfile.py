"""A Dockerfile as its instructions and stages, for tests that hold it against the tree.

Reads what our files use: comments, continued lines, flags, the exec form. Refuses heredocs.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, its lines joined and its flags taken off."""

    line: int
    name: str
    flags: tuple[str, ...]
    """As written, such as --from=build; an option of HEALTHCHECK is one, too."""
    text: str

    def flag(self, name: str) -> str:
        """Return the value of a flag; empty: it is not set."""
        prefix = f"--{name}="
        return next((f.removeprefix(prefix) for f in self.flags if f.startswith(prefix)), "")

    def words(self) -> list[str]:
        """Return the arguments as a shell would split them."""
        return shlex.split(self.text)

    def exec_form(self) -> list[str]:
        """Return the command of an instruction in exec form.

        Raises:
            ValueError: it is in shell form.
        """
        found = json.loads(self.text.removeprefix("CMD "))
        assert isinstance(found, list)
        return found


@dataclass(slots=True)
class Stage:
    """One FROM and what follows it."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        """Return the instructions of that name."""
        return [i for i in self.instructions if i.name == name]

    def one(self, name: str) -> Instruction:
        """Return the only instruction of that name."""
        (found,) = self.all(name)
        return found


@dataclass(frozen=True, slots=True)
class Copied:
    """One source of a COPY from the build context, and where it goes."""

    source: str
    target: PurePosixPath


def read(path: Path) -> list[Stage]:
    """Return the stages of a Dockerfile, in order; the last one is the image."""
    stages: list[Stage] = []
    for instruction in _instructions(path.read_text(encoding="utf-8")):
        if instruction.name == "FROM":
            base, *rest = instruction.words()
            stages.append(Stage(base, rest[1] if rest else ""))
        stages[-1].instructions.append(instruction)
    return stages


def copied(stage: Stage) -> Iterator[Copied]:
    """Yield what a stage copies from the build context, file by file and folder by folder."""
    for copy in stage.all("COPY"):
        if copy.flag("from"):
            continue
        *sources, target = copy.words()
        for source in sources:
            is_folder = target.endswith("/")
            whole = PurePosixPath(target, PurePosixPath(source).name if is_folder else "")
            yield Copied(source, whole)


def arguments(stage: Stage) -> dict[str, str]:
    """Return the build arguments of a stage with their defaults."""
    pairs = (word.partition("=") for arg in stage.all("ARG") for word in arg.words())
    return {name: default for name, _, default in pairs}


def environment(stage: Stage) -> dict[str, str]:
    """Return the variables that a stage sets."""
    pairs = (word.partition("=") for env in stage.all("ENV") for word in env.words())
    return {name: value for name, _, value in pairs}


def is_ignored(ignore: Path, path: str) -> bool:
    """Whether a .dockerignore keeps a path of the tree out of the build context.

    The last line that fits decides, as in Docker; a line fits what is below it, too.
    """
    ignored = False
    for line in ignore.read_text(encoding="utf-8").split():
        pattern = line.removeprefix("!")
        parts = PurePosixPath(path).parts
        above = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        if any(_fits(pattern, part) for part in above):
            ignored = not line.startswith("!")
    return ignored


def _fits(pattern: str, path: str) -> bool:
    if pattern == "**":
        return True
    if pattern.startswith("**/"):
        return fnmatchcase(PurePosixPath(path).name, pattern[3:])
    return fnmatchcase(path, pattern)


def _instructions(text: str) -> Iterator[Instruction]:
    pending, begun = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("#") or (not pending and not line.strip()):
            continue
        begun = begun or number
        if line.endswith("\\"):
            pending += line.removesuffix("\\").strip() + " "
            continue
        yield _parsed(begun, pending + line.strip())
        pending, begun = "", 0
    assert not pending, "the last line is continued"


def _parsed(line: int, text: str) -> Instruction:
    assert "<<" not in text, f"line {line}: heredocs are not read here"
    name, _, rest = text.partition(" ")
    flags = []
    while found := re.match(r"(--[a-z-]+=\S+)\s+", rest):
        flags.append(found[1])
        rest = rest[found.end() :]
    return Instruction(line, name.upper(), tuple(flags), rest)
