"""Ask a language model for the labels of Boolean inputs from examples in its prompt, beside nearest neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli._options import SetOption, SettingsFile
from tutelage.terminal import JsonOut, console, emit, progress, run_metadata

app = typer.Typer()


@app.command(
    epilog="Example: tutelage icl conjunction --examples 5 --examples 10 --picture curves.svg "
    "--set endpoint.url=http://127.0.0.1:8000/v1 --set endpoint.model=NAME"
)
def icl(
    function: Annotated[str, typer.Argument(help="The class: conjunction, dnf, majority, parity …; a wrong name lists them.")],
    size: Annotated[int, typer.Option(min=1, help="Variables of an input.")] = 5,
    examples: Annotated[list[int] | None, typer.Option(min=1, help="Examples before the query; may be repeated.")] = None,
    functions: Annotated[int, typer.Option(min=1, help="Fresh functions; each is asked once for each number of examples.")] = 50,
    density: Annotated[float, typer.Option(min=0, max=1, help="Share of variables that a function uses.")] = 0.5,
    teaching: Annotated[float, typer.Option(min=0, max=1, help="Share of prompts that begin with a teaching sequence.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of functions and of guesses.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The curves, as CSV.")] = None,
    picture: Annotated[Path | None, typer.Option(help="The curves, as SVG.")] = None,
    settings: SettingsFile = None,
    changes: SetOption = None,
    json: JsonOut = None,
) -> None:
    """Print the accuracy of the model of the settings, and of simple learners at the same queries.

    An answer that is neither 0 nor 1 counts as a random guess, and is reported.
    """
    from rich.table import Table

    from tutelage.cli import _generators
    from tutelage.programs.generators.completions import Usage
    from tutelage.storage import write_text
    from tutelage.systems.icl_discrete_functions import ask_language_model, draw_curves, write_curves
    from tutelage.systems.icl_discrete_functions.classes import function_class

    function_class(function)
    model, cache = _generators.language_model(_generators.read_settings(settings, changes or ()), seed)
    usage, counts = Usage(), sorted(set(examples or (5, 10, 15, 20)))
    with progress(f"querying {model.name}") as bar:
        found = ask_language_model(
            model,
            function,
            size=size,
            counts=counts,
            functions=functions,
            density=density,
            teaching=teaching,
            seed=seed,
            cache=cache,
            usage=usage,
            on_progress=bar,
        )
    if out is not None:
        write_curves(out, found.curves)
    if picture is not None:
        write_text(picture, draw_curves(found.curves, f"{function}, {size} variables"))
    screen, used = console(json), _generators.usage_of_model(model, usage)
    table = Table("accuracy, %", *(f"{count} examples" for count in counts), box=None)
    for curve in found.curves:
        cells = zip(curve.mean, curve.low, curve.high, strict=True)
        table.add_row(curve.name, *(f"{mean:.1f} ({low:.1f} to {high:.1f})" for mean, low, high in cells))
    screen.print(table)
    if found.guessed:
        screen.print(f"{found.guessed} of {found.asked} answers were no label, {found.failed} did not come: guessed", markup=False)
    screen.print(_generators.format_usage(used) or "", markup=False, soft_wrap=True)
    counted = {"asked": found.asked, "guessed": found.guessed, "failed": found.failed}
    emit({"function": function, "curves": found.curves, **counted, **used, **run_metadata([seed])}, json)
