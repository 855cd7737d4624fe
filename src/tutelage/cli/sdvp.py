"""Stepwise distillation of visual programs: collect, label, train and evaluate; and the study of it all."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.cli._generators import GeneratorName, SetOption, SettingsFile
from tutelage.cli._modules import load_modules, parse_teacher
from tutelage.cli._pool import Address, Engine, EngineOption, Workers, pool
from tutelage.cli._programs import ModuleOption
from tutelage.cli._real_data import RealDataset
from tutelage.cli.common import JsonOut, console, emit, progress, run_metadata

if TYPE_CHECKING:
    from tutelage.sdvp.questions import Question

app = typer.Typer(no_args_is_help=True)


class Layout(StrEnum):
    """How the questions are kept."""

    gqa = "gqa"
    nlvr2 = "nlvr2"
    programs = "programs"


class Dsl(StrEnum):
    """The language of the programs."""

    visprog = "visprog"
    viper = "viper"


class AttributionSource(StrEnum):
    """What answers a step when its module is looked into."""

    gold = "gold"
    teacher = "teacher"


Source = Annotated[Path, typer.Argument(help="A folder in the layout of GQA or NLVR2, or a JSON-lines file of programs.")]
LayoutOption = Annotated[Layout, typer.Option(help="What SOURCE is.")]
Split = Annotated[str, typer.Option(help="The dataset's split.")]
Images = Annotated[Path | None, typer.Option(help="Where the image paths of a programs file begin; default: beside it.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many questions.")]
Modules = Annotated[
    Path | None, typer.Option("--modules", help="A folder of saved modules, DIR/NAME; embedded ones stand in for what is missing.")
]
ModuleNames = Annotated[
    list[str] | None,
    typer.Option("--module", metavar="DIR | NAME=hf:MODEL", help="One module, as in `tutelage run --help`; may be repeated."),
]
Seed = Annotated[int, typer.Option(help="Seed of the embedded modules (trained on first use, 1 to 2 minutes) and of the lessons.")]
DslOption = Annotated[Dsl, typer.Option(help="The language of the programs.")]
Quick = Annotated[bool, typer.Option("--quick", hidden=True, help="Embedded networks that know nothing, for tests.")]


@app.callback()
def group() -> None:
    """Stepwise distillation of visual programs: collect, label, train and evaluate; and the study of it all."""


@app.command(epilog="Example: tutelage sdvp collect data/world runs/records --layout gqa --split train --limit 2000")
def collect(
    source: Source,
    out: Annotated[Path, typer.Argument(help="The folder for the records; a stopped run goes on there.")],
    layout: LayoutOption = Layout.gqa,
    split: Split = "train",
    images: Images = None,
    limit: Limit = None,
    modules: Modules = None,
    module: ModuleNames = None,
    seed: Seed = 0,
    dsl: DslOption = Dsl.visprog,
    part: Annotated[int, typer.Option(min=1, help="Questions a shard: what a kill can cost.")] = 512,
    engine: EngineOption = Engine.local,
    address: Address = None,
    workers: Workers = None,
    quick: Quick = False,
    json: JsonOut = None,
) -> None:
    """Run the questions' programs and keep every distinct call to a module that can be taught. Answers are not used."""
    from tutelage.sdvp.stages import collect_to_folder

    who = pool(engine, address, workers)
    asked, unread = _questions(source, layout, split, images, limit, dsl)
    ready = load_modules(modules, seed, quick, module or ())
    with progress(f"collecting from {len(asked)} questions") as bar:
        records = collect_to_folder(out, asked, ready, dsl.value, stage=source.stem, shard_size=part, pool=who, progress=bar)
    counts = {name: len(found) for name, found in records.items()}
    console(json).print(f"{_format_counts(counts)} from {len(asked)} questions, {unread} without a program, in {out}")
    emit({"out": out, "records": counts, "questions": len(asked), "without_program": unread, **run_metadata([seed])}, json)


