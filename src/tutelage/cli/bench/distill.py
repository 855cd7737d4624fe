"""Distillation steps, beside other libraries and cached."""

from __future__ import annotations

from typing import Annotated

import typer

from tutelage.cli._options import Smoke
from tutelage.cli.bench import Device
from tutelage.terminal import JsonOut, progress

app = typer.Typer()


@app.command(epilog="Example: tutelage bench distill --json results/bench_distill.json")
def distill(
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; medians are given.")] = 12,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of the end accuracies.")] = 5,
    device: Annotated[Device, typer.Option(help="Where networks compute.")] = Device.cpu,
    processes: Annotated[int | None, typer.Option(help="Worker processes for the accuracies; default: one a core.")] = None,
    smoke: Smoke = False,
    json: JsonOut = None,
) -> None:
    """Time one distillation step: a hand-written loop, another library, ours online and ours cached."""
    from tutelage.bench.distill import command

    with progress("measuring"):
        command(json, rounds, seeds=seeds, smoke=smoke, device=device.value, processes=processes)
