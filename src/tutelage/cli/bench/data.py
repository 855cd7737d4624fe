"""Reading a folder of JPEG files, beside a plain torch DataLoader; memory; a cached teacher."""

from __future__ import annotations

from typing import Annotated

import typer

from tutelage.cli._options import Smoke
from tutelage.terminal import JsonOut, console, emit, progress

app = typer.Typer()


@app.command(epilog="Example: tutelage bench data --json results/bench/data.json")
def data(
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; medians are given.")] = 6,
    smoke: Smoke = False,
    json: JsonOut = None,
) -> None:
    """Read 20,000 JPEG files by two workers, pass 1.28 million items through, and train with a cached teacher."""
    from tutelage.bench.data import bench, table

    with progress("measuring", 1) as bar:
        result = bench(rounds, smoke=smoke, progress=bar)
    console(json).print(table(result), markup=False, soft_wrap=True)
    emit(result, json)
