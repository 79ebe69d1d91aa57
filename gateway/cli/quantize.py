"""`sluice quantize`: a quantised version of an ONNX model, compared with its parent and written.

Exit codes: 0 written, 1 it could not be made, agrees too little, or the log cannot be read; 2 the
command line, the configuration, the model or the rows are wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import redis

from gateway.cli import log_client, route_input
from gateway.prediction_log import reader
from gateway.prediction_log.reader import StreamKind, entries
from gateway.prediction_log.reader.documents import Documents
from gateway.prediction_log.record import LoggedPrediction
from gateway.quantize import comparison, fp16, graphs, int8, logged, placing, ranges, samples
from gateway.quantize.comparison import Output, Sessions
from gateway.quantize.faults import CannotQuantize, WrongInput, package
from gateway.quantize.graphs import Parent
from gateway.quantize.samples import Sample, Split

if TYPE_CHECKING:
    import onnx

    # Private in argparse, and the only name of what `add_subparsers` returns.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

EPILOG: Final = (
    "exit codes: 0 written; 1 it could not be made, or agrees too little with its parent; 2 the "
    "command line, the configuration, the model or the rows are wrong"
)
RECORDS: Final = 1_000
_QUIET: Final = 3
"""onnxruntime's own log: errors only."""


def add_parser(commands: Commands) -> None:
    """Add `quantize` to the command line."""
    command = commands.add_parser(
        "quantize", help="make a quantised version of an ONNX model", epilog=EPILOG
    )
    command.set_defaults(run=run)
    command.add_argument("model", type=Path, metavar="MODEL.onnx", help="the FP32 parent")
    command.add_argument("--to", choices=("fp16", "int8"), required=True, help="precision")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="where it goes")
    command.add_argument("--force", action="store_true", help="replace a file that is there")
    _add_rows(command)
    how = command.add_argument_group("how")
    how.add_argument(
        "--for",
        dest="target",
        choices=("cpu", "tensorrt"),
        help="int8: what runs it; default: cpu",
    )
    how.add_argument(
        "--per-channel", action="store_true", help="int8: a scale per channel of the weights"
    )
    how.add_argument(
        "--keep-io",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="fp16: inputs and outputs stay FP32, as its parent's; default",
    )
    how.add_argument(
        "--exclude",
        nargs="+",
        default=[],
        metavar="NODE",
        help="nodes that stay FP32, by name or by the start of a path of names",
    )
    how.add_argument(
        "--min-agreement",
        type=_share,
        metavar="SHARE",
        help="write it only if this share of its answers is its parent's, 0 to 1",
    )


def run(arguments: argparse.Namespace) -> int:
    """Make the version, compare it, write it."""
    try:
        _check(arguments)
        package("onnxruntime").set_default_logger_severity(_QUIET)
        parent = graphs.read(arguments.model)
        found: list[Sample] = []
        if arguments.calibration is not None:
            found = samples.from_npz(arguments.calibration, parent.signature)
        elif arguments.from_log is not None:
            code = log_client.with_client(
                arguments, lambda client: _read_log(client, arguments, parent, found)
            )
            if code:
                return code
        _make(arguments, parent, _split(arguments, parent, found))
    except CannotQuantize as exc:
        print(f"sluice: {exc}", file=sys.stderr)
        return 2 if isinstance(exc, WrongInput) else 1
    return 0


def _add_rows(command: argparse.ArgumentParser) -> None:
    rows = command.add_argument_group("rows to calibrate with (int8) and to compare on")
    rows.add_argument(
        "--calibration", type=Path, metavar="FILE", help=".npz: arrays by input name, row by row"
    )
    rows.add_argument(
        "--from-log", metavar="NAME", help="inputs in the prediction log of this route or model"
    )
    rows.add_argument(
        "--records",
        type=route_input.positive,
        default=RECORDS,
        metavar="N",
        help=f"of the log: the newest N; default: {RECORDS}",
    )
    log_client.add_source(command)


