"""Load generators that are programs: wrk, h2load, perf_analyzer, and grpc-js under node.

Each keeps so many requests of one kind under way for a while, and says how many were answered and
how long they took. Command lines and the reading of what they print; which server is meant and what
counts as cost, measure.py knows. A generator that saw an error has failed: a cheap error is no
cheap answer. h2load sees only HTTP's status, so the servers' own counts of successes must agree
(measure.py), and one answer is checked before every case (verify.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from loadtests import perf_analyzer, perf_analyzer_binary
from loadtests.bench import content
from loadtests.bench.cases import Case
from loadtests.bench.generator import (
    Generator,
    GeneratorFailed,
    GeneratorMissing,
    Load,
    Where,
    find,
    run_program,
    whole_s,
)
from loadtests.bench.latencies import percentile
from loadtests.bench.questions import Question
from loadtests.payloads import HEADER_LENGTH

STREAMS_PER_CONNECTION: Final = 64
"""h2load: more in flight are spread over more connections."""
NODE_FOLDER: Final = Path(__file__).parents[2] / ".bench" / "node"
GRPC_JS: Final = Path(__file__).parent / "grpc_js" / "load.js"
POST_LUA: Final = Path(__file__).with_name("post.lua")
_USERS: Final = 256
"""Different keys that wrk's requests carry in turn."""
_STABLE_PERCENT: Final = 999
"""perf_analyzer repeats windows until three agree within this: always."""
_WINDOWS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrk:
    """HTTP/1.1, one request per connection, one thread; the key varies over 256 users."""

    where: Where
    path: str
    body: Path
    headers: Mapping[str, str]
    connections: int
    label: str = field(default="wrk", init=False)

    @property
    def slack(self) -> int | None:
        """What was under way at the end."""
        return self.connections

    def command(self, duration_s: float) -> list[str]:
        """Return the command line."""
        # A large body is held once per user: two of them are enough.
        users = _USERS if self.body.stat().st_size < 1 << 16 else 2
        return [
            *(find("wrk", "Debian: wrk"), "--threads", "1"),
            *("--connections", str(self.connections), "--duration", f"{whole_s(duration_s)}s"),
            *("--latency", "--timeout", "30s", "--script", str(POST_LUA)),
            *(self.where.url + self.path, "--", str(self.body)),
            *(self.headers["Content-Type"], self.headers.get(HEADER_LENGTH, "-")),
            *(content.KEY_HEADER, str(users)),
        ]

    def run(self, duration_s: float) -> Load:
        """Run wrk."""
        return read_wrk(run_program(self.command(duration_s), duration_s))


