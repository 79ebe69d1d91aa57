"""`python -m loadtests.micro.spinning`: two models on two cores, with and without spinning.

Two sessions of two threads each in one process, each called without a pause from a thread of its
own, as two instances of the gateway call theirs. Once as engines/ort makes sessions (threads that
have nothing to do sleep), once as onnxruntime makes them by default (they spin, and take the cores
from the other session). In pairs by turns: both in every round, each first in every other one, so
that what else the machine does meanwhile is in both. On a machine with more cores, two are used.

Rows per second of both models together; the ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import msgspec
import numpy as np
import onnxruntime as ort

from engines.base import EngineConfig
from engines.ort.session import open_session, session_options
from loadtests.bench import machine, models
from loadtests.bench.machine import Setting

RESULTS: Final = Path(__file__).parents[1] / "results" / "spinning.json"
CORES: Final = 2
MODELS: Final = 2
THREADS: Final = 2
"""Of each session."""
WIDTHS: Final = (1024, 2048, 2048, 1024)
"""Of a perceptron of 8.4 million weights: a batch takes a millisecond or two of one core."""
ROWS: Final = 8
ROUNDS: Final = 9
SECONDS: Final = 2.0
PAUSE_S: Final = 0.3
"""After each half of a round: threads that spin give up long before."""
LIMIT: Final = 1.8
METHOD: Final = (
    f"{MODELS} sessions of {THREADS} threads on {CORES} cores in one process, each called without "
    f"a pause from its own thread with batches of {ROWS} rows of a perceptron; ours (engines/ort) "
    "and onnxruntime's defaults with as many threads, by turns in every round"
)

Call = Callable[[], object]


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """Both, one after the other; rows per second."""

    ours: float
    default: float

    @property
    def ratio(self) -> float:
        """Return how much more ours is."""
        return self.ours / self.default


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    setting: Setting
    method: str
    widths: tuple[int, ...]
    """Of the perceptron's layers, inputs first."""
    limit: float
    rounds: list[Round]

    @property
    def ratio(self) -> float:
        """Return the median of the rounds' ratios."""
        return statistics.median(pair.ratio for pair in self.rounds)


class NotMeasured(Exception):
    """The sentence says why there are no figures."""


def ours(path: Path) -> ort.InferenceSession:
    """Return a session as the gateway makes it for a model of so many threads."""
    return open_session(path, session_options(EngineConfig(intra_op_threads=THREADS)))


def default(path: Path) -> ort.InferenceSession:
    """Return a session as onnxruntime makes it, but for the number of its threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    return ort.InferenceSession(str(path), options)


def calls(make: Callable[[Path], ort.InferenceSession], paths: Sequence[Path]) -> list[Call]:
    """Return one call per model that runs a batch, after a first run."""

    def call(session: Any) -> Call:  # Any: untyped session
        width = session.get_inputs()[0].shape[1]
        batch = np.random.default_rng(1).standard_normal((ROWS, width), np.float32)
        return lambda: session.run([models.OUTPUT], {models.INPUT: batch})

    made = [call(make(path)) for path in paths]
    for run in made:
        run()
    return made


def rate(runs: Sequence[Call], seconds: float) -> float:
    """Call each in a thread of its own for so long; return rows per second of all together.

    Raises:
        NotMeasured: a call failed.
    """
    counts = [0] * len(runs)
    failed: list[Exception] = []
    is_over = threading.Event()
    together = threading.Barrier(len(runs) + 1)

    def work(number: int, run: Call) -> None:
        together.wait()
        try:
            while not is_over.is_set():
                run()
                counts[number] += 1
        except Exception as exc:  # foreign: whatever onnxruntime raises
            failed.append(exc)

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(runs)]
    for thread in threads:
        thread.start()
    together.wait()
    started = time.perf_counter()
    time.sleep(seconds)
    is_over.set()
    for thread in threads:
        thread.join()
    spent_s = time.perf_counter() - started
    if failed or not all(counts):
        raise NotMeasured(f"a model was not run: {failed or counts}")
    return sum(counts) * ROWS / spent_s


def measure(paths: Sequence[Path], *, rounds: int, seconds: float) -> list[Round]:
    """Measure both, by turns.

    Raises:
        NotMeasured: a model could not be run.
    """
    kinds = {"ours": calls(ours, paths), "default": calls(default, paths)}
    found = []
    for number in range(rounds):
        order = list(kinds) if number % 2 else list(reversed(kinds))
        rates = {}
        for kind in order:
            rates[kind] = round(rate(kinds[kind], seconds), 1)
            time.sleep(PAUSE_S)
        found.append(Round(**rates))
    return found


def use_two_cores() -> None:
    """Keep this process, and the threads that it will start, to two cores.

    Raises:
        NotMeasured: there is one.
    """
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < CORES:
        raise NotMeasured(f"{len(usable)} core is usable, and {CORES} are needed")
    os.sched_setaffinity(0, usable[:CORES])


def shown(results: Results) -> list[str]:
    """Return the table."""
    lines = [
        f"Rows per second of {MODELS} models x {THREADS} threads on {CORES} cores, perceptrons of "
        + "-".join(map(str, results.widths)),
        f"{'round':>6}{'ours':>12}{'default':>12}{'ratio':>8}",
    ]
    for number, pair in enumerate(results.rounds, start=1):
        lines.append(f"{number:>6}{pair.ours:>12,.0f}{pair.default:>12,.0f}{pair.ratio:>8.2f}")
    verdict = "at least" if results.ratio >= results.limit else "UNDER"
    lines.append(f"median ratio {results.ratio:.2f}, {verdict} the wanted {results.limit:g}")
    return lines


def _widths(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write; return 0 if ours is as much faster as is wanted."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.micro.spinning", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"{ROUNDS}")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of a half; {SECONDS:g}")
    parser.add_argument("--widths", type=_widths, default=WIDTHS, help="of the layers: 256,512,9")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds are positive")
    setting = machine.describe_fully()
    print(f"{setting.cpu}, {setting.cores} cores, others take {setting.busy:.0%}")
    print(f"onnxruntime {ort.__version__}, Python {setting.python}")
    if warning := machine.noise_warning(setting):
        print(warning)
    try:
        use_two_cores()
        with TemporaryDirectory(prefix="sluice-spinning-") as name:
            paths = [Path(name, f"{number}.onnx") for number in range(MODELS)]
            for seed, path in enumerate(paths):
                models.write_mlp(path, options.widths, seed=seed)
            rounds = measure(paths, rounds=options.rounds, seconds=options.seconds)
    except NotMeasured as exc:
        print(exc, file=sys.stderr)
        return 1
    results = Results(
        setting=setting, method=METHOD, widths=options.widths, limit=LIMIT, rounds=rounds
    )
    print(*shown(results), sep="\n")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")
    return 0 if results.ratio >= results.limit else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
