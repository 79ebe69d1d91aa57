"""Micro-benchmarks: what one step of a request costs, without a process, a socket or a model."""
