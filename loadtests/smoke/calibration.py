"""A loop of the kind of work that a gateway does, which no change of the gateway makes dearer.

Interpreter (dictionaries, small objects, bytes), C code behind it (JSON, numpy) and the kernel (a
socket pair), in roughly a gateway's mix: a machine or interpreter on which the gateway is slower is
one on which this is, too.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Final

import numpy as np

_HEAD: Final = struct.Struct("!HBBI")
_DOCUMENT: Final = json.dumps({"name": "x", "shape": [1, 30], "data": [n / 7 for n in range(30)]})


class Calibration:
    """Runs turns of the loop."""

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()
        self._table: dict[int, tuple[int, bytes]] = {}

    def close(self) -> None:
        """Close the sockets."""
        self._near.close()
        self._far.close()

    def run(self, turns: int) -> float:
        """Do the work so many times; return a number that depends on all of it."""
        total = 0.0
        for turn in range(turns):
            total += self._turn(turn)
        return total

    def _turn(self, turn: int) -> float:
        frames = []
        for stream in range(8):
            key = (turn + stream) & 63
            previous = self._table.get(key)
            payload = b"%d:%d" % (turn, stream) if previous is None else previous[1]
            self._table[key] = (stream, payload)
            frames.append(_HEAD.pack(len(payload), stream, 0, turn & 0xFFFF) + payload)
        self._near.sendall(b"".join(frames))
        received = memoryview(self._far.recv(4_096))
        at, total = 0, 0
        while at < len(received):
            length, stream, _, number = _HEAD.unpack_from(received, at)
            at += _HEAD.size + length
            total += stream + number
        document = json.loads(_DOCUMENT)
        array = np.array(document["data"], np.float32).reshape(document["shape"])
        return total + float(array.sum())
