"""Rank language models as teachers: the training data that they write, language by language."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.cli._options import SetOption, SettingsFile
from tutelage.terminal import JsonOut, console, emit, progress, run_metadata

if TYPE_CHECKING:
    from tutelage.systems.polyglot_teachers import Ranking

app = typer.Typer(no_args_is_help=True)
Rows = Annotated[list[Path], typer.Argument(metavar="ROWS.jsonl...", help="Rows as `synthesize` writes them.", show_default=False)]
Table = Annotated[Path, typer.Argument(metavar="TABLE.csv", help="Cells as `measure` writes them.", show_default=False)]
TEXT_MODEL = "of transformers, by name or folder (extra hf)"


@app.callback()
def group() -> None:
    """Rank language models as teachers, by the quality of the data they write and the gain of students trained on it."""


@app.command(
    epilog="Example: tutelage polyglot synthesize seeds.jsonl --language German --count 300 --out rows/de.jsonl "
    "--set endpoint.url=http://127.0.0.1:8000/v1 --set endpoint.model=NAME. The key, if any, is read from $TUTELAGE_API_KEY."
)
def synthesize(
    seeds: Annotated[Path, typer.Argument(metavar="SEEDS.jsonl", help='One {"prompt", "language", "response"?} a line.')],
    language: Annotated[str, typer.Option(help="The language to write in, as the teacher reads it.")],
    out: Annotated[Path, typer.Option(help="The rows, as JSON lines.")],
    count: Annotated[int, typer.Option(min=1, help="How many rows are requested.")] = 300,
    strategy: Annotated[list[str] | None, typer.Option(help="generate, translate or respond; repeatable; default: all.")] = None,
    source: Annotated[str, typer.Option(help="The language that `translate` translates from.")] = "English",
    temperature: Annotated[float, typer.Option(min=0, help="Of the samples.")] = 0.8,
    seed: Annotated[int, typer.Option(help="Of the examples, categories and samples.")] = 0,
    settings: SettingsFile = None,
    changes: SetOption = None,
    json: JsonOut = None,
) -> None:
    """Have one teacher (an endpoint or a local model) write rows in one language; what cannot be read is counted.

    Answers are kept, so that the same command sends no request twice. The exit code is 1 where no row is kept.
    """
    from tutelage.cli import _generators
    from tutelage.systems.polyglot_teachers import STRATEGIES, read_seeds, write_rows
    from tutelage.systems.polyglot_teachers import synthesize as write_data

    prompts = read_seeds(seeds)
    teacher, cache = _generators.language_model(_generators.read_settings(settings, changes or ()), seed)
    with progress(f"querying {teacher.name}", total=count) as bar:
        found = write_data(
            teacher,
            prompts,
            language,
            count,
            strategies=strategy or STRATEGIES,
            source=source,
            seed=seed,
            temperature=temperature,
            cache=cache,
            on_progress=bar,
        )
    screen, used = console(json), _generators.usage_of_model(teacher, found.usage)
    rejected = ", ".join(f"{number} {reason}" for reason, number in sorted(found.rejected.items()))
    screen.print(f"{len(found.rows)} rows by {teacher.name}" + (f"; rejected: {rejected}" if rejected else ""), markup=False)
    screen.print(_generators.format_usage(used) or "", markup=False, soft_wrap=True)
    result = {"teacher": teacher.name, "language": language, "rows": len(found.rows), "rejected": dict(found.rejected)}
    emit(result | used | run_metadata([seed]), json)
    if not found.rows:
        typer.echo("error: no row is kept; was the endpoint's answer JSON?", err=True)
        raise typer.Exit(1)
    write_rows(out, found.rows)


@app.command(
    epilog="Example: tutelage polyglot measure rows/*.jsonl --fluency MODEL --out table.csv "
    "--set endpoint.url=http://127.0.0.1:8000/v1 --set endpoint.model=JUDGE"
)
def measure(
    rows: Rows,
    fluency: Annotated[str, typer.Option(metavar="MODEL", help=f"What measures perplexity: a causal model {TEXT_MODEL}.")],
    out: Annotated[Path, typer.Option(help="The table of cells, as CSV.")],
    embedding: Annotated[str | None, typer.Option(metavar="MODEL", help=f"An encoder {TEXT_MODEL}; default: hashed words.")] = None,
    sample: Annotated[int, typer.Option(min=2, help="Rows of a cell that are measured, with equal shares of strategies.")] = 10_000,
    missing_score: Annotated[float | None, typer.Option(help="What a row counts as without a score; default: left out.")] = None,
    settings: SettingsFile = None,
    changes: SetOption = None,
    json: JsonOut = None,
) -> None:
    """Measure the rows of every (teacher, language) cell without a student; the settings name the judge."""
    from tutelage.cli import _generators
    from tutelage.systems.polyglot_teachers import (
        ModelJudge,
        PolyglotTeachers,
        read_rows,
        transformers_embedding,
        transformers_text_model,
        write_table,
    )

    every = [row for file in rows for row in read_rows(file)]
    judge = ModelJudge(*_generators.language_model(_generators.read_settings(settings, changes or ())))
    embed = None if embedding is None else transformers_embedding(embedding)
    config = PolyglotTeachers.Config(sample=sample, missing_score=missing_score)
    tool = PolyglotTeachers(judge=judge, fluency=transformers_text_model(fluency), embed=embed, config=config)
    with progress("measuring cells") as bar:
        cells = tool.measure(every, bar)
    write_table(out, cells)
    screen, used = console(json), _generators.usage_of_model(judge.model, judge.usage)
    unscored = sum(tool.unscored.values())
    screen.print(f"{len(cells)} cells in {out}" + (f"; {unscored} rows without a score" if unscored else ""), markup=False)
    screen.print(_generators.format_usage(used) or "", markup=False, soft_wrap=True)
    emit({"cells": cells, "unscored": unscored, **used, **run_metadata([config.seed])}, json)


@app.command(
    epilog="Example: tutelage polyglot students table.csv rows/*.jsonl --base MODEL --reference MODEL-INSTRUCT --test test.jsonl "
    "--run runs/students --out scored.csv"
)
def students(
    table: Table,
    rows: Rows,
    base: Annotated[str, typer.Option(metavar="MODEL", help=f"What each student starts from: a causal model {TEXT_MODEL}.")],
    reference: Annotated[str, typer.Option(metavar="MODEL", help="What a student should come near to, of the same family.")],
    test: Annotated[Path, typer.Option(help='Questions: one {"prompt", "response", "language", "choices"?} a line.')],
    out: Annotated[Path, typer.Option(help="The table with the scores of students, base and reference.")],
    run: Annotated[Path | None, typer.Option(help="A folder for finished scores: the same command goes on.")] = None,
    epochs: Annotated[float, typer.Option(min=0.01, help="Passes over a cell's rows.")] = 2.0,
    lr: Annotated[float, typer.Option(min=0, help="The learning rate.")] = 5e-5,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    sample: Annotated[int, typer.Option(min=1, help="Rows of a cell that its student is trained on.")] = 10_500,
    device: Annotated[str, typer.Option(help="cpu, cuda …")] = "cpu",
    json: JsonOut = None,
) -> None:
    """Train a student on the rows of every cell, and score it, the base and the reference on questions of its language."""
    from dataclasses import replace

    from tutelage.systems.polyglot_teachers import (
        PUBLISHED,
        read_rows,
        read_table,
        read_test_items,
        train_students,
        transformers_text_model,
        write_table,
    )

    cells, items = read_table(table), read_test_items(test)
    every = [row for file in rows for row in read_rows(file)]
    settings = replace(PUBLISHED, epochs=epochs, lr=lr, batch_size=batch_size, device=device)
    start, goal = (transformers_text_model(name) for name in (base, reference))
    for model in (start, goal):
        model.network.to(device)
    with progress("training students", total=len(cells)) as bar:
        found = train_students(
            cells,
            every,
            start,
            goal,
            items,
            settings,
            sample=sample,
            out=run,
            identity={"base": base, "reference": reference},
            on_cell=bar,
        )
    write_table(out, found)
    console(json).print(f"{len(found)} cells with students in {out}", markup=False)
    emit({"cells": found, **run_metadata([settings.seed])}, json)


@app.command(epilog="Example: tutelage polyglot rank scored.csv --out ranking.csv --picture ranking.svg --heat-map cells.svg")
def rank(
    table: Table,
    out: Annotated[Path | None, typer.Option(help="The ranking, as CSV.")] = None,
    picture: Annotated[Path | None, typer.Option(help="The ranking with intervals, as SVG.")] = None,
    heat_map: Annotated[Path | None, typer.Option(help="Scores by teacher and language, as SVG.")] = None,
    scaler: Annotated[Path | None, typer.Option(help="A stored scaler: z is comparable with the table that it is of.")] = None,
    keep_scaler: Annotated[Path | None, typer.Option(help="Where this table's scaler is written.")] = None,
    alpha: Annotated[float, typer.Option(min=0, max=1, help="The weight of z in PG.")] = 0.5,
    analyse: Annotated[bool, typer.Option("--analyse", help="Add components and fits; needs students and lengths.")] = False,
    json: JsonOut = None,
) -> None:
    """Rank teachers by PG over languages, or by z where no student was trained.

    Cells whose reference is not above their base have no PG: they are listed, and left out of the ranking.
    """
    from tutelage.reports import pictures
    from tutelage.storage import write_text
    from tutelage.systems.polyglot_teachers import Scaler, explain, rank_teachers, read_table
    from tutelage.systems.polyglot_teachers.scores import write_ranking

    cells = read_table(table)
    found = rank_teachers(cells, None if scaler is None else Scaler.load(scaler), alpha)
    analysis = explain(cells) if analyse else None
    if keep_scaler is not None:
        found.scaler.save(keep_scaler)
    if out is not None:
        write_ranking(out, found)
    ranked = found.teachers
    if picture is not None:
        columns = [[getattr(one, name) for one in ranked] for name in ("teacher", "score", "low", "high")]
        unit = f"{found.by}: mean over languages, 95 % t-interval"
        write_text(picture, pictures.ranking(f"Teachers by {found.by}", unit, *columns))
    if heat_map is not None:
        teachers, languages = (list(dict.fromkeys(names)) for names in zip(*((c.teacher, c.language) for c in cells), strict=True))
        scores = {(one.cell.teacher, one.cell.language): one.pg if found.by == "PG" else one.z for one in found.cells}
        grid = [[scores.get((teacher, language)) for language in languages] for teacher in teachers]
        write_text(heat_map, pictures.heat_map(f"{found.by} by teacher and language", teachers, languages, grid))
    _print(found, json)
    emit({**vars(found), "constant": found.scaler.constant, "analysis": analysis, **run_metadata([])}, json)


def _print(found: Ranking, json: str | None) -> None:
    from rich.table import Table as Rendered

    def shown(value: Any) -> str:
        return "–" if value is None else f"{value:+.3f}"

    screen = console(json)
    rendered = Rendered("teacher", found.by, "95 %", "languages", "gain", box=None)
    for one in found.teachers:
        bounds = "–" if one.low is None else f"{shown(one.low)} to {shown(one.high)}"
        rendered.add_row(one.teacher, shown(one.score), bounds, str(one.languages), shown(one.gain))
    screen.print(rendered)
    if found.invalid:
        names = ", ".join(f"{teacher} in {language}" for teacher, language in found.invalid)
        screen.print(f"no PG, the reference is not above the base: {names}", markup=False, soft_wrap=True)
    if found.unranked:
        screen.print(f"not ranked: {', '.join(found.unranked)}", markup=False, soft_wrap=True)
    if found.scaler.constant:
        screen.print(f"columns that do not vary, and count 0 in z: {', '.join(found.scaler.constant)}", markup=False)
    if found.correlations:
        line = ", ".join(f"{name} {value:+.2f}" for name, value in found.correlations.items())
        screen.print(f"Spearman with students' scores: {line}", markup=False, soft_wrap=True)
