"""Write a program for a question about one or two images, and run it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.cli._options import (
    Dsl,
    DslOption,
    GeneratorName,
    GeneratorOption,
    ModuleOption,
    ModulesOption,
    Seed,
    SetOption,
    SettingsFile,
    Single,
)
from tutelage.errors import InputError
from tutelage.terminal import JsonOut, console

if TYPE_CHECKING:
    from rich.console import Console

    from tutelage.programs.generators.self_consistency import VoteResult
    from tutelage.programs.generators.self_repair import RepairStats

app = typer.Typer()


@app.command(
    epilog='Example: tutelage solve scene.png "What color is the circle?". '
    'On a photograph: tutelage solve photo.jpg "How many people are there?" --html answer.html'
)
def solve(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE [IMAGE2]", help="One image, or a left and a right one.")],
    question: Annotated[str, typer.Argument(help="A question, or for two images a statement about them.")],
    single: Single = False,
    generator: GeneratorOption = GeneratorName.grammar,
    dsl: DslOption = Dsl.visprog,
    samples: Annotated[int, typer.Option(min=1, help="Programs to generate; the answer of the majority is taken.")] = 1,
    repair: Annotated[bool, typer.Option("--repair", help="Return a failed program to its generator once.")] = False,
    settings: SettingsFile = None,
    changes: SetOption = None,
    modules: ModulesOption = None,
    module: ModuleOption = None,
    seed: Seed = 0,
    html: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write the steps, with boxes drawn, as a page.")] = None,
    json: JsonOut = None,
) -> None:
    """Write a program for a question, run it, and show every step.

    Without --modules, toy modules answer about small images and pretrained ones about photographs, if their assets are here.
    """
    from tutelage.agent import VisualAgent, VisualQuestion
    from tutelage.cli import _generators
    from tutelage.cli._modules import choose_modules, load_modules
    from tutelage.cli._options import PRETRAINED
    from tutelage.cli._tables import print_trace
    from tutelage.programs.generators.base import GenerationRequest
    from tutelage.programs.generators.self_repair import can_repair
    from tutelage.programs.run_context import Job

    if len(images) > 2:
        raise InputError(f"{len(images)} images", remedy="give one or two images, then the question in quotes")
    item = VisualQuestion(images, question, question)
    state, screen = item.state, console(json)
    choice, reason = choose_modules(modules, state.values())
    screen.print(reason, markup=False, soft_wrap=True)
    request = GenerationRequest(question, dsl.value, tuple(state), question)
    file = _generators.with_image_mode(_generators.read_settings(settings, changes or ()), single, choice == PRETRAINED)
    context = _generators.GeneratorContext(file, [request], _generators.signatures_of(choice, module or ()), seed)
    writer = _generators.make_generator(generator, context)
    if repair and not can_repair(writer):
        message = f"the generator {writer.name} cannot repair: it would generate the same program"
        raise InputError(message, where="--repair", remedy="leave it out")
    with _generators.generation_progress(writer):
        (candidates,) = writer.generate([request], samples)
    failures = [candidate.failure for candidate in candidates if candidate.failure is not None]
    if len(failures) == len(candidates) and not (repair and any(candidate.text for candidate in candidates)):
        _print_cost(screen, _generators.usage_of(writer), None, None)
        raise failures[0]
    agent = VisualAgent(load_modules(choice, seed, module or ()), writer, dsl=dsl.value, samples=samples, repair=repair)
    with _generators.generation_progress(writer):
        (solution,), repairs = agent.solve([item._replace(images=tuple(state.values()))], [candidates])
    usage = _generators.usage_of(writer)
    _print_cost(screen, usage, repairs, solution.vote if len(candidates) > 1 else None)
    screen.print(solution.text, markup=False, soft_wrap=True)
    job = Job(question, solution.program, state, question)
    print_trace(job, solution.trace, json, {"written": usage, "models": reason}, html)


def _print_cost(screen: Console, usage: dict[str, Any], repairs: RepairStats | None, vote: VoteResult | None) -> None:
    """Print the cost of generation, the repairs and the vote, and add them to ``usage``."""
    from dataclasses import asdict

    from tutelage.cli._generators import format_usage

    lines = [format_usage(usage)]
    if repairs is not None:
        lines.append(repairs.text)
        usage["repairs"] = asdict(repairs)
    if vote is not None:
        count = len(vote.traces)
        votes = count - sum(vote.failures.values())
        line = [f"{votes} of {count} programs vote, {vote.share:.0%} of them for the answer"]
        lines.append("; ".join(line + [f"{number} {kind}" for kind, number in sorted(vote.failures.items())]))
        usage["votes"] = {"programs": count, "share": vote.share, "failures": dict(vote.failures)}
    for line_of_text in lines:
        if line_of_text is not None:
            screen.print(line_of_text, markup=False, soft_wrap=True)
