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
    parser_of,
    run_and_print,
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
    from tutelage.cli import _generators
    from tutelage.programs.generators.base import GenerationRequest
    from tutelage.programs.generators.self_consistency import VoteRequest, run_and_vote
    from tutelage.programs.generators.self_repair import RepairRequest, can_repair, run_and_repair
    from tutelage.programs.scheduler import Job, RunContext
    from tutelage.programs.values import Image

    if len(images) > 2:
        raise InputError(f"{len(images)} pictures", remedy="give one or two pictures, then the question in quotes")
    inputs = ("IMAGE",) if len(images) == 1 else ("LEFT", "RIGHT")
    state = {name: Image.from_file(path) for name, path in zip(inputs, images, strict=True)}
    chosen, why = choose_module_set(models, state.values())
    console(json).print(why, markup=False, soft_wrap=True)
    packaged, request = chosen is ModuleSet.packaged, GenerationRequest(question, dsl.value, inputs, "0")
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
    modules = modules_of(seed, module or (), chosen)
    parser, context, repairs, election, taken = parser_of(dsl, modules), RunContext(modules), None, None, 0
    if repair:
        with _generators.generation_progress(made):
            _, drafts, repairs = run_and_repair([RepairRequest(request, draft, state) for draft in drafts], made, parser, context)
    if len(drafts) > 1:
        (election,) = run_and_vote([VoteRequest(request, drafts, state)], parser, context)
        taken = election.winner or 0
    took = _generators.usage_of(made)
    _print_cost(console(json), took, repairs, election)
    console(json).print(drafts[taken].text, markup=False, soft_wrap=True)
    job = Job(question, drafts[taken].program(parser, inputs), state, question)
    run_and_print(job, modules, json, extra={"written": took, "models": why}, page=page)


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
