"""Generate programs for questions, by rules or with a language model, without running them."""

from __future__ import annotations

from typing import Annotated

import typer

from tutelage.cli._options import (
    PRETRAINED,
    Dsl,
    DslOption,
    GeneratorName,
    GeneratorOption,
    ModuleOption,
    ModulesOption,
    SetOption,
    SettingsFile,
    Single,
)
from tutelage.terminal import JsonOut, console, emit

app = typer.Typer()


@app.command(
    epilog='Example: tutelage generate "What color is the cup?" --generator endpoint --set endpoint.url=http://127.0.0.1:8000/v1 '
    "--set endpoint.model=NAME. The key, if any, is read from $TUTELAGE_API_KEY."
)
def generate(
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION...", help="Questions, each in quotes.")],
    generator: GeneratorOption = GeneratorName.grammar,
    dsl: DslOption = Dsl.visprog,
    pair: Annotated[bool, typer.Option("--pair", help="Statements about a left and a right image.")] = False,
    single: Single = False,
    samples: Annotated[int, typer.Option(min=1, help="Programs for each question; rules give only one.")] = 1,
    settings: SettingsFile = None,
    changes: SetOption = None,
    modules: ModulesOption = None,
    module: ModuleOption = None,
    seed: Annotated[int, typer.Option(help="Seed of random examples, of sampling, and of the learned generator.")] = 0,
    json: JsonOut = None,
) -> None:
    """Generate programs for questions and check them, without running them; leaves with 1 if a question has no valid one.

    Failures are counted by kind. For a language model, tokens and their cost are counted too.
    """
    from tutelage.cli import _generators
    from tutelage.programs.generators.base import GenerationRequest, tally
    from tutelage.programs.languages import parser_for
    from tutelage.programs.types import ProgramFailure

    inputs = ("LEFT", "RIGHT") if pair else ("IMAGE",)
    requests = [GenerationRequest(question, dsl.value, inputs, str(number)) for number, question in enumerate(questions)]
    file = _generators.with_image_mode(_generators.read_settings(settings, changes or ()), single, modules == PRETRAINED)
    signatures = _generators.signatures_of(modules, module or ())
    writer = _generators.make_generator(generator, _generators.GeneratorContext(file, requests, signatures, seed))
    with _generators.generation_progress(writer):
        candidates = writer.generate(requests, samples)
    usage = _generators.usage_of(writer)
    parser, screen = parser_for(dsl, signatures), console(json)
    rows, programs, failed = list[dict[str, object]](), [], 0
    for request, of_one in zip(requests, candidates, strict=True):
        checked = [candidate.program(parser, inputs) for candidate in of_one]
        programs += checked
        failed += all(isinstance(program, ProgramFailure) for program in checked)
        screen.print(f"# {request.question}", markup=False, soft_wrap=True)
        for candidate, program in zip(of_one, checked, strict=True):
            failure = program if isinstance(program, ProgramFailure) else None
            status, error = (failure.kind, str(failure)) if failure is not None else ("ok", None)
            row = {"question": request.question, "text": candidate.text, "probability": candidate.probability}
            rows.append(row | {"status": status, "error": error, "source": candidate.source})
            probability = candidate.probability
            certainty = "" if probability is None else f"# mean token probability {probability:.3f}\n"
            fault = "" if error is None else "# " + f"{status}: {error}".replace("\n", "\n#") + "\n"
            screen.print(f"{certainty}{candidate.text}\n{fault}", markup=False, soft_wrap=True)
    counts = tally(programs)
    emit({"dsl": dsl.value, "drafts": rows, "counts": counts, **usage}, json)
    screen.print("programs: " + ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))
    if (line := _generators.format_usage(usage)) is not None:
        screen.print(line, markup=False, soft_wrap=True)
    if failed:
        typer.echo(f"error: {failed} of {len(requests)} questions without a valid program", err=True)
        raise typer.Exit(1)
