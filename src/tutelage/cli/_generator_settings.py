"""The settings of every writer of programs, as the tables of one TOML file."""

from __future__ import annotations

from dataclasses import dataclass

from tutelage.errors import InputError
from tutelage.modules.local_llm import LocalLLMSettings
from tutelage.programs.generators.few_shot import Choice
from tutelage.programs.generators.openai_endpoint import EndpointSettings


@dataclass(frozen=True)
class GrammarSettings:
    """For writers that read the question themselves: ``single``, each image shows one thing; ``photo`` (the grammar alone),
    it is a photograph."""

    single: bool = False
    photo: bool = False


@dataclass(frozen=True)
class FileSettings:
    """For the writer gold: a JSON-lines file of programs."""

    programs: str


@dataclass(frozen=True)
class GqaFunctionalSettings:
    """For the writer semantic: a file of GQA's questions, or the folder of its chunks."""

    questions: str


@dataclass(frozen=True)
class PromptSettings:
    """For language models: ``shots`` examples by ``choice``, of the shipped ones or of a file ``examples``; the
    ``temperature`` of several samples; whether answers are kept, and in which folder ``cache``."""

    choice: Choice = "fixed"
    shots: int = 8
    examples: str | None = None
    temperature: float = 0.7
    keep: bool = True
    cache: str | None = None

    def __post_init__(self) -> None:
        for name in ("shots", "temperature"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{getattr(self, name)} is below 0", where=name, remedy="give 0 or more")


@dataclass(frozen=True)
class GeneratorSettings:
    """All tables; those of other writers than the one that writes may stand beside its own."""

    grammar: GrammarSettings = GrammarSettings()
    learned: GrammarSettings = GrammarSettings()
    gold: FileSettings | None = None
    semantic: GqaFunctionalSettings | None = None
    endpoint: EndpointSettings | None = None
    local: LocalLLMSettings | None = None
    prompt: PromptSettings = PromptSettings()
