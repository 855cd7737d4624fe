"""The server under load, with and without batching across requests."""

from __future__ import annotations

from typing import Annotated

import typer

from tutelage.cli._options import Seed, Smoke
from tutelage.terminal import JsonOut, console, emit, progress, run_metadata

app = typer.Typer()


@app.command(epilog="Example: tutelage bench serving --json results/bench/serving.json")
def serving(
    clients: Annotated[int, typer.Option(min=1, help="Clients that ask at once, each again when it has its answer.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; medians are given.")] = 5,
    requests: Annotated[int, typer.Option(min=10, help="Requests in one go, of which none may fail.")] = 10_000,
    seed: Seed = 0,
    smoke: Smoke = False,
    json: JsonOut = None,
) -> None:
    """Load a real server on loopback: batching across requests on and off, 10,000 requests, and more than its queue holds."""
    from rich.table import Table

    from tutelage.bench.serving import bench

    with progress("measuring", 1) as bar:
        result = bench(clients=clients, rounds=rounds, requests=requests, seed=seed, smoke=smoke, progress=bar)
    screen, table = console(json), Table("modules", "batching", box=None)
    for heading in ("answers/s", "p50 ms", "p95 ms", "p99 ms", "calls a batch", "errors"):
        table.add_column(heading, justify="right")
    for kind, about in (("stub", "stub, 20 ms a call + 1 ms an item"), ("embedded", "embedded, on the CPU")):
        for way in ("on", "off"):
            it = result[kind][way]
            figures = [f"{it[name]:.1f}" for name in ("answers_per_s", "p50_ms", "p95_ms", "p99_ms")]
            sizes = ", ".join(f"{name} {size:.1f}" for name, size in it["mean_batch"].items())
            table.add_row(about, way, *figures, sizes, str(it["errors"]))
    screen.print(table)
    for kind in ("stub", "embedded"):
        it = result[kind]
        screen.print(
            f"{kind}: batching gives {it['answers_ratio']:.2f}x the answers a second, p50 is {it['p50_ratio']:.2f} of that without"
        )
    many, beyond = result["many"], result["beyond_queue"]
    screen.print(f"{many['requests']:,} requests in one go: {many['errors']} errors, {many['answers_per_s']:.0f} answers/s")
    codes = ", ".join(f"{count} x {code}" for code, count in beyond["codes"].items())
    screen.print(f"{beyond['clients']} clients at a queue of {beyond['queue']}: {codes}; {beyond['errors']} errors", soft_wrap=True)
    emit(result | run_metadata([seed]), json)
