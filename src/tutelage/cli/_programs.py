"""What `run` and `solve` share: their options, the modules that programs call, and a trace as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.cli.common import console, emit, progress

if TYPE_CHECKING:
    from tutelage.modules.visual_module import VisualModule
    from tutelage.programs.run_context import Job
    from tutelage.programs.trace import StepRecord, Trace
    from tutelage.programs.types import Module, Program, ProgramFailure, Signature, Value
    from tutelage.programs.values import Image
    from tutelage.programs.viper import Parser as ViperParser
    from tutelage.programs.visprog import Parser as VisProgParser

TOY_MODULES = ("LOC", "VQA", "VERIFY")
WIDEST = 60
"""Characters of a value or call that a table shows."""
PHOTO = 96
"""Pixels of the shorter side from which a picture is taken for a photograph: the embedded world draws 48, easy-VQA has 64."""


class ModuleSet(StrEnum):
    """The sets of modules that programs can call."""

    embedded = "embedded"
    packaged = "packaged"


class Dsl(StrEnum):
    """The two languages of visual programs."""

    visprog = "visprog"
    viper = "viper"


DslOption = Annotated[Dsl, typer.Option(help="The program's language.")]
ModuleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--module",
        metavar="DIR | NAME=hf:MODEL",
        help="In the place of the embedded module of its name: the folder of a saved one, or a transformers model, "
        "VQA=hf:Salesforce/blip-vqa-base@REVISION or LOC=hf:/path/of/a/folder; settings follow, ?answers=yes,no. May be repeated.",
    ),
]
SETS = "embedded: trained here, for drawn scenes. packaged: for photographs, see `tutelage assets`."
ModuleSetOption = Annotated[
    ModuleSet | None,
    typer.Option(help=f"{SETS} Left out: packaged where a picture is no drawn scene and the assets are here."),
]
Seed = Annotated[int, typer.Option(help="Seed of the embedded modules; the first use of a seed trains them.")]


def load_module(text: str) -> VisualModule:
    """The module that ``--module`` names.

    Raises:
        MissingExtra, InputError, StaleError: it cannot be had.
    """
    from tutelage.modules import hf
    from tutelage.modules.loading import load

    name, _, model = text.partition("=")
    return hf.open_module(name, model) if model.startswith(hf.PREFIX) else load(text)


def signature_of(text: str) -> tuple[str, Signature]:
    """The name and the signature of the module that ``--module`` names; the weights of a transformers model are not read."""
    from tutelage.modules import hf
    from tutelage.modules.loading import load

    name, _, model = text.partition("=")
    module = hf.resolve(name, model)[0] if model.startswith(hf.PREFIX) else load(text)
    return module.name, module.signature


def choose_module_set(requested: ModuleSet | None, images: Iterable[Image]) -> tuple[ModuleSet, str]:
    """The set that is used, embedded or packaged, and a line that says so, and why."""
    if requested is None:
        if all(min(image.width, image.height) < PHOTO for image in images):
            return ModuleSet.embedded, "models: embedded (a small, drawn scene)"
        from tutelage import assets
        from tutelage.modules.pretrained import REQUIRED

        absent = [name for name in REQUIRED if assets.asset(name).find() is None]
        if absent:
            remedy = f"tutelage assets fetch {' '.join(absent)}"
            return ModuleSet.embedded, f"models: embedded, made for drawn scenes; this looks like a photograph, for which: {remedy}"
        return ModuleSet.packaged, "models: packaged (a photograph)"
    return requested, f"models: {requested}"


def modules_of(seed: int, module_names: Sequence[str] = (), module_set: ModuleSet = ModuleSet.embedded) -> dict[str, Module]:
    """Symbolic modules, those that ``module_names`` names, and those of the set ``module_set`` for the names that are left.

    Raises:
        MissingExtra, InputError, StaleError: as :func:`load_module`.
        AssetAbsent, WrongHash: a network of the packaged set is not here, or not the published one.
    """
    import torch

    from tutelage.modules.hf import HfModule
    from tutelage.modules.symbolic import symbolic_modules

    networks: dict[str, Module] = {module.name: module for module in map(load_module, module_names)}
    if not any(isinstance(module, HfModule) for module in networks.values()):
        torch.set_num_threads(1)  # for networks of this size a second thread costs more than it brings
    if module_set is ModuleSet.packaged:
        from tutelage.modules.pretrained import pretrained_modules

        return {**symbolic_modules(), **pretrained_modules(), **networks}
    return {**symbolic_modules(), **with_toy_modules(networks, seed)}


def with_toy_modules(networks: Mapping[str, Module], seed: int, quick: bool = False) -> dict[str, Module]:
    """``networks``, and the embedded set's for the names that are left."""
    from tutelage import storage
    from tutelage.sdvp import toy_modules

    store, found = storage.ContentStore(storage.cache_home() / "modules"), dict(networks)
    missing = [name for name in TOY_MODULES if name not in networks]
    with progress("embedded modules (the first use trains them)", len(missing)) as bar:
        for name in missing:
            found[name] = toy_modules.load_or_train(seed, name, store, quick)
            bar.advance()
    return found


