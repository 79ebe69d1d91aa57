"""Draws a picture of a digit with characters. Pure: pixels in, text out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

SIDE: Final = 8
WHITE: Final = 16
SHADES: Final = " ░▒▓█"
PLAIN_SHADES: Final = " .:*#"
"""For terminals that cannot show the others."""


def draw(pixels: Sequence[float], shades: str = SHADES) -> str:
    """Return 8 rows of 8 pixels as 8 lines of 16 characters: two make one pixel about square.

    Args:
        pixels: 64 values from 0 (background) to 16; what lies outside is drawn as the nearer end.
        shades: from background to full.

    Raises:
        ValueError: not 64 pixels.
    """
    if len(pixels) != SIDE * SIDE:
        raise ValueError(f"{len(pixels)} pixels given, {SIDE * SIDE} expected")
    cells = [_shade(value, shades) * 2 for value in pixels]
    return "\n".join("".join(cells[n : n + SIDE]) for n in range(0, SIDE * SIDE, SIDE))


def framed(drawing: str, *, is_plain: bool = False) -> list[str]:
    """Return a drawing's lines inside a thin frame."""
    lines = drawing.splitlines()
    width = max(len(line) for line in lines)
    corners, flat, upright = ("++++", "-", "|") if is_plain else ("┌┐└┘", "─", "│")
    body = [f"{upright}{line:<{width}}{upright}" for line in lines]
    rule = flat * width
    return [corners[0] + rule + corners[1], *body, corners[2] + rule + corners[3]]


def shades_for(encoding: str | None) -> str:
    """Return the shades that a terminal's encoding can write."""
    try:
        SHADES.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return PLAIN_SHADES
    return SHADES


def _shade(value: float, shades: str) -> str:
    share = min(max(value / WHITE, 0.0), 1.0)
    return shades[round(share * (len(shades) - 1))]
