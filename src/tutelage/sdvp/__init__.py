"""SDVP: stepwise distillation for visual programs, in the order of its data: collect, adapt, label, accept, guard."""

from tutelage.sdvp.compile import Compiled, Options, compile, run_stage  # noqa: A004
from tutelage.sdvp.questions import Question

__all__ = ["Compiled", "Options", "Question", "compile", "run_stage"]
