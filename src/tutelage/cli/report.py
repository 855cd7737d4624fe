"""``tutelage report``: from a finished run to one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Write the report of a run.")


@app.callback(invoke_without_command=True)
def report(
    run: Annotated[Path, typer.Argument(help="A run folder, or the JSON of its results.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", help="The page to write; default: report.html beside the results.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write what was read and written as JSON.")] = None,
) -> None:
    """Write one self-contained HTML page from the results of a run.

    The page needs no network and no other file: tables, charts and a browser of samples, dark and light.

    Example: tutelage report runs/study --out study.html
    """
    from tutelage.files import write_json
    from tutelage.reports import write_report

    written = write_report(run, out)
    if json is not None:
        write_json(
            json,
            {"report": written.page, "results": written.results, "format": written.format, "bytes": written.bytes},
        )
    typer.echo(f"report: {written.page} ({written.bytes / 1024:.0f} KiB)")
