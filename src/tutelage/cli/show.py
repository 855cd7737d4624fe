"""Run the experiment that shows what a system does, and judge its claims."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.cli.systems import RESULTS
from tutelage.terminal import JsonOut, console, emit, progress

app = typer.Typer()


@app.command(epilog="Example: tutelage show nd-loss --json -")
def show(
    name: Annotated[str, typer.Argument(metavar="SYSTEM", help="A name from `tutelage systems`, or sdvp-photos.")],
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds; a verdict needs 3 or more.")] = 5,
    first_seed: Annotated[int, typer.Option(help="The first seed; the others follow it.")] = 0,
    everything: Annotated[bool, typer.Option("--all", help="Run the further arms too.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="A few seconds that prove the plumbing and claim nothing.")] = False,
    processes: Annotated[int | None, typer.Option(min=1, help="Worker processes; by default one a core.")] = None,
    results: Annotated[Path, typer.Option(help="The folder where the result is kept, unless --smoke.")] = RESULTS,
    json: JsonOut = None,
) -> None:
    """Run SYSTEM's experiment over several seeds: all arms at equal steps and data, paired differences, a verdict.

    The result is kept as RESULTS/SYSTEM.json. The exit code is 0 whatever the verdict.
    """
    from tutelage import experiments, storage

    with progress(f"showing {name}", total=seeds) as bar:
        result = experiments.show(
            name,
            seeds=1 if smoke else seeds,
            first_seed=first_seed,
            smoke=smoke,
            all_arms=everything,
            processes=processes,
            progress=bar,
        )
    _print(result, json)
    if not smoke:
        storage.write_json(results / f"{name}.json", result)
    emit(result, json)


def _print(result: dict[str, Any], json: str | None) -> None:
    from rich.table import Table

    out = console(json)
    for part in (result, *result["further_metrics"]):
        table = Table("arm", part["metric"], "sd", "seeds", box=None)
        for arm, it in part["arms"].items():
            table.add_row(arm, f"{it['mean']:.3g}", "" if it["sd"] is None else f"{it['sd']:.2g}", str(it["n"]))
        out.print(table)
    for claim in result["claims"]:
        difference = claim["difference"]
        bounds = "" if difference["lo"] is None else f" [{difference['lo']:+.3g}, {difference['hi']:+.3g}]"
        out.print(f"{claim['claim']}: {difference['mean']:+.3g}{bounds}: {claim['verdict']}", markup=False)
    smoke = " (a smoke run claims nothing)" if result["smoke"] else ""
    out.print(f"{result['system']}: {result['verdict']}{smoke} in {result['seconds']:.0f} s", markup=False)
    out.print(f"limits: {result['limits']}", markup=False, style="dim")
