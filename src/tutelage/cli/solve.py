"""Write a program for a question about one or two images, and run it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.cli._generators import GeneratorName, GeneratorOption, SetOption, SettingsFile
from tutelage.cli._programs import (
    Dsl,
    DslOption,
    ModuleOption,
    ModuleSet,
    ModuleSetOption,
    Seed,
    choose_module_set,
    modules_of,
    print_trace,
)
from tutelage.cli.common import JsonOut, console
from tutelage.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from tutelage.programs.generators.self_consistency import VoteResult
    from tutelage.programs.generators.self_repair import RepairStats

app = typer.Typer()


@app.command(
    epilog='Example: tutelage solve scene.png "What color is the circle?". '
    'On a photograph: tutelage solve photo.jpg "How many people are there?" --page answer.html'
)
def solve(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE [IMAGE2]", help="One picture, or a left and a right one.")],
    question: Annotated[str, typer.Argument(help="A question, or for two pictures a statement about them.")],
    single: Annotated[bool, typer.Option("--single", help="The picture shows one thing, and is asked about whole.")] = False,
    writer: GeneratorOption = GeneratorName.grammar,
    dsl: DslOption = Dsl.visprog,
    samples: Annotated[int, typer.Option(min=1, help="Programs to write; the answer that most of them give is taken.")] = 1,
    repair: Annotated[bool, typer.Option("--repair", help="Show a program that fails to its writer once, with its error.")] = False,
    settings: SettingsFile = None,
    changes: SetOption = None,
    models: ModuleSetOption = None,
    module: ModuleOption = None,
    seed: Seed = 0,
    page: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write the steps, with boxes drawn, as a page.")] = None,
    json: JsonOut = None,
) -> None:
    """Have a program written for a question, run it, and show every step."""
    from tutelage.agent import VisualAgent, VisualQuestion
    from tutelage.cli import _generators
    from tutelage.programs.generators.base import GenerationRequest
    from tutelage.programs.generators.self_repair import can_repair
    from tutelage.programs.run_context import Job

    if len(images) > 2:
        raise InputError(f"{len(images)} pictures", remedy="give one or two pictures, then the question in quotes")
    item = VisualQuestion(images, question, question)
    state = item.state
    chosen, why = choose_module_set(models, state.values())
    console(json).print(why, markup=False, soft_wrap=True)
    packaged, request = chosen is ModuleSet.packaged, GenerationRequest(question, dsl.value, tuple(state), question)
    parts = _generators.with_image_mode(_generators.read_settings(settings, changes or ()), single, packaged)
    signatures = _generators.signatures_of(module or (), packaged)
    task = _generators.GeneratorContext(parts, [request], signatures, seed)
    made = _generators.make_generator(writer, task)
    if repair and not can_repair(made):
        raise InputError(f"the writer {made.name} cannot repair: it would write the same", where="--repair", remedy="leave it out")
    with _generators.generation_progress(made):
        (drafts,) = made.generate([request], samples)
    failures = [draft.failure for draft in drafts if draft.failure is not None]
    if len(failures) == len(drafts) and not (repair and any(draft.text for draft in drafts)):
        _print_cost(console(json), _generators.usage_of(made), None, None)
        raise failures[0]
    agent = VisualAgent(modules_of(seed, module or (), chosen), made, dsl=dsl.value, samples=samples, repair=repair)
    with _generators.generation_progress(made):
        (solution,), repairs = agent.solve([item._replace(images=tuple(state.values()))], [drafts])
    took = _generators.usage_of(made)
    _print_cost(console(json), took, repairs, solution.vote if len(drafts) > 1 else None)
    console(json).print(solution.text, markup=False, soft_wrap=True)
    job = Job(question, solution.program, state, question)
    print_trace(job, solution.trace, json, {"written": took, "models": why}, page)


def _print_cost(screen: Console, usage: dict[str, Any], repairs: RepairStats | None, vote: VoteResult | None) -> None:
    """Print what the programs took, were mended and voted, and put it into ``usage``."""
    from dataclasses import asdict

    from tutelage.cli._generators import format_usage

    lines = [format_usage(usage)]
    if repairs is not None:
        lines.append(repairs.text)
        usage["repairs"] = asdict(repairs)
    if vote is not None:
        count = len(vote.traces)
        votes = count - sum(vote.failures.values())
        told = [f"{votes} of {count} programs vote, {vote.share:.0%} of them for the answer"]
        lines.append("; ".join(told + [f"{number} {kind}" for kind, number in sorted(vote.failures.items())]))
        usage["votes"] = {"programs": count, "share": vote.share, "failures": dict(vote.failures)}
    for line in lines:
        if line is not None:
            screen.print(line, markup=False, soft_wrap=True)
