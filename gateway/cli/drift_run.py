"""What `sluice drift` does: reads, judges, shows. Exit codes: see drift.py."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec
import redis
from prometheus_client import start_http_server

from gateway import config as configuration
from gateway.cli import log_client
from gateway.config_fields import ConfigError
from gateway.drift import (
    concept,
    decide,
    evidently_process,
    metrics,
    monitor,
    page,
    report,
    rows,
    tables,
)
from gateway.drift import reference as references
from gateway.drift.concept import ConceptVerdict
from gateway.drift.decide import Thresholds
from gateway.drift.follow import Follower
from gateway.drift.monitor import Monitor
from gateway.drift.reference import Reference
from gateway.drift.report import Report
from gateway.drift.rows import Columns, DriftError, Truth
from gateway.prediction_log import reader
from gateway.prediction_log.reader import Frame

DONE: Final = 0
FAILED: Final = 1
WRONG: Final = 2
DRIFT: Final = 3
RETRY_S: Final = 1.0
"""Pause while Redis is away."""


_Command = Callable[[argparse.Namespace, redis.Redis], int]


class _Stop(Exception):
    """The command ends with an exit code and a sentence for standard error."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


def run(arguments: argparse.Namespace) -> int:
    """Judge a window once, or window after window."""
    return _guarded(_follow if arguments.follow else _once, arguments)


def reference(arguments: argparse.Namespace) -> int:
    """Make a reference from the log."""
    return _guarded(_reference, arguments)


def _guarded(command: _Command, arguments: argparse.Namespace) -> int:
    try:
        if not arguments.model:
            raise _Stop(WRONG, "say which model: --model NAME")
        client = _client(arguments)
    except _Stop as exc:
        return _failed(exc, exc.code)
    try:
        return command(arguments, client)
    except _Stop as exc:
        return _failed(exc, exc.code)
    except DriftError as exc:
        return _failed(exc, FAILED)
    except redis.RedisError as exc:
        # The error names host and port; the URL may hold a password.
        return _failed(f"cannot read the prediction log: {exc}", FAILED)
    finally:
        client.close()


def _failed(sentence: object, code: int) -> int:
    print(f"sluice: {sentence}", file=sys.stderr)
    return code


def _client(arguments: argparse.Namespace) -> redis.Redis:
    url = arguments.redis
    try:
        if not url:
            config = configuration.load(arguments.config, os.environ)
            if config.redis is None:
                raise _Stop(WRONG, f"{arguments.config} has no [redis] section (or give --redis)")
            url = config.redis.url
    except ConfigError as exc:
        raise _Stop(WRONG, f"{arguments.config}: {exc} (or give --redis URL)") from exc
    try:
        return reader.connect(url)
    except ValueError as exc:
        raise _Stop(WRONG, f"--redis: {exc}") from exc


def _reference(arguments: argparse.Namespace, client: redis.Redis) -> int:
    frame = _frame(arguments, client)
    kept = tables.for_reference(frame.columns)
    made = references.make(kept, source=str(arguments.out))
    try:
        tables.write(arguments.out, kept)
    except DriftError as exc:
        raise _Stop(WRONG, str(exc)) from exc
    print(f"{arguments.out}: {made.rows} rows, {len(made.profiles)} columns")
    print(frame.completeness.text())
    return DONE


def _once(arguments: argparse.Namespace, client: redis.Redis) -> int:
    old, made = _given_reference(arguments)
    if arguments.evidently and not arguments.evidently_python:
        raise _Stop(WRONG, "--evidently needs --evidently-python, of an environment that has it")
    frame = _frame(arguments, client)
    thresholds = _thresholds(arguments)
    verdict = decide.judge(
        made, frame.columns, thresholds, concept=_concept(arguments, made, frame, thresholds)
    )
    if not verdict.is_judged and not verdict.is_drift:
        sentence = f"{verdict.rows} rows are too few to judge; it takes {decide.MIN_ROWS}"
        raise _Stop(FAILED, sentence)
    began, ended = monitor.times(frame.columns)
    shown = Report(
        model=arguments.model,
        reference=made,
        thresholds=thresholds,
        verdict=verdict,
        records=int((frame.columns["row"] == 0).sum()),
        began=began,
        ended=ended,
        completeness=frame.completeness.text(),
        notes=tuple(_coverage(arguments, made, frame)),
    )
    if arguments.evidently:
        shown = _with_evidently(arguments, shown, old, frame.columns)
    _show(arguments, shown)
    return DRIFT if verdict.is_drift else DONE


def _frame(arguments: argparse.Namespace, client: redis.Redis) -> Frame:
    frame = reader.read_frame(
        client,
        arguments.model,
        since=arguments.since,
        until=arguments.until,
        labels=arguments.labels,
    )
    if not len(frame):
        for sentence in log_client.absent(client, [arguments.model]):
            raise _Stop(FAILED, sentence)
        raise _Stop(FAILED, f"no record of {arguments.model!r} is in that window")
    return frame


def _given_reference(arguments: argparse.Namespace) -> tuple[Columns, Reference]:
    if arguments.reference is None:
        raise _Stop(WRONG, "say what it is compared with: --reference FILE")
    try:
        old = tables.read(arguments.reference)
        made = references.make(old, source=arguments.reference.name, truth=_truth(arguments))
    except DriftError as exc:
        raise _Stop(WRONG, str(exc)) from exc
    return old, made


