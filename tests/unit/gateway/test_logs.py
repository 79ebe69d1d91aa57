"""The process's own log: one JSON object per line, readable lines for a person."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from gateway import logs


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """Give back the root logger as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    uvicorn = logging.getLogger("uvicorn")
    uvicorn_level = uvicorn.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)
    uvicorn.setLevel(uvicorn_level)


class Terminal(io.StringIO):
    """A stream that a person reads."""

    def isatty(self) -> bool:
        return True


def record(message: str = "version ready", **extra: object) -> logging.LogRecord:
    """Return a record of a fixed instant."""
    made = logging.makeLogRecord({"name": "engines.repository", "msg": message, **extra})
    made.levelname, made.created, made.msecs = "WARNING", 1_767_225_600.25, 250.0
    return made


def failure() -> logging.LogRecord:
    """Return a record with a stack trace."""
    try:
        raise ValueError("scripted")
    except ValueError as exc:
        return record("engine failed", exc_info=(type(exc), exc, exc.__traceback__))


def test_a_line_is_one_json_object_with_the_events_fields() -> None:
    line = logs.JsonFormatter().format(record(model="digits", load_ms=12))
    assert json.loads(line) == {
        "time": "2026-01-01T00:00:00.250Z",
        "level": "warning",
        "logger": "engines.repository",
        "event": "version ready",
        "model": "digits",
        "load_ms": 12,
    }


def test_a_trace_is_one_field_and_not_more_lines() -> None:
    line = logs.JsonFormatter().format(failure())
    assert "\n" not in line
    assert json.loads(line)["trace"].endswith("ValueError: scripted")


def test_a_field_that_stdlib_reserves_is_written_with_an_underscore_and_read_without() -> None:
    assert json.loads(logs.JsonFormatter().format(record(name_="digits")))["name"] == "digits"


def test_anything_can_be_a_field() -> None:
    line = logs.JsonFormatter().format(record(path=io, text="größer 数"))
    assert json.loads(line)["text"] == "größer 数"


def test_a_person_reads_pairs_and_the_trace() -> None:
    line = logs.TerminalFormatter().format(record(model="digits"))
    assert line.endswith("warning version ready model=digits")
    assert logs.TerminalFormatter().format(failure()).endswith("\nValueError: scripted")


@pytest.mark.parametrize("is_terminal", [False, True])
def test_configure_sends_everything_to_one_stream_in_the_form_for_its_reader(
    root_logger: logging.Logger, is_terminal: bool
) -> None:
    stream = Terminal() if is_terminal else io.StringIO()
    logs.configure(stream)
    logging.getLogger("gateway.app").info("serving", extra={"http": 8000})
    logging.getLogger("gateway.app").debug("not this")
    logging.getLogger("uvicorn.error").info("nor this")
    (line,) = stream.getvalue().splitlines()
    if is_terminal:
        assert line.endswith("info    serving http=8000")
    else:
        assert json.loads(line)["event"] == "serving"


def test_configuring_twice_does_not_log_twice(root_logger: logging.Logger) -> None:
    stream = io.StringIO()
    logs.configure(stream)
    logs.configure(stream)
    logging.getLogger("gateway").warning("once")
    assert len(stream.getvalue().splitlines()) == 1
