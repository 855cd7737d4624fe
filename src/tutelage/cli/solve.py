"""Write a program for a question about one or two images, and run it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli._programs import Dsl, DslOption, Seed, Taught, answer, modules_of, parser_of
from tutelage.cli.common import JsonOut, console
from tutelage.errors import InputError

app = typer.Typer()


@app.command(epilog='Example: tutelage solve scene.png "What color is the circle?"')
def solve(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE [IMAGE2]", help="One picture, or a left and a right one.")],
    question: Annotated[str, typer.Argument(help="A question, or for two pictures a statement about them.")],
    single: Annotated[bool, typer.Option("--single", help="The picture shows one thing, and is asked about whole.")] = False,
    dsl: DslOption = Dsl.visprog,
    module: Taught = None,
    seed: Seed = 0,
    json: JsonOut = None,
) -> None:
    """Let the grammar write a program for a question, run it with the embedded modules, and show every step."""
    from tutelage.programs.scheduler import Job
    from tutelage.programs.values import Image
    from tutelage.programs.writers.grammar import write

    if len(images) > 2:
        raise InputError(f"{len(images)} pictures", remedy="give one or two pictures, then the question in quotes")
    inputs = ("IMAGE",) if len(images) == 1 else ("LEFT", "RIGHT")
    state = {name: Image.from_file(path) for name, path in zip(inputs, images, strict=True)}
    text = write(question, inputs, single=single)._asdict()[dsl]
    modules = modules_of(seed, module or ())
    console(json).print(text, markup=False, soft_wrap=True)
    answer(Job(question, parser_of(dsl, modules).try_parse(text, inputs), state, question), modules, json)
