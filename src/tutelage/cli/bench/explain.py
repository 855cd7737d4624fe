"""The page of CNN Explainer, in a headless browser."""

from __future__ import annotations

from typing import Annotated

import typer

from tutelage.cli._options import Smoke
from tutelage.terminal import JsonOut, console, emit, progress, run_metadata

app = typer.Typer()

ROWS = (
    ("engine_ms", "engine, one 64x64 picture", "ms"),
    ("nested_ms", "the same by nested arrays", "ms"),
    ("published_engine_ms", "published engine (measured elsewhere, see the docs)", "ms"),
    ("page_kib", "page", "KiB"),
    ("first_paint_ms", "first paint", "ms"),
    ("first_picture_ms", "first picture computed and drawn", "ms"),
    ("new_picture_ms", "new picture computed and drawn", "ms"),
    ("slowest_picture_ms", "the slowest of them", "ms"),
)


@app.command(epilog="Example: tutelage bench explain --json results/bench/explain.json")
def explain(
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds of the engines; medians are given.")] = 9,
    smoke: Smoke = False,
    json: JsonOut = None,
) -> None:
    """Time the page that `tutelage explain` writes: first paint, a new picture, its engine beside nested arrays."""
    from rich.table import Table

    from tutelage.bench.explainer import bench

    with progress("measuring"):
        result = bench(rounds, smoke)
    screen, table = console(json), Table("", "median", "least", "unit", "at most", "kept", box=None)
    for key, text, unit in ROWS:
        if key in result:
            most, kept = result["limits"].get(key), result["kept"].get(key)
            limit = "" if most is None else f"{most:g}"
            least = f"{result[f'least_{key}']:.1f}" if f"least_{key}" in result else ""
            table.add_row(text, f"{result[key]:.1f}", least, unit, limit, "" if kept is None else "yes" if kept else "no")
    screen.print(table)
    load = f"; {result['load']:.1f} processes a core wanted to run meanwhile" if result["load"] > 1 else ""
    screen.print(f"{result['times_faster']:.1f} times the speed of nested arrays{load}" + (" (smoke test)" if smoke else ""))
    emit(result | run_metadata([0]), json)
