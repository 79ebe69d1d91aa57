from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtests.bench import content
from loadtests.bench.cases import Case, Protocol
from loadtests.bench.generator import (
    GeneratorFailed,
    GeneratorMissing,
    Load,
    Where,
    run_program,
)
from loadtests.bench.generators import (
    GrpcJs,
    H2load,
    PerfAnalyzer,
    Wrk,
    framed,
    program_for,
    read_grpc_js,
    read_h2load,
    read_wrk,
)
from loadtests.bench.questions import Question, question
from loadtests.payloads import HEADER_LENGTH

PLAIN = Where(address=("127.0.0.1", 7))
TLS = Where(address=("127.0.0.1", 7), certificate=Path("/certificate.pem"))
WRK = (
    'Running 2s test\n{{"requests": {requests}, "duration_us": 2000500, "p50_us": 3280, '
    '"p99_us": 6440, "errors": {{"connect": 0, "read": {read}, "write": 0, "status": {status}, '
    '"timeout": 0}}}}\n'
)
H2LOAD = """\
finished in 2.00s, 3359.00 req/s, 401.00KB/s
requests: {good} total, 132 started, {good} done, {good} succeeded, 0 failed, {errored} errored, \
0 timeout
status codes: {good} 2xx, 0 3xx, 0 4xx, 0 5xx
"""
GRPC_JS = {"requests": 100, "errors": 0, "firstError": "", "seconds": 2.5, "p50Us": 11, "p99Us": 22}


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have wrk, h2load and node on PATH, as programs that do nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("wrk", "h2load", "node"):
        program = folder / name
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return folder


def asked(protocol: Protocol = "json") -> Question:
    return question(protocol, "tiny", content.Target(name="split"))


def test_wrks_own_line_is_read() -> None:
    found = read_wrk(WRK.format(requests=20_000, read=0, status=0))
    assert found == Load(20_000, 2.0005, 3280, 6440)


@pytest.mark.parametrize(
    "said",
    [
        WRK.format(requests=20_000, read=0, status=7),
        WRK.format(requests=20_000, read=3, status=0),
        WRK.format(requests=0, read=0, status=0),
        "unable to connect to 127.0.0.1:7 Connection refused\n",
    ],
    ids=["another status", "a broken connection", "nothing answered", "no server"],
)
def test_a_run_of_wrk_with_anything_but_good_answers_has_failed(said: str) -> None:
    with pytest.raises(GeneratorFailed):
        read_wrk(said)


def h2load_log(*statuses: int) -> str:
    return "".join(f"17000000\t{status}\t{1_000 + n}\n" for n, status in enumerate(statuses))


def test_h2loads_counts_and_the_percentiles_of_its_log_are_read() -> None:
    log = h2load_log(*[200] * 100)
    assert read_h2load(H2LOAD.format(good=100, errored=0), log) == Load(100, 2.0, 1_049, 1_098)


def test_requests_that_the_end_of_h2load_cut_off_are_no_failures() -> None:
    log = h2load_log(200, 200, -1)
    assert read_h2load(H2LOAD.format(good=2, errored=0), log).requests == 2


@pytest.mark.parametrize(
    ("said", "log"),
    [
        (H2LOAD.format(good=2, errored=0), h2load_log(200, 200, 503)),
        (H2LOAD.format(good=2, errored=1), h2load_log(200, 200)),
        (H2LOAD.format(good=0, errored=0), ""),
        ("could not connect\n", ""),
    ],
    ids=["another status", "an error", "nothing answered", "no server"],
)
def test_a_run_of_h2load_with_anything_but_good_answers_has_failed(said: str, log: str) -> None:
    with pytest.raises(GeneratorFailed):
        read_h2load(said, log)


def test_grpc_js_line_is_read() -> None:
    assert read_grpc_js(json.dumps(GRPC_JS)) == Load(100, 2.5, 11, 22)


def test_one_error_of_grpc_js_is_told_and_a_failure() -> None:
    said = json.dumps(GRPC_JS | {"errors": 1, "firstError": "Error: 5 NOT_FOUND: nobody"})
    with pytest.raises(GeneratorFailed, match="1 errors, first Error: 5 NOT_FOUND: nobody"):
        read_grpc_js(said)
    with pytest.raises(GeneratorFailed, match="no figures"):
        read_grpc_js("node: not found")