def parser_of(dsl: Dsl, modules: dict[str, Module]) -> VisProgParser | ViperParser:
    """The parser of a language for programs that call ``modules``."""
    from tutelage.programs.languages import parser_for

    return parser_for(dsl, {name: module.signature for name, module in modules.items()})


def run_and_print(
    job: Job,
    modules: dict[str, Module],
    json: str | None,
    cache: Path | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Run one program and print its trace, as :func:`print_trace` does.

    Raises:
        StaleError, StorageError: the file of the result cache is not one, or cannot be written.
    """
    from tutelage.programs.result_cache import ResultCache
    from tutelage.programs.run_context import RunContext
    from tutelage.programs.scheduler import run

    with ResultCache(cache) as results:
        (trace,) = run([job], RunContext(modules, results))
    print_trace(job, trace, json, extra)


def print_trace(job: Job, trace: Trace, json: str | None, extra: Mapping[str, Any] | None = None, page: Path | None = None) -> None:
    """Show every step and the answer of one run, and write its trace as JSON, with what else is ``extra``, and as a ``page``.

    A program that failed leaves with 1.
    """
    screen = console(json)
    for name, value in job.state.items():
        for note in getattr(value, "notes", ()):
            screen.print(f"{name}: {note}", markup=False)
    if trace.steps:
        screen.print(_table(job.program, trace))
    sure = trace.confidence
    emit(trace.to_json() | {"confidence": sure} | dict(extra or {}), json)
    if page is not None:
        _write_html(page, job, trace, str((extra or {}).get("models", "")))
        screen.print(f"page: {page}", markup=False, soft_wrap=True)
    if trace.status != "ok":
        typer.echo(f"error: the program fails ({trace.status}): {trace.error}", err=True)
        raise typer.Exit(1)
    notes = [] if sure is None else [f"confidence {sure:.2f}, the product of its steps'"]
    notes += [f"step {record.step + 1}, {record.module}, is a fallback: there was no box" for record in trace.fallback_steps]
    if trace.out_of_vocabulary:
        notes.append(f"{trace.out_of_vocabulary} calls use words that their module does not know")
    screen.print(f"answer: {format_value(trace.answer)}" + "".join(f"\n{note}" for note in notes), markup=False, soft_wrap=True)


def _write_html(page: Path, job: Job, trace: Trace, models: str) -> None:
    from tutelage import __version__
    from tutelage.programs.values import Image
    from tutelage.reports.trace import FORMAT, VERSION, trace_report
    from tutelage.storage import write_text

    pictures = {value.root_key: Image(value.root, value.root_key) for value in job.state.values() if isinstance(value, Image)}
    images = [{"key": key, "width": it.width, "height": it.height, "src": it.data_uri(1024)} for key, it in pictures.items()]
    head = {"format": FORMAT, "version": VERSION, "question": job.question or "A program", "models": models}
    head |= {"program": getattr(job.program, "text", ""), "versions": {"tutelage": __version__}}
    write_text(page, trace_report(head | {"images": images, "trace": trace.to_json()}))


def format_value(value: Value) -> str:
    """A value in few words."""
    from tutelage.programs.values import Box, Image, Object

    if isinstance(value, Image):
        return f"image {value.width}x{value.height} at ({value.region[0]}, {value.region[1]})"
    if isinstance(value, Box):
        return f"({value.x1:.0f}, {value.y1:.0f}, {value.x2:.0f}, {value.y2:.0f}) {value.score:.2f}"
    if isinstance(value, Object):
        return f"{value.class_name or value.category} {format_value(value.box)}"
    if isinstance(value, list):
        return f"[{', '.join(map(format_value, value[:2]))}" + (f", … {len(value)} in all]" if len(value) > 2 else "]")
    return _cut(f"{value:.4g}" if isinstance(value, float) else repr(value) if isinstance(value, str) else str(value))


def _table(program: Program | ProgramFailure, trace: Trace) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table("step", "call", "answer")
    table.add_column("probability", justify="right")
    table.add_column("ms", justify="right")
    for record in trace.steps:
        own = record.probability
        result = record.error or format_value(record.output)
        marks = (" (unknown words)" if record.out_of_vocabulary else "") + (" (fallback: no box)" if record.is_fallback else "")
        table.add_row(
            str(record.step + 1) if record.step >= 0 else "–",
            Text(_call(program, record)),
            Text(_cut(result) + marks),
            "" if own is None else f"{own:.2f}",
            f"{record.ms:.1f}",
        )
    return table


def _call(program: Program | ProgramFailure, record: StepRecord) -> str:
    """The line of a VisProg program; otherwise the call with its values."""
    lines = getattr(program, "steps", None)
    if lines is not None and 0 <= record.step < len(lines):
        return str(lines[record.step])
    return f"{record.module}({', '.join(f'{name}={format_value(value)}' for name, value in record.args.items())})"


def _cut(text: str) -> str:
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"