@app.command(epilog="Example: tutelage sdvp label runs/records runs/labelled --teacher LOC=loc --teacher VQA=color --gate 0.8")
def label(
    records: Annotated[Path, typer.Argument(help="The folder that `tutelage sdvp collect` wrote.")],
    out: Annotated[Path, typer.Argument(help="The folder for the labelled records.")],
    teacher: Annotated[
        list[str],
        typer.Option(help="MODULE=TEACHER: an embedded specialist (color, loc, easy), a saved module's folder, or hf:MODEL."),
    ],
    gate: Annotated[float, typer.Option(min=0, max=1, help="The least confidence a label must have; 0 keeps all.")] = 0.8,
    probe: Annotated[
        Path | None,
        typer.Option(help="Answered questions, as SOURCE of collect: they calibrate the teachers, and refuse bad ones."),
    ] = None,
    layout: LayoutOption = Layout.gqa,
    split: Split = "val",
    limit: Limit = None,
    modules: Modules = None,
    module: ModuleNames = None,
    seed: Seed = 0,
    part: Annotated[int, typer.Option(min=1, help="Calls a shard: what a kill can cost.")] = 2048,
    engine: EngineOption = Engine.local,
    address: Address = None,
    workers: Workers = None,
    quick: Quick = False,
    json: JsonOut = None,
) -> None:
    """Let teachers label the records they cover; a call outside a teacher's skill gets no label.

    Without --probe, teachers are accepted unseen and their confidence is taken as it is.
    """
    from tutelage.sdvp.collect import load_records
    from tutelage.sdvp.label import Filters
    from tutelage.sdvp.stages import VERDICTS, label_to_folder
    from tutelage.sdvp.teacher_check import answer_probe
    from tutelage.storage import read_json

    who = pool(engine, address, workers)
    found, ready = load_records(records), load_modules(modules, seed, quick, module or ())
    asked, _ = _questions(probe, layout, split, None, limit, Dsl.visprog) if probe is not None else ([], 0)
    with progress("labelling") as bar:
        teachers = dict(parse_teacher(text, seed, quick) for text in teacher)
        known = answer_probe(asked, ready)
        labelled = label_to_folder(
            out, found, ready, teachers, Filters(min_confidence=gate), known, shard_size=part, pool=who, progress=bar
        )
    verdicts = read_json(out / VERDICTS)
    counts = {
        name: {"records": len(found[name]), "labelled": len(rows), "kept": sum(row.weight > 0 for row in rows)} | verdicts[name]
        for name, rows in labelled.items()
    }
    for name, row in counts.items():
        console(json).print(f"{name}: {row['records']} records, {row['labelled']} labels, {row['kept']} kept; {_format_check(row)}")
    emit({"out": out, "modules": counts, **run_metadata([seed])}, json)


