"""SDVP: stepwise distillation for visual programs, in the order of its data: collect, adapt, label, accept, guard."""

from tutelage.sdvp.compile import Compiled, Options, Stage, accuracy, compile, run_stage  # noqa: A004
from tutelage.sdvp.questions import Question, solve
from tutelage.sdvp.continual.options import retaining
from tutelage.sdvp.sources import questions_from

__all__ = ["Compiled", "Options", "Question", "Stage", "accuracy", "compile", "questions_from", "retaining", "run_stage", "solve"]
