"""Charts as SVG text, so that a report is one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from numpy.typing import NDArray

WIDTH, HEIGHT, LEFT, BOTTOM = 900, 260, 70, 24
MOST_POINTS = 600
COLOURS = ("#1f5fbf", "#c2620a", "#17803d", "#7a5fd0")


def lines(
    series: Mapping[str, NDArray[np.float64]], labels: Sequence[str], *, unit: str = "", title: str
) -> SafeString:
    """Draw series of equal length over the same axis; ``labels`` name its first, middle and last point."""
    values = np.concatenate([np.asarray(each, dtype=np.float64) for each in series.values()])
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return format_html("<p>{}: nothing to draw.</p>", title)
    low, high = float(values.min()), float(values.max())
    if high == low:
        low, high = low - 1.0, high + 1.0
    drawn = format_html_join(
        "",
        '<polyline fill="none" stroke="{}" stroke-width="1.5" points="{}"/>',
        ((COLOURS[k % len(COLOURS)], _points(each, low, high)) for k, each in enumerate(series.values())),
    )
    grid = format_html_join(
        "",
        '<line x1="{}" x2="{}" y1="{}" y2="{}" stroke="#ccd2db"/><text x="{}" y="{}" text-anchor="end">{}{}</text>',
        (
            (LEFT, WIDTH, y, y, LEFT - 6, f"{y + 4:.0f}", _number(value), unit)
            for value, y in ((low + share * (high - low), _y(share)) for share in (0.0, 0.25, 0.5, 0.75, 1.0))
        ),
    )
    ticks = format_html_join(
        "",
        '<text x="{}" y="{}" text-anchor="{}">{}</text>',
        (
            (f"{LEFT + share * (WIDTH - LEFT):.0f}", HEIGHT - 6, anchor, label)
            for share, anchor, label in zip((0.0, 0.5, 1.0), ("start", "middle", "end"), labels, strict=True)
        ),
    )
    legend = format_html_join(
        " ",
        '<span style="color:{}">■</span> {}',
        ((COLOURS[k % len(COLOURS)], name) for k, name in enumerate(series)),
    )
    return format_html(
        '<figure><figcaption>{}: {}</figcaption><svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}{}</svg>'
        "</figure>",
        title, legend, WIDTH, HEIGHT, title, grid, ticks, drawn,
    )  # fmt: skip


def bars(shares: Mapping[str, float], *, title: str) -> SafeString:
    """Draw named shares (0..1) as horizontal bars."""
    top = max(shares.values(), default=0.0) or 1.0
    rows = format_html_join(
        "",
        '<tr><th>{}</th><td><span class="share" style="width:{}rem"></span> {}</td></tr>',
        ((name, f"{20 * share / top:.2f}", f"{share:.1%}") for name, share in shares.items()),
    )
    return format_html("<table><caption>{}</caption>{}</table>", title, rows)


def _points(values: NDArray[np.float64], low: float, high: float) -> str:
    keep = np.unique(np.linspace(0, len(values) - 1, min(len(values), MOST_POINTS)).round().astype(np.int64))
    scale = max(len(values) - 1, 1)
    return " ".join(
        f"{LEFT + (WIDTH - LEFT) * index / scale:.1f},{_y((values[index] - low) / (high - low)):.1f}"
        for index in keep.tolist()
        if np.isfinite(values[index])
    )


def _y(share: float) -> float:
    return 8 + (HEIGHT - BOTTOM - 8) * (1.0 - share)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