def _truth(arguments: argparse.Namespace) -> Truth | None:
    if not arguments.labels:
        return None
    return Truth(predicted=arguments.predicted, tolerance=arguments.tolerance)


def _thresholds(arguments: argparse.Namespace) -> Thresholds:
    return Thresholds(
        **{field.name: getattr(arguments, field.name) for field in fields(Thresholds)}
    )


def _concept(
    arguments: argparse.Namespace, made: Reference, frame: Frame, thresholds: Thresholds
) -> ConceptVerdict | None:
    truth = _truth(arguments)
    if truth is None:
        return None
    wrong, weights = rows.wrong_answers(rows.answered(frame.columns), truth)
    watch = concept.begin(thresholds.level / 2, made.wrong)
    watch = concept.observe(watch, wrong, weights, 1)
    return concept.verdict(watch, wrong, weights, thresholds.wrong_rise)


def _coverage(arguments: argparse.Namespace, made: Reference, frame: Frame) -> Iterator[str]:
    if arguments.labels:
        if made.wrong is None:
            yield "the reference has no labels: there is no rate to compare with"
        found = frame.coverage
        delay = f", after {found.delay_p50_s:.0f} s (median)" if found.labelled else ""
        yield f"{found.labelled} of {found.records} records have a label{delay}"


def _with_evidently(
    arguments: argparse.Namespace, shown: Report, old: Columns, window: Columns
) -> Report:
    drifted, looked_at = evidently_process.write_page(
        arguments.evidently_python, shown.reference, old, window, arguments.evidently
    )
    note = f"Evidently, by its own rules: {drifted} of {looked_at} columns; {arguments.evidently}"
    return replace(shown, notes=(*shown.notes, note))


def _show(arguments: argparse.Namespace, shown: Report) -> None:
    if arguments.json:
        print(msgspec.json.encode(report.document(shown)).decode(), flush=True)
    else:
        print(report.text(shown), flush=True)
    _write_page(arguments.html, shown)


def _write_page(path: Path | None, shown: Report) -> None:
    """Put the page in place at once: somebody may be looking at it."""
    if path is None:
        return
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(page.page(shown), encoding="utf-8", errors="backslashreplace")
        os.replace(part, path)
    except OSError as exc:
        raise _Stop(WRONG, f"cannot write {path}: {exc.strerror}") from exc


def _follow(arguments: argparse.Namespace, client: redis.Redis) -> int:
    if arguments.until is not None or arguments.evidently is not None:
        raise _Stop(WRONG, "--until and --evidently do not go with --follow")
    _, made = _given_reference(arguments)
    watcher = Monitor(
        model=arguments.model,
        reference=made,
        thresholds=_thresholds(arguments),
        window_records=arguments.window,
        truth=_truth(arguments),
    )
    follower = Follower(
        client, watcher, model=arguments.model, group=arguments.group, labels=arguments.labels
    )
    with ExitStack() as stack:
        measured = metrics.DriftMetrics(arguments.model)
        if arguments.metrics is not None:
            stack.enter_context(_served(measured, arguments.metrics))
        stopped = stack.enter_context(_stoppable())
        return _watch(arguments, follower, watcher, measured, stopped)


def _watch(
    arguments: argparse.Namespace,
    follower: Follower,
    watcher: Monitor,
    measured: metrics.DriftMetrics,
    stopped: list[int],
) -> int:
    """Judge windows until there were enough of them, or a signal comes."""
    since = arguments.since or time.time()
    is_begun = is_away = False
    last: tuple[bool, tuple[str, ...]] | None = None
    while not stopped and watcher.windows != arguments.windows:
        try:
            if not is_begun:
                follower.begin(since)
                is_begun = True
                said = f"following {arguments.model!r}, {arguments.window} records per window"
                print(f"sluice: {said}", file=sys.stderr, flush=True)
            shown = follower.step()
            if shown is not None:
                state = shown.verdict.is_judged, shown.verdict.kinds
                measured.judged(shown, time.time())
                if arguments.json or state != last:
                    _show(arguments, shown)
                else:
                    _write_page(arguments.html, shown)
                last = state
                follower.settle()
                measured.read(*follower.counts)
            is_away = False
        except DriftError as exc:
            if watcher.windows <= 1:
                raise  # it never worked: that is for a person to see
            print(f"sluice: window {watcher.windows}: {exc}", file=sys.stderr, flush=True)
            follower.settle()
        except (redis.ConnectionError, redis.TimeoutError) as exc:
            if not is_away:
                print(f"sluice: Redis is away, trying on: {exc}", file=sys.stderr, flush=True)
            is_away = True
            time.sleep(RETRY_S)
    return DRIFT if last is not None and last[1] else DONE


@contextmanager
def _served(measured: metrics.DriftMetrics, at: tuple[str, int]) -> Iterator[None]:
    host, port = at
    try:
        server, thread = start_http_server(port, host, metrics.registry(measured))
    except OSError as exc:
        raise _Stop(WRONG, f"cannot listen on {host}:{port}: {exc.strerror or exc}") from exc
    found = f"http://{host}:{server.server_port}/metrics"
    print(f"sluice: metrics at {found}", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def _stoppable() -> Iterator[list[int]]:
    """Let SIGTERM end the watch after the step that is under way; Ctrl-C ends it at once."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before)
