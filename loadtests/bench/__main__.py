"""`python -m loadtests.bench`: starts Redis and the servers, measures, prints, writes bench.json.

Group after group, so that few servers are alive at a time; inside a group the rounds are
interleaved. A case that cannot be measured here (a generator or a peer that is not installed, a
server that does not start) is named with its reason, and the rest goes on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from gateway.demo.redis_server import INSTALL_HINT, RedisServer, RedisStartError, find_redis
from gateway.demo.screen import DemoFailed
from loadtests.asking import NoAnswer
from loadtests.bench import cases, content, extras, machine, options, peers, placing, report
from loadtests.bench import servers as starting
from loadtests.bench.cases import Case
from loadtests.bench.generator import Generator, GeneratorFailed, GeneratorMissing
from loadtests.bench.generators import program_for
from loadtests.bench.in_process import InProcess
from loadtests.bench.measure import (
    InProcessCase,
    Measurable,
    NotMeasured,
    Sample,
    ServerCase,
    interleaved,
)
from loadtests.bench.options import Options
from loadtests.bench.own_loops import GrpcLoop, HttpLoop
from loadtests.bench.questions import ModelFiles, Question, WrongAnswer, question
from loadtests.bench.results import PeerNote, Plan, Results
from loadtests.bench.servers import Ground, NotStarted, Running, Servers
from loadtests.bench.verify import verify
from loadtests.signals import sigterm_interrupts

_REASONS: Final = (
    DemoFailed,
    GeneratorFailed,
    GeneratorMissing,
    NoAnswer,
    NotMeasured,
    NotStarted,
    WrongAnswer,
)
"""Why a case has no figure; anything else is a bug and ends the run."""


def main(arguments: Sequence[str]) -> int:
    """Run the benchmarks; return the exit code: 1 where anything could not be measured."""
    asked = options.read(arguments)
    try:
        with sigterm_interrupts(), TemporaryDirectory(prefix="sluice-bench-") as folder:
            results = _run(asked, Path(folder))
    except (RedisStartError, NotMeasured, NotStarted) as exc:
        print(f"\nbench: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print("\n" + "\n".join(report.everything(results)))
    if asked.output is not None:
        report.write(results, asked.output)
        print(f"every round is in {asked.output}")
    return 1 if results.skipped else 0


def _run(asked: Options, folder: Path) -> Results:
    binary = find_redis()
    if binary is None:
        raise NotMeasured(INSTALL_HINT)
    models = folder / "models"
    content.write_models(models, threads=asked.threads)
    setting = machine.describe_fully()
    print(*report.header(setting), sep="\n")
    warning = machine.noise_warning(setting)
    if warning:
        print(f"\n{warning}\n", file=sys.stderr, flush=True)
    with (
        placing.generators_aside(is_wanted=asked.is_pinned),
        RedisServer(binary, folder / "redis", append_only=False) as redis,
    ):
        ground = Ground(
            folder=folder,
            models=models,
            redis_url=redis.url,
            certificate=starting.write_certificate(folder),
        )
        bench = Bench(asked, ground)
        for name, group in cases.groups(options.selected(asked)).items():
            print(f"\n{name}:", flush=True)
            bench.measure(group)
        return bench.results(setting, binary.source, warning)


class Bench:
    """One run: what was measured so far, and what could not be."""

    def __init__(self, asked: Options, ground: Ground) -> None:
        self._asked = asked
        self._ground = ground
        self._files = ModelFiles(str(ground.models))
        self._samples: list[Sample] = []
        self._skipped: dict[str, str] = {}
        self._labels: dict[str, str] = {}
        self._server_core = min(
            set(range(os.cpu_count() or 1)) - os.sched_getaffinity(0), default=0
        )

    def measure(self, group: Sequence[Case]) -> None:
        """Measure the cases of one group in interleaved rounds."""
        with Servers(self._ground) as servers:
            ready: list[Measurable] = []
            for case in group:
                try:
                    prepared = self._prepare(case, servers)
                    if self._asked.warm_up_s:
                        prepared.measure(self._asked.warm_up_s)
                except _REASONS as exc:
                    self._skip(case, exc)
                else:
                    ready.append(prepared)
                    self._labels[case.name] = prepared.label
            self._samples += interleaved(
                ready,
                rounds=self._asked.rounds,
                duration_s=self._asked.round_s,
                on_round=lambda line: print(f"  {line}", flush=True),
                on_failure=self._failed,
            )

    def _skip(self, case: Case | Measurable, exc: Exception) -> None:
        details = exc.details if isinstance(exc, DemoFailed) else ()
        self._skipped[case.name] = "\n".join([str(exc), *details])
        print(
            f"  NOT MEASURED {case.name}: {self._skipped[case.name]}", file=sys.stderr, flush=True
        )

    def _prepare(self, case: Case, servers: Servers) -> Measurable:
        if case.server.kind == "in-process":
            session = InProcess(self._ground.models, case.model, threads=self._asked.threads)
            return InProcessCase(case, session)
        running = servers.get(case.server)
        if self._asked.is_pinned and case.server.kind != "peer" and case.server.workers == 1:
            placing.on_core(running.pid, self._server_core)
        asked_for = content.target(case.model, case.asked)
        if case.server.kind == "peer":
            peer = peers.PEERS[case.server.peer]
            peers.check_values(peer, running.where("json"), self._files)
            asked = peers.question(peer)
        else:
            asked = question(case.protocol, case.model, asked_for)
            verify(asked, running.where(case.protocol), self._files)
        return ServerCase(case, running, self._generator(case, asked, running), asked_for)

    def _generator(self, case: Case, asked: Question, running: Running) -> Generator:
        where = running.where(case.protocol)
        if self._asked.is_external or case.generator not in ("wrk", "h2load"):
            return program_for(case, asked, where, self._ground.folder)
        if where.certificate is not None:
            raise GeneratorMissing("our own loops do not speak TLS")
        own = GrpcLoop if asked.is_grpc else HttpLoop
        return own(asked=asked, address=where.address, concurrency=case.in_flight)

    def _failed(self, case: Measurable, exc: Exception) -> bool:
        """Take note of a case that failed; return whether that is no bug."""
        if not isinstance(exc, _REASONS):
            return False
        self._skip(case, exc)
        return True

    def results(self, setting: machine.Setting, redis: str, warning: str | None) -> Results:
        """Measure what is no case, and return the whole."""
        asked = self._asked
        found = extras.measure(asked, self._ground)
        plan = Plan(
            rounds=asked.rounds,
            round_s=asked.round_s,
            warm_up_s=asked.warm_up_s,
            threads=asked.threads,
            redis=redis,
            is_pinned=asked.is_pinned,
            is_quick=asked.is_quick,
            generators=self._labels,
        )
        measured = {sample.case for sample in self._samples}
        notes = {
            peer.name: PeerNote(version=peer.version() or "", how=peer.how)
            for peer in peers.PEERS.values()
            if cases.peer_case(peer.name).name in measured
        }
        return Results(
            setting=setting,
            plan=plan,
            samples=self._samples,
            skipped={**self._skipped, **found.skipped},
            starts=found.starts,
            idle=found.idle,
            pipeline=found.pipeline,
            peers=notes,
            warnings=[warning] if warning else [],
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
