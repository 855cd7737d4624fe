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
    """What a question without a prediction means."""

    error = "error"
    wrong = "wrong"


class Unknown(StrEnum):
    """What a prediction to no question means."""

    error = "error"
    counted = "count"


class Duplicates(StrEnum):
    """What two predictions to one question mean."""

    error = "error"
    last = "last"


MissingPolicy = Annotated[Missing, typer.Option(help="A question without a prediction: stop, or count it as wrong.")]
UnknownPolicy = Annotated[Unknown, typer.Option(help="A prediction to no question: stop, or only count it.")]


@app.callback()
def group() -> None:
    """Score predictions with the official metrics of GQA and NLVR2."""


@app.command(
    epilog="Example: tutelage eval gqa --questions val_all_questions.json --predictions mine.json "
    "--choices val_choices.json --consistency --json scores.json"
)
def gqa(
    questions: Annotated[Path, typer.Option(help="{split}_{subset}_questions.json, or its folder of chunks.")],
    predictions: Annotated[Path, typer.Option(help='JSON: [{"questionId", "prediction"}].')],
    choices: Annotated[Path | None, typer.Option(help="{tier}_choices.json: adds validity, plausibility.")] = None,
    scene_graphs: Annotated[Path | None, typer.Option(help="{split}_sceneGraphs.json, for grounding.")] = None,
    attention: Annotated[Path | None, typer.Option(help='[{"questionId", "attention"}]: adds grounding.')] = None,
    object_attention: Annotated[
        bool, typer.Option("--object-attention", help="Attention is a list of [x1, y1, x2, y2, weight], not a grid.")
    ] = False,
    consistency: Annotated[
        bool, typer.Option("--consistency", help="Add consistency: all entailed questions must be in both files.")
    ] = False,
    missing: MissingPolicy = Missing.error,
    unknown: UnknownPolicy = Unknown.error,
    duplicates: Annotated[Duplicates, typer.Option(help="Two predictions to one question: stop, or the last.")] = (
        Duplicates.error
    ),
    json: JsonOut = None,
) -> None:
    """Score GQA predictions: every official metric whose inputs are given, in one pass over each file."""
    from tutelage.datasets.gqa_metrics import evaluate
    from tutelage.datasets.json_records import size_of

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
            progress=bar.advance,
        )
    _show("GQA", scores, json)
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
        if isinstance(value, int):
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
