"""The names that the models' writer (repository.py) and the checks agree on.

Imports nothing: the two run in different virtual environments.
"""

from __future__ import annotations

from typing import Final

DATATYPES: Final = (
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BF16",
    "BYTES",
)
ECHO: Final = {datatype: f"echo_{datatype.lower()}" for datatype in DATATYPES}
"""By datatype: output `y` is input `x`, shape (rows, ECHO_WIDTH); version 1 only."""
ECHO_WIDTH: Final = 4
MAX_ROWS: Final = 64
"""Largest batch of every model here but the slow one."""

BLOB: Final = "blob"
"""Echoes BYTES, shape (rows, 1), that need not be text."""

LOOKUP: Final = "lookup"
"""Versions 1 and 2. INT64 `x`, shape (rows, 1), to FP32 `y`: x + 100 * version, for x < 10."""
LOOKUP_SIZE: Final = 10
ROUTE: Final = "split"
"""Half to LOOKUP's version 1 (variant one), half to 2 (two); keyed by KEY_HEADER, KEY_PARAMETER."""
VARIANTS: Final = {"1": "one", "2": "two"}
KEY_HEADER: Final = "x-user-id"
KEY_PARAMETER: Final = "user"

PAIR: Final = "pair"
"""FP32 `x` (rows, 2) and BYTES `label` (rows, 1) to FP32 `double` (rows, 2), BYTES `copy`, and
FP32 `total` (rows, 1), the sum of a row of `x`."""

WIDE: Final = "wide"
"""Echoes FP32 of any width."""

LEVELS: Final = "levels"
"""Echoes FP32, shape (rows, ECHO_WIDTH); PRIORITY_LEVELS levels of priority."""
PRIORITY_LEVELS: Final = 3

SLOW: Final = "slow"
"""Echoes FP32, shape (rows, ECHO_WIDTH), after SLOW_S."""
SLOW_S: Final = 0.3
SLOW_MAX_ROWS: Final = 2
"""Few: the warm-up runs a batch of every size."""

ABSENT: Final = "nowhere"
"""Neither a model nor a route."""
