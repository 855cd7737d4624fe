"""How `sdvp study --ablations` runs and shows its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage.cli._study import claims
from tutelage.terminal import console, emit, progress

GROUPS = ("current", "previous", "unseen")
VERDICTS = {"better": "[green]better[/green]", "worse": "[red]worse[/red]"}


def run(seeds: Sequence[int], axes: tuple[str, ...], smoke: bool, out: Path, processes: int, json: str | None) -> None:
    """Run the cells in ``out``, print their tables.

    Raises:
        InputError: an unknown axis.
    """
    from dataclasses import replace

    from tutelage.errors import InputError, did_you_mean
    from tutelage.sdvp.study.ablations import AblationPlan, cells, run_ablations

    known = list(dict.fromkeys(cell.axis for cell in cells()))
    for name in axes:
        if name not in known:
            raise InputError(f"no axis {name!r}", where="--axis", remedy=did_you_mean(name, known))
    plan = replace(AblationPlan.smoke(seeds[0]) if smoke else AblationPlan(tuple(seeds)), axes=axes)
    screen = console(json)
    with progress("ablations", total=1) as bar:
        result = run_ablations(plan, out, processes, bar.describe, bar)
    screen.print(_cells(result))
    if result["tables"]["frameworks"]:
        screen.print(_frameworks(result["tables"]["frameworks"]))
    if result["tables"]["noise"]:
        screen.print(_noise(result["tables"]["noise"]))
    claims(screen, result["summary"])
    screen.print(f"\nresults  {out / 'ablations.json'}", soft_wrap=True)
    emit(result, json)


def _cells(result: Mapping[str, Any]) -> Any:
    from rich.table import Table

    seeds = result["summary"]["seeds"]
    title = f"Changes in points against the frozen modules, {seeds} seed{'s' if seeds > 1 else ''}; in brackets: against SDVP"
    table = Table(title=title + (" (smoke test: networks that know nothing)" if result["smoke"] else ""))
    table.add_column("what is changed", no_wrap=True)
    for name in GROUPS:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("current", no_wrap=True)
    table.add_column("failed programs")
    axis = None
    for row in result["tables"]["cells"]:
        if row["axis"] != axis:
            if axis is not None:
                table.add_section()
            axis = row["axis"]
            table.add_row(f"[bold]{axis}[/bold]")
        pairs = [(row[group]["change"]["mean"], row[group]["against_sdvp"]) for group in GROUPS]
        shown = [f"{change:+.1f} [{against['lo']:+.1f}, {against['hi']:+.1f}]" for change, against in pairs]
        table.add_row(f"  {row['name']}", *shown, VERDICTS.get(row["current"]["verdict"], ""), failed(row["failures"]))
    return table


def _frameworks(rows: Sequence[Mapping[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(title="Across frameworks: changes in points against the frozen modules asked in the same programs [95 %]")
    for name in ("taught through", "asked in"):
        table.add_column(name)
    for name in GROUPS:
        table.add_column(name, justify="right")
    table.add_column("failed programs")
    for row in rows:
        shown = [f"{row[g]['mean']:+.1f} [{row[g]['lo']:+.1f}, {row[g]['hi']:+.1f}]" for g in GROUPS]
        table.add_row(row["taught"], row["asked"], *shown, failed(row["failures"]))
    return table


def _noise(rows: Sequence[Mapping[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(title="One program in five is wrong: gain in points on b_gqa")
    table.add_column("taught through")
    for name in ("right programs answer", "noisy programs answer", "of it, learned"):
        table.add_column(name, justify="right")
    table.add_column("failed programs")
    for row in rows:
        gains = [f"{row[where]:+.1f}" for where in ("collection", "everywhere", "alike")]
        table.add_row(row["arm"], *gains, failed(row["failures"]))
    return table


def failed(counts: Mapping[str, int]) -> str:
    """Failures by kind; a dash for none."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "–"