@app.command(epilog="Example: tutelage sdvp train runs/labelled runs/taught --replay runs/earlier --retain self_distill")
def train(
    labelled: Annotated[Path, typer.Argument(help="The folder that `tutelage sdvp label` wrote.")],
    out: Annotated[Path, typer.Argument(help="The folder for the taught modules; a stopped run goes on there.")],
    replay: Annotated[list[Path] | None, typer.Option(help="Records of an earlier task, to be kept; may be repeated.")] = None,
    retain: Annotated[
        str, typer.Option(help="What keeps old knowledge, joined by +: self_distill, none, ewc, l2sp, lora, peft …")
    ] = ("self_distill"),
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of each lesson.")] = 400,
    batch: Annotated[int | None, typer.Option(min=1, help="Calls a step; default: what suits the embedded modules.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; large models want 1e-5, with LoRA 1e-4.")] = None,
    modules: Modules = None,
    module: ModuleNames = None,
    seed: Seed = 0,
    quick: Quick = False,
    json: JsonOut = None,
) -> None:
    """Distil the labels into the modules, one lesson each, and save them as OUT/NAME.

    Launched by torchrun or `accelerate launch` (extra hf), the processes share each lesson's batches. Where LOC was taught,
    collect and label again before teaching what reads its crops.
    """
    from dataclasses import replace

    from tutelage.distillation.launch import current_processes
    from tutelage.sdvp.options import with_strategy
    from tutelage.sdvp.stages import train_to_folder

    options = with_strategy(retain)
    settings = replace(options.settings, steps=steps, warmup=min(options.settings.warmup, steps // 10), checkpoint_every=100)
    settings = replace(settings, batch_size=batch or settings.batch_size, lr=lr or settings.lr)
    together = current_processes(settings.device)
    with together.main_first():  # the first trains what embedded modules are missing
        ready = load_modules(modules, seed, quick, module or ())
    with progress("teaching") as bar:
        taught = train_to_folder(out, labelled, ready, replay or [], replace(options, settings=settings, seed=seed), bar, together)
    if not together.main:
        return
    versions = {name: {"version": module.version, "from": ready[name].version} for name, module in taught.items()}
    console(json).print(f"taught {', '.join(taught)} in {out}; give them to evaluate with --modules {out}")
    emit({"out": out, "modules": versions, "retain": retain, "steps": steps, **run_metadata([seed])}, json)


@app.command(epilog="Example: tutelage sdvp evaluate data/world --layout gqa --split val --modules runs/taught --json scores.json")
def evaluate(
    source: Source,
    layout: LayoutOption = Layout.gqa,
    split: Split = "val",
    images: Images = None,
    limit: Limit = None,
    modules: Modules = None,
    module: ModuleNames = None,
    seed: Seed = 0,
    dsl: DslOption = Dsl.visprog,
    quick: Quick = False,
    json: JsonOut = None,
) -> None:
    """Answer the questions and score them, in all and by type; a question without a program counts as wrong."""
    from tutelage.errors import InputError
    from tutelage.sdvp.questions import score_answer, solve

    asked, unread = _questions(source, layout, split, images, limit, dsl, keep=True)
    if any(question.answer is None for question in asked):
        raise InputError("questions without answers cannot be scored", where=source, remedy="choose a split with answers")
    ready = load_modules(modules, seed, quick, module or ())
    with progress(f"answering {len(asked)} questions"):
        traces = solve(asked, ready, dsl.value)
    rows = [(q.kind or q.task, score_answer(q, trace.answer)) for q, trace in zip(asked, traces, strict=True)]
    types: dict[str, dict[str, float]] = {}
    for kind in sorted({kind for kind, _ in rows}):
        marks = [mark for name, mark in rows if name == kind]
        types[kind] = {"accuracy": 100 * sum(marks) / len(marks), "questions": len(marks)}
    total = max(1, len(rows))
    result: dict[str, Any] = {
        "accuracy": 100 * sum(mark for _, mark in rows) / total,
        "questions": len(rows),
        "without_program": unread,
        "executed": 100 * sum(trace.status == "ok" for trace in traces) / total,
        "out_of_vocabulary": 100 * sum(trace.out_of_vocabulary > 0 for trace in traces) / total,
        "types": types,
    }
    _table(result, json)
    emit(result | run_metadata([seed]), json)


@app.command(epilog="Example: tutelage sdvp export runs/demo-0 --module VQA --out my-vqa")
def export(
    source: Annotated[
        str, typer.Argument(help="The folder of a study, a demo, `sdvp train` or sdvp.compile; or NAME=hf:MODEL, as it is.")
    ],
    out: Annotated[Path, typer.Option(help="The folder for config.json, model.safetensors and README.md, the model card.")],
    module: Annotated[str | None, typer.Option(help="Which taught module of the run: VQA, LOC …")] = None,
    arm: Annotated[str, typer.Option(help="Of a study: the learning arm.")] = "sdvp",
    seed: Annotated[int | None, typer.Option(help="Of a study: one of its seeds; default: the first.")] = None,
    json: JsonOut = None,
) -> None:
    """Write a taught module as the Hugging Face hub keeps models, with a card: data, teachers, figures, limits, command.

    The folder is one that --module takes, that tutelage.load reads, and, for a transformers model, transformers itself.
    """
    from tutelage.cli._programs import load_module
    from tutelage.errors import InputError
    from tutelage.modules.hf import PREFIX
    from tutelage.modules.loading import load
    from tutelage.sdvp.export import export as export_module
    from tutelage.sdvp.export import export_run

    if source.partition("=")[2].startswith(PREFIX):
        export_module(load_module(source), out)
    elif module is None:
        raise InputError("which module of the run?", where="--module", remedy="--module VQA")
    else:
        export_run(source, module, out, arm, seed)
    made = load(out)
    console(json).print(f"{made.name}, version {made.version}, in {out}: give it to others, or to --module {out}")
    emit({"out": out, "module": made.name, "version": made.version, **run_metadata()}, json)


@app.command(epilog="Example: tutelage sdvp blame runs/study --arm sdvp --json blame.json")
def blame(
    run: Annotated[Path, typer.Argument(help="The folder of `tutelage sdvp study` or `tutelage demo`.")],
    arm: Annotated[
        str, typer.Option(help="frozen, or a learning arm of the study (sdvp, naive): its modules at the end.")
    ] = "frozen",
    source: Annotated[AttributionSource, typer.Option(help="What answers a step in its module's place.")] = AttributionSource.gold,
    task: Annotated[list[str] | None, typer.Option(help="A task; may be repeated. Default: b_gqa and b_nlvr.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Questions a task.")] = 1000,
    seed: Annotated[int | None, typer.Option(help="One of the study's seeds; default: its first.")] = None,
    dsl: DslOption = Dsl.visprog,
    json: JsonOut = None,
) -> None:
    """Which module's step makes answers wrong, by question type, and what perfect steps would win back.

    Each wrong answer is run again with one step answered in its module's place; where none alone repairs it, the steps
    share the blame by their Shapley values. Errors of the programs stand apart.
    """
    from tutelage.cli import _attribution
    from tutelage.sdvp.study.attribution import TASKS, attribute_run, seed_of

    seed = seed_of(run, seed)
    with progress(f"blaming the steps of {arm} modules"):
        found = attribute_run(run, arm=arm, seed=seed, tasks=task or TASKS, count=count, dsl=dsl.value, source=source.value)
    _attribution.show(console(json), found)
    emit({**found.to_json(), "arm": arm, **run_metadata([seed])}, json)


@app.command(epilog="Example: tutelage sdvp study --task gqa --root data/gqa --preset visprog-gqa --json results/gqa.json")
def study(
    ablations: Annotated[
        bool, typer.Option("--ablations", help="Instead: change one thing at a time and compare with SDVP, at a smaller size.")
    ] = False,
    axis: Annotated[list[str] | None, typer.Option(help="With --ablations: this part of them alone; may be repeated.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds; default: 3, with --task 1.")] = None,
    first_seed: Annotated[int, typer.Option(help="The first seed; the others follow it.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/study. A stopped run goes on there.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Worker processes, one thread each (--task runs in one).")] = 2,
    dsl: DslOption = Dsl.visprog,
    smoke: Annotated[bool, typer.Option("--smoke", help="The plumbing alone, in seconds; claims nothing.")] = False,
    task: Annotated[
        RealDataset | None, typer.Option(help="Instead: the study on an official folder, see docs/real-data.md.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="With --task: the folder that holds the data set.")] = None,
    preset: Annotated[str | None, typer.Option(help="With --task: a published protocol, such as viper-gqa.")] = None,
    ids: Annotated[Path | None, typer.Option(help="With --task: the ids.json of another run, to use its questions.")] = None,
    writer: Annotated[
        GeneratorName | None, typer.Option(help="With --task: who writes the programs; default: semantic (gqa), grammar (nlvr2).")
    ] = None,
    settings: SettingsFile = None,
    changes: SetOption = None,
    modules: ModuleOption = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(help="With --task: MODULE=TEACHER: gold (scene graphs), or as for label. Default: gold for every module."),
    ] = None,
    resize: Annotated[str, typer.Option(help="With --task: what is done to pictures: none, or longest=640.")] = "none",
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="With --task: leave out, and count, what has no picture.")
    ] = False,
    json: JsonOut = None,
) -> None:
    """Compare frozen, replaced, routed, naively tuned and distilled modules on old, current and unseen tasks.

    With --task and --root: frozen against distilled modules on questions of GQA or NLVR2 that were not learned from.
    """
    from tutelage.cli import _ablations, _real_data, _study
    from tutelage.errors import InputError
    from tutelage.sdvp.study.run import StudyPlan

    wanted = tuple(range(first_seed, first_seed + (seeds or (1 if task else 3))))
    name = f"study-{task}" if task else "ablations" if ablations else "study" if dsl is Dsl.visprog else f"study-{dsl.value}"
    folder = out or Path("runs") / (f"{name}-smoke" if smoke else name)
    if task is not None:
        if root is None:
            raise InputError(
                f"{task} needs its folder", where="--root", remedy="--root DIR; `tutelage world make` draws a small one"
            )
        asked = _real_data.StudyRequest(root, wanted, dsl.value, preset, ids, resize, skip_missing, smoke)
        by = _real_data.StudyComponents(writer, _real_data.read_settings(settings, changes or ()), modules or (), teacher or ())
        _real_data.run(task, asked, by, folder, json)
    elif root or preset or ids or writer or settings or changes or modules or teacher or skip_missing:
        raise InputError("these options are for an official folder", where="study", remedy="add --task gqa or --task nlvr2")
    elif ablations:
        _ablations.run(wanted, tuple(axis or ()), smoke, folder, processes, json)
    else:
        plan = StudyPlan.smoke(first_seed, dsl.value) if smoke else StudyPlan(wanted, dsl=dsl.value)
        _study.run(plan, folder, 1 if smoke else processes, json)


def _questions(
    source: Path, layout: Layout, split: str, images: Path | None, limit: int | None, dsl: Dsl, keep: bool = False
) -> tuple[list[Question], int]:
    """The questions (with ``keep``, those without a program too), and how many have no program."""
    from tutelage.errors import InputError
    from tutelage.sdvp.sources import QuestionSource as Questions

    with progress("reading questions"):
        found = Questions(layout.value, source, split, images, limit).questions()
    written = [question for question in found if dsl.value in question.programs]
    if not written:
        raise InputError(f"no question with a {dsl.value} program", where=source, remedy="check --layout, --split and --dsl")
    return (found if keep else written), len(found) - len(written)


def _format_check(row: dict[str, Any]) -> str:
    """What the probe said of a teacher."""
    if row["calls"] == 0:
        return "teacher accepted unseen"
    word = "accepted" if row["accepted"] else "refused"
    return f"teacher {word}: right on {row['teacher']:.0%} of {row['calls']} probe calls, the module on {row['student']:.0%}"


def _format_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} calls of {name}" for name, count in counts.items())


def _table(result: dict[str, Any], json: str | None) -> None:
    from rich.table import Table

    table = Table("type", box=None)
    for name in ("accuracy", "questions"):
        table.add_column(name, justify="right")
    for kind, row in result["types"].items():
        table.add_row(kind, f"{row['accuracy']:.2f} %", str(row["questions"]))
    table.add_row("all", f"{result['accuracy']:.2f} %", str(result["questions"]))
    console(json).print(table)
