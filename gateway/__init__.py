"""Speaks the protocols and owns the process; everything it serves comes from router and engines."""

__version__ = "0.1.0"
