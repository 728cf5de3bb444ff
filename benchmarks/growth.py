"""How cost per account grows from 1 to 100,000 accounts, on each event loop: a plot.

On a storage in memory, so that what grows is ours and not the disk's.
"""

from __future__ import annotations

from pathlib import Path

from ._measure import Row, Settings, main
from ._plot import Series, plot
from .loops import workloads

PLOT = Path(__file__).with_name("growth.svg")
_COUNTS = (1, 10, 100, 1_000, 10_000, 100_000)
_WHAT = {"update": "warm `update_last_seq`", "first": "first save", "write": "one write, loop time"}


def growth(settings: Settings) -> list[Row]:
    """How does cost per account grow with the number of accounts?"""
    counts = _COUNTS[:5] if settings.quick else _COUNTS
    rows: list[Row] = []
    series: list[Series] = []
    for loop, points in workloads(counts, repeats=1):
        for name, what in _WHAT.items():
            costs = [point[name][0] * 1e6 for point in points.values()]
            series.append(Series(loop, what.replace("`", ""), list(points), costs))
            largest = f"{counts[-1]:,}"
            rows.append(
                Row(
                    question=f"{what}, one of {largest} accounts, {loop}",
                    against="one of 100",
                    values=[points[counts[-1]][name][0] / points[100][name][0]],
                )
            )
    if not settings.quick:
        PLOT.write_text(plot(series, x="accounts", y="µs per account"))
    return rows


if __name__ == "__main__":
    main(growth)
