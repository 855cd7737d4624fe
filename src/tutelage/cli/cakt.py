"""Knowledge tracing: fit a tracer to a log of students' answers, and ask it who gets the next question right."""

from __future__ import annotations

import csv
import io
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tutelage.terminal import JsonOut, console, emit, progress, run_metadata

app = typer.Typer(no_args_is_help=True)

Log = Annotated[Path, typer.Argument(metavar="ANSWERS.csv", help="A row an answer, in the columns of ASSISTments.")]
Student = Annotated[str, typer.Option("--student-column", metavar="NAME", help="Who answered.")]
Concept = Annotated[str, typer.Option("--concept-column", metavar="NAME", help="What the question was on.")]
Correct = Annotated[str, typer.Option("--correct-column", metavar="NAME", help="0 or 1.")]
Order = Annotated[str, typer.Option("--order-column", metavar="NAME", help="Numbers that sort the answers; empty: as in the file.")]
Salt = Annotated[str, typer.Option(help="What is hashed with each student's name.")]
Encoding = Annotated[str, typer.Option(help="Of the file; that of ASSISTments 2009 is latin-1.")]


class World(StrEnum):
    """``simulation.World``."""

    learning = "learning"
    ability = "ability"


@app.callback()
def group() -> None:
    """Knowledge tracing: how likely each student is to answer the next question right. Nothing leaves the machine."""


@app.command(epilog="Example: tutelage cakt simulate answers.csv --students 300")
def simulate(
    out: Annotated[Path, typer.Argument(metavar="ANSWERS.csv", help="Where the log is written.")],
    students: Annotated[int, typer.Option(min=1, help="How many.")] = 250,
    answers: Annotated[int, typer.Option(min=1, help="Of each student.")] = 40,
    concepts: Annotated[int, typer.Option(min=1, help="How many there are.")] = 40,
    world: Annotated[World, typer.Option(help="learning: practice helps; ability: nobody learns.")] = World.learning,
    seed: Annotated[int, typer.Option(help="Of everything.")] = 0,
) -> None:
    """Write a simulated log in the columns of ASSISTments."""
    from tutelage.systems.cakt import simulated_answers, write_answers

    write_answers(out, simulated_answers(seed, students, answers, concepts, world.value).students)
    console(None).print(f"{students * answers} answers of {students} students in {out}", markup=False, soft_wrap=True)


@app.command(epilog="Example: tutelage cakt fit answers.csv --out tracer/")
def fit(
    log: Log,
    out: Annotated[Path, typer.Option(help="The folder of the tracer; it holds no student.")],
    student: Student = "user_id",
    concept: Concept = "skill_id",
    correct: Correct = "correct",
    order: Order = "order_id",
    salt: Salt = "",
    encoding: Encoding = "utf-8",
    side: Annotated[int, typer.Option(min=1, help="H of the frames, H x H; 15 is published, and slow.")] = 5,
    frames: Annotated[int, typer.Option(min=1, help="How many last answers on a concept its curve holds.")] = 4,
    decay_start: Annotated[float, typer.Option(min=0, help="How fast old answers fade at the start; 1 is published.")] = 0.1,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training students.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the start weights and the order.")] = 0,
    checkpoints: Annotated[Path | None, typer.Option(help="A folder; the same command goes on where it was stopped.")] = None,
    json: JsonOut = None,
) -> None:
    """Train on 70 % of the students, choose the epoch on 10 %, and report the AUC on 20 %, with its interval over students."""
    from tutelage.systems import cakt

    columns = {"student": student, "concept": concept, "correct": correct, "order": order or None}
    options = {"side": side, "frames": frames, "decay_start": decay_start}
    with progress("fitting"):
        tracer = cakt.fit(
            log, columns={**columns, "salt": salt, "encoding": encoding}, options=options, epochs=epochs, seed=seed,
            folder=checkpoints,
        )  # fmt: skip
    tracer.save(out)
    report = tracer.report
    screen = console(json)
    if report["auc"] is None:
        screen.print("AUC: not defined, the test students have answers of one kind alone", soft_wrap=True)
    else:
        bounds = f"95 % {report['low']:.3f} to {report['high']:.3f}"
        screen.print(f"AUC {report['auc']:.3f} ({bounds}) on {report['students']['test']} students that were held out")
    screen.print(f"{report['concepts']} concepts; tracer in {out}", markup=False, soft_wrap=True)
    emit({**report, **run_metadata([seed])}, json)


@app.command(epilog='Example: tutelage cakt predict tracer/ answers.csv --student "student 7" --concept "concept 03"')
def predict(
    tracer: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `fit` wrote.")],
    log: Log,
    one: Annotated[str | None, typer.Option("--student", help="A student of the log, by name; default: all.")] = None,
    wanted: Annotated[list[str] | None, typer.Option("--concept", help="Of the next question; repeatable; default: all.")] = None,
    out: Annotated[Path | None, typer.Option(help="The chances, as CSV; students by the hash of their names.")] = None,
    student: Student = "user_id",
    concept: Concept = "skill_id",
    correct: Correct = "correct",
    order: Order = "order_id",
    salt: Salt = "",
    encoding: Encoding = "utf-8",
    json: JsonOut = None,
) -> None:
    """Print each student's chance to answer a question on a concept right, were it the next one."""
    from tutelage.datasets.student_logs import hashed_name
    from tutelage.errors import InputError
    from tutelage.storage import write_text
    from tutelage.systems.cakt import Tracer, read_answers

    columns = {"student": student, "concept": concept, "correct": correct, "order": order or None}
    students = read_answers(log, **columns, salt=salt, encoding=encoding)  # type: ignore[arg-type]
    if one is not None:
        students = [row for row in students if row.student == hashed_name(one, salt)]
        if not students:
            raise InputError(f"no student {one!r} in {log}", where="--student", remedy="a name of the column of students")
    loaded = Tracer.load(tracer)
    names = list(wanted or loaded.concepts)
    rows = []
    with progress("predicting", total=len(students)) as bar:
        for done, row in enumerate(students, 1):
            chances = loaded.chances(list(zip(row.concepts, row.right, strict=True)), names)
            rows += [{"student": row.student, "concept": name, "chance": float(p)} for name, p in zip(names, chances, strict=True)]
            bar(done, len(students))
    if out is not None:
        text = io.StringIO()
        writer = csv.DictWriter(text, ["student", "concept", "chance"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(out, text.getvalue())
    screen = console(json)
    for row in rows if out is None else []:
        screen.print(f"{row['student']}  {row['chance']:.3f}  {row['concept']}", markup=False, soft_wrap=True)
    emit({"predictions": rows, **run_metadata([])}, json)
