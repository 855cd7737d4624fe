"""What collecting and labelling cost, measured on one core and extrapolated."""

from __future__ import annotations

from typing import Annotated

import typer

from tutelage.cli._options import Seed, Smoke
from tutelage.terminal import JsonOut, console, emit, progress, run_metadata

app = typer.Typer()


@app.command(epilog="Example: tutelage bench capacity --json results/bench/capacity.json")
def capacity(
    images: Annotated[int, typer.Option(min=1, help="Synthetic scenes in GQA's layout, ten questions each.")] = 200,
    seed: Seed = 0,
    smoke: Smoke = False,
    json: JsonOut = None,
) -> None:
    """What collecting and labelling cost a question, and what that makes of all of GQA and of a billion images.

    Measured here on one core; the extrapolation's assumptions stand in the JSON, and its formula is checked by a simulation of
    workers that fail, on a virtual clock.
    """
    from rich.table import Table

    from tutelage.bench.cost_estimate import bench

    with progress("measuring", 1) as bar:
        result = bench(seed=seed, images=images, smoke=smoke, progress=bar)
    screen, table = console(json), Table("what", "workers", "jobs", box=None)
    for heading in ("worker core-hours", "driver core-hours", "hours", "records, GiB", "pictures, GiB"):
        table.add_column(heading, justify="right")
    for it in result["scenarios"]:
        figures = [it[name] for name in ("worker_core_hours", "driver_core_hours", "hours", "records_gib", "pictures_gib")]
        assumed = it["assumptions"]
        table.add_row(it["name"], f"{assumed['workers']:,}", f"{assumed['jobs']:,}", *(f"{value:,.1f}" for value in figures))
    screen.print(table)
    found = result["measured"]
    each = ", ".join(f"{name} {1000 * value:.2f}" for name, value in found["seconds_a_question"].items())
    screen.print(f"a question, ms of one core: {each}; {found['questions']:,} questions measured", soft_wrap=True)
    calls = ", ".join(f"{name} {1e6 * value:.0f}" for name, value in found["seconds_a_call"].items())
    screen.print(f"a call, us: {calls}" + (" (smoke test: the figures mean nothing)" if smoke else ""), soft_wrap=True)
    checked = result["simulation"]
    screen.print(
        f"formula against simulation ({checked['workers']} workers, {checked['shards']:,} shards, {checked['shards_lost']} lost, "
        f"virtual clock): {checked['difference']:+.1%}, {'within' if checked['within'] else 'BEYOND'} {checked['margin']:.0%}",
        soft_wrap=True,
    )
    emit(result | run_metadata([seed]), json)
