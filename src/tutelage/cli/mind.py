"""Train a language model on several rationales a question, weighted by what it can take in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli._options import SetOption, SettingsFile
from tutelage.terminal import JsonOut, console, emit, progress, run_metadata

app = typer.Typer(no_args_is_help=True)


@app.callback()
def group() -> None:
    """Distil chains of thought from several perspectives: collect them from a teacher, and train a student on them."""


@app.command(
    epilog="Example: tutelage mind collect questions.jsonl --out items.jsonl --set endpoint.url=http://127.0.0.1:8000/v1 "
    "--set endpoint.model=NAME. The key, if any, is read from $TUTELAGE_API_KEY."
)
def collect(
    questions: Annotated[
        Path, typer.Argument(metavar="QUESTIONS.jsonl", help='One {"question", "answer"} a line.', show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The items, as JSON lines.")],
    least: Annotated[int, typer.Option(min=1, help="Right rationales that an item needs; 8: all perspectives.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="Of the samples.")] = 0.7,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    settings: SettingsFile = None,
    changes: SetOption = None,
    json: JsonOut = None,
) -> None:
    """Have a teacher (an endpoint or a local model) answer each question from eight perspectives; wrong answers are left out.

    Answers are kept, so that the same command sends no request twice. The exit code is 1 where no item is kept.
    """
    from tutelage.cli import _generators
    from tutelage.systems.mind import PERSPECTIVES, collect_rationales, read_questions, write_items

    pairs = read_questions(questions)
    teacher, cache = _generators.language_model(_generators.read_settings(settings, changes or ()), seed)
    with progress(f"querying {teacher.name}", total=len(pairs) * len(PERSPECTIVES)) as bar:
        found = collect_rationales(teacher, pairs, least=least, temperature=temperature, seed=seed, cache=cache, on_progress=bar)
    screen, used = console(json), _generators.usage_of_model(teacher, found.usage)
    rejected = ", ".join(f"{number} {reason}" for reason, number in sorted(found.rejected.items()))
    screen.print(f"{len(found.items)} of {len(pairs)} items" + (f"; rejected: {rejected}" if rejected else ""), markup=False)
    screen.print(_generators.format_usage(used) or "", markup=False, soft_wrap=True)
    emit({"items": len(found.items), "rejected": dict(found.rejected), **used, **run_metadata([seed])}, json)
    if not found.items:
        typer.echo("error: no item is kept; does the teacher end in '#### ANSWER'?", err=True)
        raise typer.Exit(1)
    write_items(out, found.items)


@app.command(epilog="Example: tutelage mind train items.jsonl --student MODEL --test test.jsonl --out runs/mind")
def train(
    items: Annotated[
        Path, typer.Argument(metavar="ITEMS.jsonl", help='One {"question", "answer", "rationales"} a line.', show_default=False)
    ],
    student: Annotated[str, typer.Option(metavar="MODEL", help="A causal model of transformers, by name or folder (extra hf).")],
    out: Annotated[Path, typer.Option(help="The run folder, where a stopped run goes on.")],
    test: Annotated[Path | None, typer.Option(help='Questions to score on: one {"question", "answer"} a line.')] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest text that answers a question of the test.")] = 512,
    epochs: Annotated[float, typer.Option(min=0.01, help="Passes over the items.")] = 3.0,
    lr: Annotated[float, typer.Option(min=0, help="The student's learning rate.")] = 1e-5,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions a step, each with all its rationales.")] = 4,
    beta: Annotated[float, typer.Option(min=0, max=1, help="A rationale needs this share of the best score.")] = 0.6,
    tau_student: Annotated[float, typer.Option(min=0.001, help="Temperature of the weights; 0.2 or less chooses.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the order and of MetaNet's start.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda …")] = "cpu",
    json: JsonOut = None,
) -> None:
    """Train a student; its weights go to OUT/seed-N/student.safetensors, and OUT/seed-N/log.jsonl has each rationale's weight."""
    from dataclasses import replace

    from tutelage import distill
    from tutelage.systems.mind import MIND, exact_match, item_data, read_items, read_questions
    from tutelage.systems.polyglot_teachers import transformers_text_model

    given = read_items(items)
    questions = None if test is None else read_questions(test)
    model = transformers_text_model(student)
    data, method = item_data(model, given), MIND(beta=beta, tau_student=tau_student)
    with progress("training the student") as bar:
        done = distill(
            model.network, None, data, method, seeds=[seed], out=out, progress=lambda name, step, steps: bar(step, steps),
            epochs=epochs, lr=lr, batch_size=batch_size, device=device,
        )  # fmt: skip
    terms = done.results[0].history[-1]["terms"]
    weights = [terms[f"weight_of_path_{k}"] for k in range(1, len(given[0].rationales) + 1)]
    screen = console(json)
    screen.print("weights at the end: " + ", ".join(f"{weight:.2f}" for weight in weights), markup=False)
    accuracy = None
    if questions is not None:
        accuracy = 100 * exact_match(replace(model, network=done.results[0].student), questions, max_new_tokens=max_new_tokens)
        screen.print(f"{accuracy:.1f} % of {len(questions)} answers are right", markup=False)
    emit({"items": len(given), "weights": weights, "accuracy": accuracy, "terms": terms, "out": out, **run_metadata([seed])}, json)
