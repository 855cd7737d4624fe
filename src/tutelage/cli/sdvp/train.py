"""Distil labelled calls into the modules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli._options import ModuleOption, ModulesOption, Quick, Seed
from tutelage.terminal import JsonOut, console, emit, progress, run_metadata

app = typer.Typer()


@app.command(epilog="Example: tutelage sdvp train runs/labelled runs/distilled --replay runs/earlier --continual self_distill")
def train(
    labelled: Annotated[Path, typer.Argument(help="The folder that `tutelage sdvp label` wrote.")],
    out: Annotated[Path, typer.Argument(help="The folder for the distilled modules; a stopped run resumes there.")],
    replay: Annotated[list[Path] | None, typer.Option(help="Records of an earlier task, for replay; may be repeated.")] = None,
    continual: Annotated[
        str, typer.Option(help="Continual-learning strategies, joined by +: self_distill, none, ewc, l2sp, lora, peft …")
    ] = "self_distill",
    replay_ratio: Annotated[int, typer.Option(min=1, max=1000, help="Replayed rows to a labelled row of a batch.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of each training job.")] = 400,
    batch: Annotated[int | None, typer.Option(min=1, help="Calls in a batch; default: suits the toy modules.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; large models want 1e-5, with LoRA 1e-4.")] = None,
    modules: ModulesOption = None,
    module: ModuleOption = None,
    seed: Seed = 0,
    quick: Quick = False,
    json: JsonOut = None,
) -> None:
    """Distil the labels into the modules, one training job each, and save them as OUT/NAME.

    Launched by torchrun or `accelerate launch` (extra hf), the processes share each job's batches. If LOC was trained, collect
    and label again before you train modules that read its crops.
    """
    from dataclasses import replace

    from tutelage.cli._modules import load_modules
    from tutelage.distillation.launch import current_processes
    from tutelage.sdvp.options import with_strategy
    from tutelage.sdvp.stages import train_to_folder

    options = with_strategy(continual)
    settings = replace(options.settings, steps=steps, warmup=min(options.settings.warmup, steps // 10), checkpoint_every=100)
    settings = replace(settings, batch_size=batch or settings.batch_size, lr=lr or settings.lr)
    processes = current_processes(settings.device)
    with processes.main_first():  # the first process trains the toy modules that are missing
        loaded = load_modules(modules, seed, module or (), quick)
    options = replace(options, settings=settings, seed=seed, replay_ratio=replay_ratio)
    with progress("training") as bar:
        distilled = train_to_folder(out, labelled, loaded, replay or [], options, bar, processes)
    if not processes.main:
        return
    versions = {name: {"version": module.version, "from": loaded[name].version} for name, module in distilled.items()}
    console(json).print(f"distilled {', '.join(distilled)} in {out}; evaluate them with --modules {out}")
    emit({"out": out, "modules": versions, "retain": continual, "steps": steps, **run_metadata([seed])}, json)
