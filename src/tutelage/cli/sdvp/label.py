"""Label collected calls with teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.cli._options import (
    Address,
    Dsl,
    Engine,
    EngineOption,
    Layout,
    LayoutOption,
    Limit,
    ModuleOption,
    ModulesOption,
    Quick,
    Seed,
    Split,
    Workers,
    worker_pool,
)
from tutelage.terminal import JsonOut, console, emit, progress, run_metadata

app = typer.Typer()
EXAMPLE = "tutelage sdvp label runs/records runs/labelled --teacher LOC=loc --teacher VQA=color --min-confidence 0.8"


@app.command(epilog=f"Example: {EXAMPLE}")
def label(
    records: Annotated[Path, typer.Argument(help="The folder that `tutelage sdvp collect` wrote.")],
    out: Annotated[Path, typer.Argument(help="The folder for the labelled records; a stopped run resumes there.")],
    teacher: Annotated[
        list[str],
        typer.Option(
            metavar="MODULE=TEACHER",
            help="A toy specialist (color, loc, easy), the folder of a saved module, hf:MODEL, or your own, mine.py:NAME: a "
            "module, or a function from a list of calls to a list of labels (trusted code). May be repeated.",
        ),
    ],
    min_confidence: Annotated[float, typer.Option(min=0, max=1, help="The lowest confidence of a label; 0 keeps all.")] = 0.8,
    probe: Annotated[
        Path | None,
        typer.Option(help="Questions with answers, as SOURCE of collect: they calibrate the teachers, and refuse bad ones."),
    ] = None,
    layout: LayoutOption = Layout.gqa,
    split: Split = "val",
    limit: Limit = None,
    modules: ModulesOption = None,
    module: ModuleOption = None,
    seed: Seed = 0,
    shard_size: Annotated[int, typer.Option(min=1, help="Calls in a shard: the most that a kill can lose.")] = 2048,
    engine: EngineOption = Engine.local,
    address: Address = None,
    workers: Workers = None,
    quick: Quick = False,
    json: JsonOut = None,
) -> None:
    """Label the records with teachers; a call that a teacher does not support gets no label.

    Without --probe, teachers are accepted without a check and their confidence is not calibrated.
    """
    from tutelage.cli._modules import load_modules, parse_teacher
    from tutelage.cli.sdvp._questions import read_questions
    from tutelage.sdvp.collect import load_records
    from tutelage.sdvp.label import Filters
    from tutelage.sdvp.stages import VERDICTS, label_to_folder
    from tutelage.sdvp.teacher_check import answer_probe
    from tutelage.storage import read_json

    pool = worker_pool(engine, address, workers)
    rows, loaded = load_records(records), load_modules(modules, seed, module or (), quick)
    questions, _ = read_questions(probe, layout, split, None, limit, Dsl.visprog) if probe is not None else ([], 0)
    filters = Filters(min_confidence=min_confidence)
    with progress("labelling") as bar:
        teachers = dict(parse_teacher(text, seed, quick) for text in teacher)
        gold = answer_probe(questions, loaded)
        labelled = label_to_folder(
            out, rows, loaded, teachers, filters, gold, shard_size=shard_size, pool=pool, progress=bar
        )  # fmt: skip
    checks = read_json(out / VERDICTS)
    counts = {
        name: {"records": len(rows[name]), "labelled": len(labels), "kept": sum(row.weight > 0 for row in labels)} | checks[name]
        for name, labels in labelled.items()
    }
    for name, row in counts.items():
        console(json).print(f"{name}: {row['records']} records, {row['labelled']} labels, {row['kept']} kept; {_format_check(row)}")
    emit({"out": out, "modules": counts, **run_metadata([seed])}, json)


def _format_check(row: dict[str, Any]) -> str:
    """The result of a teacher's check in one line."""
    if row["calls"] == 0:
        return "teacher not checked: give --probe"
    verdict = "accepted" if row["accepted"] else "refused"
    return f"teacher {verdict}: right on {row['teacher']:.0%} of {row['calls']} probe calls, the module on {row['student']:.0%}"