def _share(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share between 0 and 1")
    return found


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what does not go together, and a place that is taken."""
    has_rows = arguments.calibration is not None or arguments.from_log is not None
    if arguments.calibration is not None and arguments.from_log is not None:
        raise WrongInput("give --calibration or --from-log, not both")
    if arguments.to == "int8" and not has_rows:
        raise WrongInput("int8 needs rows to calibrate with: --calibration FILE or --from-log NAME")
    if arguments.to == "int8" and not arguments.keep_io:
        raise WrongInput("--no-keep-io goes with --to fp16: inputs of an INT8 model are FP32")
    if arguments.to == "fp16" and (arguments.target or arguments.per_channel):
        raise WrongInput("--for and --per-channel go with --to int8")
    if arguments.min_agreement is not None and not has_rows:
        raise WrongInput("--min-agreement needs rows: --calibration FILE or --from-log NAME")
    placing.check_free(arguments.out, parent=arguments.model, force=arguments.force)


def _read_log(
    client: redis.Redis, arguments: argparse.Namespace, parent: Parent, found: list[Sample]
) -> int:
    """Add the inputs of the newest records; return the exit code."""
    name: str = arguments.from_log
    for sentence in log_client.absent(client, [name]):
        raise WrongInput(sentence)
    live = reader.tail(
        client, names=[name], from_start=False, follow=False, count=arguments.records
    )
    usable = logged.from_records(live, parent.signature)
    if not usable.samples:
        whole = logged.from_records(_big(client, name, arguments.records), parent.signature)
        usable = whole if whole.samples else usable
    found += logged.checked(usable, name)
    if usable.why_not:
        print(f"sluice: {usable.why_not.total()} records were left out", file=sys.stderr)
    return 0


def _big(client: redis.Redis, name: str, count: int) -> Iterable[LoggedPrediction]:
    """Return the newest of the whole copies of large records that the log has."""
    newest: deque[LoggedPrediction] = deque(maxlen=count)
    keys = entries.streams(client, [name], kind=StreamKind.BIG)
    for page in entries.interleaved(client, keys):
        newest += Documents.of(page.blobs).predictions
    return newest


def _split(arguments: argparse.Namespace, parent: Parent, found: Sequence[Sample]) -> Split:
    """Return the rows for both uses, in batches."""
    is_batched = parent.signature.is_batched
    rows = samples.rows(found, is_batched=is_batched)
    if arguments.to == "int8" and rows < samples.MIN_ROWS:
        raise WrongInput(f"{rows} rows are too few to calibrate with: {samples.MIN_ROWS} at least")
    split = samples.split(found) if arguments.to == "int8" else Split([], list(found))
    return Split(*(samples.batches(part, is_batched=is_batched) for part in split))


def _make(arguments: argparse.Namespace, parent: Parent, rows: Split) -> None:
    """Quantise, compare, refuse or write; tell."""
    child, precision, recipe = _quantized(arguments, parent, rows)
    if arguments.to == "fp16":
        ranges.check(parent.model, child, rows.held_out)
    wanted = parent.signature if arguments.keep_io else parent.signature.in_fp16()
    graphs.check_same(wanted, graphs.signature(child))
    properties = {graphs.PRECISION: precision, graphs.RECIPE: recipe}
    graphs.marked(child, properties | {graphs.PARENT: parent.sha256})
    content = graphs.content(child)
    sessions = Sessions(graphs.content(parent.model), content, graphs.signature(child))
    outputs = sessions.compare(rows.held_out)
    comparison.check_finite(outputs)
    share = f"{len(content) / parent.size_bytes:.0%} of its parent's {parent.size_bytes:,}"
    print(f"{arguments.out}: {precision}, {len(content):,} bytes, {share}")
    print(*_told(parent, rows, outputs), sep="\n")
    _check_agreement(arguments, outputs)
    placing.put(arguments.out, content, force=arguments.force)


def _quantized(
    arguments: argparse.Namespace, parent: Parent, rows: Split
) -> tuple[onnx.ModelProto, str, str]:
    """Return the child, its precision and how it was made."""
    if arguments.to == "fp16":
        child = fp16.quantize(parent.model, keep_io=arguments.keep_io, exclude=arguments.exclude)
        without = f" without {', '.join(arguments.exclude)}" if arguments.exclude else ""
        return child, fp16.PRECISION, f"fp16{without}"
    recipe = int8.Recipe(
        target=arguments.target or "cpu",
        per_channel=arguments.per_channel,
        exclude=arguments.exclude,
    )
    return int8.quantize(parent.model, rows.calibration, recipe), int8.PRECISION, str(recipe)


def _told(parent: Parent, rows: Split, outputs: Sequence[Output]) -> list[str]:
    """Return the comparison as lines of text."""
    calibrated, compared = (
        samples.rows(part, is_batched=parent.signature.is_batched) for part in rows
    )
    if not compared:
        return ["not compared: no rows were given (--calibration FILE or --from-log NAME)"]
    used = f"compared on {compared:,} rows"
    if calibrated:
        used = f"calibrated with {calibrated:,} rows, compared on {compared:,} others"
    width = max(len("output"), *(len(output.name) for output in outputs))
    lines = [used, f"{'output':{width}}  difference  relative  agreement"]
    for output in outputs:
        numbers = f"{'-':>10}  {'-':>8}"
        if output.largest:
            numbers = f"{output.difference:10.3g}  {output.relative:8.3%}"
        agreed = "-" if output.agreement is None else f"{output.agreement:.2%} ({output.what})"
        lines.append(f"{output.name:{width}}  {numbers}  {agreed}")
    return lines


def _check_agreement(arguments: argparse.Namespace, outputs: Sequence[Output]) -> None:
    if arguments.min_agreement is None:
        return
    found = comparison.worst(outputs)
    if found is None:
        raise WrongInput("--min-agreement: no output has classes or whole numbers that could agree")
    if found < arguments.min_agreement:
        raise CannotQuantize(
            f"not written: {found:.2%} of its answers are its parent's, "
            f"{arguments.min_agreement:.2%} are wanted"
        )
