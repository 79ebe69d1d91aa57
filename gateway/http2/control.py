"""The frames about a connection and its flow: settings, windows, pings, resets, and the ignored.

Each function takes one complete frame whose size and stream number were right; `connection.FRAMES`
says which. They raise ConnectionFault.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.http2 import frames, settings
from gateway.http2.frames import MAX_STREAM_ID, ConnectionFault, ErrorCode
from gateway.http2.stream import REACTIONS, Reaction, State

if TYPE_CHECKING:
    from gateway.http2.connection import Connection

DRAIN_PING: Final = b"drained?"
ALIVE_PING: Final = b"alive?\0\0"


def on_priority(connection: Connection, payload: bytes, flags: int, stream_id: int) -> None:
    """Priorities are not used; a broken one ends its stream."""
    is_short = len(payload) != 5
    if is_short or frames.unpack_u32(payload, 0)[0] & MAX_STREAM_ID == stream_id:
        code = ErrorCode.FRAME_SIZE_ERROR if is_short else ErrorCode.PROTOCOL_ERROR
        stream = connection.streams.get(stream_id)
        if stream is not None:
            connection.fault(stream, code)
        elif connection.state_of(stream_id) is State.IDLE:
            raise ConnectionFault(code, "broken priority of an idle stream")  # it has no reset
        else:
            connection.put_reset(stream_id, code)


def on_rst_stream(connection: Connection, payload: bytes, flags: int, stream_id: int) -> None:
    """The peer gives a stream up."""
    reaction = REACTIONS[connection.state_of(stream_id)][frames.RST_STREAM]
    if reaction is Reaction.TAKE:
        stream = connection.streams[stream_id]
        if not stream.is_done:
            connection.cancelled += 1
            connection.spend(frames.CANCEL_COST)
        connection.lose(stream)
    else:
        connection.late(reaction, stream_id)


def on_settings(connection: Connection, payload: bytes, flags: int, stream_id: int) -> None:
    """Take the peer's settings at once, and say so."""
    if flags & frames.ACK:
        if payload:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "an answer with settings")
        return
    settings.apply(connection, settings.read(payload))
    connection.put(frames.frame(frames.SETTINGS, frames.ACK, 0))
    connection.pump()


def on_push_promise(connection: Connection, payload: bytes, flags: int, stream_id: int) -> None:
    """Clients do not push."""
    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client does not push")


def on_ping(connection: Connection, payload: bytes, flags: int, stream_id: int) -> None:
    """Answer; an answer to the ping of a drain is its second step."""
    if not flags & frames.ACK:
        connection.put(frames.frame(frames.PING, frames.ACK, 0, payload))
    elif payload == DRAIN_PING and connection.is_draining:
        connection.close_when_served()


def on_goaway(connection: Connection, payload: bytes, flags: int, stream_id: int) -> None:
    """The peer starts no more calls; those under way go on."""


def on_window_update(connection: Connection, payload: bytes, flags: int, stream_id: int) -> None:
    """Take window for a stream or for the connection, and use it."""
    size = frames.unpack_u32(payload)[0] & MAX_STREAM_ID
    if stream_id:
        _grow_stream_window(connection, stream_id, size)
        return
    connection.granted_bytes += size
    connection.send_window += size
    if not size:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a window update of nothing")
    if connection.send_window > frames.MAX_WINDOW:
        raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "window too large")
    if connection.ready:
        connection.pump()


def _grow_stream_window(connection: Connection, stream_id: int, size: int) -> None:
    reaction = REACTIONS[connection.state_of(stream_id)][frames.WINDOW_UPDATE]
    if reaction is not Reaction.TAKE:
        connection.late(reaction, stream_id)
        return
    stream = connection.streams[stream_id]
    stream.window_bytes += size
    if not size:
        connection.fault(stream, ErrorCode.PROTOCOL_ERROR)
    elif connection.initial_window + stream.window_bytes > frames.MAX_WINDOW:
        connection.fault(stream, ErrorCode.FLOW_CONTROL_ERROR)
    else:
        connection.window_grown(stream)
