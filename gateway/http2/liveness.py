"""What the clock does to a connection: timeouts, keepalive, the steps of a drain.

Knows times and a connection; no timer. One timer per server calls `sweep` on every connection now
and then, so that neither connections nor calls have timers of their own; so everything here is late
by up to the timer's period.

In the order of a connection's life:
  * without a preface it ends after `handshake_timeout_s`;
  * a call whose message, and a connection whose frame, has stopped in the middle ends after
    `slow_peer_timeout_s`, and so does a stream whose output nobody reads;
  * silent for `keepalive_s` it is pinged, and ends if not a byte comes within
    `keepalive_timeout_s`;
  * without calls for `idle_timeout_s` it is drained;
  * a drain takes its second step after `drain_delay_s` at the latest, and ends with the last call.
"""

from __future__ import annotations

from typing import Final

from gateway.http2.connection import Connection
from gateway.http2.frames import ErrorCode

FORGET_NS: Final = 5_000_000_000
"""Without calls for so long, a connection keeps no decoded heads."""
_NS: Final = 1_000_000_000


def sweep(connection: Connection, now_ns: int) -> None:
    """Let time pass for a connection. It may have ended then."""
    if connection.is_ended:
        return
    connection.now_ns = now_ns
    limits = connection.limits
    if not connection.is_ready:
        if now_ns - connection.idle_ns > limits.handshake_timeout_s * _NS:
            connection.end(ErrorCode.NO_ERROR, "no preface in time")
        return
    if connection.streams:
        connection.idle_ns = now_ns
        _sweep_streams(connection, now_ns)
    if connection.is_full:
        return  # nothing is read either: the driver watches what is written
    silent_ns = now_ns - connection.received_ns
    if connection.is_mid_frame and silent_ns > limits.slow_peer_timeout_s * _NS:
        connection.end(ErrorCode.NO_ERROR, "a frame has stopped arriving")
    _keep_alive(connection, now_ns)
    _close_idle(connection, now_ns)


def _sweep_streams(connection: Connection, now_ns: int) -> None:
    stalled_ns = now_ns - int(connection.limits.slow_peer_timeout_s * _NS)
    for stream in list(connection.streams.values()):
        stream.sweep(now_ns)
        queue = stream.queue
        if queue is not None and queue.moved_ns < stalled_ns:
            connection.fault(stream, ErrorCode.CANCEL)


def _keep_alive(connection: Connection, now_ns: int) -> None:
    limits = connection.limits
    if connection.pinged_ns and connection.received_ns < connection.pinged_ns:
        if now_ns - connection.pinged_ns > limits.keepalive_timeout_s * _NS:
            connection.end(ErrorCode.NO_ERROR, "no sign of life")
    elif limits.keepalive_s and now_ns - connection.received_ns > limits.keepalive_s * _NS:
        connection.ping(now_ns)


def _close_idle(connection: Connection, now_ns: int) -> None:
    limits = connection.limits
    idle_ns = now_ns - connection.idle_ns
    if idle_ns > FORGET_NS:
        connection.forget_heads()
    if limits.idle_timeout_s and idle_ns > limits.idle_timeout_s * _NS:
        connection.drain(now_ns)
    if connection.is_draining:
        if now_ns - connection.drained_ns > limits.drain_delay_s * _NS:
            connection.close_when_served()
        if connection.is_served:
            connection.finish()
