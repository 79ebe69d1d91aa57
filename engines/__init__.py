"""Turns rows into rows on a device; knows no protocol, no routes and no Redis."""
