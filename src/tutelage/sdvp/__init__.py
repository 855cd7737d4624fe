"""SDVP: stepwise distillation for visual programs, in the order of its data: collect, adapt, label, accept, guard."""

from tutelage.sdvp.compile import CompileResult, SdvpOptions, SdvpTask, accuracy, compile, distill_task  # noqa: A004
from tutelage.sdvp.continual.options import with_strategy
from tutelage.sdvp.questions import Question, solve
from tutelage.sdvp.sources import questions_from

__all__ = [
    "CompileResult",
    "SdvpOptions",
    "Question",
    "SdvpTask",
    "accuracy",
    "compile",
    "questions_from",
    "with_strategy",
    "distill_task",
    "solve",
]
