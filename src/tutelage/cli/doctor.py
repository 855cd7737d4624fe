"""Examine a recipe before time is spent on it: what is wrong, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli._recipe import Overrides, RecipeFile
from tutelage.terminal import JsonOut, console, emit

app = typer.Typer()


@app.command(epilog="Example: tutelage doctor examples/fashion-kd.toml --set settings.lr=0.01")
def doctor(
    recipe: RecipeFile,
    overrides: Overrides = None,
    samples: Annotated[int, typer.Option(min=1, help="How many labelled samples the teacher is asked about.")] = 256,
    steps: Annotated[int, typer.Option(min=1, help="How long one batch is trained on.")] = 60,
    json: JsonOut = None,
) -> None:
    """Check teacher, data, normalisation, class order, gradients, loss balance and cache on copies; nothing is trained.

    The exit code is 1 where a check fails.
    """
    from tutelage.cli._recipe import prepare
    from tutelage.distillation.api import cache_folder
    from tutelage.distillation.cache import Cache, CachedTeacher
    from tutelage.distillation.doctor import diagnose
    from tutelage.distillation.recipe import read_recipe
    from tutelage.environment import run_metadata

    settings = read_recipe(recipe, overrides or ())
    job = prepare(settings)
    training_job = job.training_job(job.seeds[0])
    if settings.cache is not None:
        folder = cache_folder(training_job, Path(settings.cache.folder))
        if (folder / "cache.json").exists():
            training_job.teacher = CachedTeacher(Cache(folder, job.data), training_job.teacher)
    findings = diagnose(training_job, job.test, samples, steps)
    screen = console(json)
    for finding in findings:
        mark = "[green]ok  [/green]" if finding.ok else "[red]FAIL[/red]"
        screen.print(mark, end=" ")
        screen.print(f"{finding.check}: {finding.message}", markup=False, soft_wrap=True)
        if finding.remedy:
            screen.print(f"     remedy: {finding.remedy}", markup=False, soft_wrap=True)
    ok = all(finding.ok for finding in findings)
    emit({"ok": ok, "findings": findings, **run_metadata(job.seeds[:1])}, json)
    if not ok:
        raise typer.Exit(1)
