"""Two histograms of one column, one over the other, as an inline SVG picture. Pure.

The reference is a filled area, the window an outline: they differ by form, not by colour alone.
Colours are those of the page's style sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from gateway.drift.compare import Bars

WIDTH: Final = 260
HEIGHT: Final = 96
_PLOT_TOP: Final = 6
_PLOT_BOTTOM: Final = 76
_TEXT_Y: Final = 91
_LABEL_CHARACTERS: Final = 14


def svg(bars: Bars, title: str) -> str:
    """Return the picture; `title` says in words what it shows."""
    count = len(bars.reference)
    highest = max(*bars.reference, *bars.current, 1e-9)
    width = WIDTH / count
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" width="{WIDTH}" height="{HEIGHT}">',
        f"<title>{escape(title)}</title>",
        f'<path class="r" d="{_area(bars.reference, width, highest)}"/>',
        f'<path class="c" d="{_outline(bars.current, width, highest)}"/>',
        f'<path class="a" d="M0 {_PLOT_BOTTOM}H{WIDTH}"/>',
        *(_number_marks(bars, width) if not bars.labels else _category_marks(bars, width)),
        "</svg>",
    ]
    return "".join(parts)


def _y(share: float, highest: float) -> str:
    return f"{_PLOT_BOTTOM - share / highest * (_PLOT_BOTTOM - _PLOT_TOP):.1f}"


def _area(shares: Sequence[float], width: float, highest: float) -> str:
    """Return a closed path of bars with a little room between them."""
    return "".join(
        f"M{place * width + 0.5:.1f} {_PLOT_BOTTOM}V{_y(share, highest)}h{width - 1:.1f}"
        f"V{_PLOT_BOTTOM}Z"
        for place, share in enumerate(shares)
        if share > 0
    )


def _outline(shares: Sequence[float], width: float, highest: float) -> str:
    """Return the tops of the bars as a line of steps."""
    steps = "".join(
        f"V{_y(share, highest)}H{(place + 1) * width:.1f}" for place, share in enumerate(shares)
    )
    return f"M0 {_PLOT_BOTTOM}{steps}V{_PLOT_BOTTOM}"


def _number_marks(bars: Bars, width: float) -> list[str]:
    """Mark where the reference's range begins and ends; what is outside has a bar at each side."""
    left, right = width, WIDTH - width
    return [
        f'<path class="a" d="M{left:.1f} {_PLOT_BOTTOM}v4M{right:.1f} {_PLOT_BOTTOM}v4"/>',
        _text(left, "start", _number(bars.low)),
        _text(right, "end", _number(bars.high)),
    ]


def _category_marks(bars: Bars, width: float) -> list[str]:
    """Name the bars, as far as there is room."""
    room = max(1, int(width / 6.5))
    if len(bars.labels) > 10 or room < 2:
        names = bars.labels[0], bars.labels[-1]
        short = [_short(name, _LABEL_CHARACTERS) for name in names]
        return [_text(0, "start", short[0]), _text(WIDTH, "end", short[1])]
    return [
        _text((place + 0.5) * width, "middle", _short(label, min(room, _LABEL_CHARACTERS)))
        for place, label in enumerate(bars.labels)
    ]


def _text(x: float, anchor: str, content: str) -> str:
    return f'<text x="{x:.1f}" y="{_TEXT_Y}" text-anchor="{anchor}">{escape(content)}</text>'


def _short(label: str, most: int) -> str:
    return label if len(label) <= most else label[: max(1, most - 1)] + "…"


def _number(value: float) -> str:
    return f"{value:.4g}"
