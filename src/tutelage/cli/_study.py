"""How `demo` and `sdvp study` run a study and show it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.terminal import console, emit, progress

if TYPE_CHECKING:
    from tutelage.sdvp.study.run import StudyPlan

SHOWN = ("frozen", "replaced", "routed", "naive", "sdvp")


def run(plan: StudyPlan, out: Path, processes: int, json: str | None) -> None:
    """Run the study in ``out``, print its tables, write the report beside them."""
    from tutelage.reports import write_report
    from tutelage.sdvp.study.run import run_study

    screen = console(json)
    with progress("study", total=1) as bar:
        result = run_study(plan, out, processes, bar.describe, bar)
    screen.print(_table(result))
    _figures(screen, result)
    page = write_report(out).page
    screen.print(f"\nresults  {out / 'study.json'}\nreport   {page}", soft_wrap=True)
    emit({key: value for key, value in result.items() if key != "samples"}, json)


def _table(result: dict[str, Any]) -> Any:
    from rich.table import Table

    seeds = result["summary"]["seeds"]
    table = Table(
        title=f"Accuracy in points, {seeds} seed{'s' if seeds > 1 else ''}"
        + (" (smoke test: networks that know nothing)" if result["smoke"] else "")
    )
    table.add_column("task")
    for name in (*SHOWN, "teacher"):
        table.add_column(name, justify="right")
    table.add_column("gain by SDVP [95 %]", justify="right")
    group = None
    for row in result["tables"]["arms"]:
        if row["group"] != group:
            if group is not None:
                table.add_section()
            group = row["group"]
            table.add_row(f"[bold]{group}[/bold]")
        cells = [row["cells"].get(name) for name in (*SHOWN, "teacher")]
        gain = row["gain"]
        shown = [f"{cell['mean']:.1f}" if cell else "–" for cell in cells]
        shown[SHOWN.index("sdvp")] = f"[bold]{shown[SHOWN.index('sdvp')]}[/bold]"
        table.add_row(f"  {row['task']}", *shown, f"{gain['mean']:+.1f} [{gain['lo']:+.1f}, {gain['hi']:+.1f}]")
    return table


def _figures(screen: Any, result: dict[str, Any]) -> None:
    claims(screen, result["summary"])
    screen.print("The teachers were trained on labels of the current tasks; SDVP saw only what they say.")


def claims(screen: Any, summary: dict[str, Any]) -> None:
    """What was promised and what came of it, and what it took."""
    for verdict in summary["verdicts"]:
        mark = "[green]met   [/green]" if verdict["met"] else "[red]missed[/red]"
        reason = f" ({verdict['reason']})" if verdict["reason"] else ""
        screen.print(f"{mark} {verdict['claim']}: {verdict['value']} (promised: {verdict['target']}){reason}", markup=True)
    minutes, seconds = divmod(round(summary["seconds"]), 60)
    screen.print(f"{minutes} min {seconds} s, at most {summary['peak_rss_mib']:.0f} MiB, all processes together")
