"""Score predictions with the official metrics of GQA and NLVR2."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.terminal import JsonOut, console, emit, progress, run_metadata

app = typer.Typer(no_args_is_help=True)

SUB_TYPES = (
    ("accuracyPerStructuralType", "structural type"),
    ("accuracyPerSemanticType", "semantic type"),
    ("accuracyPerSteps", "steps"),
    ("accuracyPerLength", "words"),
)


class Missing(StrEnum):
    """What happens to a question without a prediction."""

    error = "error"
    wrong = "wrong"


class Unknown(StrEnum):
    """What happens to a prediction that belongs to no question."""

    error = "error"
    counted = "count"


class Duplicates(StrEnum):
    """What happens to two predictions for one question."""

    error = "error"
    last = "last"


class Normalize(StrEnum):
    """How predictions are rewritten before they are compared: ``gqa_predictions.Normalization``."""

    none = "none"
    llava = "llava"


MissingPolicy = Annotated[Missing, typer.Option(help="A question without a prediction: stop, or count it as wrong.")]
UnknownPolicy = Annotated[Unknown, typer.Option(help="A prediction that belongs to no question: stop, or only count it.")]


@app.callback()
def group() -> None:
    """Score predictions with the official metrics of GQA and NLVR2."""


@app.command(
    epilog="Example: tutelage eval gqa --questions val_all_questions.json --predictions mine.json "
    "--choices val_choices.json --consistency --json scores.json"
)
def gqa(
    questions: Annotated[Path, typer.Option(help="{split}_{subset}_questions.json, or its folder of chunks.")],
    predictions: Annotated[
        Path,
        typer.Option(help='JSON [{"questionId", "prediction"}], or JSON lines of {"question_id", "text"}; ids may be integers.'),
    ],
    choices: Annotated[Path | None, typer.Option(help="{tier}_choices.json: adds validity, plausibility.")] = None,
    scene_graphs: Annotated[Path | None, typer.Option(help="{split}_sceneGraphs.json, for grounding.")] = None,
    attention: Annotated[Path | None, typer.Option(help='[{"questionId", "attention"}]: adds grounding.')] = None,
    object_attention: Annotated[
        bool, typer.Option("--object-attention", help="Attention is a list of [x1, y1, x2, y2, weight], not a grid.")
    ] = False,
    consistency: Annotated[
        bool, typer.Option("--consistency", help="Add consistency, over the entailed questions that are in the file.")
    ] = False,
    normalize: Annotated[
        Normalize,
        typer.Option(help='Rewrite predictions first. none: the official exact match; llava: "Red." is red, as LLaVA converts.'),
    ] = Normalize.none,
    submission: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Instead: write the official file to send in, for a test split without answers."),
    ] = None,
    missing: MissingPolicy = Missing.error,
    unknown: UnknownPolicy = Unknown.error,
    duplicates: Annotated[Duplicates, typer.Option(help="Two predictions for one question: stop, or take the last.")] = (
        Duplicates.error
    ),
    json: JsonOut = None,
) -> None:
    """Score GQA predictions: every official metric whose inputs are given, in one pass over each file.

    With --submission nothing is scored: the predictions are written as the file that GQA's test server takes.
    """
    from tutelage.datasets.gqa_metrics import evaluate
    from tutelage.datasets.gqa_predictions import read_predictions, write_submission
    from tutelage.datasets.json_records import size_of

    if submission is not None:
        read = read_predictions(predictions, duplicates=duplicates.value, normalize=normalize.value)
        counts: dict[str, Any] = write_submission(questions, read, submission, missing=missing.value)
        left_out = f"; {counts['unknownPredictions']} predictions belong to no question" if counts["unknownPredictions"] else ""
        console(json).print(f"{counts['questions']} questions in {submission}{left_out}", markup=False, soft_wrap=True)
        emit(counts | {"submission": submission, "normalization": normalize.value, **run_metadata()}, json)
        return
    inputs = [predictions, questions, choices, *((scene_graphs, attention) if attention else ())]
    total = sum(size_of(path) for path in inputs if path is not None)
    with progress("reading GQA", total) as bar:
        scores = evaluate(
            questions,
            predictions,
            choices=choices,
            scene_graphs=scene_graphs,
            attention=attention,
            object_attention=object_attention,
            consistency=consistency,
            missing=missing.value,
            unknown=unknown.value,
            duplicates=duplicates.value,
            normalize=normalize.value,
            progress=bar.advance,
        )
    scores["normalization"] = normalize.value
    _show("GQA", scores, json)
    if consistency:
        console(json).print(
            f"consistency: {scores['consistencyQuestions']} right questions entail {scores['entailedQuestions']} questions of the "
            f"file; {scores['entailedAbsent']} more are not in it and are left out",
            soft_wrap=True,
        )
    emit(scores | run_metadata(), json)


@app.command(epilog="Example: tutelage eval nlvr2 --questions test1.json --predictions mine.csv --json scores.json")
def nlvr2(
    questions: Annotated[Path, typer.Option(help="{split}.json, JSON lines with labels.")],
    predictions: Annotated[Path, typer.Option(help="CSV lines: identifier,True or identifier,False.")],
    missing: MissingPolicy = Missing.error,
    unknown: UnknownPolicy = Unknown.error,
    json: JsonOut = None,
) -> None:
    """Score NLVR2 predictions: accuracy, and consistency over the pairs that share a sentence."""
    from tutelage.datasets.nlvr2 import read_examples, read_predictions, score

    answers = read_predictions(predictions)
    scores = score(read_examples(questions), answers, missing=missing.value, unknown=unknown.value)
    _show("NLVR2", scores, json)
    emit(scores | run_metadata(), json)


def _show(name: str, scores: dict[str, Any], json: str | None) -> None:
    from rich.table import Table

    table = Table("metric", title=f"{name}, official metrics")
    table.add_column("score", justify="right")
    table.add_column("questions", justify="right")
    for metric, value in scores.items():
        if isinstance(value, str):
            table.add_row(metric, value, "")
        elif isinstance(value, int):
            table.add_row(metric, "", str(value))
        elif value is None:
            table.add_row(metric, "–", "")
        elif not isinstance(value, dict):
            unit = " (lower is better)" if metric == "distribution" else " %"
            table.add_row(metric, f"{value:.2f}{unit}", "")
    for metric, label in SUB_TYPES:
        for key, cell in scores.get(metric, {}).items():
            table.add_row(f"{label} {key}", f"{cell['accuracy']:.2f} %", str(cell["questions"]))
    console(json).print(table)
