"""A network with branches, before and after folding."""

from __future__ import annotations

from typing import Annotated

import typer

from tutelage.cli.bench import Device
from tutelage.terminal import JsonOut, console, emit, progress, run_metadata

app = typer.Typer()


@app.command(epilog="Example: tutelage bench folding --json results/bench/folding.json")
def folding(
    size: Annotated[list[str] | None, typer.Option(help="Which size; repeat for several; default: all.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; medians are given.")] = 9,
    batch: Annotated[int, typer.Option(min=1, help="Images a forward pass.")] = 4,
    device: Annotated[Device, typer.Option(help="Where the networks compute.")] = Device.cpu,
    json: JsonOut = None,
) -> None:
    """Time a re-parameterised network before and after its branches are folded into one kernel."""
    from rich.table import Table

    from tutelage.bench.reparameterization import bench

    with progress("measuring", 1) as bar:
        result = bench(rounds, batch, device.value, size, progress=bar)
    screen, table = console(json), Table("size", "image", "ms", "folded, ms", "times faster", "asked", "met", box=None)
    for it in result["rows"]:
        figures = (f"{it['ms']:.1f}", f"{it['folded_ms']:.1f}", f"{it['times_faster']:.2f}", f"{it['target']:g}")
        table.add_row(it["size"], str(it["side"]), *figures, "yes" if it["met"] else "no")
    screen.print(table)
    screen.print(
        f"{batch} images a pass, inference, fp32, {rounds} rounds, {result['clock']}, {result['threads']} thread, on {device}",
        soft_wrap=True,
    )
    emit(result | run_metadata([0]), json)
