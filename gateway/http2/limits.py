"""Every bound of an HTTP/2 connection and of the listener that accepts them.

Values only. What happens at a bound is said beside it; `inbound` and `outbound` keep those of one
connection, `liveness` those that need a clock, the driver those of sockets.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one peer, and all of them together, may take."""

    connections: int = 16_384
    """Open connections of a listener; over it new ones are closed at once."""
    streams_per_connection: int = 1_024
    """Concurrent calls; one more is reset with REFUSED_STREAM, which clients may retry."""
    header_bytes: int = 32 << 10
    """Largest header list, decoded; over it the call is refused. A header block that is larger as
    it stands ends the connection."""
    connection_bytes: int = 256 << 20
    """Bytes held for one connection: incomplete messages and queued output. The call that would
    exceed it is refused."""
    handshake_timeout_s: float = 10.0
    """Longest wait for TLS and for the connection preface."""
    idle_timeout_s: float = 900.0
    """A connection without calls is closed after this; 0: never."""
    keepalive_s: float = 120.0
    """A connection that is silent for this long is sent a ping; 0: never."""
    keepalive_timeout_s: float = 20.0
    """Longest wait for any sign of life after that ping."""
    slow_peer_timeout_s: float = 30.0
    """Longest time without progress while a message arrives or output waits to be read."""

    frame_bytes: int = 1 << 20
    """Largest DATA frame taken (SETTINGS_MAX_FRAME_SIZE): a big tensor comes in few frames."""
    stream_window_bytes: int = 4 << 20
    """What a peer may send on one stream before this side has taken it."""
    connection_window_bytes: int = 32 << 20
    """The same for all streams of a connection together; returned as it arrives."""
    stream_output_bytes: int = 1 << 20
    """Queued output at which a stream says that it is full."""
    burst_bytes: int = 256 << 10
    """Queued output handed to the socket at a time."""
    control_tokens: int = 10_000
    """Frames that do no work which a peer may send in one burst; over it the connection ends with
    ENHANCE_YOUR_CALM. `frames.RULES` says what each costs."""
    control_tokens_per_s: int = 1_000
    """How fast that allowance comes back; answered calls and moved bytes bring more."""
    memoised_heads: int = 16
    """Decoded header blocks kept per connection."""
    drain_delay_s: float = 1.0
    """Between the two steps of a drain, for a peer that does not answer the ping."""
