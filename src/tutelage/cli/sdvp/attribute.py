"""Attribute wrong answers to the modules that cause them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.cli._options import Dsl, DslOption
from tutelage.terminal import JsonOut, console, emit, progress, run_metadata

if TYPE_CHECKING:
    from tutelage.sdvp.attribution import ErrorAttribution

app = typer.Typer()


class Oracle(StrEnum):
    """What replaces the output of a step."""

    gold = "gold"
    teacher = "teacher"


@app.command(epilog="Example: tutelage sdvp attribute runs/study --arm sdvp --json attribution.json")
def attribute(
    run: Annotated[Path, typer.Argument(help="The folder of `tutelage sdvp study` or `tutelage demo`.")],
    arm: Annotated[
        str, typer.Option(help="frozen, or a trained arm of the study (sdvp, naive): its modules after the last task.")
    ] = "frozen",
    source: Annotated[Oracle, typer.Option(help="What replaces the output of a step.")] = Oracle.gold,
    task: Annotated[list[str] | None, typer.Option(help="A task; may be repeated. Default: b_gqa and b_nlvr.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Questions for each task.")] = 1000,
    seed: Annotated[int | None, typer.Option(help="One of the study's seeds; default: its first.")] = None,
    dsl: DslOption = Dsl.visprog,
    json: JsonOut = None,
) -> None:
    """Attribute wrong answers to modules, by question type, with the accuracy that perfect steps would recover.

    Each wrong answer is run again with the output of one step replaced. If no single step repairs it, the error is shared
    between the steps by their Shapley values. Errors of the programs are counted apart.
    """
    from tutelage.sdvp.study.attribution import TASKS, attribute_run, seed_of

    seed = seed_of(run, seed)
    with progress(f"replacing the steps of {arm} modules"):
        result = attribute_run(run, arm=arm, seed=seed, tasks=task or TASKS, count=count, dsl=dsl.value, source=source.value)
    _print(console(json), result)
    emit({**result.to_json(), "arm": arm, **run_metadata([seed])}, json)


def _print(screen: Any, attribution: ErrorAttribution) -> None:
    from rich.table import Table

    modules = Table(title=f"Errors by module (outputs replaced by {attribution.source}, {attribution.dsl} programs)")
    for name in ("module", "question type"):
        modules.add_column(name)
    for name in ("wrong answers", "share of all errors", "recoverable points [95 %]"):
        modules.add_column(name, justify="right")
    for row in attribution.rows:
        recoverable = f"{row.recoverable:+.1f} [{row.low:+.1f}, {row.high:+.1f}]"
        modules.add_row(row.module, row.kind, f"{row.errors:.1f}", f"{row.error_share:.1%}", recoverable)
    screen.print(modules)
    types = Table(title="Wrong answers by cause")
    types.add_column("question type")
    for name in ("questions", "accuracy", "ceiling", "wrong", "modules", "program", "unresolved", "failed"):
        types.add_column(name, justify="right")
    for kind in attribution.kinds:
        counts = (kind.wrong, kind.modules, kind.program, kind.unresolved, kind.failed)
        types.add_row(kind.kind, str(kind.questions), f"{kind.accuracy:.1f}", f"{kind.ceiling:.1f}", *map(str, counts))
    screen.print(types)
    failed = ", ".join(f"{count} {kind}" for kind, count in attribution.failures.items()) or "none"
    screen.print(
        f"{attribution.questions} questions: {attribution.accuracy:.1f} % right, {attribution.ceiling:.1f} % with every output "
        f"replaced by {attribution.source}; {len(attribution.program_errors)} errors of program logic; "
        f"programs that could not run: {failed}"
    )
