"""Compare frozen, replaced, routed, naively tuned and distilled modules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli._options import Dsl, DslOption, GeneratorName, ModuleOption, ModulesOption, SetOption, SettingsFile, Smoke
from tutelage.cli.sdvp._real_data import RealDataset
from tutelage.terminal import JsonOut

app = typer.Typer()


@app.command(epilog="Example: tutelage sdvp study --task gqa --root data/gqa --preset visprog-gqa --json results/gqa.json")
def study(
    ablations: Annotated[
        bool, typer.Option("--ablations", help="Instead: change one thing at a time and compare with SDVP, at a smaller size.")
    ] = False,
    axis: Annotated[list[str] | None, typer.Option(help="With --ablations: only this group of them; may be repeated.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="The number of seeds; default: 5 (--ablations 3, --task 1).")] = None,
    first_seed: Annotated[int, typer.Option(help="The first seed; the others follow it.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/study. A stopped run resumes there.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Worker processes, one thread each (--task runs in one).")] = 2,
    dsl: DslOption = Dsl.visprog,
    smoke: Smoke = False,
    task: Annotated[
        RealDataset | None, typer.Option(help="Instead: the study on a data set's official folder, see docs/real-data.md.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="With --task: the folder that holds the data set.")] = None,
    preset: Annotated[str | None, typer.Option(help="With --task: a published protocol, such as viper-gqa.")] = None,
    ids: Annotated[Path | None, typer.Option(help="With --task: the ids.json of another run, to use its questions.")] = None,
    generator: Annotated[
        GeneratorName | None,
        typer.Option(help="With --task: the program generator; default: semantic (gqa), grammar (nlvr2)."),
    ] = None,
    settings: SettingsFile = None,
    changes: SetOption = None,
    modules: ModulesOption = None,
    module: ModuleOption = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE=TEACHER",
            help="With --task: gold (scene graphs), or as in `sdvp label`. Default: gold for every module.",
        ),
    ] = None,
    resize: Annotated[str, typer.Option(help="With --task: how images are resized: none, or longest=640.")] = "none",
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="With --task: leave out, and count, questions without an image.")
    ] = False,
    json: JsonOut = None,
) -> None:
    """Compare frozen, replaced, routed, naively tuned and distilled modules on previous, current and unseen tasks.

    With --task and --root: frozen and distilled modules on held-out questions of GQA or NLVR2.
    """
    from tutelage.cli import _study
    from tutelage.cli.sdvp import _ablations, _real_data
    from tutelage.errors import InputError
    from tutelage.sdvp.study.run import StudyPlan

    default_seeds = 1 if task else 3 if ablations else 5
    all_seeds = tuple(range(first_seed, first_seed + (seeds or default_seeds)))
    name = f"study-{task}" if task else "ablations" if ablations else "study" if dsl is Dsl.visprog else f"study-{dsl.value}"
    folder = out or Path("runs") / (f"{name}-smoke" if smoke else name)
    if task is not None:
        if root is None:
            remedy = "--root DIR; `tutelage synthetic make` draws a small one"
            raise InputError(f"{task} needs its folder", where="--root", remedy=remedy)
        request = _real_data.StudyRequest(root, all_seeds, dsl.value, preset, ids, resize, skip_missing, smoke)
        file = _real_data.read_settings(settings, changes or ())
        components = _real_data.StudyComponents(generator, file, modules, module or (), teacher or ())
        _real_data.run(task, request, components, folder, json)
    elif root or preset or ids or generator or settings or changes or modules or module or teacher or skip_missing:
        raise InputError("these options are for an official folder", where="study", remedy="add --task gqa or --task nlvr2")
    elif ablations:
        _ablations.run(all_seeds, tuple(axis or ()), smoke, folder, processes, json)
    else:
        plan = StudyPlan.smoke(first_seed, dsl.value) if smoke else StudyPlan(all_seeds, dsl=dsl.value)
        _study.run(plan, folder, 1 if smoke else processes, json)
