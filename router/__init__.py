"""Decides which variant serves a request: pure values and functions, no I/O, no clock."""
