"""List every system with its kind, its demonstration and its last result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.terminal import JsonOut, console, emit

app = typer.Typer()

RESULTS = Path("results/systems")
"""Where ``tutelage show`` keeps what it wrote, seen from the folder the command runs in."""


def listed(results: Path = RESULTS) -> list[dict[str, Any]]:
    """``{name, card, kind, state, verdict}`` of each system.

    ``state`` is "demonstrated" where a result is kept in ``results``, "ready" where a demonstration can be run, else
    "code only"; ``verdict`` is the kept result's, or None.

    Raises:
        InputError: a kept result that cannot be read, or that is none.
    """
    from tutelage import experiments, registry
    from tutelage.storage import read_json

    ready = experiments.names()
    rows = []
    for entry in registry.systems().values():
        file = results / f"{entry.name}.json"
        verdict = _verdict(read_json(file), file) if file.exists() else None
        state = "demonstrated" if verdict else "ready" if entry.name in ready else "code only"
        rows.append({"name": entry.name, "card": entry.card, "kind": entry.kind, "state": state, "verdict": verdict})
    return rows


def _verdict(result: Any, file: Path) -> str:
    from tutelage.errors import InputError

    if not isinstance(result, dict) or not isinstance(result.get("verdict"), str):
        raise InputError("no result of a demonstration", where=file, remedy=f"tutelage show {file.stem}")
    return str(result["verdict"])


@app.command(epilog="Example: tutelage systems --json -")
def systems(
    results: Annotated[Path, typer.Option(help="The folder of kept results.")] = RESULTS,
    json: JsonOut = None,
) -> None:
    """List every system: name, card, kind, state, verdict of its last demonstration."""
    from rich.table import Table

    rows = listed(results)
    table = Table(box=None, title=f"{len(rows)} systems", title_justify="left", padding=(0, 1, 0, 0))
    for heading in ("system", "card", "kind", "state", "verdict"):
        table.add_column(heading, no_wrap=heading == "system", overflow="fold")
    for row in rows:
        table.add_row(row["name"], row["card"], row["kind"], row["state"], row["verdict"] or "")
    console(json).print(table)
    emit(rows, json)
