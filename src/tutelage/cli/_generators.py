"""What `write` and `solve` share: which writer writes, its settings from a file and from the command line, what it took."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from tutelage.cli.common import progress
from tutelage.errors import InputError

if TYPE_CHECKING:
    from tutelage.cli._generator_settings import WriterSettings
    from tutelage.programs.types import Signature
    from tutelage.programs.generators.completions import LanguageModel
    from tutelage.programs.generators.base import Request, Writer

T = TypeVar("T")


class WriterName(StrEnum):
    """Every writer of programs."""

    grammar = "grammar"
    gold = "gold"
    semantic = "semantic"
    endpoint = "endpoint"
    local = "local"
    learned = "learned"


WriterOption = Annotated[WriterName, typer.Option(help="Who writes the program.")]
SettingsFile = Annotated[
    Path | None, typer.Option("--settings", metavar="FILE.toml", help="Settings of writers, a table each; see docs/writers.md.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="a.b=value", help="One setting, such as endpoint.url; may be repeated.")
]


@dataclass(frozen=True)
class Task:
    """What a writer is made for: its settings, the requests, the modules that programs may call, a seed."""

    settings: WriterSettings
    requests: Sequence[Request]
    signatures: Mapping[str, Signature]
    seed: int


def read_settings(file: Path | None, changes: Sequence[str] = ()) -> WriterSettings:
    """The settings in a TOML file, with ``a.b=value`` changes (a value is TOML; bare words are text).

    Raises:
        InputError: no such file, not TOML, or an unknown, missing or mistyped key.
    """
    from tutelage.cli._generator_settings import WriterSettings
    from tutelage.distillation.recipe import read_file

    return read_file(WriterSettings, file, changes)


def signatures_of(taught: Sequence[str] = (), packaged: bool = False) -> dict[str, Signature]:
    """What programs may call: symbolic modules, those of the embedded or ``packaged`` set, and those that ``taught``
    names; nothing is trained."""
    from tutelage.cli._programs import signature_of
    from tutelage.modules.vqa import Verify, Vqa
    from tutelage.modules.detection import Loc
    from tutelage.modules.symbolic import symbolic_modules

    symbolic = {name: module.signature for name, module in symbolic_modules().items()}
    networks = {"LOC": Loc.signature, "VQA": Vqa.signature, "VERIFY": Verify.signature}
    if packaged:
        from tutelage.modules.pretrained.vqa import Match
        from tutelage.modules.pretrained.efficientnet import Classify
        from tutelage.modules.pretrained.ocr import Ocr

        networks |= {kind.name: kind.signature for kind in (Classify, Match, Ocr)}
    return symbolic | networks | dict(map(signature_of, taught))


def writer_of(name: WriterName, task: Task) -> Writer:
    """The writer, made for its task.

    Raises:
        InputError, MissingExtra: settings or files that do not hold.
    """
    return _MAKERS[name](task)


@contextlib.contextmanager
def asking(writer: Writer) -> Iterator[None]:
    """A progress bar while a language model is asked."""
    from tutelage.programs.generators.llm import PromptedWriter

    if not isinstance(writer, PromptedWriter):
        yield
        return
    with progress(f"asking {writer.name}") as bar:
        writer.on_done = bar
        yield
        writer.on_done = None


def taken(writer: Writer) -> dict[str, Any]:
    """What its drafts took so far: {writer, and for language models usage with cost, and faults by kind}."""
    from tutelage.programs.generators.llm import PromptedWriter

    if not isinstance(writer, PromptedWriter):
        return {"writer": writer.name}
    options = getattr(writer.model, "options", None)
    prices = getattr(options, "price_in", None), getattr(options, "price_out", None)
    faults = dict(getattr(writer.model, "faults", {}))
    return {"writer": writer.name, "usage": writer.usage.to_json(*prices), "faults": faults}


def spent(took: Mapping[str, Any]) -> str | None:
    """The cost of language models in one line; None for writers by rules."""
    usage = took.get("usage")
    if usage is None:
        return None
    parts = [f"{usage['answers']} answers", f"{usage['cached']} from the cache"]
    parts += [f"{usage['tokens_in']:,} tokens in, {usage['tokens_out']:,} out"]
    if usage["cost"] is not None:
        parts.append(f"cost {usage['cost']:.6f}" + (" at least" if usage["unreported"] else ""))
    if usage["unreported"]:
        parts.append(f"{usage['unreported']} answers without token counts")
    if usage["failures"]:
        parts.append(f"{usage['failures']} requests failed")
    if took["faults"]:
        parts.append("faults: " + ", ".join(f"{count} x {kind}" for kind, count in sorted(took["faults"].items())))
    return "; ".join(parts)


def _needed(part: T | None, name: str, example: str) -> T:
    if part is None:
        remedy = f"--set {name}.{example}, or a table [{name}] in a file for --settings"
        raise InputError(f"the writer {name} has no settings", where=name, remedy=remedy)
    return part


def _grammar(task: Task) -> Writer:
    from tutelage.programs.generators.base import grammar_writer

    return grammar_writer(task.settings.grammar.single, task.settings.grammar.photo)


def _gold(task: Task) -> Writer:
    from tutelage.programs.generators.from_file import read_programs
    from tutelage.programs.generators.base import gold_writer

    return gold_writer(read_programs(_needed(task.settings.gold, "gold", "programs=FILE.jsonl").programs))


def _semantic(task: Task) -> Writer:
    """Of the file, only the questions that are asked are held; a request names its question by text or by id."""
    from tutelage.programs.generators.base import semantic_writer
    from tutelage.datasets.gqa import read_questions

    file = _needed(task.settings.semantic, "semantic", "questions=val_balanced_questions.json").questions
    ids: dict[str, list[str]] = {}
    for request in task.requests:
        ids.setdefault(request.question, []).append(request.id)
    found = {}
    for asked in read_questions(file):
        for name in (*ids.get(asked.question, ()), *ids.get(asked.id, ())):
            found[name] = asked.semantic
    return semantic_writer(found)


def _endpoint(task: Task) -> Writer:
    from tutelage.programs.generators.openai_endpoint import Endpoint

    return _prompted(task, Endpoint(_needed(task.settings.endpoint, "endpoint", "url=https://host/v1"), seed=task.seed))


def _local(task: Task) -> Writer:
    from tutelage.modules.local_llm import LocalModel

    return _prompted(task, LocalModel(_needed(task.settings.local, "local", "model=FOLDER")))


def _prompted(task: Task, model: LanguageModel) -> Writer:
    from tutelage import storage
    from tutelage.programs.generators.llm import PromptedWriter
    from tutelage.programs.generators.few_shot import Prompts
    from tutelage.programs.generators.completions import Responses

    how = task.settings.prompt
    own = {(request.dsl, request.inputs): how.examples for request in task.requests} if how.examples is not None else {}
    prompts = Prompts(task.signatures, how.choice, how.shots, task.seed, own=own)
    responses = Responses(how.cache or storage.cache_home() / "responses") if how.keep else None
    return PromptedWriter(model, prompts, responses=responses, temperature=how.temperature, seed=task.seed)


def _learned(task: Task) -> Writer:
    from tutelage import files
    from tutelage.sdvp.learned_generator.training import learned_writer

    with progress("the learned writer (the first use trains it)"):
        return learned_writer(task.seed, storage.Store(storage.cache_home() / "writers"), single=task.settings.learned.single)


_MAKERS: Mapping[WriterName, Callable[[Task], Writer]] = {
    WriterName.grammar: _grammar,
    WriterName.gold: _gold,
    WriterName.semantic: _semantic,
    WriterName.endpoint: _endpoint,
    WriterName.local: _local,
    WriterName.learned: _learned,
}


def fitted(settings: WriterSettings, single: bool, photographs: bool = False) -> WriterSettings:
    """The same, for images that show one thing, where they are ``single``; else for ``photographs``."""
    if single:
        grammar, learned = replace(settings.grammar, single=True), replace(settings.learned, single=True)
        return replace(settings, grammar=grammar, learned=learned)
    return replace(settings, grammar=replace(settings.grammar, photo=True)) if photographs else settings
