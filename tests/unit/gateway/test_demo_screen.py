from __future__ import annotations

import errno
import io
from pathlib import Path

import pytest

from gateway.demo.screen import Screen, shown


class Flushed(io.StringIO):
    """A stream that knows how much of it was flushed."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed = ""

    def flush(self) -> None:
        self.flushed = self.getvalue()


def test_steps_are_numbered_and_set_apart() -> None:
    stream = io.StringIO()
    screen = Screen(stream, 2)
    screen.step("Models")
    screen.line("trained")
    screen.step("Redis")
    assert stream.getvalue() == "\n1/2  Models\n     trained\n\n2/2  Redis\n"


def test_work_says_what_it_is_before_it_begins_and_how_long_it_took_after() -> None:
    stream = Flushed()
    times = iter([100.0, 101.26])
    screen = Screen(stream, 1, clock=lambda: next(times))
    with screen.work("training"):
        assert stream.flushed.startswith("     training ....")
        assert not stream.flushed.endswith("\n")
    assert stream.flushed.endswith(". 1.3 s\n")


def test_the_times_of_work_stand_below_each_other() -> None:
    stream = io.StringIO()
    screen = Screen(stream, 1, clock=lambda: 0.0)
    for text in ("a", "a longer one"):
        with screen.work(text):
            pass
    first, second = stream.getvalue().splitlines()
    assert len(first) == len(second)


def test_what_follows_interrupted_work_begins_a_line_of_its_own() -> None:
    stream = io.StringIO()
    screen = Screen(stream, 1, clock=lambda: 0.0)
    with pytest.raises(KeyboardInterrupt), screen.work("starting"):
        raise KeyboardInterrupt
    with screen.work("stopping"):
        pass
    screen.line("done", indent="")
    starting, stopping, done = stream.getvalue().splitlines()
    assert starting.startswith("     starting ..")
    assert starting.endswith(".")
    assert stopping.startswith("     stopping ..")
    assert done == "done"


def test_lines_have_no_space_at_their_end() -> None:
    stream = io.StringIO()
    Screen(stream, 1).line()
    assert stream.getvalue() == "\n"


def test_a_reader_that_is_gone_is_a_broken_pipe_whatever_the_system_calls_it() -> None:
    class Terminal(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(BrokenPipeError, match="Input/output error"):
        Screen(Terminal(), 1).line("hello")


def test_a_path_below_the_current_folder_is_shown_relative_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown(Path(".demo")) == ".demo"
    assert shown(tmp_path / "a" / "b") == "a/b"
    assert shown(tmp_path.parent / "elsewhere") == str(tmp_path.parent / "elsewhere")
