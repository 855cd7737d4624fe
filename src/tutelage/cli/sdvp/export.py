"""Write a distilled module as the Hugging Face hub keeps models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.terminal import JsonOut, console, emit, run_metadata

app = typer.Typer()


@app.command(epilog="Example: tutelage sdvp export runs/demo-0 --module VQA --out my-vqa")
def export(
    source: Annotated[
        str, typer.Argument(help="The folder of a study, a demo, `sdvp train` or sdvp.compile; or NAME=hf:MODEL, unchanged.")
    ],
    out: Annotated[Path, typer.Option(help="The folder for config.json, model.safetensors and README.md, the model card.")],
    module: Annotated[str | None, typer.Option(help="The distilled module of the run: VQA, LOC …")] = None,
    arm: Annotated[str, typer.Option(help="Of a study: the arm.")] = "sdvp",
    seed: Annotated[int | None, typer.Option(help="Of a study: one of its seeds; default: the first.")] = None,
    json: JsonOut = None,
) -> None:
    """Write a distilled module as the Hugging Face hub keeps models, with a card: data, teachers, figures, limits, command.

    --module and tutelage.load read the folder; transformers too, if it holds a transformers model.
    """
    from tutelage.cli._modules import load_module
    from tutelage.errors import InputError
    from tutelage.modules.hf import PREFIX
    from tutelage.modules.loading import load
    from tutelage.sdvp.export import export as export_module
    from tutelage.sdvp.export import export_run

    if source.partition("=")[2].startswith(PREFIX):
        export_module(load_module(source), out)
    elif module is None:
        raise InputError("which module of the run?", where="--module", remedy="--module VQA")
    else:
        export_run(source, module, out, arm, seed)
    exported = load(out)
    console(json).print(f"{exported.name}, version {exported.version}, in {out}: use it with --module {out}")
    emit({"out": out, "module": exported.name, "version": exported.version, **run_metadata()}, json)
