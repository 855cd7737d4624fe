"""Choose a teacher's answers, and make pairs that tune it, by how well students do with its explanations."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.cli._options import SetOption, SettingsFile
from tutelage.terminal import JsonOut, console, emit, progress, run_metadata

if TYPE_CHECKING:
    from tutelage.systems.lbt import Choice, Problem

app = typer.Typer(no_args_is_help=True)
Samples = Annotated[
    list[Path],
    typer.Argument(metavar="SCORED.jsonl...", help="As `exam` writes them; a file of each student.", show_default=False),
]
ShotsOption = Annotated[
    Path | None, typer.Option(help='Solved problems that stand first in every prompt: {"problem", "rationale", "answer"}.')
]
Temperature = Annotated[float, typer.Option(min=0, help="Of the answers.")]


class RuleName(StrEnum):
    """How an answer is chosen: ``selection.RULES``."""

    sum = "sum"
    max = "max"
    majority = "majority"
    average = "average"


@app.callback()
def group() -> None:
    """Learning by teaching: a teacher's answers, judged by how well students do with its explanations."""


@app.command(
    epilog="Example: tutelage lbt sample problems.jsonl --count 24 --out samples.jsonl "
    "--set endpoint.url=http://127.0.0.1:8000/v1 --set endpoint.model=TEACHER"
)
def sample(
    problems: Annotated[Path, typer.Argument(metavar="PROBLEMS.jsonl", help='One {"id", "problem", "truth"?} a line.')],
    out: Annotated[Path, typer.Option(help="The samples, as JSON lines.")],
    count: Annotated[int, typer.Option(min=1, help="Samples of each problem.")] = 24,
    shots: ShotsOption = None,
    temperature: Temperature = 0.7,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    settings: SettingsFile = None,
    changes: SetOption = None,
    json: JsonOut = None,
) -> None:
    """Have the teacher (an endpoint or a local model) solve each problem many times. No request is sent twice."""
    from dataclasses import replace

    from tutelage.cli import _generators
    from tutelage.systems.lbt import LbT, read_problems, read_shots, write_samples

    every = read_problems(problems)
    teacher, cache = _generators.language_model(_generators.read_settings(settings, changes or ()), seed)
    solved = read_shots(shots) if shots is not None else ()
    tool = LbT(teacher, [], shots=solved, cache=cache, config=LbT.Config(samples=count, temperature=temperature, seed=seed))
    with progress(f"querying {teacher.name}", total=len(every)) as bar:
        found = []
        for number, one in enumerate(every, 1):
            found.append(replace(one, samples=tuple(tool.sample(one.problem))))
            bar(number, len(every))
    write_samples(out, found)
    answered = sum(it.answer is not None for one in found for it in one.samples)
    total = sum(len(one.samples) for one in found)
    screen, used = console(json), _generators.usage_of_model(teacher, tool.usage)
    screen.print(f"{total} samples of {len(found)} problems in {out}; {answered} with an answer", markup=False)
    screen.print(_generators.format_usage(used) or "", markup=False, soft_wrap=True)
    emit({"problems": len(found), "samples": total, "answered": answered, **used, **run_metadata([seed])}, json)


@app.command(
    epilog="Example: tutelage lbt exam samples.jsonl exams.jsonl --out scored.jsonl "
    "--set endpoint.url=http://127.0.0.1:8000/v1 --set endpoint.model=STUDENT"
)
def exam(
    samples: Annotated[Path, typer.Argument(metavar="SAMPLES.jsonl", help='{"id", "problem", "rationale", "answer"} a line.')],
    exams: Annotated[
        Path, typer.Argument(metavar="EXAMS.jsonl", help='{"id", "problem", "answer"} a line; id of the teacher\'s problem.')
    ],
    out: Annotated[Path, typer.Option(help="The samples with right and total, as JSON lines.")],
    repeats: Annotated[int, typer.Option(min=1, help="Of each exam.")] = 3,
    shots: ShotsOption = None,
    temperature: Temperature = 0.7,
    seed: Annotated[int, typer.Option(help="Of the answers.")] = 0,
    settings: SettingsFile = None,
    changes: SetOption = None,
    json: JsonOut = None,
) -> None:
    """Have one student (an endpoint or a local model) take the exams after each sample. No request is sent twice."""
    from dataclasses import replace

    from tutelage.cli import _generators
    from tutelage.systems.lbt import ExamReport, exams_of, read_exams, read_samples, read_shots, take_exams, write_samples

    every, known = read_samples(samples), read_exams(exams)
    own = [exams_of(one, known) for one in every]
    student, cache = _generators.language_model(_generators.read_settings(settings, changes or ()), seed)
    solved = read_shots(shots) if shots is not None else ()
    report, found = ExamReport(), []
    with progress(f"querying {student.name}", total=len(every)) as bar:
        for number, (one, questions) in enumerate(zip(every, own, strict=True), 1):
            fresh = [replace(it, right=0, total=0) for it in one.samples]
            scored = take_exams(
                one.problem,
                fresh,
                questions,
                [student],
                shots=solved,
                repeats=repeats,
                temperature=temperature,
                seed=seed,
                cache=cache,
                report=report,
            )
            found.append(replace(one, samples=tuple(scored)))
            bar(number, len(every))
    write_samples(out, found)
    flat = [it for one in found for it in one.samples]
    mean = sum(it.score for it in flat) / len(flat)
    screen, used = console(json), _generators.usage_of_model(student, report.usage[student.name])
    line = f"{len(flat)} samples in {out}: {100 * mean:.1f} % of exam answers are right"
    screen.print(f"{line}; {report.unreadable} unreadable, {report.failed} failed", markup=False)
    screen.print(_generators.format_usage(used) or "", markup=False, soft_wrap=True)
    counts = {"samples": len(flat), "mean": mean, "unreadable": report.unreadable, "failed": report.failed}
    emit(counts | used | run_metadata([seed]), json)


