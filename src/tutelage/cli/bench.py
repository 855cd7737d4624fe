"""Measure programs and distillation side by side."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from tutelage.cli._pool import Engine
from tutelage.cli._programs import Dsl, DslOption, Seed
from tutelage.cli.common import JsonOut, console, emit, environment, progress

app = typer.Typer(no_args_is_help=True)


class Device(StrEnum):
    """Where networks compute."""

    cpu = "cpu"
    cuda = "cuda"


@app.callback()
def group() -> None:
    """Side-by-side timings, their variants interleaved in one run."""


@app.command(epilog="Example: tutelage bench programs --rounds 5 --json results/bench_programs.json")
def programs(
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; medians are given.")] = 5,
    dsl: DslOption = Dsl.visprog,
    device: Annotated[Device, typer.Option(help="Where the modules' networks compute.")] = Device.cpu,
    seed: Seed = 0,
    smoke: Annotated[bool, typer.Option("--smoke", help="The plumbing alone, in seconds; claims nothing.")] = False,
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
    emit(result | environment([seed]), json)


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
        table.add_row("symbolic operations", "", f"at worst {result['symbolic']['worst']:.1f}x CPython's time")
    return table


@app.command(epilog="Example: tutelage bench distill --json results/bench_distill.json")
def distill(
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; medians are given.")] = 12,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of the end accuracies.")] = 5,
    device: Annotated[Device, typer.Option(help="Where networks compute.")] = Device.cpu,
    processes: Annotated[int | None, typer.Option(help="Worker processes for the accuracies; default: one a core.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="The plumbing alone, in seconds; claims nothing.")] = False,
    json: JsonOut = None,
) -> None:
    """Time one distillation step: a hand-written loop, another library, ours online and ours cached."""
    from tutelage.bench.distill import command

    with progress("measuring"):
        command(json, rounds, seeds=seeds, smoke=smoke, device=device.value, processes=processes)


@app.command(epilog="Example: tutelage bench backbones convnext cvt:21 --compiled --json results/bench/backbones.json")
def backbones(
    systems: Annotated[list[str] | None, typer.Argument(help="SYSTEM or SYSTEM:SIZE; by default all, first sizes.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; medians are given.")] = 7,
    batch: Annotated[int, typer.Option(min=1, help="Images a forward pass.")] = 4,
    device: Annotated[Device, typer.Option(help="Where networks compute.")] = Device.cpu,
    compiled: Annotated[bool, typer.Option("--compiled", help="Each network compiled too: minutes of compiling.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="The plumbing alone, small sizes; claims nothing.")] = False,
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


@app.command(epilog="Example: tutelage bench scan --json results/bench/scan.json")
def scan(
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Sequences a batch; repeat for several.")] = None,
    length: Annotated[int, typer.Option(min=1, help="Steps of a sequence.")] = 1024,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; medians are given.")] = 7,
    device: Annotated[Device, typer.Option(help="Where the scan computes.")] = Device.cpu,
    smoke: Annotated[bool, typer.Option("--smoke", help="The plumbing alone, in seconds; claims nothing.")] = False,
    json: JsonOut = None,
) -> None:
    """Time Mamba's selective scan, forward and backward: step by step, in chunks of time, in groups of steps."""
    from rich.table import Table

    from tutelage.bench.scan import bench

    with progress("measuring"):
        result = bench(batch or (1, 8), length, rounds=rounds, device=device.value, smoke=smoke)
    screen, table = console(json), Table("batch", "path", "ms", "times the loop's speed", "picked", box=None)
    for row in result["rows"]:
        for path, milliseconds in row["milliseconds"].items():
            picked = "yes" if path == row["picked"] else ""
            table.add_row(str(row["batch"]), path, f"{milliseconds:.1f}", f"{row['times_faster'][path]:.1f}", picked)
    screen.print(table)
    screen.print(
        f"{result['length']} steps, {result['width']} channels, {result['states']} states, {result['rounds']} rounds, "
        f"{result['clock']}, {result['threads']} threads, on {result['device']}" + (" (smoke test)" if smoke else ""),
        soft_wrap=True,
    )
    emit(result | environment([0]), json)


@app.command(epilog="Example: tutelage bench capacity --json results/bench/capacity.json")
def capacity(
    images: Annotated[int, typer.Option(min=1, help="Images of the embedded world in GQA's layout, ten questions each.")] = 200,
    seed: Seed = 0,
    smoke: Annotated[bool, typer.Option("--smoke", help="The plumbing alone, in seconds; claims nothing.")] = False,
    json: JsonOut = None,
) -> None:
    """What collecting and labelling cost a question, and what that makes of all of GQA and of a billion images.

    Measured here on one core; the extrapolation's assumptions stand in the JSON, and its formula is checked by a simulation of
    workers that fail, on a virtual clock.
    """
    from rich.table import Table

    from tutelage.bench.capacity import bench

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
    emit(result | environment([seed]), json)


@app.command(epilog="Example: tutelage bench workers --json results/bench/workers.json")
def workers(
    engine: Annotated[list[Engine] | None, typer.Option(help="An engine; may be repeated. Default: both.")] = None,
    calls: Annotated[int, typer.Option(min=1, help="Calls to label.")] = 32_768,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; medians are given.")] = 3,
    seed: Seed = 0,
    smoke: Annotated[bool, typer.Option("--smoke", help="The plumbing alone, in seconds; claims nothing.")] = False,
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
    emit(result | environment([seed]), json)
