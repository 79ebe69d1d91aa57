"""What the supervisor and its processes say to each other; how each learns that the other ended.

A socket pair per process. Down it goes: the settings, once, pickled (both ends are one program);
then words, one per line. Up go reports, one JSON object per line. The end of the stream is the end
of the process at the other side: a process whose supervisor is gone drains and ends.

Children ignore SIGTERM and SIGINT, which service managers and terminals send to every process of a
group: only the supervisor knows the order in which a gateway stops.
"""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import signal
import socket
import struct
import sys
from collections.abc import Mapping
from typing import Any, Final

DRAIN: Final = "drain"
"""Stop in order, then end."""
_LENGTH: Final = struct.Struct("<I")


class Reports:
    """A child's end of its socket pair.

    Args:
        sock: the end, inherited.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.drain_asked = asyncio.Event()
        """Set when the supervisor says so, or has ended."""
        self.is_alone = False
        """The supervisor has ended."""

    def start(self) -> None:
        """Listen to the supervisor from now on."""
        self._sock.setblocking(False)
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._read)

    def say(self, event: str, **fields: object) -> None:
        """Tell the supervisor; nothing if it is gone."""
        line = json.dumps({"event": event, **fields}) + "\n"
        try:
            self._sock.send(line.encode())
        except OSError:
            self.is_alone = True

    def _read(self) -> None:
        try:
            data = self._sock.recv(4_096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            self.is_alone = True
            self.drain_asked.set()
        elif DRAIN.encode() in data:
            self.drain_asked.set()


def inherited(descriptor: str) -> tuple[socket.socket, Any]:  # Any: each process has its settings
    """Return a child's control socket and its settings; the argument is of the command line."""
    sock = socket.socket(fileno=int(descriptor))
    sock.set_inheritable(False)
    size = _LENGTH.unpack(_receive(sock, _LENGTH.size))[0]
    return sock, pickle.loads(_receive(sock, size))


def _receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise SystemExit("the supervisor has ended")
        data += piece
    return data


def ignore_signals() -> None:
    """Leave stopping to the supervisor."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class _WhichProcess(logging.Filter):
    """Adds to every entry which process wrote it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def filter(self, record: logging.LogRecord) -> bool:
        """Let everything pass."""
        record.process_ = self._name
        return True


def name_in_log(name: str) -> None:
    """Say in this process's log entries which process it is."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(_WhichProcess(name))


class Child:
    """A process of the supervisor's. Made by `spawn`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, sock: socket.socket) -> None:
        self.name = name
        self._process = process
        self._sock = sock
        self._rest = b""
        self.reports: asyncio.Queue[Mapping[str, Any] | None] = asyncio.Queue()
        """What it says; None: it says nothing more. Any: JSON."""
        sock.setblocking(False)
        asyncio.get_running_loop().add_reader(sock.fileno(), self._read)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def say(self, word: str) -> None:
        """Tell the process; nothing if it has ended."""
        try:
            self._sock.send(f"{word}\n".encode())
        except OSError:
            return

    async def wait(self) -> int:
        """Return its exit code once it has ended; negative: the signal that ended it."""
        code = await self._process.wait()
        self._close()
        return code

    def kill(self) -> None:
        """End it as a crash would."""
        if self._process.returncode is None:
            self._process.kill()

    def _read(self) -> None:
        try:
            data = self._sock.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close()
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.reports.put_nowait(json.loads(line))

    def _close(self) -> None:
        if self._sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            self._sock.close()
            self.reports.put_nowait(None)


async def spawn(name: str, module: str, settings: object, *fds: int) -> Child:
    """Start a process on a module, with settings and some inherited file descriptors.

    Each is in a session of its own: what a terminal sends to the group of its foreground processes
    reaches the supervisor only.
    """
    ours, theirs = socket.socketpair()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            str(theirs.fileno()),
            pass_fds=(theirs.fileno(), *fds),
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    data = pickle.dumps(settings)
    try:
        ours.sendall(_LENGTH.pack(len(data)) + data)
    except OSError:
        logging.getLogger(__name__).debug("a process ended before it had its settings")
    return Child(name, process, ours)
