"""Write programs for questions, by rules or with a language model, without running them."""

from __future__ import annotations

from typing import Annotated

import typer

from tutelage.cli._generators import GeneratorName, GeneratorOption, SetOption, SettingsFile
from tutelage.cli._programs import Dsl, DslOption
from tutelage.cli.common import JsonOut, console, emit

app = typer.Typer()


@app.command(
    epilog='Example: tutelage write "What color is the cup?" --writer endpoint --set endpoint.url=http://127.0.0.1:8000/v1 '
    "--set endpoint.model=NAME. The key, if any, is read from $TUTELAGE_API_KEY."
)
def write(
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION...", help="Questions, each in quotes.")],
    writer: GeneratorOption = GeneratorName.grammar,
    dsl: DslOption = Dsl.visprog,
    pair: Annotated[bool, typer.Option("--pair", help="Statements about a left and a right picture.")] = False,
    single: Annotated[bool, typer.Option("--single", help="The picture shows one thing, and is asked about whole.")] = False,
    samples: Annotated[int, typer.Option(min=1, help="Programs a question; rules know only one.")] = 1,
    settings: SettingsFile = None,
    changes: SetOption = None,
    seed: Annotated[int, typer.Option(help="Seed of random examples, of sampling, and of the learned writer.")] = 0,
    json: JsonOut = None,
) -> None:
    """Write programs for questions and check them, without running them; leaves with 1 if a question has no valid one.

    Failures are counted by kind. For a language model the tokens and their cost are counted too.
    """
    from tutelage.cli import _generators
    from tutelage.programs.generators.base import GenerationRequest, tally
    from tutelage.programs.languages import parser_for
    from tutelage.programs.types import ProgramFailure

    inputs = ("LEFT", "RIGHT") if pair else ("IMAGE",)
    requests = [GenerationRequest(question, dsl.value, inputs, str(number)) for number, question in enumerate(questions)]
    parts = _generators.read_settings(settings, changes or ())
    signatures = _generators.signatures_of()
    task = _generators.GeneratorContext(_generators.with_image_mode(parts, single), requests, signatures, seed)
    made = _generators.make_generator(writer, task)
    with _generators.generation_progress(made):
        drafts = made.generate(requests, samples)
    took = _generators.usage_of(made)
    parser, screen = parser_for(dsl, signatures), console(json)
    rows, programs, failed = list[dict[str, object]](), [], 0
    for request, of_one in zip(requests, drafts, strict=True):
        checked = [draft.program(parser, inputs) for draft in of_one]
        programs += checked
        failed += all(isinstance(program, ProgramFailure) for program in checked)
        screen.print(f"# {request.question}", markup=False, soft_wrap=True)
        for draft, program in zip(of_one, checked, strict=True):
            wrong = program if isinstance(program, ProgramFailure) else None
            status, error = (wrong.kind, str(wrong)) if wrong is not None else ("ok", None)
            rows.append({"question": request.question, "text": draft.text, "probability": draft.probability, "status": status})
            rows[-1] |= {"error": error, "source": draft.source}
            sure = "" if draft.probability is None else f"# mean token probability {draft.probability:.3f}\n"
            fault = "" if error is None else "# " + f"{status}: {error}".replace("\n", "\n#") + "\n"
            screen.print(f"{sure}{draft.text}\n{fault}", markup=False, soft_wrap=True)
    counts = tally(programs)
    emit({"dsl": dsl.value, "drafts": rows, "counts": counts, **took}, json)
    screen.print("programs: " + ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))
    if (line := _generators.format_usage(took)) is not None:
        screen.print(line, markup=False, soft_wrap=True)
    if failed:
        typer.echo(f"error: {failed} of {len(requests)} questions without a valid program", err=True)
        raise typer.Exit(1)
