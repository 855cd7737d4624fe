"""Teach a student what a teacher knows, as a recipe says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.cli._recipe import Overrides, RecipeFile
from tutelage.terminal import JsonOut, ProgressBar, console, emit, progress

if TYPE_CHECKING:
    from tutelage.cli._recipe import LoadedRecipe
    from tutelage.distillation.api import DistillationResult
    from tutelage.distillation.parallel import SingleProcess

app = typer.Typer()


@app.command(epilog="Example: tutelage distill examples/fashion-kd.toml --set settings.steps=300 --compare --out runs/fashion")
def distill(
    recipe: RecipeFile,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: the recipe's, or runs/NAME.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Train the student alone too, at equal steps and at equal wall-clock.")
    ] = False,
    check: Annotated[bool, typer.Option(help="Look at the first batch before training.")] = True,
    export: Annotated[
        list[str] | None, typer.Option(metavar="FORMAT", help="Write students as torchscript or onnx too; may be repeated.")
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write the logs as TensorBoard events too.")] = False,
    json: JsonOut = None,
) -> None:
    """Train the recipe's student, over its seeds; weights, log and report go to the run folder, where a stopped run goes on.

    Where there is labelled test data, the folder's report.html shows teacher and student side by side. Launched by torchrun
    or `accelerate launch` (extra hf), the processes share every batch.
    """
    import torch

    from tutelage import storage
    from tutelage.cli._comparison import comparison
    from tutelage.cli._recipe import prepare
    from tutelage.distillation.compare import DISTILLED
    from tutelage.distillation.export import check_formats, save_formats
    from tutelage.distillation.launch import current_processes
    from tutelage.distillation.recipe import read_recipe
    from tutelage.environment import run_metadata
    from tutelage.errors import InputError
    from tutelage.reports import write_report

    settings = read_recipe(recipe, overrides or ())
    settings = replace(settings, tensorboard=settings.tensorboard or tensorboard)
    formats = export or []
    check_formats(formats)
    job = prepare(settings)
    together = current_processes(job.recipe.settings.device)
    if compare and (job.test is None or (job.labelled or job.data).labels is None):
        raise InputError(
            "a comparison needs labelled test data, and labels for the student alone",
            where=recipe,
            remedy="add [test] file = …, and [labelled] where [data] has labels = false",
        )
    folder = out or Path(settings.out or f"runs/{recipe.stem}")
    with progress(recipe.stem) as bar:
        done = train(job, folder, check, bar, together)
        arms = {DISTILLED: done.results}
        if compare:
            arms |= train_student_alone(job, done, folder, bar, together)
    if not together.main:
        return
    storage.write_json(folder / "recipe.json", settings)  # what network the students are
    example = job.data.batch(torch.zeros(2, dtype=torch.int64), None).inputs
    exported = [save_formats(one.student, example, folder / f"seed-{seed}", formats) for seed, one in zip(done.seeds, done.results)]
    result: dict[str, Any] = done.summary() | {"out": folder, "exported": exported, **run_metadata(job.seeds)}
    screen = console(json)
    if job.test is not None:
        side_by_side = comparison(job, arms, done)
        storage.write_json(folder / "comparison.json", side_by_side)
        result |= {"summary": side_by_side["summary"], "arms": side_by_side["arms"]}
        _print(screen, side_by_side)
        screen.print(f"report   {write_report(folder).page}", soft_wrap=True)
    screen.print(f"student  {folder / f'seed-{job.seeds[0]}' / 'student.safetensors'}", soft_wrap=True)
    emit(result, json)


def train(job: LoadedRecipe, folder: Path, check: bool, bar: ProgressBar, together: SingleProcess) -> DistillationResult:
    """The recipe's own arm."""
    from tutelage.distillation.api import distill as run

    recipe = job.recipe
    return run(
        job.student,
        job.teacher,
        job.parts[0],
        job.method,
        options=recipe.options,
        curriculum=recipe.curriculum,
        curriculum_options=recipe.curriculum_options,
        task=job.task,
        settings=curve(job),
        seeds=job.seeds,
        cache=recipe.cache.folder if recipe.cache is not None else None,
        storage_format=recipe.cache.store if recipe.cache is not None else "fp32",
        out=folder,
        evaluate=job.score if job.test is not None else None,
        validation=job.parts[1],
        check=check,
        tensorboard=recipe.tensorboard,
        progress=arm_progress(bar, ""),
        parallel=together,
    )


def curve(job: LoadedRecipe) -> Any:
    """The recipe's settings; with test data, ten points of a learning curve unless it says otherwise."""
    settings = job.recipe.settings.resolve(len(job.parts[0]))
    return settings if settings.eval_every or job.test is None else replace(settings, eval_every=max(1, settings.steps // 10))


def train_student_alone(
    job: LoadedRecipe, done: DistillationResult, folder: Path, bar: ProgressBar, together: SingleProcess
) -> dict[str, Any]:
    """The student alone from the same starts: for as many steps, and for as many as take as long as distilling did."""
    from tutelage.distillation.api import distill as run
    from tutelage.distillation.compare import ALONE, ALONE_LATE
    from tutelage.distillation.supervised import Supervised

    settings = curve(job)
    data = job.labelled if job.labelled is not None else job.parts[0]
    more: dict[str, Any] = {"seeds": job.seeds, "evaluate": job.score, "parallel": together, "task": job.task}
    more["validation"] = job.parts[1]
    plain = run(
        job.student, None, data, Supervised, settings=settings, out=folder / "alone", progress=arm_progress(bar, ALONE), **more
    )
    longer = sum(result.seconds for result in done.results) / max(1e-9, sum(result.seconds for result in plain.results))
    settings = replace(settings, steps=max(1, round(settings.steps * longer)))
    late = run(
        job.student, None, data, Supervised, settings=settings, out=folder / "alone-equal-time",
        progress=arm_progress(bar, ALONE_LATE), **more,
    )  # fmt: skip
    return {ALONE: plain.results, ALONE_LATE: late.results}


def arm_progress(bar: ProgressBar, arm: str) -> Any:
    """A progress callback that names the arm."""

    def tell(what: str, finished: int, of: int) -> None:
        bar.describe(f"{arm} {what}".strip())
        bar(finished, of)

    return tell


def _print(screen: Any, found: dict[str, Any]) -> None:
    from rich.table import Table

    unit = f", {found['metric']['unit']}" if found["metric"]["unit"] else ""
    table = Table("arm", f"{found['metric']['name']}{unit}", "sd", f"at equal time{unit}", "ms a step", box=None)
    for arm in found["arms"]:
        steps, late, speed = arm["equal_steps"], arm["equal_time"], arm["speed"]
        sd = "" if steps["sd"] is None else f"{steps['sd']:.2f}"
        shown_late = f"{late['mean']:.2f}" if late else ""
        table.add_row(arm["name"], f"{steps['mean']:.2f}", sd, shown_late, f"{speed['ms_per_step']:.1f}" if speed else "")
    screen.print(table)
    for verdict in found["summary"].get("verdicts", []):
        mark = "shown    " if verdict["met"] else "not shown"
        reason = f" ({verdict['reason']})" if verdict["reason"] else ""
        screen.print(f"{mark} {verdict['claim']}: {verdict['value']:+.2f} points{reason}", markup=False)
