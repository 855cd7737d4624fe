"""Program writers on questions that they have not seen."""

from __future__ import annotations

from typing import Annotated

import typer

from tutelage.cli.common import JsonOut, console, emit, progress, run_metadata

app = typer.Typer()


@app.command(epilog="Example: tutelage bench writers --json results/bench/writers.json")
def writers(
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds; each trains a writer on first use, half a minute.")] = 3,
    first_seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    smoke: Annotated[bool, typer.Option("--smoke", help="The plumbing alone; claims nothing.")] = False,
    json: JsonOut = None,
) -> None:
    """Measure how often the grammar and the learned writer write the gold program, and what they decline."""
    from rich.table import Table

    from tutelage.bench.generators import FIGURES, bench

    wanted = list(range(first_seed, first_seed + seeds))
    with progress("examining", 1) as bar:
        result = bench(wanted, smoke=smoke, progress=bar)
    screen, table = console(json), Table("questions", "writer", "number", box=None)
    for name in FIGURES:
        table.add_column(f"{name}, %", justify="right")
    for row in result["rows"]:
        figures = [row[name] and f"{100 * row[name]['mean']:.1f} ± {100 * row[name]['sd']:.1f}" for name in FIGURES]
        table.add_row(row["set"], row["writer"], f"{row['questions']:.0f}", *[it or "" for it in figures])
    screen.print(table)
    screen.print(
        "exact: the first draft is the gold program to the letter; written: and is not declined; declined: of questions that "
        "have a program; refused: of those that have none; unknown: words never read",
        soft_wrap=True,
    )
    emit(result | run_metadata(wanted), json)