def read_wrk(said: str) -> Load:
    """Read the line of JSON that post.lua prints at the end.

    Raises:
        GeneratorFailed: errors, or nothing answered.
    """
    for line in said.splitlines():
        if line.startswith("{"):
            figures = json.loads(line)
            break
    else:
        raise GeneratorFailed(f"wrk printed no figures:\n{said}")
    errors = {kind: count for kind, count in figures["errors"].items() if count}
    if errors or not figures["requests"]:
        raise GeneratorFailed(f"wrk: {figures['requests']} answers, errors {errors}")
    return Load(
        figures["requests"], figures["duration_us"] / 1e6, figures["p50_us"], figures["p99_us"]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class H2load:
    """gRPC over HTTP/2 with constant headers, one thread."""

    where: Where
    path: str
    body: Path
    """One gRPC message, framed."""
    log: Path
    in_flight: int
    label: str = field(default="h2load", init=False)

    @property
    def slack(self) -> int | None:
        """What was under way at the end."""
        return self.in_flight

    def command(self, duration_s: float) -> list[str]:
        """Return the command line: a connection per 64 requests in flight."""
        connections = max(1, self.in_flight // STREAMS_PER_CONNECTION)
        return [
            *(find("h2load", "Debian: nghttp2-client"), "--threads", "1"),
            *("--clients", str(connections)),
            *("--max-concurrent-streams", str(self.in_flight // connections)),
            *("--duration", f"{whole_s(duration_s)}s", "--log-file", str(self.log)),
            *("--header", "content-type: application/grpc", "--header", "te: trailers"),
            *("--data", str(self.body), self.where.url + self.path),
        ]

    def run(self, duration_s: float) -> Load:
        """Run h2load, which appends to its log."""
        self.log.unlink(missing_ok=True)
        said = run_program(self.command(duration_s), duration_s)
        return read_h2load(said, self.log.read_text())


_H2LOAD_COUNTS: Final = re.compile(
    r"requests: .* (?P<good>\d+) succeeded, (?P<failed>\d+) failed, (?P<errored>\d+) errored"
)
_H2LOAD_FINISHED: Final = re.compile(r"finished in (?P<value>[\d.]+)(?P<unit>us|ms|s|m)\b")
_SECONDS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


def read_h2load(said: str, log: str) -> Load:
    """Read h2load's summary, and its log: start, status and microseconds of each request.

    Raises:
        GeneratorFailed: errors, another status than 200, or nothing answered.
    """
    counts, finished = _H2LOAD_COUNTS.search(said), _H2LOAD_FINISHED.search(said)
    if counts is None or finished is None:
        raise GeneratorFailed(f"h2load printed no figures:\n{said}")
    taken_us, others = [], 0
    for line in log.splitlines():
        _, status, us = line.split("\t")
        if status == "200":
            taken_us.append(int(us))
        elif status != "-1":  # -1: not answered before the end
            others += 1
    good = int(counts["good"])
    if others or not good or int(counts["errored"]):
        raise GeneratorFailed(f"h2load: {good} answers, {others} of another status\n{said}")
    taken_us.sort()
    seconds = float(finished["value"]) * _SECONDS[finished["unit"]]
    return Load(good, seconds, percentile(taken_us, 0.5), percentile(taken_us, 0.99))


@dataclass(frozen=True, slots=True, kw_only=True)
class PerfAnalyzer:
    """Triton's own load tool, asynchronous; up to six requests under way share a channel."""

    where: Where
    protocol: str
    """grpc, stream or json."""
    target: content.Target
    in_flight: int
    label: str = field(default="perf_analyzer 2.41.0", init=False)

    @property
    def slack(self) -> int | None:
        """It counts those of its windows only."""
        return None

    def command(self, duration_s: float, program: Path) -> list[str]:
        """Return the command line: three windows that come to this duration."""
        host, port = self.where.address
        window_ms = max(200, int(duration_s * 1_000 / _WINDOWS))
        is_http = self.protocol == "json"
        command = [str(program), "-m", self.target.name, "-a"]
        command += ["-x", self.target.version] if self.target.version else []
        command += ["-i", "http" if is_http else "grpc", "-u", f"{host}:{port}"]
        if is_http:
            command += ["--input-tensor-format", "json", "--output-tensor-format", "json"]
        if self.protocol == "stream":
            command.append("--streaming")
        if self.where.certificate is not None and not is_http:
            command += ["--ssl-grpc-use-ssl", "--ssl-grpc-root-certifications-file"]
            command.append(str(self.where.certificate))
        command += ["--concurrency-range", str(self.in_flight)]
        return [*command, "-p", str(window_ms), "-s", str(_STABLE_PERCENT), "-r", str(_WINDOWS)]

    def run(self, duration_s: float) -> Load:
        """Run perf_analyzer."""
        program = _perf_analyzer()
        command = self.command(duration_s, program.path)
        said = run_program(command, duration_s, program.environ)
        try:
            (row,) = perf_analyzer.read(said)
        except (perf_analyzer.RunFailed, ValueError) as exc:
            raise GeneratorFailed(f"perf_analyzer: {exc}\n{said}") from exc
        seconds = row.requests / row.per_second
        return Load(row.requests, seconds, row.p50_us, row.p99_us)


def _perf_analyzer() -> perf_analyzer_binary.PerfAnalyzer:
    found = perf_analyzer_binary.find(perf_analyzer_binary.ENVIRONMENT)
    if found is None:
        raise GeneratorMissing("perf_analyzer is not installed (make bench-tools)")
    if missing := found.missing():
        raise GeneratorMissing(perf_analyzer_binary.advice(missing))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcJs:
    """@grpc/grpc-js under node, one channel; headers constant or different in every call."""

    where: Where
    path: str
    body: Path
    in_flight: int
    is_varying: bool
    label: str = field(default="grpc-js", init=False)

    @property
    def slack(self) -> int | None:
        """None is cut off: it waits for its last answers."""
        return 0

    def command(self, duration_s: float) -> list[str]:
        """Return the command line."""
        options = {
            "address": f"{self.where.address[0]}:{self.where.address[1]}",
            "path": self.path,
            "body": str(self.body),
            "inFlight": self.in_flight,
            "seconds": duration_s,
            "isVarying": self.is_varying,
            "certificate": str(self.where.certificate or ""),
            "modules": str(NODE_FOLDER / "node_modules"),
        }
        return [find("node", "https://nodejs.org"), str(GRPC_JS), json.dumps(options)]

    def run(self, duration_s: float) -> Load:
        """Run node."""
        if not (NODE_FOLDER / "node_modules" / "@grpc" / "grpc-js").is_dir():
            raise GeneratorMissing("@grpc/grpc-js is not installed (make bench-tools)")
        return read_grpc_js(run_program(self.command(duration_s), duration_s))


def read_grpc_js(said: str) -> Load:
    """Read the line of JSON that load.js prints.

    Raises:
        GeneratorFailed: errors, or nothing answered.
    """
    try:
        figures = json.loads(said)
    except ValueError:
        raise GeneratorFailed(f"grpc-js printed no figures:\n{said}") from None
    if figures["errors"] or not figures["requests"]:
        raise GeneratorFailed(
            f"grpc-js: {figures['requests']} answers, {figures['errors']} errors, "
            f"first {figures['firstError']}"
        )
    return Load(figures["requests"], figures["seconds"], figures["p50Us"], figures["p99Us"])


def program_for(case: Case, asked: Question, where: Where, folder: Path) -> Generator:
    """Return the program that generates a case's load; writes the files that it reads.

    Raises:
        ValueError: the case wants none of the programs.
    """
    body = folder / f"body-{case.group}-{case.title}".replace(" ", "-")
    body.write_bytes(framed(asked.body) if case.generator == "h2load" else asked.body)
    if case.generator == "wrk":
        return Wrk(
            where=where,
            path=asked.path,
            body=body,
            headers=asked.headers,
            connections=case.in_flight,
        )
    if case.generator == "h2load":
        return H2load(
            where=where,
            path=asked.path,
            body=body,
            log=folder / "h2load.log",
            in_flight=case.in_flight,
        )
    if case.generator == "grpc-js":
        return GrpcJs(
            where=where,
            path=asked.path,
            body=body,
            in_flight=case.in_flight,
            is_varying=case.is_varying,
        )
    if case.generator == "perf_analyzer":
        return PerfAnalyzer(
            where=where,
            protocol=case.protocol,
            target=content.target(case.model, case.asked),
            in_flight=case.in_flight,
        )
    raise ValueError(f"{case.name}: {case.generator} is no program")


def framed(message: bytes) -> bytes:
    """Return a gRPC message with its prefix: not compressed, length."""
    return b"\0" + len(message).to_bytes(4, "big") + message
