"""Build, check and describe a cache of a teacher's answers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.cli._recipe import Overrides, RecipeFile
from tutelage.terminal import JsonOut, console, emit, progress

if TYPE_CHECKING:
    from tutelage.distillation.job import TrainingJob

app = typer.Typer(no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(help="A cache folder.", show_default=False)]


@app.callback()
def group() -> None:
    """A teacher's answers on disk, exact to the augmented view: built once, read by every run."""


def cache_jobs(recipe: Path, overrides: list[str] | None) -> tuple[list[TrainingJob], list[Path], Any]:
    """The training jobs that need a cache of their own, where each lies, and how heads are stored.

    Raises:
        InputError: the recipe has no [cache], or a teacher that cannot be cached.
    """
    from tutelage.cli._recipe import prepare
    from tutelage.distillation.api import cache_folder
    from tutelage.distillation.recipe import read_recipe
    from tutelage.errors import InputError

    settings = read_recipe(recipe, overrides or ())
    if settings.cache is None:
        raise InputError("no [cache] in the recipe", where=recipe, remedy='add [cache] folder = "runs/cache"')
    job = prepare(settings)
    found: dict[Path, TrainingJob] = {}
    for seed in job.seeds:
        training_job = job.training_job(seed)
        found.setdefault(cache_folder(training_job, Path(settings.cache.folder)), training_job)
    return list(found.values()), list(found), settings.cache.store


@app.command(epilog="Example: tutelage cache build examples/fashion-cached.toml --processes 2")
def build(
    recipe: RecipeFile,
    overrides: Overrides = None,
    processes: Annotated[int, typer.Option(min=1, help="Worker processes, one thread each.")] = 1,
    json: JsonOut = None,
) -> None:
    """Ask the teacher about every view the recipe's runs will show; a stopped build goes on, a foreign cache is refused.

    What it costs and when it pays off is measured on a few batches and printed first.
    """
    from tutelage.distillation import cache_build

    training_jobs, folders, store = cache_jobs(recipe, overrides)
    screen, built = console(json), []
    for training_job, folder in zip(training_jobs, folders):
        estimate: dict[str, Any] = dict(cache_build.estimate_break_even(training_job, store))
        passes = estimate["break_even_passes"]
        pays = f"pays off after {passes:.0f} batches" if math.isfinite(passes) else "never pays off"
        screen.print(
            f"{folder}: {estimate['build_passes']} batches, about {estimate['build_seconds']:.0f} s and "
            f"{estimate['bytes'] / 2**20:.1f} MiB; a batch costs {estimate['teacher_ms']:.1f} ms by the teacher, "
            f"{estimate['read_ms']:.1f} ms from the cache; {pays}, one run has "
            f"{estimate['training_passes']}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
        with progress(f"building {folder}") as bar:
            cache = cache_build.build(training_job, folder, store, processes=processes, progress=bar)
        estimate |= {"break_even_passes": passes if math.isfinite(passes) else None}
        built.append({"folder": folder, "estimate": estimate} | cache.info())
        screen.print(f"{folder}: {len(cache):,} rows, {cache.size / 2**20:.1f} MiB", markup=False, soft_wrap=True)
    emit(built, json)


@app.command(epilog="Example: tutelage cache verify examples/fashion-cached.toml --passes 16")
def verify(
    target: Annotated[Path, typer.Argument(help="A cache folder, or the recipe it was built by.", show_default=False)],
    overrides: Overrides = None,
    passes: Annotated[int, typer.Option(min=1, help="With a recipe: how many batches the teacher is asked again.")] = 8,
    json: JsonOut = None,
) -> None:
    """Read every byte; given the recipe, also ask its teacher again and compare.

    A missing, cut or altered shard and a stale cache are errors that name the file and the remedy.
    """
    from tutelage.distillation import cache_build

    found = []
    if target.is_dir():
        found.append({"folder": target} | cache_build.verify(target))
    else:
        training_jobs, folders, _ = cache_jobs(target, overrides)
        for training_job, folder in zip(training_jobs, folders):
            found.append({"folder": folder} | cache_build.verify(folder, training_job, passes))
    for one in found:
        errors = ", ".join(f"{name} {error:.1e}" for name, error in one["largest_error"].items())
        compared = f"; {one['asked']} rows asked again, largest error: {errors}" if errors else ""
        console(json).print(
            f"{one['folder']}: {one['shards']} shards and {one['rows']:,} rows are whole{compared}", markup=False, soft_wrap=True
        )
    emit(found, json)


@app.command(epilog="Example: tutelage cache info runs/fashion-cache")
def info(folder: Folder, json: JsonOut = None) -> None:
    """Say what a cache holds: rows, size, heads, and the data and teacher it was built from."""
    from tutelage.distillation.cache import Cache

    cache = Cache(folder)
    found = cache.info()
    screen = console(json)
    screen.print(
        f"{found['rows']:,} rows, {found['bytes'] / 2**20:.1f} MiB ({found['bytes_per_row']:.0f} bytes a row; dense fp32 would "
        f"be {found['dense_fp32_bytes'] / 2**20:.1f} MiB)",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    for name, entry in found["heads"].items():
        screen.print(f"head {name}: {entry['store']} of shape {entry['shape']}", markup=False)
    screen.print(f"views {found['covers']}, data {found['data']}, teacher {found['teacher']}", markup=False, soft_wrap=True)
    emit(found, json)
