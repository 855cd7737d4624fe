"""Measure programs and distillation side by side."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

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


@app.command(epilog="Example: tutelage bench serving --json results/bench/serving.json")
def serving(
    clients: Annotated[int, typer.Option(min=1, help="Clients that ask at once, each again when it has its answer.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; medians are given.")] = 5,
    requests: Annotated[int, typer.Option(min=10, help="Requests in one go, of which none may fail.")] = 10_000,
    seed: Seed = 0,
    smoke: Annotated[bool, typer.Option("--smoke", help="The plumbing alone, in seconds; claims nothing.")] = False,
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
    emit(result | environment([seed]), json)
