"""Answer questions with programs and score the answers."""

from __future__ import annotations

from typing import Any

import typer

from tutelage.cli._options import (
    Dsl,
    DslOption,
    Images,
    Layout,
    LayoutOption,
    Limit,
    ModuleOption,
    ModulesOption,
    Quick,
    Seed,
    SourceArgument,
    Split,
)
from tutelage.terminal import JsonOut, console, emit, progress, run_metadata

app = typer.Typer()
EXAMPLE = "tutelage sdvp evaluate data/synthetic --layout gqa --split val --modules runs/distilled --json scores.json"


@app.command(epilog=f"Example: {EXAMPLE}")
def evaluate(
    source: SourceArgument,
    layout: LayoutOption = Layout.gqa,
    split: Split = "val",
    images: Images = None,
    limit: Limit = None,
    modules: ModulesOption = None,
    module: ModuleOption = None,
    seed: Seed = 0,
    dsl: DslOption = Dsl.visprog,
    quick: Quick = False,
    json: JsonOut = None,
) -> None:
    """Answer the questions and score them, in total and by type; a question without a program counts as wrong."""
    from tutelage.cli._modules import load_modules
    from tutelage.cli.sdvp._questions import read_questions
    from tutelage.errors import InputError
    from tutelage.sdvp.questions import score_answer, solve

    questions, unread = read_questions(source, layout, split, images, limit, dsl, keep_all=True)
    if any(question.answer is None for question in questions):
        raise InputError("questions without answers cannot be scored", where=source, remedy="choose a split with answers")
    loaded = load_modules(modules, seed, module or (), quick)
    with progress(f"answering {len(questions)} questions"):
        traces = solve(questions, loaded, dsl.value)
    rows = [(q.kind or q.task, score_answer(q, trace.answer)) for q, trace in zip(questions, traces, strict=True)]
    types: dict[str, dict[str, float]] = {}
    for kind in sorted({kind for kind, _ in rows}):
        scores = [score for name, score in rows if name == kind]
        types[kind] = {"accuracy": 100 * sum(scores) / len(scores), "questions": len(scores)}
    total = max(1, len(rows))
    result: dict[str, Any] = {
        "accuracy": 100 * sum(score for _, score in rows) / total,
        "questions": len(rows),
        "without_program": unread,
        "executed": 100 * sum(trace.status == "ok" for trace in traces) / total,
        "out_of_vocabulary": 100 * sum(trace.out_of_vocabulary > 0 for trace in traces) / total,
        "types": types,
    }
    console(json).print(_table(result))
    emit(result | run_metadata([seed]), json)


def _table(result: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table("type", box=None)
    for name in ("accuracy", "questions"):
        table.add_column(name, justify="right")
    for kind, row in result["types"].items():
        table.add_row(kind, f"{row['accuracy']:.2f} %", str(row["questions"]))
    table.add_row("all", f"{result['accuracy']:.2f} %", str(result["questions"]))
    return table
