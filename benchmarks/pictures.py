"""Pictures for a page of the book: SVG that stands in the page, and so takes on its colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH = 480
LEFT = 172  # where bars begin
RIGHT = 430  # where the longest ends
BAR = 13
COLOURS = ("pick", "hit", "arrow")
DASHES = ("", "7 4", "2 4")

STYLE = """<style>
  .rb-text { font: 400 13px system-ui, -apple-system, "Segoe UI", sans-serif; }
  .rb-text { fill: var(--pst-color-text-base, #1f2a33); paint-order: stroke; }
  .rb-text { stroke: var(--pst-color-background, #fff); stroke-width: 3px; }
  .rb-line { stroke: var(--rt-diagram-line, #9fb6c1); stroke-width: 1; }
  .rb-pick { fill: var(--rt-diagram-pick, #1b7ea6); stroke: var(--rt-diagram-pick, #1b7ea6); }
  .rb-hit { fill: var(--rt-diagram-hit, #d96c00); stroke: var(--rt-diagram-hit, #d96c00); }
  .rb-arrow { fill: var(--rt-diagram-arrow, #5b7684); stroke: var(--rt-diagram-arrow, #5b7684); }
  polyline.rb-pick, polyline.rb-hit, polyline.rb-arrow { fill: none; stroke-width: 2.5; }
</style>"""


def bars(
    series: Mapping[str, Mapping[str, float]], unit: str, write: str, line: float | None = None
) -> str:
    """Bars from left to right, a group of them a label.

    Args:
        series: name to label to length; one series alone may be called `""`.
        unit: of the lengths.
        write: a format for them, such as `"{:.1f}"`.
        line: where a vertical line stands.
    """
    labels = list(next(iter(series.values())))
    longest = max(max(values.values()) for values in series.values())
    scale = (RIGHT - LEFT) / max(longest, line or 0.0)
    group, top = BAR * len(series) + 12, 34 if len(series) > 1 else 8
    height = top + group * len(labels) + 24
    parts = []
    if len(series) > 1:
        parts += [_key(number, name, LEFT + 130 * number) for number, name in enumerate(series)]
    for row, label in enumerate(labels):
        y = top + group * row
        middle = y + BAR * len(series) / 2 + 5
        parts.append(_text(LEFT - 8, middle, label, "end"))
        for number, values in enumerate(series.values()):
            length, at = values[label] * scale, y + BAR * number
            parts.append(
                f'<rect class="rb-{COLOURS[number]}" x="{LEFT}" y="{at}" width="{length:.1f}" '
                f'height="{BAR - 2}"/>'
            )
            parts.append(_text(LEFT + length + 6, at + BAR - 3, write.format(values[label])))
    bottom = top + group * len(labels)
    for place in sorted({0.0, line or 0.0}):  # behind the figures
        x = LEFT + place * scale
        parts.insert(0, _line(x, top - 4, x, bottom - 6))
    parts.append(_text(LEFT, bottom + 14, unit))
    told = [
        f"{label}{', ' if name else ''}{name}: {write.format(values[label])}"
        for label in labels
        for name, values in series.items()
    ]
    return _svg(height, f"Bars, {unit}. {'; '.join(told)}.", parts)


def curves(series: Mapping[str, Sequence[tuple[float, float]]], across: str, up: str) -> str:
    """Lines through points, both axes in powers of ten.

    Args:
        series: name to points.
        across: the unit from left to right.
        up: the unit from below.
    """
    left, right, top, bottom = 56, 460, 50, 250
    points = [point for line in series.values() for point in line]
    (x0, x1), (y0, y1) = (
        (math.log10(min(axis)), math.log10(max(axis))) for axis in zip(*points, strict=True)
    )
    y0, y1 = math.floor(y0), math.ceil(y1)

    def place(x: float, y: float) -> tuple[float, float]:
        along, high = (math.log10(x) - x0) / (x1 - x0), (math.log10(y) - y0) / (y1 - y0)
        return left + along * (right - left - 30) + 10, bottom - high * (bottom - top)

    parts = []
    for power in range(y0, y1 + 1):
        y = place(10**x0, 10.0**power)[1]
        parts += [_line(left, y, right, y), _text(left - 8, y + 4, f"{10.0**power:g}", "end")]
    for x in sorted({x for x, _ in points}):
        parts.append(_text(place(x, 10.0**y0)[0], bottom + 20, f"{x:,.0f}", "middle"))
    parts += [_text(left - 8, top - 18, up, "end"), _text(right, bottom + 38, across, "end")]
    for number, (name, line) in enumerate(series.items()):
        at = [place(*point) for point in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        dash = f' stroke-dasharray="{DASHES[number]}"' if DASHES[number] else ""
        parts.append(f'<polyline class="rb-{COLOURS[number]}"{dash} points="{path}"/>')
        parts += [
            f'<circle class="rb-{COLOURS[number]}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in at
        ]
        parts.append(_key(number, name, left + 130 * number))
    told = [
        f"{name}: {', '.join(f'{y:.2g} {up} at {x:,.0f} {across}' for x, y in line)}"
        for name, line in series.items()
    ]
    return _svg(bottom + 48, f"Lines. {'; '.join(told)}.", parts)


def _svg(height: float, alternative: str, parts: Sequence[str]) -> str:
    start = (
        f'<svg class="rd-diagram rb-picture" xmlns="http://www.w3.org/2000/svg" '
        f'viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(alternative)}">'
    )
    return "\n".join([start, STYLE, *parts, "</svg>", ""])


def _key(number: int, name: str, x: float) -> str:
    square = f'<rect class="rb-{COLOURS[number]}" x="{x}" y="8" width="11" height="11"/>'
    return f"{square}\n{_text(x + 17, 18, name)}"


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    side = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="rb-text" x="{x:g}" y="{y:g}"{side}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="rb-line" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>'