def test_a_program_that_fails_is_quoted() -> None:
    with pytest.raises(GeneratorFailed, match=r"(?s)sh: exit code 3.*gone wrong"):
        run_program(["/bin/sh", "-c", "echo gone wrong >&2; exit 3"], 1.0)


def test_a_program_that_is_not_there_is_named_with_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    case = Case(group="tiny", protocol="json", generator="wrk")
    made = program_for(case, asked(), PLAIN, tmp_path)
    with pytest.raises(GeneratorMissing, match=r"wrk is not on PATH \(Debian: wrk\)"):
        made.run(1.0)


@pytest.mark.usefixtures("programs")
def test_wrk_gets_a_connection_per_request_and_a_key_per_user(tmp_path: Path) -> None:
    case = Case(group="tiny", protocol="binary", generator="wrk")
    made = program_for(case, asked("binary"), TLS, tmp_path)
    assert isinstance(made, Wrk)
    command = made.command(0.3)
    assert command[command.index("--connections") + 1] == "32"
    assert command[command.index("--duration") + 1] == "1s"
    assert "https://127.0.0.1:7/v2/models/split/infer" in command
    *_, body, content_type, json_bytes, key, users = command
    assert Path(body).read_bytes() == asked("binary").body
    assert (content_type, key, users) == ("application/octet-stream", "x-user-id", "256")
    assert int(json_bytes) == asked("binary").json_bytes


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize(("many", "connections"), [(1, 1), (32, 1), (64, 1), (256, 4), (1024, 16)])
def test_h2load_spreads_requests_over_connections(
    many: int, connections: int, tmp_path: Path
) -> None:
    case = Case(group="tiny", protocol="grpc", generator="h2load", in_flight=many)
    made = program_for(case, asked("grpc"), PLAIN, tmp_path)
    assert isinstance(made, H2load)
    command = made.command(2.0)
    assert command[command.index("--clients") + 1] == str(connections)
    assert command[command.index("--max-concurrent-streams") + 1] == str(many // connections)


def test_the_file_for_h2load_is_one_grpc_frame_and_that_for_grpc_js_a_message(
    tmp_path: Path,
) -> None:
    message = asked("grpc").body
    framing = Case(group="tiny", protocol="grpc", generator="h2load")
    plain = Case(group="tiny", protocol="grpc", generator="grpc-js")
    made = [program_for(case, asked("grpc"), PLAIN, tmp_path) for case in (framing, plain)]
    assert isinstance(made[0], H2load)
    assert isinstance(made[1], GrpcJs)
    assert made[0].body.read_bytes() == framed(message)
    assert made[1].body.read_bytes() == message
    assert framed(b"abc") == b"\0\0\0\0\3abc"


def test_perf_analyzer_is_told_name_version_protocol_and_three_windows() -> None:
    target = content.Target(name="tiny", version="1")
    made = PerfAnalyzer(where=TLS, protocol="stream", target=target, in_flight=32)
    command = made.command(3.0, Path("/perf_analyzer"))
    assert command[:6] == ["/perf_analyzer", "-m", "tiny", "-a", "-x", "1"]
    assert "--streaming" in command
    assert command[command.index("-i") + 1] == "grpc"
    assert command[command.index("-p") + 1] == "1000"
    assert "/certificate.pem" in command


@pytest.mark.usefixtures("programs")
def test_grpc_js_is_told_whether_headers_vary(tmp_path: Path) -> None:
    case = Case(group="tiny", protocol="grpc", generator="grpc-js", is_varying=True)
    made = program_for(case, asked("grpc"), PLAIN, tmp_path)
    assert isinstance(made, GrpcJs)
    options = json.loads(made.command(1.5)[-1])
    assert options["isVarying"] is True
    assert (options["inFlight"], options["seconds"]) == (32, 1.5)
    assert made.slack == 0


def test_the_same_row_is_asked_in_every_form() -> None:
    binary, grpc = asked("binary"), asked("grpc")
    assert binary.body[-120:] in grpc.body
    assert asked("binary") == binary
    assert HEADER_LENGTH in binary.headers
