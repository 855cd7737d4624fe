"""The main job end to end, one seed: teach visual programs, and see what was gained and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.terminal import JsonOut

app = typer.Typer()


@app.command(epilog="Example: tutelage demo --seed 7 --out runs/seven")
def demo(
    seed: Annotated[int, typer.Option(help="Seed of the world, the networks and the training jobs.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/demo-SEED. A stopped run goes on there.")] = None,
    processes: Annotated[int, typer.Option(help="Worker processes, one thread each.")] = 2,
    smoke: Annotated[bool, typer.Option("--smoke", help="The plumbing alone, in seconds; claims nothing.")] = False,
    json: JsonOut = None,
) -> None:
    """Train the toy modules, distil three tasks into them step by step, and write a report."""
    from tutelage.cli import _study
    from tutelage.sdvp.study.run import StudyPlan

    plan = StudyPlan.smoke(seed) if smoke else StudyPlan((seed,))
    folder = out or Path("runs") / f"demo{'-smoke' if smoke else ''}-{seed}"
    _study.run(plan, folder, 1 if smoke else processes, json)
