"""How cost per account grows from 1 to 100,000 accounts, on each event loop: a plot.

On a storage in memory, so that what grows is ours and not the disk's; beside it, what one write
costs on files that are not durable, on SQLite and on Redis.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from ._measure import Row, Settings, main
from ._plot import Series, plot
from .loops import workloads
from .storages import write_costs

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
    for name, seconds in asyncio.run(write_costs(settings, counts)).items():
        series.append(
            Series(
                "storages",
                f"one write, {name.replace('`', '')}",
                counts,
                [s * 1e6 for s in seconds],
            )
        )
        rows.append(
            Row(
                question=f"one write, one of {counts[-1]:,} accounts, {name}",
                against="one of 100",
                values=[seconds[-1] / seconds[2]],
            )
        )
    if not settings.quick:
        PLOT.write_text(plot(series, x="accounts", y="µs per account"))
    return rows


if __name__ == "__main__":
    main(growth)
