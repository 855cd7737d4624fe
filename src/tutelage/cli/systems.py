"""List all systems with their kind, the state of their experiment and its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.terminal import JsonOut, console, emit

app = typer.Typer()

RESULTS = Path("results/systems")
"""Where ``tutelage show`` writes, relative to the folder the command runs in."""
STATES = {
    "evaluated": "its experiment was run over several seeds, see verdict",
    "ready": "`tutelage show NAME` runs its experiment",
    "code only": "there is no experiment yet",
}
VERDICTS = {
    "shown": "every claim holds over at least 3 seeds (95 % intervals)",
    "not shown here": "not every claim holds at this small scale; this says nothing about the paper",
}


def shipped_results() -> Path:
    """The results that come with the package: inside an installed one, beside the source in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "results" / "systems"
    return inside if inside.is_dir() else package.parents[1] / RESULTS


def list_systems(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """``{name, card, kind, state, verdict, claims_shown, claims}`` of each system, from the first of ``folders`` that has
    its result.

    ``state`` is a key of :data:`STATES`; ``verdict`` and the numbers of claims are the
    result's, or None.

    Raises:
        InputError: a result that cannot be read, or is not one of an experiment.
    """
    from tutelage import experiments, registry
    from tutelage.storage import read_json

    ready = experiments.names()
    rows = []
    for entry in registry.systems().values():
        file = next((folder / f"{entry.name}.json" for folder in folders if (folder / f"{entry.name}.json").exists()), None)
        result = _result(read_json(file), file) if file is not None else None
        state = "evaluated" if result else "ready" if entry.name in ready else "code only"
        row = {"name": entry.name, "card": entry.card, "kind": entry.kind, "state": state}
        shown, total = experiments.count_shown(result) if result else (None, None)
        rows.append(row | {"verdict": result["verdict"] if result else None, "claims_shown": shown, "claims": total})
    return rows


def _result(result: Any, file: Path) -> dict[str, Any]:
    from tutelage.errors import InputError

    claims = result.get("claims") if isinstance(result, dict) else None
    if not isinstance(claims, list) or not isinstance(result.get("verdict"), str):
        raise InputError("not the result of an experiment", where=file, remedy=f"tutelage show {file.stem}")
    if not all(isinstance(claim, dict) and "verdict" in claim for claim in claims):
        raise InputError("a claim without a verdict", where=file, remedy=f"tutelage show {file.stem}")
    return result


@app.command(epilog="Example: tutelage systems --json -")
def systems(
    results: Annotated[
        Path | None, typer.Option(help=f"The folder of results; default: {RESULTS} here, and those that come with the package.")
    ] = None,
    json: JsonOut = None,
) -> None:
    """List all systems: name, kind, whether the experiment was run, and its verdict; a legend explains the words."""
    from rich.table import Table

    from tutelage.registry import KINDS

    rows = list_systems([results] if results is not None else [RESULTS, shipped_results()])
    table = Table(box=None, title=f"{len(rows)} systems", title_justify="left", padding=(0, 1, 0, 0))
    for heading in ("system", "kind", "state", "verdict", "claims shown"):
        table.add_column(heading, no_wrap=heading == "system", overflow="fold")
    for row in rows:
        claims = f"{row['claims_shown']} of {row['claims']}" if row["claims"] else ""
        table.add_row(row["name"], row["kind"], row["state"], row["verdict"] or "", claims)
    screen = console(json)
    screen.print(table)
    for heading, words in (("kind", KINDS), ("state", STATES), ("verdict", VERDICTS)):
        present = {word: meaning for word, meaning in words.items() if any(row[heading] == word for row in rows)}
        for word, meaning in present.items():
            screen.print(f"[dim]{heading:<8}{word:<15}{meaning}[/dim]")
    emit(rows, json)
