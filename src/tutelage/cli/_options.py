"""Options that several commands share, each defined once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tutelage.workers import WorkerPool


class Dsl(StrEnum):
    """The two languages of visual programs."""

    visprog = "visprog"
    viper = "viper"


class Layout(StrEnum):
    """File layouts of questions."""

    gqa = "gqa"
    nlvr2 = "nlvr2"
    programs = "programs"


class GeneratorName(StrEnum):
    """All program generators."""

    grammar = "grammar"
    gold = "gold"
    semantic = "semantic"
    endpoint = "endpoint"
    local = "local"
    learned = "learned"


class Engine(StrEnum):
    """What runs parallel tasks: ``workers.ENGINES``."""

    local = "local"
    ray = "ray"


DslOption = Annotated[Dsl, typer.Option(help="The language of the programs.")]
Seed = Annotated[int, typer.Option(help="Seed of the toy modules; they are trained at the first use of a seed.")]
Smoke = Annotated[bool, typer.Option("--smoke", help="Test the plumbing alone, in seconds; the figures mean nothing.")]

# -- modules

TOY, PRETRAINED = "toy", "pretrained"
SETS = "toy (trained here, for synthetic scenes), pretrained (for photographs, see `tutelage assets`), or a folder of saved modules"
ModulesOption = Annotated[
    str | None,
    typer.Option("--modules", metavar="toy|pretrained|DIR", help=f"{SETS}; toy modules replace what the folder lacks."),
]
ModuleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--module",
        metavar="MODULE",
        help="One more module, which replaces the module of its name: the folder of a saved one; your own, mine.py:NAME "
        "(the file runs as trusted code, outside the sandbox); or a transformers model, VQA=hf:Salesforce/blip-vqa-base@REVISION "
        "or LOC=hf:/path/of/a/folder, with settings such as ?answers=yes,no. May be repeated.",
    ),
]
Quick = Annotated[bool, typer.Option("--quick", hidden=True, help="Untrained toy modules, for tests.")]

# -- program generators

GeneratorOption = Annotated[GeneratorName, typer.Option(help="The program generator.")]
SettingsFile = Annotated[
    Path | None,
    typer.Option("--settings", metavar="FILE.toml", help="Settings of generators, one table each; see docs/generators.md."),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="a.b=value", help="One setting, such as endpoint.url; may be repeated.")
]
Single = Annotated[bool, typer.Option("--single", help="The image shows a single object; questions are about all of it.")]

# -- questions of SDVP

SourceArgument = Annotated[Path, typer.Argument(help="A folder in the layout of GQA or NLVR2, or a JSON-lines file of programs.")]
LayoutOption = Annotated[Layout, typer.Option(help="The layout of SOURCE.")]
Split = Annotated[str, typer.Option(help="The split of the data set.")]
Images = Annotated[Path | None, typer.Option(help="The folder that image paths of a programs file start from; default: its own.")]
Limit = Annotated[int | None, typer.Option(min=1, help="The maximum number of questions.")]

# -- workers

EngineOption = Annotated[Engine, typer.Option("--engine", help="Processes of this machine, or Ray (extra ray).")]
Address = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="With ray: the cluster's head, or auto; default: this machine.")
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Workers, one thread each; default: this process alone, or with ray every core.")
]


def worker_pool(engine: Engine, address: str | None, workers: int | None) -> WorkerPool:
    """The worker pool of the three options."""
    from tutelage.workers import WorkerPool

    return WorkerPool(engine.value, workers or (1 if engine is Engine.local else None), address)
