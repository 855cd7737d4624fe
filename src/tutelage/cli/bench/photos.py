"""Questions about real photographs, answered by the pretrained modules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.terminal import JsonOut, console, emit, progress, run_metadata

app = typer.Typer()


@app.command(epilog="Example: tutelage bench photos --json results/bench/photos.json")
def photos(
    questions: Annotated[Path, typer.Option(metavar="FILE.jsonl", help="The table of questions.")] = Path(
        "examples/photos/questions.jsonl"
    ),
    rounds: Annotated[int, typer.Option(min=1, help="Times that each timed question is asked.")] = 5,
    json: JsonOut = None,
) -> None:
    """Ask the pretrained modules about real photographs: every answer, wrong ones too, and the time from question to answer."""
    import torch

    from tutelage.bench import photos as bench

    torch.set_num_threads(1)
    photo_questions = bench.read_questions(questions)
    with progress("asking"):
        result = bench.bench(photo_questions, rounds=rounds)
    screen = console(json)
    screen.print(_table(result))
    for kind, count in result["kinds"].items():
        screen.print(f"{kind}: {count['right']} right, {count['wrong']} wrong, {count['refused']} refused", markup=False)
    time = result["solve_ms"]
    screen.print(
        f"{result['right']} of {result['questions']} right ({result['accuracy']:.0%}), {result['refused']} refused; of those "
        f"answered {result['accuracy_of_answered']:.0%} right. Loading took {result['load_seconds']:.1f} s. Question to answer on "
        f"512x512, without OCR: median {time['median']:.0f} ms (target {time['target']}), slowest {time['slowest']:.0f} ms "
        f"({time['timed']} questions, {time['rounds']} rounds, one thread)",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    emit(result | run_metadata(), json)


def _table(result: dict[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table("photo", "question", "answer", "accepted", "", box=None)
    for row in result["rows"]:
        answer = row["error"] if row["answer"] is None else str(row["answer"])
        answer = " ".join(answer.split())[:60] + (" (a guess)" if row["guessed"] else "")
        table.add_row(*map(Text, (row["photo"], row["question"], answer, ", ".join(row["accepted"]), row["outcome"])))
    return table
