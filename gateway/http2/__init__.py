"""HTTP/2 without I/O: frames, header compression, flow control and their limits."""

from gateway.http2.limits import Limits

__all__ = ["Limits"]
