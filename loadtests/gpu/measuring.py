"""One engine with one network: the sweep in this process, then the comparisons, by turns.

Nothing is loaded between turns: the engine in this process and all variants behind the gateway stay
where they are, and whoever is not asked uses no device. The order of the sides is reversed in every
other round, so that whatever drifts meets both. A figure counts only if the gateway's answer agrees
with the engine's in this process, no request failed, and both ends count the same rows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from gateway.pb import inference_pb2 as pb
from loadtests import grpc_loop
from loadtests.gpu import serving, variants
from loadtests.gpu.callers import Answered, Callers, LoadFailed
from loadtests.gpu.comparisons import Loads, Plan, Profile, Side, request
from loadtests.gpu.graph import OUTPUT, Graph
from loadtests.gpu.in_process import OVERLAPPED, SERIAL, InProcess
from loadtests.gpu.results import Comparison, Pair, Turn, best
from loadtests.gpu.serving import Gateway
from loadtests.gpu.variants import BASE, SHADOWED, VARIANTS, Serving
from loadtests.gpu.watching import Watch

TOLERANCE: Final = 0.02
"""Of the largest value: batches of other sizes are computed by other kernels, in TF32 maybe."""
SWEEP_SHARE: Final = 0.25
"""Of a turn, for each bucket in each round."""
COUNTED_WITHIN_S: Final = 5.0
_POLL_S: Final = 0.05
_SHADOW_READY_S: Final = 120.0

Say = Callable[[str], None]


class NotMeasured(Exception):
    """The sentence says why there are no figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """How long everything takes."""

    rounds: int
    turn_s: float
    settle_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One engine with one network."""

    name: str
    about: str
    graph: Graph
    files: tuple[Path, ...]
    """The model first."""
    serving: Serving


def order(sides: Sequence[Side], number: int) -> list[Side]:
    """Return in which order a round measures."""
    return list(sides) if number % 2 == 0 else list(reversed(sides))


class Measurement:
    """The measurement of one subject.

    Args:
        folder: an empty one.
        callers: running.
        watch: of the device.
        say: told what happens next.
    """

    def __init__(
        self,
        subject: Subject,
        folder: Path,
        times: Times,
        *,
        callers: Callers,
        watch: Watch,
        say: Say,
    ) -> None:
        self._subject = subject
        self._folder = folder
        self._times = times
        self._callers = callers
        self._watch = watch
        self._say = say
        self._best = 1
        self._loads = Loads(folder, subject.graph, subject.serving.max_batch)
        self.skipped: dict[str, str] = {}
        """Comparison -> why it was not measured."""

    def run(self, plans: Sequence[Plan]) -> Pair:
        """Measure.

        Raises:
            EngineError: the engine does not load in this process.
            DemoFailed: the gateway does not start.
            NotMeasured: an answer is wrong, or the base is not served.
        """
        subject = self._subject
        config = subject.serving.config(VARIANTS[BASE])
        engine = InProcess(subject.serving.engine, subject.files[0], config, subject.graph)
        try:
            rates = self._sweep(engine)
            self._best = best(rates)
            done, warnings = self._served(plans, engine) if plans else ([], [])
            return Pair(
                engine=subject.serving.engine,
                network=subject.name,
                about=subject.about,
                loaded=engine.loaded(),
                buckets=rates,
                comparisons=done,
                warnings=warnings,
            )
        finally:
            engine.close()

    def _sweep(self, engine: InProcess) -> dict[int, list[float]]:
        """Return the rows per second of every bucket, round by round."""
        buckets = self._subject.serving.buckets
        rates: dict[int, list[float]] = {rows: [] for rows in buckets}
        self._say("in-process, every bucket")
        for number in range(self._times.rounds):
            for rows in buckets if number % 2 == 0 else reversed(buckets):
                turn = engine.turn(SERIAL, rows, self._times.turn_s * SWEEP_SHARE)
                rates[rows].append(round(turn.rows / turn.seconds, 1))
        return rates

    def _served(
        self, plans: Sequence[Plan], engine: InProcess
    ) -> tuple[list[Comparison], list[str]]:
        names = {BASE}.union(*(plan.models for plan in plans))
        repository = self._folder / "models"
        variants.write_repository(
            repository, self._subject.files, self._subject.serving, sorted(names)
        )
        has_routes = any(plan.has_routes for plan in plans)
        text = variants.settings(repository, self._subject.serving.max_batch, has_routes=has_routes)
        self._say(f"gateway, {len(names)} variants")
        with serving.running(self._folder, text) as gateway:
            lost = gateway.unavailable()
            if BASE in lost:
                raise NotMeasured(f"the gateway does not serve the model: {lost[BASE]}")
            self._check_answer(gateway, engine)
            warm = self._asked(gateway, Side("", BASE), Profile.FULL)
            self._loads.capacity_rows_per_s = warm.rows / warm.seconds
            if has_routes:
                self._await_shadow(gateway)
            done = [
                found for plan in plans if (found := self._compared(plan, gateway, engine, lost))
            ]
            return done, gateway.warnings()

    def _compared(
        self, plan: Plan, gateway: Gateway, engine: InProcess, lost: Mapping[str, str]
    ) -> Comparison | None:
        """Measure one comparison; None: it is skipped."""
        for model in plan.models & lost.keys():
            self.skipped[plan.name] = f"the gateway does not serve {model}: {lost[model]}"
            return None
        sides = [s for s in plan.sides if s.name != OVERLAPPED or engine.has_lanes]
        turns: list[Turn] = []
        for number in range(self._times.rounds):
            taken = {}
            for side in order(sides, number):
                self._say(f"{plan.name}, round {number + 1}: {side.name}")
                try:
                    taken[side.name] = self._turn(side, plan.profile, gateway, engine)
                except (LoadFailed, NotMeasured) as exc:
                    self.skipped[plan.name] = f"{side.name}: {exc}"
                    return None
            turns += [taken[side.name] for side in sides]
        return Comparison(name=plan.name, about=plan.about, load=plan.profile.value, turns=turns)

    def _turn(self, side: Side, profile: Profile, gateway: Gateway, engine: InProcess) -> Turn:
        if side.asked:
            return self._asked(gateway, side, profile)
        turn = engine.turn(side.name, self._best, self._times.turn_s)
        return msgspec.structs.replace(turn, gpu_busy=self._watch.busy(turn.seconds))

    def _asked(self, gateway: Gateway, side: Side, profile: Profile) -> Turn:
        """Let the callers ask for a turn."""
        times, is_shadowed = self._times, side.asked == SHADOWED
        before = gateway.counts(side.ran)
        copied = gateway.copies() if is_shadowed else (0, 0)
        load = self._loads.load(side.asked, profile)
        self._callers.begin(
            gateway.addresses.grpc, load, settle_s=times.settle_s, seconds=times.turn_s
        )
        time.sleep(times.settle_s)
        cpu_before_s = gateway.cpu_s()
        time.sleep(times.turn_s)
        cpu_s = gateway.cpu_s() - cpu_before_s
        busy = self._watch.busy(times.turn_s)
        answered = self._callers.end()
        moved = self._counted(gateway, side.ran, before, answered)
        copies = gateway.copies() if is_shadowed else (0, 0)
        return Turn(
            side=side.name,
            rows=answered.rows,
            seconds=times.turn_s,
            cpu_s=round(cpu_s, 3),
            requests=answered.requests,
            p50_ms=answered.p50_ms,
            p99_ms=answered.p99_ms,
            gpu_busy=busy,
            batches=moved.batches,
            batch_rows=moved.rows,
            padded_rows=moved.padded_rows,
            copies=copies[0] - copied[0] if is_shadowed else None,
            copies_answered=copies[1] - copied[1],
        )

    def _counted(
        self, gateway: Gateway, model: str, before: serving.Counts, answered: Answered
    ) -> serving.Counts:
        """Return what a model ran for these answers; raises NotMeasured if it is not as much."""
        until_s = time.monotonic() + COUNTED_WITHIN_S
        while True:
            after = gateway.counts(model)
            moved = serving.Counts(*(b - a for a, b in zip(before, after, strict=True)))
            if moved.rows == answered.all_rows:
                return moved
            if time.monotonic() > until_s:
                raise NotMeasured(
                    f"the gateway ran {moved.rows} rows, the callers had {answered.all_rows}"
                )
            time.sleep(_POLL_S)

    def _check_answer(self, gateway: Gateway, engine: InProcess) -> None:
        """Raise NotMeasured unless the gateway answers what the engine in this process does."""
        graph = self._subject.graph
        rows = min(2, self._subject.serving.max_batch)
        expected = engine.answer(graph.batch(rows))[OUTPUT]
        message = asyncio.run(_ask(gateway, request(graph, BASE, rows, 1)))
        found = np.frombuffer(message.raw_output_contents[0], np.float32).reshape(expected.shape)
        difference = float(np.abs(found - expected).max() / np.abs(expected).max())
        if not difference <= TOLERANCE:
            raise NotMeasured(f"the gateway's answer is {difference:.1%} off the engine's")

    def _await_shadow(self, gateway: Gateway) -> None:
        """Ask the shadowed route until copies are answered; raises NotMeasured."""
        body = request(self._subject.graph, SHADOWED, 1, 1)
        until_s = time.monotonic() + _SHADOW_READY_S
        while gateway.copies()[1] == 0:
            if time.monotonic() > until_s:
                raise NotMeasured(f"the shadow answers nothing within {_SHADOW_READY_S:g} s")
            asyncio.run(_ask(gateway, body))
            time.sleep(_POLL_S)


async def _ask(gateway: Gateway, body: bytes) -> pb.ModelInferResponse:
    """Ask once, over grpcio."""
    answers: list[bytes] = []
    await grpc_loop.closed_loop(
        gateway.addresses.grpc,
        iter([(None, body, ())]),
        lambda _tag, answer, _trailers: answers.append(answer),
        concurrency=1,
    )
    return pb.ModelInferResponse.FromString(answers[0])
