"""A million questions in GQA's layout, read and scored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli._options import Smoke
from tutelage.terminal import JsonOut, console, emit, progress, run_metadata

app = typer.Typer()


@app.command(epilog="Example: tutelage bench gqa --json results/bench/gqa.json")
def gqa(
    questions: Annotated[int, typer.Option(min=1, help="Questions in the file.")] = 1_000_000,
    folder: Annotated[
        Path | None, typer.Option(help="Where the files (1 KB a question) are written and kept; default: deleted afterwards.")
    ] = None,
    smoke: Smoke = False,
    json: JsonOut = None,
) -> None:
    """Write a file of a million questions in GQA's layout, read it and score it: questions a second, and peak memory."""
    import contextlib
    import tempfile

    from tutelage.bench.gqa_readers import bench

    place = contextlib.nullcontext(folder) if folder is not None else tempfile.TemporaryDirectory(prefix="tutelage-gqa-")
    with place as where, progress("writing, then reading and scoring", 1) as bar:
        result = bench(where, 3000 if smoke else questions, progress=bar)
    screen, (reading, scoring) = console(json), (result["reading"], result["scoring"])
    screen.print(
        f"{result['questions']:,} questions, {result['bytes'] / 2**20:,.0f} MiB\n"
        f"read    {reading['questions_per_s']:,.0f} a second, at most {reading['peak_rss_mib']:.0f} MiB, "
        f"{reading['rss_mib'][0]:.0f} MiB after a tenth and {reading['rss_mib'][-1]:.0f} MiB at the end\n"
        f"scored  {scoring['questions_per_s']:,.0f} a second, at most {scoring['peak_rss_mib']:.0f} MiB "
        f"({'met' if result['within_limit'] else 'missed'}: at most {result['limit_mib']:.0f} MiB promised)"
        + (" (smoke test)" if smoke else ""),
        soft_wrap=True,
    )
    emit(result | {"smoke": smoke} | run_metadata([result["seed"]]), json)
