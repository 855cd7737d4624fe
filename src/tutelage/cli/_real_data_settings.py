"""The settings of a study on an official folder: those of every writer, and the study's own."""

from __future__ import annotations

from dataclasses import dataclass

from tutelage.cli._generator_settings import GeneratorSettings
from tutelage.sdvp.real_data.study import StudySettings


@dataclass(frozen=True)
class RealDataSettings(GeneratorSettings):
    """All tables of one TOML file."""

    study: StudySettings = StudySettings()
