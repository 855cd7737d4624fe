"""Write the report of a run: one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.terminal import JsonOut, console, emit

app = typer.Typer()


@app.command(epilog="Example: tutelage report runs/study --out study.html")
def report(
    run: Annotated[Path, typer.Argument(help="A run folder, or the JSON of its results.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="The page; default: report.html beside the results.")] = None,
    json: JsonOut = None,
) -> None:
    """Write one HTML page that needs no network: tables, charts, and each sample's program step by step."""
    from tutelage.reports import write_report

    written = write_report(run, out)
    console(json).print(f"report: {written.page} ({written.bytes / 1024:.0f} KiB)", soft_wrap=True)
    emit({"report": written.page, "results": written.results, "format": written.format, "bytes": written.bytes}, json)
