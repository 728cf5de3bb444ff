"""A small plot with two logarithmic axes, as SVG that reads on a light and on a dark page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 840, 430
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 380, 20, 50  # margins
_COLOURS = ("#2f81f7", "#d29922", "#3fb950", "#db61a2", "#8957e5", "#1b7c83")
_DASHES = ("", "7 4", "2 3", "8 3 2 3")


@dataclass(frozen=True)
class Series:
    """A line; `group` decides its dashes, `name` its colour."""

    group: str
    name: str
    xs: Sequence[float]
    ys: Sequence[float]


def plot(series: Sequence[Series], *, x: str, y: str) -> str:
    """Return the SVG."""
    low_x, high_x = _decades(value for line in series for value in line.xs)
    low_y, high_y = _decades(value for line in series for value in line.ys)
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def place_x(value: float) -> float:
        part = (math.log10(value) - low_x) / (high_x - low_x)
        return _LEFT + part * (right - _LEFT)

    def place_y(value: float) -> float:
        part = (math.log10(value) - low_y) / (high_y - low_y)
        return bottom - part * (bottom - _TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        ' font-family="sans-serif" font-size="12" fill="#808080">'
    ]
    for power in range(low_x, high_x + 1):
        at = place_x(10.0**power)
        parts.append(_line(at, _TOP, at, bottom))
        parts.append(_text(at, bottom + 18, f"{10**power:,}", "middle"))
    for power in range(low_y, high_y + 1):
        at = place_y(10.0**power)
        parts.append(_line(_LEFT, at, right, at))
        parts.append(_text(_LEFT - 8, at + 4, f"{10.0**power:g}", "end"))
    parts.append(_text((_LEFT + right) / 2, _HEIGHT - 10, x, "middle"))
    parts.append(_text(_LEFT - 8, _TOP - 6, y, "start"))
    groups = list(dict.fromkeys(line.group for line in series))
    names = list(dict.fromkeys(line.name for line in series))
    for number, line in enumerate(series):
        style = (
            f'stroke="{_COLOURS[names.index(line.name) % len(_COLOURS)]}" stroke-width="2"'
            f' stroke-dasharray="{_DASHES[groups.index(line.group) % len(_DASHES)]}"'
        )
        points = " ".join(
            f"{place_x(a):.1f},{place_y(b):.1f}" for a, b in zip(line.xs, line.ys, strict=True)
        )
        parts.append(f'<polyline points="{points}" fill="none" {style}/>')
        at = _TOP + 10 + 18 * number
        parts.append(f'<path d="M{right + 15} {at}h28" fill="none" {style}/>')
        parts.append(_text(right + 50, at + 4, f"{line.name}, {line.group}", "start"))
    return "\n".join([*parts, "</svg>", ""])


def _decades(values: Iterable[float]) -> tuple[int, int]:
    logs = [math.log10(value) for value in values]
    return math.floor(min(logs)), max(math.ceil(max(logs)), math.floor(min(logs)) + 1)


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="#808080" stroke-opacity="0.3"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
