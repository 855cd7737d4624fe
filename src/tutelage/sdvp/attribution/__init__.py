"""Blame: which module's step made an answer wrong, and what perfect steps would win back."""

from tutelage.sdvp.attribution.attribute import Blame, KindSummary, Row, StepBlame, blame, shapley
from tutelage.sdvp.attribution.sources import Source, gold_source, teacher_source

__all__ = ["Blame", "KindSummary", "Row", "Source", "StepBlame", "blame", "gold_source", "shapley", "teacher_source"]
