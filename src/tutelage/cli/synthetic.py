"""Draw synthetic scenes with questions, in the layouts of real data sets."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tutelage.terminal import JsonOut, console, emit, progress, run_metadata

app = typer.Typer(no_args_is_help=True)


class Layout(StrEnum):
    """The file layouts that can be written."""

    gqa = "gqa"
    nlvr2 = "nlvr2"


@app.callback()
def group() -> None:
    """Synthetic scenes: seeded and procedural, with questions, programs and scene graphs."""


@app.command(epilog="Example: tutelage synthetic make data/synthetic --layout gqa --seed 0 --images 500")
def make(
    out: Annotated[Path, typer.Argument(help="The folder to write to; created if absent.")],
    layout: Annotated[Layout, typer.Option(help="The dataset whose file layout is written.")] = Layout.gqa,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    images: Annotated[int, typer.Option(min=1, help="Images in each split; for nlvr2, pairs of images.")] = 500,
    json: JsonOut = None,
) -> None:
    """Draw scenes and write images, questions and scene graphs in the exact layout of GQA or NLVR2."""
    from tutelage.datasets.synthetic import export

    with progress(f"drawing {images} images for each split") as bar:
        export.make(out, layout=layout.value, seed=seed, images=images, progress=bar)
    console(json).print(f"{layout.value} layout with {images} images in each split written to {out}")
    emit({"out": out, "layout": layout.value, "images": images, **run_metadata([seed])}, json)
