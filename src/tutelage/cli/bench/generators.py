"""Program generators on questions that they have not seen."""

from __future__ import annotations

from typing import Annotated

import typer

from tutelage.cli._options import Smoke
from tutelage.terminal import JsonOut, console, emit, progress, run_metadata

app = typer.Typer()


@app.command(epilog="Example: tutelage bench generators --json results/bench/generators.json")
def generators(
    seeds: Annotated[int, typer.Option(min=1, help="The number of seeds; the first use of each trains a generator.")] = 3,
    first_seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    smoke: Smoke = False,
    json: JsonOut = None,
) -> None:
    """Measure how often the grammar and the learned generator write the gold program, and what they decline."""
    from rich.table import Table

    from tutelage.bench.generators import FIGURES, bench

    all_seeds = list(range(first_seed, first_seed + seeds))
    with progress("measuring", 1) as bar:
        result = bench(all_seeds, smoke=smoke, progress=bar)
    screen, table = console(json), Table("questions", "generator", "number", box=None)
    for name in FIGURES:
        table.add_column(f"{name}, %", justify="right")
    for row in result["rows"]:
        figures = [row[name] and f"{100 * row[name]['mean']:.1f} ± {100 * row[name]['sd']:.1f}" for name in FIGURES]
        table.add_row(row["set"], row["writer"], f"{row['questions']:.0f}", *[it or "" for it in figures])
    screen.print(table)
    screen.print(
        "exact: the first candidate is the gold program to the letter; written: and is not declined; declined: of questions that "
        "have a program; refused: of those that have none; unknown: words never read",
        soft_wrap=True,
    )
    emit(result | run_metadata(all_seeds), json)
