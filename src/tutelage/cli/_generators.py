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
    from tutelage.cli._generator_settings import GeneratorSettings
    from tutelage.programs.generators.base import GenerationRequest, ProgramGenerator
    from tutelage.programs.generators.completions import LanguageModel
    from tutelage.programs.types import Signature

T = TypeVar("T")


class GeneratorName(StrEnum):
    """Every writer of programs."""

    grammar = "grammar"
    gold = "gold"
    semantic = "semantic"
    endpoint = "endpoint"
    local = "local"
    learned = "learned"


GeneratorOption = Annotated[GeneratorName, typer.Option(help="Who writes the program.")]
SettingsFile = Annotated[
    Path | None, typer.Option("--settings", metavar="FILE.toml", help="Settings of writers, a table each; see docs/writers.md.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="a.b=value", help="One setting, such as endpoint.url; may be repeated.")
]


@dataclass(frozen=True)
class GeneratorContext:
    """What a writer is made for: its settings, the requests, the modules that programs may call, a seed."""

    settings: GeneratorSettings
    requests: Sequence[GenerationRequest]
    signatures: Mapping[str, Signature]
    seed: int


def read_settings(file: Path | None, changes: Sequence[str] = ()) -> GeneratorSettings:
    """The settings in a TOML file, with ``a.b=value`` changes (a value is TOML; bare words are text).

    Raises:
        InputError: no such file, not TOML, or an unknown, missing or mistyped key.
    """
    from tutelage.cli._generator_settings import GeneratorSettings
    from tutelage.distillation.recipe import read_file

    return read_file(GeneratorSettings, file, changes)


def signatures_of(module_names: Sequence[str] = (), pretrained: bool = False) -> dict[str, Signature]:
    """What programs may call: symbolic modules, those of the embedded or ``pretrained`` set, and those that ``module_names``
    names; nothing is trained."""
    from tutelage.cli._programs import signature_of
    from tutelage.modules.detection import Loc
    from tutelage.modules.symbolic import symbolic_modules
    from tutelage.modules.vqa import Verify, Vqa

    symbolic = {name: module.signature for name, module in symbolic_modules().items()}
    networks = {"LOC": Loc.signature, "VQA": Vqa.signature, "VERIFY": Verify.signature}
    if pretrained:
        from tutelage.modules.pretrained.efficientnet import ImageNetClassifier
        from tutelage.modules.pretrained.ocr import Ocr
        from tutelage.modules.pretrained.vqa import PhotoMatch

        networks |= {kind.name: kind.signature for kind in (ImageNetClassifier, PhotoMatch, Ocr)}
    return symbolic | networks | dict(map(signature_of, module_names))


def make_generator(name: GeneratorName, context: GeneratorContext) -> ProgramGenerator:
    """The writer, made for its task.

    Raises:
        InputError, MissingExtra: settings or files that do not hold.
    """
    return _MAKERS[name](context)


@contextlib.contextmanager
def generation_progress(generator: ProgramGenerator) -> Iterator[None]:
    """A progress bar while a language model is asked."""
    from tutelage.programs.generators.llm import LLMGenerator

    if not isinstance(generator, LLMGenerator):
        yield
        return
    with progress(f"asking {generator.name}") as bar:
        generator.on_progress = bar
        yield
        generator.on_progress = None


def usage_of(generator: ProgramGenerator) -> dict[str, Any]:
    """What its drafts took so far: {writer, and for language models usage with cost, and faults by kind}."""
    from tutelage.programs.generators.llm import LLMGenerator

    if not isinstance(generator, LLMGenerator):
        return {"writer": generator.name}
    options = getattr(generator.model, "options", None)
    prices = getattr(options, "price_in", None), getattr(options, "price_out", None)
    faults = dict(getattr(generator.model, "faults", {}))
    return {"writer": generator.name, "usage": generator.usage.to_json(*prices), "faults": faults}


def format_usage(record: Mapping[str, Any]) -> str | None:
    """The cost of language models in one line; None for writers by rules."""
    usage = record.get("usage")
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
    if record["faults"]:
        parts.append("faults: " + ", ".join(f"{count} x {kind}" for kind, count in sorted(record["faults"].items())))
    return "; ".join(parts)


def _require_table(table: T | None, name: str, example: str) -> T:
    if table is None:
        remedy = f"--set {name}.{example}, or a table [{name}] in a file for --settings"
        raise InputError(f"the writer {name} has no settings", where=name, remedy=remedy)
    return table


def _grammar(context: GeneratorContext) -> ProgramGenerator:
    from tutelage.programs.generators.base import grammar_generator

    return grammar_generator(context.settings.grammar.single, context.settings.grammar.photo)


def _gold(context: GeneratorContext) -> ProgramGenerator:
    from tutelage.programs.generators.base import gold_generator
    from tutelage.programs.generators.from_file import read_programs

    return gold_generator(read_programs(_require_table(context.settings.gold, "gold", "programs=FILE.jsonl").programs))


def _gqa_functional(context: GeneratorContext) -> ProgramGenerator:
    """Of the file, only the questions that are asked are held; a request names its question by text or by id."""
    from tutelage.datasets.gqa import read_questions
    from tutelage.programs.generators.base import gqa_functional_generator

    file = _require_table(context.settings.semantic, "semantic", "questions=val_balanced_questions.json").questions
    ids: dict[str, list[str]] = {}
    for request in context.requests:
        ids.setdefault(request.question, []).append(request.id)
    found = {}
    for asked in read_questions(file):
        for name in (*ids.get(asked.question, ()), *ids.get(asked.id, ())):
            found[name] = asked.semantic
    return gqa_functional_generator(found)


def _endpoint(context: GeneratorContext) -> ProgramGenerator:
    from tutelage.programs.generators.openai_endpoint import Endpoint

    return _llm(context, Endpoint(_require_table(context.settings.endpoint, "endpoint", "url=https://host/v1"), seed=context.seed))


def _local(context: GeneratorContext) -> ProgramGenerator:
    from tutelage.modules.local_llm import LocalLLM

    return _llm(context, LocalLLM(_require_table(context.settings.local, "local", "model=FOLDER")))


def _llm(context: GeneratorContext, model: LanguageModel) -> ProgramGenerator:
    from tutelage import storage
    from tutelage.programs.generators.completions import CompletionCache
    from tutelage.programs.generators.few_shot import PromptBuilder
    from tutelage.programs.generators.llm import LLMGenerator

    how = context.settings.prompt
    own = {(request.dsl, request.inputs): how.examples for request in context.requests} if how.examples is not None else {}
    prompts = PromptBuilder(context.signatures, how.choice, how.shots, context.seed, own=own)
    responses = CompletionCache(how.cache or storage.cache_home() / "responses") if how.keep else None
    return LLMGenerator(model, prompts, cache=responses, temperature=how.temperature, seed=context.seed)


def _learned(context: GeneratorContext) -> ProgramGenerator:
    from tutelage import storage
    from tutelage.sdvp.learned_generator.training import learned_generator

    with progress("the learned writer (the first use trains it)"):
        return learned_generator(
            context.seed, storage.ContentStore(storage.cache_home() / "writers"), single=context.settings.learned.single
        )


_MAKERS: Mapping[GeneratorName, Callable[[GeneratorContext], ProgramGenerator]] = {
    GeneratorName.grammar: _grammar,
    GeneratorName.gold: _gold,
    GeneratorName.semantic: _gqa_functional,
    GeneratorName.endpoint: _endpoint,
    GeneratorName.local: _local,
    GeneratorName.learned: _learned,
}


def with_image_mode(settings: GeneratorSettings, single: bool, photos: bool = False) -> GeneratorSettings:
    """The same, for images that show one thing, where they are ``single``; else for ``photos``."""
    if single:
        grammar, learned = replace(settings.grammar, single=True), replace(settings.learned, single=True)
        return replace(settings, grammar=grammar, learned=learned)
    return replace(settings, grammar=replace(settings.grammar, photo=True)) if photos else settings
