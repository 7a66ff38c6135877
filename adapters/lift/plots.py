"""Plots as inline SVG: no script, no file beside the page."""

import html
from collections.abc import Sequence

from adapters.lift.compare import Interval

LABELS, PLOT, ROW, TOP = 230, 620, 22, 34
UP, DOWN, NEITHER = "#0a6b35", "#b3261e", "#666"


def interval_plot(title: str, rows: Sequence[tuple[str, Interval]]) -> str:
    """One line per interval with its mean as a dot, over a common axis through zero; what is undefined is left out."""
    known = [(n, i.value, i.low, i.high) for n, i in rows if None not in (i.value, i.low, i.high)]
    if not known:
        return ""
    bounds = [0.0] + [bound for _, _, low, high in known for bound in (low or 0.0, high or 0.0)]
    low, high = min(bounds), max(bounds)
    room = 0.06 * ((high - low) or 1e-6)
    low, high = low - room, high + room

    def x(value: float) -> float:
        return round(LABELS + (value - low) / (high - low) * PLOT, 1)

    height = TOP + ROW * len(known) + 26
    parts = [f"<svg width={LABELS + PLOT + 20} height={height} role=img aria-label='{html.escape(title)}'>"]
    parts.append(f"<text x=0 y=16 font-weight=600>{html.escape(title)}</text>")
    parts.append(f"<line x1={x(0)} x2={x(0)} y1={TOP - 8} y2={height - 24} stroke='#999' stroke-dasharray='3 3'/>")
    for number, (name, value, start, end) in enumerate(known):
        assert value is not None
        assert start is not None
        assert end is not None
        y = TOP + ROW * number + 8
        colour = UP if start > 0 else DOWN if end < 0 else NEITHER
        parts.append(f"<text x=0 y={y + 4}>{html.escape(name)}</text>")
        parts.append(f"<line x1={x(start)} x2={x(end)} y1={y} y2={y} stroke='{colour}' stroke-width=2 />")
        parts.append(f"<circle cx={x(value)} cy={y} r=4 fill='{colour}'/>")
    for value in _ticks(low, high):
        parts.append(f"<text x={x(value)} y={height - 6} text-anchor=middle fill='#555'>{value:+g}</text>")
    return "".join([*parts, "</svg>"])


def _ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers between the bounds."""
    step = 10.0**-9
    factors = (2.0, 2.5, 2.0)
    turn = 0
    while (high - low) / step > 8:
        step *= factors[turn % 3]
        turn += 1
    first = int(-(-low // step))
    return [round(n * step, 10) for n in range(first, int(high // step) + 1)]
