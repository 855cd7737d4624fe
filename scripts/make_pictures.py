"""Write docs/images/NAME.svg for systems by name: the arms of the committed result with 95 % t-intervals over seeds.

``python scripts/make_pictures.py curriculum-designer``
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutelage.datasets.confidence_intervals import t_interval
from tutelage.errors import InputError
from tutelage.reports.pictures import ranking
from tutelage.storage import read_json, write_text

ROOT = Path(__file__).parents[1]


def picture(result: Mapping[str, Any]) -> str:
    """The arms of the main metric, the best on top."""
    metric, rows = result["metric"], [row["arms"] for row in result["per_seed"]]
    series = {name: [of_metric(row[name], metric) for row in rows] for name in rows[0]}
    found = {name: t_interval(values) for name, values in series.items() if None not in values}
    if len(rows) < 2 or not found:
        raise InputError("one seed has no interval", where=result["system"], remedy="run its experiment over several seeds")
    order = sorted(found, key=lambda name: found[name].mean, reverse=result["higher_is_better"])
    columns = [[getattr(found[name], field) for name in order] for field in ("mean", "low", "high")]
    return ranking(f"{result['system']}: {metric}", f"mean of {len(rows)} seeds, 95 % t-interval", order, *columns)


def of_metric(figure: float | Mapping[str, float], metric: str) -> float | None:
    """An arm's figure of the main metric, or None."""
    return figure.get(metric) if isinstance(figure, Mapping) else figure


def main() -> None:
    """Draw the systems that are named."""
    for name in sys.argv[1:]:
        path = write_text(
            ROOT / "docs" / "images" / f"{name}.svg", picture(read_json(ROOT / "results" / "systems" / f"{name}.json"))
        )
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
