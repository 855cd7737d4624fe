"""The settings of all program generators, as the tables of one TOML file."""

from __future__ import annotations

from dataclasses import dataclass

from tutelage.errors import InputError
from tutelage.modules.local_llm import LocalLLMSettings
from tutelage.programs.generators.few_shot import Choice
from tutelage.programs.generators.openai_endpoint import EndpointSettings
from tutelage.sdvp.real_data.study import StudySettings


@dataclass(frozen=True)
class GrammarSettings:
    """Of the generators grammar and learned: ``single``, the image shows a single object; ``photo`` (grammar only), it is a
    photograph."""

    single: bool = False
    photo: bool = False


@dataclass(frozen=True)
class FileSettings:
    """Of the generator gold: a JSON-lines file of programs."""

    programs: str


@dataclass(frozen=True)
class GqaFunctionalSettings:
    """Of the generator semantic: a file of GQA's questions, or the folder of its chunks."""

    questions: str


@dataclass(frozen=True)
class PromptSettings:
    """Of language models: ``shots`` examples by ``choice``, from the package or from a file ``examples``; the
    ``temperature`` of several samples; whether completions are kept, and in which folder ``cache``."""

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
    """Settings of all generators. Tables of generators that are not used are ignored."""

    grammar: GrammarSettings = GrammarSettings()
    learned: GrammarSettings = GrammarSettings()
    gold: FileSettings | None = None
    semantic: GqaFunctionalSettings | None = None
    endpoint: EndpointSettings | None = None
    local: LocalLLMSettings | None = None
    prompt: PromptSettings = PromptSettings()


@dataclass(frozen=True)
class RealDataSettings(GeneratorSettings):
    """The same, and the settings of `sdvp study --task`."""

    study: StudySettings = StudySettings()
