"""SETTINGS: what this side announces, and what the peer's mean here (RFC 9113, 6.5)."""

from __future__ import annotations

import struct
from typing import Final

from gateway.http2 import frames
from gateway.http2.frames import ConnectionFault, ErrorCode
from gateway.http2.limits import Limits
from gateway.http2.outbound import Outbound

MAX_SENT_FRAME_BYTES: Final = 1 << 20
"""A peer that takes larger frames gets none, so that streams still take turns."""

_unpack: Final = struct.Struct(">HI").iter_unpack


def announce(limits: Limits) -> bytes:
    """Return the frame that begins the connection."""
    return frames.settings(
        {
            frames.SETTING_MAX_STREAMS: limits.streams_per_connection,
            frames.SETTING_INITIAL_WINDOW: limits.stream_window_bytes,
            frames.SETTING_MAX_FRAME: limits.frame_bytes,
            frames.SETTING_MAX_HEADER_LIST: limits.header_bytes,
        }
    )


def read(payload: bytes) -> list[tuple[int, int]]:
    """Return the settings in their order; raises ConnectionFault."""
    if len(payload) % 6:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "settings cut off")
    return list(_unpack(payload))


def apply(connection: Outbound, values: list[tuple[int, int]]) -> None:
    """Let the peer's settings take effect; raises ConnectionFault.

    The size of the peer's compression table does not matter: nothing sent here uses it.
    """
    for name, value in values:
        if name == frames.SETTING_INITIAL_WINDOW:
            _set_initial_window(connection, value)
        elif name == frames.SETTING_MAX_FRAME:
            if not frames.DEFAULT_FRAME_BYTES <= value <= frames.MAX_FRAME_BYTES:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "frame size out of range")
            connection.frame_bytes = min(value, MAX_SENT_FRAME_BYTES)
        elif name == frames.SETTING_ENABLE_PUSH and value > 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "push is neither on nor off")


def _set_initial_window(connection: Outbound, value: int) -> None:
    """Change what every stream's window begins with, those under way included."""
    if value > frames.MAX_WINDOW:
        raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "window too large")
    connection.initial_window = value
    for stream in connection.streams.values():
        if value + stream.window_bytes > frames.MAX_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "window too large")
        if stream.queue is not None:
            if value + stream.window_bytes > 0:
                connection.ready[stream.stream_id] = stream
            else:
                connection.ready.pop(stream.stream_id, None)
