"""The bounds, and what the configuration calls them."""

from __future__ import annotations

import msgspec

from gateway.config import LimitsConfig
from gateway.http2.limits import Limits


def test_the_defaults_are_those_of_the_configuration() -> None:
    configured = msgspec.to_builtins(LimitsConfig())
    limits = Limits()
    shared = {name: value for name, value in configured.items() if hasattr(limits, name)}
    assert {name: getattr(limits, name) for name in shared} == shared
    assert {"connections", "header_bytes", "connection_bytes", "slow_peer_timeout_s"} <= set(shared)


def test_a_stream_may_send_several_of_the_largest_frames_before_it_is_answered() -> None:
    limits = Limits()
    assert limits.frame_bytes * 2 < limits.stream_window_bytes < limits.connection_window_bytes
