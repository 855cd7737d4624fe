"""What a training step of each method costs."""

from __future__ import annotations

from typing import Annotated

import typer

from tutelage.terminal import JsonOut, console, emit, progress, run_metadata

app = typer.Typer()


@app.command(epilog="Example: tutelage bench methods --system kd --system dkd")
def methods(
    system: Annotated[list[str] | None, typer.Option(help="Which system; repeat for several; default: all.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; medians are given.")] = 7,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each variant in a round.")] = 5,
    json: JsonOut = None,
) -> None:
    """Time a step of each method beside its student's own step, and beside the network passes that the step makes."""
    from rich.table import Table

    from tutelage.bench.methods import bench

    with progress("measuring", 1) as bar:
        result = bench(rounds, steps, system, progress=bar)
    screen = console(json)
    columns = ("system", "size", "batch", "step, ms", "student alone, ms", "times", "passes, ms", "times")
    table = Table(*columns, "passes of student, teacher", box=None)
    for it in result["rows"]:
        passes = ("–", "–") if it["passes_ms"] is None else (f"{it['passes_ms']:.1f}", f"{it['over_passes']:.2f}")
        table.add_row(
            it["system"],
            it["size"],
            str(it["batch"]),
            f"{it['step_ms']:.1f}",
            f"{it['own_ms']:.1f}",
            f"{it['over_own']:.2f}",
            *passes,
            f"{it['student_passes']}, {it['teacher_passes']}",
        )
    screen.print(table)
    screen.print(
        f"tiny: a step of a millisecond or so, where Python's own time counts; large: passes of 50 ms or more; {rounds} rounds, "
        f"{result['clock']}, {result['threads']} thread",
        soft_wrap=True,
    )
    emit(result | run_metadata([0]), json)
