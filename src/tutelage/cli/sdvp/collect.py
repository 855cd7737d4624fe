"""Run the questions' programs and keep the calls to modules that can be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli._options import (
    Address,
    Dsl,
    DslOption,
    Engine,
    EngineOption,
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
    Workers,
    worker_pool,
)
from tutelage.terminal import JsonOut, console, emit, progress, run_metadata

app = typer.Typer()


@app.command(epilog="Example: tutelage sdvp collect data/synthetic runs/records --layout gqa --split train --limit 2000")
def collect(
    source: SourceArgument,
    out: Annotated[Path, typer.Argument(help="The folder for the records; a stopped run resumes there.")],
    layout: LayoutOption = Layout.gqa,
    split: Split = "train",
    images: Images = None,
    limit: Limit = None,
    modules: ModulesOption = None,
    module: ModuleOption = None,
    seed: Seed = 0,
    dsl: DslOption = Dsl.visprog,
    shard_size: Annotated[int, typer.Option(min=1, help="Questions in a shard: the most that a kill can lose.")] = 512,
    engine: EngineOption = Engine.local,
    address: Address = None,
    workers: Workers = None,
    quick: Quick = False,
    json: JsonOut = None,
) -> None:
    """Run the questions' programs and keep every distinct call to a module that can be trained. Answers are not used."""
    from tutelage.cli._modules import load_modules
    from tutelage.cli.sdvp._questions import read_questions
    from tutelage.sdvp.stages import collect_to_folder

    pool = worker_pool(engine, address, workers)
    questions, unread = read_questions(source, layout, split, images, limit, dsl)
    loaded = load_modules(modules, seed, module or (), quick)
    with progress(f"collecting from {len(questions)} questions") as bar:
        records = collect_to_folder(
            out, questions, loaded, dsl.value, stage=source.stem, shard_size=shard_size, pool=pool, progress=bar
        )
    counts = {name: len(rows) for name, rows in records.items()}
    summary = ", ".join(f"{count} calls of {name}" for name, count in counts.items())
    console(json).print(f"{summary} from {len(questions)} questions, {unread} without a program, in {out}")
    emit({"out": out, "records": counts, "questions": len(questions), "without_program": unread, **run_metadata([seed])}, json)
