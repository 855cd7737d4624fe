"""The selective scan of Mamba, three ways."""

from __future__ import annotations

from typing import Annotated

import typer

from tutelage.cli._options import Smoke
from tutelage.cli.bench import Device
from tutelage.terminal import JsonOut, console, emit, progress, run_metadata

app = typer.Typer()


@app.command(epilog="Example: tutelage bench scan --json results/bench/scan.json")
def scan(
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Sequences a batch; repeat for several.")] = None,
    length: Annotated[int, typer.Option(min=1, help="Steps of a sequence.")] = 1024,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; medians are given.")] = 7,
    device: Annotated[Device, typer.Option(help="Where the scan computes.")] = Device.cpu,
    smoke: Smoke = False,
    json: JsonOut = None,
) -> None:
    """Time Mamba's selective scan, forward and backward: step by step, in chunks of time, in groups of steps."""
    from rich.table import Table

    from tutelage.bench.selective_scan import bench

    with progress("measuring"):
        result = bench(batch or (1, 8), length, rounds=rounds, device=device.value, smoke=smoke)
    screen, table = console(json), Table("batch", "path", "ms", "times the loop's speed", "picked", box=None)
    for row in result["rows"]:
        for path, milliseconds in row["milliseconds"].items():
            picked = "yes" if path == row["picked"] else ""
            table.add_row(str(row["batch"]), path, f"{milliseconds:.1f}", f"{row['times_faster'][path]:.1f}", picked)
    screen.print(table)
    screen.print(
        f"{result['length']} steps, {result['width']} channels, {result['states']} states, {result['rounds']} rounds, "
        f"{result['clock']}, {result['threads']} threads, on {result['device']}" + (" (smoke test)" if smoke else ""),
        soft_wrap=True,
    )
    emit(result | run_metadata([0]), json)
