"""Labelling by one worker and by two: local processes, and Ray."""

from __future__ import annotations

from typing import Annotated

import typer

from tutelage.cli._options import Engine, Seed, Smoke
from tutelage.terminal import JsonOut, console, emit, progress, run_metadata

app = typer.Typer()


@app.command(epilog="Example: tutelage bench workers --json results/bench/workers.json")
def workers(
    engine: Annotated[list[Engine] | None, typer.Option(help="An engine; may be repeated. Default: both.")] = None,
    calls: Annotated[int, typer.Option(min=1, help="Calls to label.")] = 32_768,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; medians are given.")] = 3,
    seed: Seed = 0,
    smoke: Smoke = False,
    json: JsonOut = None,
) -> None:
    """Label with one worker and with two, one thread each: local processes, and Ray (extra ray)."""
    from tutelage.bench.workers import bench

    with progress("measuring", 1) as bar:
        engines = [it.value for it in engine or Engine]
        result = bench(engines, calls=calls, rounds=1 if smoke else rounds, seed=seed, smoke=smoke, progress=bar)
    screen = console(json)
    for name, it in result["engines"].items():
        screen.print(
            f"{name}: {it['seconds'][1]:.2f} s by one worker, {it['seconds'][2]:.2f} s by two, {it['ratio']:.2f} times as fast "
            f"({'met' if it['met'] else 'missed'}: at least {it['target']})" + (f"; {it['reason']}" if it["reason"] else ""),
            soft_wrap=True,
        )
    screen.print(
        f"{result['calls']:,} calls, {result['calls_a_shard']} a shard, {result['rounds']} rounds, medians; starting not counted"
    )
    emit(result | run_metadata([seed]), json)
