"""`python -m loadtests.gpu --device cuda:0 --out results.json`: what a GPU does under the gateway.

For torch and ONNX Runtime, each with a ResNet-50-sized and a BERT-base-sized network: rows per
second in-process per batch size, then by turns in one run the gateway against that, one, two and
three lanes, buckets against none, CUDA graphs on and off, and a shadow on the same device.

`--prepare FOLDER` only writes the models, `--models FOLDER` uses what was written: a machine
without the package onnx needs the model.onnx files (kilobytes; their weights are made again from a
seed). `--device cpu --quick` runs all of it over small networks: it shows that the script works.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import msgspec

from engines import devices
from engines.errors import EngineError
from gateway.demo.screen import DemoFailed
from loadtests.asking import NoAnswer
from loadtests.gpu import files, report
from loadtests.gpu.callers import Callers, LoadFailed
from loadtests.gpu.comparisons import PLANS, Plan
from loadtests.gpu.files import MAX_ROWS, PackageMissing
from loadtests.gpu.measuring import Measurement, NotMeasured, Subject, Times
from loadtests.gpu.networks import NETWORKS
from loadtests.gpu.results import Pair, Results
from loadtests.gpu.variants import Serving
from loadtests.gpu.watching import Watch, setting
from loadtests.grpc_loop import CallFailed
from loadtests.signals import sigterm_interrupts

ENGINES: Final = ("pytorch", "onnxruntime")
"""torch first: it brings the CUDA libraries that onnxruntime needs as well."""
SETTLE_SHARE: Final = 0.25
MOST_CALLERS: Final = 8
_REASONS: Final = (
    EngineError,
    DemoFailed,
    NotMeasured,
    LoadFailed,
    NoAnswer,
    PackageMissing,
    CallFailed,
    OSError,
)
"""Why a pair may have no figures; anything else is a bug."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for, completed."""

    device: str
    only: tuple[str, ...]
    seconds: float
    rounds: int
    max_batch: int
    callers: int
    is_quick: bool
    models: Path | None
    prepare: Path | None
    out: Path | None

    @property
    def times(self) -> Times:
        """How long everything takes."""
        settle_s = self.seconds * SETTLE_SHARE
        return Times(rounds=self.rounds, turn_s=self.seconds, settle_s=settle_s)


def parsed(arguments: Sequence[str]) -> Options:
    """Read the command line; ends the program where it cannot be."""
    made = argparse.ArgumentParser(prog="python -m loadtests.gpu", description=__doc__)
    made.add_argument("--device", default="cuda:0", help="cuda:N, or cpu; cuda:0")
    made.add_argument("--out", type=Path, metavar="FILE", help="JSON; the tables are printed")
    made.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="part of ENGINE/NETWORK/COMPARISON, such as bert, pytorch/ or resnet50/shadow; often",
    )
    made.add_argument("--seconds", type=float, help="of a turn; 3, quick: 0.2")
    made.add_argument("--rounds", type=int, help="3, quick: 2")
    made.add_argument("--max-batch", type=int, help="rows; 64, quick: 4")
    made.add_argument(
        "--callers", type=int, help=f"processes; half the cores, up to {MOST_CALLERS}"
    )
    made.add_argument("--quick", action="store_true", help="small networks, short turns")
    made.add_argument("--prepare", type=Path, metavar="FOLDER", help="write the models and end")
    made.add_argument("--models", type=Path, metavar="FOLDER", help="models written before")
    found = made.parse_args(arguments)
    cores = len(os.sched_getaffinity(0))
    usual = {"seconds": 3.0, "rounds": 3, "max_batch": 64}
    if found.quick:
        usual = {"seconds": 0.2, "rounds": 2, "max_batch": 4}
    usual["callers"] = max(1, min(MOST_CALLERS, cores // 2))
    for name, value in usual.items():
        if getattr(found, name) is None:
            setattr(found, name, value)
        if getattr(found, name) <= 0:
            made.error(f"--{name.replace('_', '-')} is positive")
    if found.max_batch > MAX_ROWS:
        made.error(f"--max-batch is {MAX_ROWS} at most")
    found.is_quick, found.only = found.quick, tuple(found.only)
    return Options(**{name: getattr(found, name) for name in Options.__slots__})


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write; return 0 unless something was not measured."""
    options = parsed(arguments)
    try:
        with sigterm_interrupts():
            if options.prepare is not None:
                return _prepare(options, options.prepare)
            if why := devices.why_not(options.device):
                print(f"gpu: {why}", file=sys.stderr)
                return 1
            results = _run(options, arguments)
    except KeyboardInterrupt:
        return 130
    print("", *report.shown(results), sep="\n")
    return 1 if results.skipped or not results.pairs else 0


def _keep(results: Results, path: Path | None) -> None:
    """Write the file; once per pair, so that a run that is cut off leaves what it has."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")


def _prepare(options: Options, folder: Path) -> int:
    code = 0
    for engine in ENGINES:
        for name, network in NETWORKS.items():
            try:
                graph = network.graph(is_quick=options.is_quick)
                print(*files.model(folder, engine, name, graph), sep="\n")
            except PackageMissing as exc:
                print(f"{engine}/{name}: {exc}", file=sys.stderr)
                code = 1
    return code


def wanted(name: str, only: Sequence[str]) -> list[Plan]:
    """Return the comparisons of an ENGINE/NETWORK that were asked for."""
    return [
        plan for plan in PLANS if not only or any(part in f"{name}/{plan.name}" for part in only)
    ]


def _run(options: Options, arguments: Sequence[str]) -> Results:
    results = Results(
        setting=setting(options.device, arguments),
        rounds=options.rounds,
        turn_s=options.seconds,
        settle_s=options.times.settle_s,
        callers=options.callers,
        max_batch=options.max_batch,
        is_quick=options.is_quick,
        pairs=[],
        skipped={},
    )
    with Callers(options.callers) as callers, Watch(options.device) as watch:
        for name in [f"{engine}/{network}" for engine in ENGINES for network in NETWORKS]:
            plans = wanted(name, options.only)
            if not plans:
                continue
            try:
                pair, without = _measured(options, name, plans, callers, watch)
            except _REASONS as exc:
                details = exc.details if isinstance(exc, DemoFailed) else ()
                results.skipped[name] = " ".join([str(exc), *details])
                print(f"{name}: {results.skipped[name]}", file=sys.stderr, flush=True)
            else:
                results.pairs.append(pair)
                results.skipped.update((f"{name}/{plan}", why) for plan, why in without.items())
            _keep(results, options.out)
    return results


def _measured(
    options: Options, name: str, plans: Sequence[Plan], callers: Callers, watch: Watch
) -> tuple[Pair, dict[str, str]]:
    """Measure one engine with one network; return also what of it was skipped."""
    engine, _, network = name.partition("/")
    files.check(engine)
    graph = NETWORKS[network].graph(is_quick=options.is_quick)
    with TemporaryDirectory(prefix="sluice-gpu-") as made:
        folder = Path(made)
        subject = Subject(
            name=network,
            about=NETWORKS[network].shown if not options.is_quick else "a small one like it",
            graph=graph,
            files=files.model(options.models or folder / "files", engine, network, graph),
            serving=Serving(engine=engine, device=options.device, max_batch=options.max_batch),
        )
        measurement = Measurement(
            subject,
            folder,
            options.times,
            callers=callers,
            watch=watch,
            say=lambda what: print(f"{name}: {what}", file=sys.stderr, flush=True),
        )
        return measurement.run(plans), measurement.skipped


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