@app.command(epilog="Example: tutelage lbt select one.jsonl two.jsonl --rule sum --out chosen.jsonl --picture ranking.svg")
def select(
    scored: Samples,
    rule: Annotated[RuleName, typer.Option(help="Sum, highest or mean of the scores of an answer, or its votes.")] = RuleName.sum,
    out: Annotated[Path | None, typer.Option(help="The chosen rationales and answers, as JSON lines.")] = None,
    picture: Annotated[Path | None, typer.Option(help="The answers of one problem by score, as SVG.")] = None,
    problem: Annotated[str | None, typer.Option(help="The id that the picture is of; default: the first.")] = None,
    json: JsonOut = None,
) -> None:
    """Choose the answer of each problem. Beside it stands what the votes alone would have chosen."""
    from tutelage.errors import InputError, did_you_mean
    from tutelage.reports.pictures import ranking
    from tutelage.storage import write_json_lines, write_text
    from tutelage.systems.lbt import read_samples, same_answer
    from tutelage.systems.lbt import select as choose

    every = read_samples(list(scored))
    able = [one for one in every if any(it.answer is not None for it in one.samples)]
    left = [one.id for one in every if one not in able]
    if not able:
        raise InputError("no sample has an answer", where=scored[0], remedy='"answer" holds it, null where there is none')
    chosen = [choose(one.samples, rule.value) for one in able]
    votes = [choose(one.samples, "majority") for one in able]
    rows = [_row(*three) for three in zip(able, chosen, votes, strict=True)]
    if out is not None:
        write_json_lines(out, rows)
    if picture is not None:
        names = [one.id for one in able]
        if problem is not None and problem not in names:
            raise InputError(f"no problem {problem!r} with an answer", where="--problem", remedy=did_you_mean(problem, names))
        table = chosen[names.index(problem) if problem is not None else 0].table[:20]
        column = [float(one.count) if rule is RuleName.majority else getattr(one, rule.value) for one in table]
        blank = [None] * len(table)
        unit = "samples" if rule is RuleName.majority else "LbT score"
        title, names = f"Answers to {problem or names[0]}, by {rule.value}", [one.answer for one in table]
        write_text(picture, ranking(title, unit, names, column, blank, blank))
    known = [(one.truth, a.answer, b.answer) for one, a, b in zip(able, chosen, votes, strict=True) if one.truth is not None]
    shares = {}
    if known:
        shares["right"] = sum(same_answer(truth, own) for truth, own, _ in known) / len(known)
        shares["right by votes"] = sum(same_answer(truth, voted) for truth, _, voted in known) / len(known)
    _print(rows, shares, left, json)
    emit({"chosen": rows, "rule": rule.value, "without an answer": left, **shares, **run_metadata([])}, json)


@app.command(epilog="Example: tutelage lbt pairs one.jsonl two.jsonl --out pairs.jsonl")
def pairs(
    scored: Samples,
    out: Annotated[Path, typer.Option(help='{"prompt", "chosen", "rejected"} a line.')],
    weight: Annotated[float, typer.Option(min=0, max=1, help="Of the students' score beside correctness.")] = 0.5,
    margin: Annotated[float, typer.Option(min=0, help="Scores of a pair differ by more than this.")] = 0.3,
    most: Annotated[int, typer.Option(min=1, help="Pairs of a problem, the widest first.")] = 8,
    json: JsonOut = None,
) -> None:
    """Make pairs of rationales for DPO, of problems with a known answer (`truth`). The exit code is 1 where there is none."""
    from tutelage.errors import InputError
    from tutelage.storage import write_json_lines
    from tutelage.systems.lbt import preference_pairs, read_samples

    known = [(one, one.truth) for one in read_samples(list(scored)) if one.truth is not None]
    if not known:
        raise InputError("no problem has a known answer", where=scored[0], remedy='add "truth" to the lines')
    found = [
        pair
        for one, truth in known
        for pair in preference_pairs(one.problem, one.samples, truth, weight=weight, margin=margin, most=most)
    ]
    console(json).print(f"{len(found)} pairs of {len(known)} problems", markup=False)
    emit({"pairs": len(found), "problems": len(known), **run_metadata([])}, json)
    if not found:
        typer.echo("error: no pair; a smaller --margin may give some", err=True)
        raise typer.Exit(1)
    write_json_lines(out, found)


def _row(problem: Problem, choice: Choice, votes: Choice) -> dict[str, Any]:
    own = problem.samples[choice.place]
    known = {} if problem.truth is None else {"truth": problem.truth}
    return {
        "id": problem.id,
        "problem": problem.problem,
        **known,
        "rationale": own.rationale,
        "answer": own.answer,
        "score": own.score,
        "fell_back": choice.fell_back,
        "votes": votes.answer,
        "table": choice.table,
    }


def _print(rows: list[dict[str, Any]], shares: dict[str, float], left: list[str], json: str | None) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("problem", "answer", "score", "by votes", box=None)
    for row in rows:
        note = "votes decided" if row["fell_back"] else f"{row['score']:.3f}"
        table.add_row(*(Text(str(one)) for one in (row["id"], row["answer"], note, row["votes"])))
    screen = console(json)
    screen.print(table)
    if shares:
        line = f"right: {100 * shares['right']:.1f} %; by votes alone {100 * shares['right by votes']:.1f} %"
        screen.print(line, markup=False)
    if left:
        screen.print(f"without an answer: {', '.join(left)}", markup=False, soft_wrap=True)
