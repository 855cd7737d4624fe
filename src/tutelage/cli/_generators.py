"""Program generators from their options and settings, and what they used."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tutelage.cli._options import PRETRAINED, TOY, GeneratorName
from tutelage.errors import InputError
from tutelage.terminal import progress

if TYPE_CHECKING:
    from tutelage.cli._generator_settings import GeneratorSettings
    from tutelage.programs.generators.base import GenerationRequest, ProgramGenerator
    from tutelage.programs.generators.completions import CompletionCache, LanguageModel, Usage
    from tutelage.programs.types import Signature

T = TypeVar("T")


@dataclass(frozen=True)
class GeneratorContext:
    """What a generator is made from: settings, requests, the modules that programs may call, a seed."""

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


def signatures_of(choice: str | None = None, names: Sequence[str] = ()) -> dict[str, Signature]:
    """What programs may call: the signatures of :func:`tutelage.cli._modules.load_modules`; nothing is trained."""
    from tutelage.cli._modules import load_module, saved_modules, signature_of
    from tutelage.cli._user_code import is_user_code
    from tutelage.modules.detection import Loc
    from tutelage.modules.symbolic import symbolic_modules
    from tutelage.modules.vqa import Verify, Vqa

    symbolic = {name: module.signature for name, module in symbolic_modules().items()}
    networks = {"LOC": Loc.signature, "VQA": Vqa.signature, "VERIFY": Verify.signature}
    named = dict(map(signature_of, names))
    if choice == PRETRAINED:
        from tutelage.modules.pretrained.efficientnet import ImageNetClassifier
        from tutelage.modules.pretrained.ocr import Ocr
        from tutelage.modules.pretrained.vqa import PhotoMatch

        networks |= {kind.name: kind.signature for kind in (ImageNetClassifier, PhotoMatch, Ocr)}
    elif choice not in (None, TOY):
        own = [load_module(name) for name in names if is_user_code(name)]  # a saved module may be of such a class
        networks |= {module.name: module.signature for module in saved_modules(Path(choice), own)}
    return symbolic | networks | named


def make_generator(name: GeneratorName, context: GeneratorContext) -> ProgramGenerator:
    """The generator of this name.

    Raises:
        InputError, MissingExtra: settings or files that do not hold.
    """
    return _MAKERS[name](context)


@contextlib.contextmanager
def generation_progress(generator: ProgramGenerator) -> Iterator[None]:
    """A progress bar while a language model generates."""
    from tutelage.programs.generators.llm import LLMGenerator

    if not isinstance(generator, LLMGenerator):
        yield
        return
    with progress(f"querying {generator.name}") as bar:
        generator.on_progress = bar
        yield
        generator.on_progress = None


def usage_of(generator: ProgramGenerator) -> dict[str, Any]:
    """What the generator used so far: {writer, and for language models usage with cost, and faults by kind}."""
    from tutelage.programs.generators.llm import LLMGenerator

    if not isinstance(generator, LLMGenerator):
        return {"writer": generator.name}
    return {"writer": generator.name} | usage_of_model(generator.model, generator.usage)


def usage_of_model(model: LanguageModel, usage: Usage) -> dict[str, Any]:
    """What a language model used: {usage with cost, faults by kind}."""
    options = getattr(model, "options", None)
    prices = getattr(options, "price_in", None), getattr(options, "price_out", None)
    return {"usage": usage.to_json(*prices), "faults": dict(getattr(model, "faults", {}))}


def language_model(settings: GeneratorSettings, seed: int = 0) -> tuple[LanguageModel, CompletionCache | None]:
    """The endpoint or the local model of the settings, and the cache of its answers (None where ``prompt.keep`` is false).

    Raises:
        InputError: neither is set, or both.
        MissingExtra: the package of the one that is set is not installed.
    """
    from tutelage import storage
    from tutelage.modules.local_llm import LocalLLM
    from tutelage.programs.generators.completions import CompletionCache
    from tutelage.programs.generators.openai_endpoint import Endpoint

    if (settings.endpoint is None) == (settings.local is None):
        state = "no language model is set" if settings.endpoint is None else "an endpoint and a local model are set"
        remedy = "--set endpoint.url=https://host/v1 --set endpoint.model=NAME, or --set local.model=FOLDER"
        raise InputError(state, where="settings", remedy=remedy)
    model: LanguageModel = Endpoint(settings.endpoint, seed=seed) if settings.endpoint is not None else LocalLLM(settings.local)  # type: ignore[arg-type]
    kept = CompletionCache(settings.prompt.cache or storage.cache_home() / "responses") if settings.prompt.keep else None
    return model, kept


def format_usage(record: Mapping[str, Any]) -> str | None:
    """The cost of language models in one line; None for rule-based generators."""
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
        raise InputError(f"the generator {name} has no settings", where=name, remedy=remedy)
    return table


def _grammar(context: GeneratorContext) -> ProgramGenerator:
    from tutelage.programs.generators.base import grammar_generator

    return grammar_generator(context.settings.grammar.single, context.settings.grammar.photo)


def _gold(context: GeneratorContext) -> ProgramGenerator:
    from tutelage.programs.generators.base import gold_generator
    from tutelage.programs.generators.from_file import read_programs

    return gold_generator(read_programs(_require_table(context.settings.gold, "gold", "programs=FILE.jsonl").programs))


def _gqa_functional(context: GeneratorContext) -> ProgramGenerator:
    """Only the requested questions of the file are kept; a request names its question by text or by id."""
    from tutelage.datasets.gqa import read_questions
    from tutelage.programs.generators.base import gqa_functional_generator

    file = _require_table(context.settings.semantic, "semantic", "questions=val_balanced_questions.json").questions
    ids: dict[str, list[str]] = {}
    for request in context.requests:
        ids.setdefault(request.question, []).append(request.id)
    programs = {}
    for record in read_questions(file):
        for name in (*ids.get(record.question, ()), *ids.get(record.id, ())):
            programs[name] = record.semantic
    return gqa_functional_generator(programs)


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

    settings = context.settings.prompt
    own = (
        {(request.dsl, request.inputs): settings.examples for request in context.requests} if settings.examples is not None else {}
    )
    prompts = PromptBuilder(context.signatures, settings.choice, settings.shots, context.seed, own=own)
    responses = CompletionCache(settings.cache or storage.cache_home() / "responses") if settings.keep else None
    return LLMGenerator(model, prompts, cache=responses, temperature=settings.temperature, seed=context.seed)


def _learned(context: GeneratorContext) -> ProgramGenerator:
    from tutelage import storage
    from tutelage.sdvp.learned_generator.training import learned_generator

    with progress("the learned generator (trained at the first use)"):
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
    """``settings`` for images with a single object, or for photographs."""
    if single:
        grammar, learned = replace(settings.grammar, single=True), replace(settings.learned, single=True)
        return replace(settings, grammar=grammar, learned=learned)
    return replace(settings, grammar=replace(settings.grammar, photo=True)) if photos else settings
