"""Backbones beside timm's and transformers'."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tutelage.cli._options import Smoke
from tutelage.cli.bench import Device
from tutelage.terminal import JsonOut, console, emit, progress

app = typer.Typer()


@app.command(epilog="Example: tutelage bench backbones convnext cvt:21 --compiled --json results/bench/backbones.json")
def backbones(
    systems: Annotated[list[str] | None, typer.Argument(help="SYSTEM or SYSTEM:SIZE; by default all, first sizes.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; medians are given.")] = 7,
    batch: Annotated[int, typer.Option(min=1, help="Images a forward pass.")] = 4,
    device: Annotated[Device, typer.Option(help="Where networks compute.")] = Device.cpu,
    compiled: Annotated[bool, typer.Option("--compiled", help="Each network compiled too: minutes of compiling.")] = False,
    smoke: Smoke = False,
    json: JsonOut = None,
) -> None:
    """Images per second and memory of the backbones, beside the same networks of timm and transformers."""
    from tutelage.bench import backbones as bench

    with progress("measuring", 1) as bar:
        result = bench.run(
            systems or (),
            rounds=1 if smoke else rounds,
            batch=batch,
            device=device.value,
            compiled=compiled,
            smoke=smoke,
            progress=bar,
        )
    screen = console(json)
    screen.print(_backbones_table(result))
    for it in result["ratios"]:
        screen.print(f"{it['system']}:{it['size']} {it['way']}: {it['time_ratio']:.2f} of the time of {it['than']}", markup=False)
    for name, reason in result["left_out"].items():
        screen.print(f"left out: {name}: {reason}", markup=False)
    screen.print(
        f"{result['batch']} images a pass, inference, fp32, {result['rounds']} rounds, {result['clock']}, on {result['device']}"
        + (" (smoke test: the figures mean nothing)" if smoke else ""),
        soft_wrap=True,
    )
    emit(result, json)


def _backbones_table(result: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table("network", "way", box=None)
    for heading in ("images/s", "peak MiB", "M parameters", "GMACs", "differs by"):
        table.add_column(heading, justify="right")
    for it in result["rows"]:
        figures = [
            f"{it['images_per_s']:.1f}",
            f"{it['peak_tensor_mib']:.0f}",
            f"{it['parameters'] / 1e6:.1f}",
            f"{it['macs'] / 1e9:.2f}",
        ]
        differs = "" if it["difference"] is None else f"{it['difference']:.0e}"
        table.add_row(f"{it['system']}:{it['size']}", it["way"], *figures, differs)
    return table
