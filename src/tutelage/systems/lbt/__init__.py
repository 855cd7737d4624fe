"""LbT: learning by teaching. The whole account is in ``tool.py``."""

from __future__ import annotations

from tutelage.systems.lbt.answers import normalize_answer, parse_answer, same_answer
from tutelage.systems.lbt.exams import Exam, ExamReport, Shot, exam_prompt, solution_prompt, take_exams
from tutelage.systems.lbt.exemplars import (
    Failure,
    Labelled,
    PromptedWriter,
    Search,
    SearchSettings,
    f1_score,
    prompted_classifier,
    search_exemplars,
)
from tutelage.systems.lbt.preferences import preference_pairs, preference_score
from tutelage.systems.lbt.rows import (
    Problem,
    exams_of,
    read_exams,
    read_problems,
    read_samples,
    read_shots,
    write_samples,
)
from tutelage.systems.lbt.selection import RULES, AnswerScore, Choice, Sample, select
from tutelage.systems.lbt.tool import Answered, LbT

__all__ = [
    "RULES",
    "AnswerScore",
    "Answered",
    "Choice",
    "Exam",
    "ExamReport",
    "Failure",
    "Labelled",
    "LbT",
    "Problem",
    "PromptedWriter",
    "Sample",
    "Search",
    "SearchSettings",
    "Shot",
    "exam_prompt",
    "exams_of",
    "f1_score",
    "normalize_answer",
    "parse_answer",
    "preference_pairs",
    "preference_score",
    "prompted_classifier",
    "read_exams",
    "read_problems",
    "read_samples",
    "read_shots",
    "same_answer",
    "search_exemplars",
    "select",
    "solution_prompt",
    "take_exams",
    "write_samples",
]
