"""Blame: which module's step made an answer wrong, and what perfect steps would win back."""

from tutelage.sdvp.attribution.attribute import (
    ErrorAttribution,
    ModuleErrorRow,
    QuestionTypeSummary,
    StepAttribution,
    attribute_errors,
    shapley,
)
from tutelage.sdvp.attribution.sources import StepOracle, gold_oracle, teacher_oracle

__all__ = [
    "ErrorAttribution",
    "QuestionTypeSummary",
    "ModuleErrorRow",
    "StepOracle",
    "StepAttribution",
    "attribute_errors",
    "gold_oracle",
    "shapley",
    "teacher_oracle",
]
