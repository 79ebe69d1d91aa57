"""Locust users of the Open Inference Protocol: one over HTTP, one over gRPC.

Payloads come from the metadata of the name under test; every request carries a fresh random
x-user-id, every answer is checked, and the variant that gave it is counted. Usable with Locust's
own interface as well as by run.py (README.md). Locust replaces blocking calls by gevent's when it
is imported; grpcio is told to do the same. The counts are of this process: no distributed runs.
"""

from __future__ import annotations

import random
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import gevent
import grpc
import grpc.experimental.gevent
import numpy as np
from locust import User, constant, events, task
from locust.contrib.fasthttp import FastHttpUser
from locust.env import Environment
from locust.stats import StatsEntry

from loadtests import answers, asking, figures, payloads
from loadtests.payloads import Signature

METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"
TIMEOUT_S: Final = 10.0
ROWS: Final = 64
"""Different payloads per form, made before the run: making them is not what is measured."""
WRITE_EVERY_S: Final = 1.0
KEY_HEADER: Final = "x-user-id"
VARIANT_HEADER: Final = "x-sluice-variant"


@dataclass(slots=True)
class Workload:
    """What the users of one test send, and whom they were answered by."""

    promised: Signature
    json: Sequence[bytes]
    """Empty where a tensor has no JSON form."""
    binary: Sequence[tuple[bytes, int]]
    grpc: Sequence[bytes]
    started_s: float = field(default_factory=time.monotonic)
    answered: dict[str, Counter[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, promised: Signature) -> Workload:
        """Make the payloads."""
        rng = np.random.default_rng()
        rows = [payloads.random_row(promised, rng) for _ in range(ROWS)]
        return cls(
            promised=promised,
            json=[payloads.as_json(row) for row in rows] if promised.has_json_form else [],
            binary=[payloads.as_binary(row) for row in rows],
            grpc=[payloads.as_grpc(promised.name, row) for row in rows],
        )

    def count(self, protocol: str, variant: str) -> None:
        """Count a good answer."""
        self.answered.setdefault(protocol, Counter())[variant] += 1


def random_key() -> str:
    """Return a user id that nobody had before."""
    return f"{random.getrandbits(64):016x}"


def workload(environment: Environment) -> Workload:
    """Return the workload that `begin` attached to the environment."""
    found: Workload = environment.sluice_workload  # type: ignore[attr-defined]
    return found


def add_options(parser: ArgumentParser) -> None:
    """Add our options to Locust's; HTTP's address is Locust's own --host."""
    parser.add_argument("--grpc", default="127.0.0.1:8001", metavar="HOST:PORT")
    parser.add_argument("--route", default="digits", help="route or model to ask")
    parser.add_argument("--figures", type=Path, metavar="FILE", help="JSON, rewritten every second")


def prepare(environment: Environment, **_: object) -> None:
    """Let grpcio wait as gevent does."""
    grpc.experimental.gevent.init_gevent()


def begin(environment: Environment, **_: object) -> None:
    """Read the metadata, make the payloads, write figures from now on.

    Raises:
        SystemExit: there is no such name, or nothing to ask.
    """
    options: Any = environment.parsed_options  # Any: options of two parsers
    url = f"{environment.host or HttpUser.host}/v2/models/{options.route}"
    try:
        promised = payloads.signature(asking.get_json(url))
    except (asking.NoAnswer, ValueError) as exc:
        raise SystemExit(f"the metadata of {options.route!r} cannot be read: {exc}") from exc
    environment.sluice_workload = Workload.of(promised)  # type: ignore[attr-defined]
    if options.figures is not None:
        gevent.spawn(_write_figures, environment, options.figures)


def end(environment: Environment, **_: object) -> None:
    """Write the last figures, which are the whole run's."""
    options: Any = environment.parsed_options  # Any: as above
    if options.figures is not None and hasattr(environment, "sluice_workload"):
        figures.write(_figures(environment), options.figures)


def _write_figures(environment: Environment, path: Path) -> None:
    while True:
        figures.write(_figures(environment), path)
        gevent.sleep(WRITE_EVERY_S)


def _figures(environment: Environment) -> figures.Figures:
    stats, load = environment.stats, workload(environment)
    entries: list[StatsEntry] = sorted(stats.entries.values(), key=lambda entry: entry.name)
    return figures.Figures(
        elapsed_s=time.monotonic() - load.started_s,
        entries=tuple(_entry(entry) for entry in entries),
        errors=tuple(
            figures.Errors(name=e.name, sentence=str(e.error), occurrences=e.occurrences)
            for e in stats.errors.values()
        ),
        answered={protocol: dict(counts) for protocol, counts in load.answered.items()},
    )


def _entry(entry: StatsEntry) -> figures.Entry:
    p50_ms, p95_ms, p99_ms = (entry.get_response_time_percentile(p) for p in (0.5, 0.95, 0.99))
    return figures.Entry(
        name=entry.name,
        requests=entry.num_requests,
        failures=entry.num_failures,
        per_second=entry.total_rps,
        p50_ms=p50_ms,
        p95_ms=p95_ms,
        p99_ms=p99_ms,
        max_ms=entry.max_response_time,
    )


class HttpUser(FastHttpUser):
    """Asks over HTTP, in JSON and in binary by turns."""

    host = "http://127.0.0.1:8000"
    wait_time = constant(0)
    connection_timeout = TIMEOUT_S
    network_timeout = TIMEOUT_S

    def on_start(self) -> None:
        """Find the payloads."""
        self.load = workload(self.environment)
        self.path = f"/v2/models/{self.load.promised.name}/infer"

    @task
    def json_infer(self) -> None:
        """Send tensors as JSON; as binary, where they have no JSON form."""
        if not self.load.json:
            self.binary_infer()
            return
        self._post(
            "json",
            random.choice(self.load.json),
            {"Content-Type": "application/json"},
            lambda answer: answers.fault_of_json(
                answer.status_code, answer.content or b"", self.load.promised
            ),
        )

    @task
    def binary_infer(self) -> None:
        """Send tensors behind a JSON header, and ask for the answer in that form."""
        body, json_bytes = random.choice(self.load.binary)
        self._post(
            "binary",
            body,
            {
                "Content-Type": "application/octet-stream",
                payloads.HEADER_LENGTH: str(json_bytes),
            },
            lambda answer: answers.fault_of_binary(
                answer.status_code,
                answer.content or b"",
                (answer.headers or {}).get(payloads.HEADER_LENGTH),
                self.load.promised,
            ),
        )

    def _post(
        self,
        form: str,
        body: bytes,
        headers: dict[str, str],
        fault_of: Callable[[Any], str | None],  # Any: Locust's response, which it does not type
    ) -> None:
        headers[KEY_HEADER] = random_key()
        name = f"http {form} {self.load.promised.name}"
        client: Any = self.client  # Any: its type allows no bytes, its code takes them as they are
        with client.request(
            "POST", self.path, name=name, data=body, headers=headers, catch_response=True
        ) as answer:
            if answer.status_code == 0:  # no answer at all: Locust counts its own error
                return
            fault = fault_of(answer)
            if fault is not None:
                answer.failure(fault)
                return
            self.load.count("http", answer.headers.get(VARIANT_HEADER, ""))
            answer.success()


class GrpcUser(User):
    """Asks over gRPC on a connection of its own; grpcio below, Locust's events above."""

    wait_time = constant(0)

    def on_start(self) -> None:
        """Connect."""
        self.load = workload(self.environment)
        options: Any = self.environment.parsed_options  # Any: as above
        self.channel = grpc.insecure_channel(
            options.grpc,
            [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)],
        )
        # Any: bytes in, bytes out; grpcio's types want a serializer to tell.
        self.infer: Any = self.channel.unary_unary(METHOD)

    def on_stop(self) -> None:
        """Hang up."""
        self.channel.close()

    @task
    def model_infer(self) -> None:
        """Send one ModelInfer."""
        start_s, started = time.time(), time.perf_counter()
        data, error = b"", ""
        try:
            data, call = self.infer.with_call(
                random.choice(self.load.grpc),
                timeout=TIMEOUT_S,
                metadata=((KEY_HEADER, random_key()),),
            )
        except grpc.RpcError as exc:
            error = _sentence(exc)
        took_ms = (time.perf_counter() - started) * 1e3
        if not error:
            error = answers.fault_of_grpc(data, self.load.promised) or ""
        if not error:
            lines = dict(call.trailing_metadata())
            self.load.count("grpc", str(lines.get(VARIANT_HEADER, "")))
        self.environment.events.request.fire(
            request_type="grpc",
            name=f"grpc ModelInfer {self.load.promised.name}",
            response_time=took_ms,
            response_length=len(data),
            exception=RuntimeError(error) if error else None,
            context={},
            start_time=start_s,
            url=METHOD,
        )


def _sentence(exc: grpc.RpcError) -> str:
    """Return what a failed call says; grpcio's errors are calls as well."""
    return f"{exc.code().name}: {exc.details()}" if isinstance(exc, grpc.Call) else str(exc)


_hooks: Any = events  # Any: Locust does not type them
_hooks.init_command_line_parser.add_listener(add_options)
_hooks.init.add_listener(prepare)
_hooks.test_start.add_listener(begin)
_hooks.quitting.add_listener(end)
