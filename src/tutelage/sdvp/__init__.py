"""SDVP: stepwise distillation for visual programs. Read ``pipeline.py`` first: it is the order of the data."""

from tutelage.sdvp.compile import compile, distill_task  # noqa: A004
from tutelage.sdvp.options import SdvpOptions, with_strategy
from tutelage.sdvp.questions import Question, accuracy, solve, split_by_image
from tutelage.sdvp.sources import questions_from
from tutelage.sdvp.task import CompileResult, SdvpTask

__all__ = [
    "CompileResult",
    "SdvpOptions",
    "Question",
    "SdvpTask",
    "accuracy",
    "compile",
    "questions_from",
    "split_by_image",
    "with_strategy",
    "distill_task",
    "solve",
]
