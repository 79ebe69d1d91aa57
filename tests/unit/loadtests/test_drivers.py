from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from loadtests.bench import drivers
from loadtests.bench.drivers import External, GrpcLoop, HttpLoop, Kind, fault_in, question, until
from loadtests.payloads import Signature, TensorShape

SPEC = TensorShape(name="x", datatype="FP32", shape=(-1, 30))
TINY = Signature(name="tiny", inputs=(SPEC,), outputs=(SPEC,))
WRK_GOOD = """\
Running 1s test @ http://127.0.0.1:44329/v2/models/tiny/infer
  1 threads and 32 connections
  12638 requests in 1.00s, 4.79MB read
Requests/sec:  12626.77
"""
WRK_REFUSED = "  30563 requests in 1.10s, 4.84MB read\n  Non-2xx or 3xx responses: 30563\n"
WRK_BROKEN = "  Socket errors: connect 0, read 3, write 0, timeout 0\n"
H2LOAD_GOOD = """\
requests: 7487 total, 7519 started, 7487 done, 7487 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 7487 2xx, 0 3xx, 0 4xx, 0 5xx
"""
H2LOAD_NOTHING = "status codes: 0 2xx, 0 3xx, 0 4xx, 0 5xx\n"
H2LOAD_REFUSED = "status codes: 7487 2xx, 0 3xx, 2 4xx, 0 5xx\n"


@pytest.mark.parametrize("said", [WRK_GOOD, H2LOAD_GOOD])
def test_the_output_of_a_good_run_has_no_fault(said: str) -> None:
    assert fault_in(said) is None


@pytest.mark.parametrize("said", [WRK_REFUSED, WRK_BROKEN, H2LOAD_NOTHING, H2LOAD_REFUSED])
def test_the_output_of_a_bad_run_is_quoted(said: str) -> None:
    assert fault_in(said) == said.splitlines()[-1].strip()


@pytest.mark.parametrize(
    ("kind", "path", "headers"),
    [
        ("json", "/v2/models/tiny/infer", {"Content-Type": "application/json"}),
        (
            "binary",
            "/v2/models/tiny/infer",
            {
                "Content-Type": "application/octet-stream",
                "Inference-Header-Content-Length": "137",
            },
        ),
    ],
)
def test_a_question_over_http_has_the_headers_of_its_form(
    kind: Kind, path: str, headers: dict[str, str]
) -> None:
    asked = question(kind, TINY)
    assert asked.path == path
    assert asked.headers == headers


def test_the_same_row_is_asked_in_every_form() -> None:
    binary, grpc = question("binary", TINY), question("grpc", TINY)
    assert binary.body[-120:] in grpc.body
    assert question("binary", TINY) == binary


@pytest.mark.parametrize(("kind", "own"), [("grpc", GrpcLoop), ("json", HttpLoop)])
def test_without_programs_on_the_path_our_own_loops_are_used(
    kind: Kind, own: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert isinstance(choose(kind, tmp_path), own)


def test_programs_on_the_path_are_used_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("wrk", "h2load"):
        program = tmp_path / name
        shutil.copy("/bin/true", program)
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    wrk, h2load = choose("binary", tmp_path), choose("grpc", tmp_path)
    assert isinstance(wrk, External)
    assert isinstance(h2load, External)
    assert (wrk.label, h2load.label) == ("wrk", "h2load")
    assert wrk.command[0] == str(tmp_path / "wrk")
    assert wrk.command[-4:] == [
        "--",
        str(tmp_path / "body-tiny-binary"),
        "application/octet-stream",
        "137",
    ]
    assert "http://127.0.0.1:7/inference.GRPCInferenceService/ModelInfer" in h2load.command
    assert "32" in wrk.command
    assert "32" in h2load.command


def test_the_file_for_h2load_is_one_grpc_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "h2load"
    shutil.copy("/bin/true", program)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    choose("grpc", tmp_path)
    frame = (tmp_path / "body-tiny-grpc").read_bytes()
    assert frame[0] == 0
    assert int.from_bytes(frame[1:5], "big") == len(frame) - 5
    assert frame[5:] == question("grpc", TINY).body


def test_a_program_that_fails_is_quoted() -> None:
    shell = ["/bin/sh", "-c", "echo DURATION is $1 >&2; exit 3", "sh", "DURATION"]
    with pytest.raises(drivers.DriverFailed, match=r"(?s)wrk: exit code 3.*is 2s"):
        External(command=shell, label="wrk").run(1.6)


def test_a_program_that_saw_errors_is_quoted() -> None:
    shell = ["/bin/sh", "-c", "echo '  Non-2xx or 3xx responses: 7'"]
    with pytest.raises(drivers.DriverFailed, match="wrk: Non-2xx or 3xx responses: 7"):
        External(command=shell, label="wrk").run(0.3)


def test_until_stops_when_the_time_is_over() -> None:
    assert list(until(0.0, object)) == []
    assert next(until(60.0, lambda: 7)) == 7


def choose(kind: Kind, folder: Path) -> drivers.Driver:
    return drivers.choose(
        question(kind, TINY), ("127.0.0.1", 7), folder, concurrency=32, is_external=True
    )
