"""Visual programs, batched and one call at a time."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tutelage.cli._options import Dsl, DslOption, Seed, Smoke
from tutelage.cli.bench import Device
from tutelage.terminal import JsonOut, console, emit, progress, run_metadata

app = typer.Typer()


@app.command(epilog="Example: tutelage bench programs --rounds 5 --json results/bench_programs.json")
def programs(
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; medians are given.")] = 5,
    dsl: DslOption = Dsl.visprog,
    device: Annotated[Device, typer.Option(help="Where the modules' networks compute.")] = Device.cpu,
    seed: Seed = 0,
    smoke: Smoke = False,
    json: JsonOut = None,
) -> None:
    """Run 2,000 programs over 500 images batched, one call at a time, and as their bare module calls (the ceiling)."""
    from tutelage.bench.programs import bench

    with progress("measuring", 1) as bar:
        result = bench(dsl.value, device=device.value, seed=seed, rounds=1 if smoke else rounds, smoke=smoke, progress=bar)
    screen = console(json)
    screen.print(_table(result))
    screen.print(
        f"{result['programs']:,} {dsl} programs over {result['images']} images of 48x48, {result['steps']:,} steps, on {device}; "
        f"{result['rounds']} rounds, {result['clock']}, one thread, caches off"
        + (" (smoke test: networks that know nothing)" if smoke else ""),
        soft_wrap=True,
    )
    emit(result | run_metadata([seed]), json)


def _table(result: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table("way")
    table.add_column("programs/s", justify="right")
    table.add_column("", justify="right")
    table.add_row("batched", f"{result['batched_programs_per_s']:,.0f}", f"{result['share_of_ceiling']:.0%} of the ceiling")
    table.add_row("one at a time", f"{result['one_at_a_time_programs_per_s']:,.0f}", f"batched is {result['speedup']:.1f}x")
    table.add_row("ceiling: the calls alone", f"{result['ceiling_programs_per_s']:,.0f}", "")
    table.add_row("the networks' calls alone", f"{result['networks_alone_programs_per_s']:,.0f}", "")
    table.add_row("our own time", "", f"{result['own_us_per_step']:.1f} us a step")
    if "share_of_visprog" in result:
        table.add_row("of VisProg's rate", "", f"{result['share_of_visprog']:.0%}")
        own, fast, other = result["overhead"], result["accelerator"], result["smolagents"]
        for kind in ("repeated", "fresh"):
            batched, single = own[f"batched_{kind}_us"], own[f"one_at_a_time_{kind}_us"]
            table.add_row(f"no time in modules, {kind} texts", f"{1e6 / batched:,.0f}", f"{single:,.0f} us one at a time")
        share = f"{fast['share_of_visprog']:.0%} of VisProg's rate, {fast['speedup']:.1f}x one at a time"
        table.add_row("modules of 20 ms a call + 1 ms an item", f"{fast['programs_per_s']:,.0f}", share)
        if "skipped" not in other:
            smolagents_note = f"{other['smolagents_ms']:.2f} ms, {other['smolagents_refused']} of {other['programs']} refused"
            table.add_row("smolagents' local executor", f"{1000 / other['smolagents_ms']:,.0f}", smolagents_note)
            here = f"{other['ms']:.2f} ms, {other['refused']} refused"
            table.add_row("the same programs here", f"{1000 / other['ms']:,.0f}", here)
    return table
